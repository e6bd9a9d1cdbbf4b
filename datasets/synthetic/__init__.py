"""A procedural city of street places, in the GSV-Cities format and in the benchmark format.

`make_city` writes a city; `draw_place` and `draw_photo` draw single photos. The command is
`python -m datasets.synthetic`.
"""

from datasets.synthetic.city import contact_sheet, make_city
from datasets.synthetic.config import CITIES, CityConfig
from datasets.synthetic.domain import Domain
from datasets.synthetic.photo import ROLES, Photo, draw_photo
from datasets.synthetic.randomness import PlaceId
from datasets.synthetic.scene import Scene, draw_place

__all__ = [
    "CITIES",
    "ROLES",
    "CityConfig",
    "Domain",
    "Photo",
    "PlaceId",
    "Scene",
    "contact_sheet",
    "draw_photo",
    "draw_place",
    "make_city",
]
