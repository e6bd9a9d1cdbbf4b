"""The style of a street: what its buildings, ground and trees have in common."""

from dataclasses import dataclass, replace

from datasets.synthetic.config import Domain
from datasets.synthetic.drawing import Colour, hsv
from datasets.synthetic.randomness import PlaceId, between, pick


@dataclass(frozen=True, kw_only=True)
class Style:
    """What the places of a street have in common. Lengths are in metres; hue, saturation and value in 0..1.

    hue, hue_spread, saturation, value: the walls' usual colour. painted: share of walls in a colour of their own.
    windows, roofs: kinds to choose from. courses: distance between lines in the walls, 0 for none.
    storey: its height. bay: usual distance between windows. storeys: usual number above the ground floor.
    shops: share of buildings with a shop. trim, paving, road: colours. trees: trees in each place.
    along: whether photos look along the street instead of across it. indoors: whether it is a corridor of a building.
    distance: from the camera to the walls at its sides (along) or to the wall ahead (across).
    """

    hue: float
    hue_spread: float
    saturation: float
    value: float
    windows: tuple[str, ...]
    roofs: tuple[str, ...]
    courses: float
    storey: float
    bay: float
    storeys: int
    shops: float
    trim: Colour
    paving: Colour
    road: Colour
    trees: int
    painted: float
    along: bool
    indoors: bool
    distance: float


def draw_style(place: PlaceId, domain: Domain) -> Style:
    """The style of the street that the place lies in."""
    rng = place.street_stream()
    indoors = "indoors" in domain.views and place.street_stream(2).random() * len(domain.views) < 1
    grey = between(rng, 0.28, 0.45)
    view = "along" if rng.random() < 0.4 else "across"
    along = indoors or "across" not in domain.views or (view == "along" and "along" in domain.views)
    # The arguments draw their random numbers in this order. Another order gives other cities.
    style = Style(
        hue=pick(rng, (0.02, 0.06, 0.1, 0.13, 0.6 * rng.random())),
        hue_spread=pick(rng, (0.04, 0.08, 0.2)),
        saturation=between(rng, 0.1, 0.6),
        value=between(rng, 0.52, 0.88),
        windows=tuple(pick(rng, domain.windows) for _ in range(2)),
        roofs=tuple(pick(rng, domain.roofs) for _ in range(2)),
        courses=pick(rng, (0, 0.4, 0.8, 1.6)),
        storey=between(rng, 2.9, 3.7),
        bay=between(rng, 1.9, 3.2),
        storeys=pick(rng, (1, 2, 2, 3, 3, 4)),
        shops=between(rng, 0.15, 0.85),
        trim=pick(rng, ((235, 230, 215), (205, 200, 190), (80, 75, 75), (150, 110, 80))),
        paving=hsv(between(rng, 0.05, 0.15), between(rng, 0.0, 0.2), grey + 0.18),
        road=hsv(0.6, 0.05, grey),
        trees=pick(rng, (0, 1, 2, 3)),
        painted=between(rng, 0.2, 0.7),
        along=along,
        indoors=indoors,
        distance=between(rng, 5.0, 8.0) if along else between(rng, 11, 17),
    )
    return replace(style, distance=between(rng, 0.9, 2.0)) if indoors else style
