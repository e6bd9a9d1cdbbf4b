"""A procedural city of street places, in the GSV-Cities format and in the benchmark format.

`make_city` writes a city; `draw_place` and `draw_photo` draw single photos. The command is
`python -m datasets.synthetic`.
"""

from datasets.synthetic.city import contact_sheet, make_city
from datasets.synthetic.config import CityConfig, Domain
from datasets.synthetic.photo import draw_photo
from datasets.synthetic.randomness import PlaceId
from datasets.synthetic.scene import draw_place

__all__ = ["CityConfig", "Domain", "PlaceId", "contact_sheet", "draw_photo", "draw_place", "make_city"]
