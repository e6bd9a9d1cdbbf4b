"""A place as textured planes in space.

x runs to the right of the place's view, y up and z into the view, in metres. A place is drawn once; each photo
looks at its planes through another camera, in other light, weather and season.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from datasets.synthetic.buildings import SHEET_HEIGHT, draw_row
from datasets.synthetic.config import DEFAULT_DOMAIN, Domain
from datasets.synthetic.drawing import Box, Sheet
from datasets.synthetic.interior import draw_blocks, draw_ceiling, draw_decor, draw_floor, draw_wall
from datasets.synthetic.randomness import PLACES_PER_STREET, PlaceId, between
from datasets.synthetic.style import Style, draw_style
from datasets.synthetic.surroundings import draw_ground, draw_skyline, draw_tree

TEXTURE_DETAIL = 1.35  # texture pixels per photo pixel, at the nearest wall
HALF_VIEW = math.radians(36)  # half the horizontal angle of view, before zoom
PAVEMENT = 2.2  # metres, its width in a view along the street
OVERLAP = 0.15  # metres
BEHIND = 4.0  # metres of a corridor behind the camera's place
STEP = 4.0  # metres from one place of a corridor to the next

Vector = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A textured plane: pixel (s, t) of the texture lies at `origin + s * right + t * down`.

    origin, right, down: float64 [3], metres.
    colour: RGBa image (premultiplied); for a tree an RGB image of wood, leaves and the leaves' brightness.
    label: L image of the same size, the label map; None for trees and indoors.
    """

    kind: Literal["wall", "ground", "skyline", "tree"]
    colour: Image.Image
    label: Image.Image | None
    origin: np.ndarray
    right: np.ndarray
    down: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A place, ready for photos of `size` = (width, height) pixels.

    surfaces: from far to near. lamps: float64 [n, 3], positions of the street lamps in metres.
    yaw: of the usual view, in radians. heading: compass heading of the z axis, in degrees.
    """

    place: PlaceId
    domain: Domain
    style: Style
    surfaces: list[Surface]
    lamps: np.ndarray
    yaw: float
    size: tuple[int, int]
    heading: float


def focal_length(size: tuple[int, int]) -> float:
    """The focal length in pixels, before zoom, for photos of `size` = (width, height) pixels."""
    return 0.5 * max(size[0], 4 / 3 * size[1]) / math.tan(HALF_VIEW)


def draw_place(place: PlaceId, size: tuple[int, int], domain: Domain = DEFAULT_DOMAIN) -> Scene:
    """Draws a place of the domain for photos of `size` = (width, height) pixels."""
    style = draw_style(place, domain)
    rng = place.place_stream()
    focal = focal_length(size)
    yaw = between(rng, -0.12, 0.12) if style.along else between(rng, -0.45, 0.45)
    scale = TEXTURE_DETAIL * focal / (9.0 if style.along else style.distance)
    spots: list[Vector] = []  # for trees and lamps
    if style.indoors:
        surfaces = draw_view_indoors(place, style, focal=focal)
    else:
        if style.along:
            surfaces, spots = draw_view_along(rng, style, scale=scale, focal=focal)
        else:
            surfaces, spots = draw_view_across(rng, style, scale=scale, yaw=yaw)
        skyline = draw_skyline(rng, (400.0, 45.0), TEXTURE_DETAIL * focal / 150)  # 150 m away, square to the view
        towards, right = np.array((math.sin(yaw), 0, math.cos(yaw))), np.array((math.cos(yaw), 0, -math.sin(yaw)))
        surfaces.insert(0, hang("skyline", skyline, origin=150 * towards - 200 * right + (0, 45, 0), right=right))
    order = rng.permutation(len(spots))
    for spot in sorted((spots[i] for i in order[: style.trees]), key=lambda spot: -spot[2]):
        tree = draw_tree(rng, scale)
        grown = between(rng, 0.8, 1.25) / scale  # metres per pixel
        origin = np.array(spot) + grown * np.array((-0.5 * tree.width, tree.height, 0))
        right, down = np.array((grown, 0, 0)), np.array((0, -grown, 0))
        surfaces.append(Surface(kind="tree", colour=tree, label=None, origin=origin, right=right, down=down))
    lit = [spots[i] for i in order[style.trees : style.trees + 2]]
    return Scene(
        place=place,
        domain=domain,
        style=style,
        surfaces=surfaces,
        lamps=np.array(lit).reshape(-1, 3) + (0, 5.0, 0),
        yaw=yaw,
        size=size,
        heading=360 * place.street_stream(1).random(),
    )


def draw_view_along(
    rng: np.random.Generator, style: Style, *, scale: float, focal: float
) -> tuple[list[Surface], list[Vector]]:
    """A view along a street that a row of houses closes: its surfaces and spots."""
    length, half = between(rng, 26, 48), style.distance
    row = draw_row(rng, style, length=40.0, scale=TEXTURE_DETAIL * focal / length)
    depth = length + 4
    kerbs: list[Box] = [(0, 0, PAVEMENT, depth), (2 * half - PAVEMENT, 0, 2 * half, depth)]
    ground = draw_ground(rng, style, size=(2 * half, depth), kerbs=kerbs, scale=0.6 * scale)
    surfaces = [
        hang("wall", row, origin=(-20, SHEET_HEIGHT, length + 6)),
        hang("ground", ground, origin=(-half, 0, length + 1), down=(0, 0, -1)),
    ]
    for side in (-1, 1):
        wall = draw_row(rng, style, length=length, scale=scale)
        parts = {(15.0, length): (3, 2), (0.0, 15.0): (1, 1)}
        surfaces += hang_side_wall(wall, side, x=half, z=1.0, parts=parts)
    spots = [(side * (half - 1.5), 0.0, z) for side in (-1, 1) for z in (9.0, 17.0, 25.0)]
    return surfaces, spots


def draw_view_indoors(place: PlaceId, style: Style, *, focal: float) -> list[Surface]:
    """A view along a corridor: its surfaces, from far to near.

    The places of a street lie along one corridor, STEP apart. Walls, floor and ceiling overlap a little, so that no
    gaps show between them.
    """
    rng = place.street_stream(5)
    decor, half, edge = draw_decor(place), style.distance, style.distance + OVERLAP
    ahead = between(rng, 12, 36)  # of the last place
    here = BEHIND + place.number % PLACES_PER_STREET * STEP  # from the beginning of the corridor
    length = BEHIND + (PLACES_PER_STREET - 1) * STEP + ahead
    scale = 0.6 * TEXTURE_DETAIL * focal / half
    end = draw_wall(rng, decor, length=2 * edge, scale=2 * TEXTURE_DETAIL * focal / ahead)
    size = (2 * edge, length)
    floor, ceiling = (draw(rng, decor, size=size, scale=0.7 * scale) for draw in (draw_floor, draw_ceiling))
    surfaces = [
        hang("wall", end, origin=(-edge, decor.height, length - OVERLAP - here)),
        hang("wall", floor, origin=(-edge, 0, length - here), down=(0, 0, -1)),
        hang("wall", ceiling, origin=(-edge, decor.height, length - here), down=(0, 0, -1)),
    ]
    for side in (-1, 1):
        wall = draw_wall(rng, decor, length=length, scale=scale)
        parts = {(here + 6.0 - OVERLAP, length): (4, 2), (here - BEHIND, here + 6.0): (1, 1)}
        surfaces += hang_side_wall(wall, side, x=half, z=-here, parts=parts)
    for block in draw_blocks(rng, decor, length=length, scale=scale):
        near, far = block.near - here, block.far - here
        if far < -BEHIND:
            continue
        x, top = block.side * (half - block.depth), block.front.height
        surfaces.append(hang("wall", block.end, origin=(min(x, block.side * half), top, near)))
        origin = (x, top, near if block.side < 0 else far)
        surfaces.append(hang("wall", block.front, origin=origin, right=(0, 0, -block.side)))
    return [replace(surface, label=None) for surface in surfaces]  # nothing glows, which saves looking it up


def draw_view_across(
    rng: np.random.Generator, style: Style, *, scale: float, yaw: float
) -> tuple[list[Surface], list[Vector]]:
    """A view of the houses on the other side of a street: its surfaces and spots."""
    far = style.distance
    left = far * math.tan(min(max(yaw - 0.85, -1.2), 1.2)) - 3
    right = far * math.tan(min(max(yaw + 0.85, -1.2), 1.2)) + 3
    width, depth = right - left, far + 4
    row = draw_row(rng, style, length=width, scale=scale)
    ground = draw_ground(rng, style, size=(width, depth), kerbs=[(0, far + 1, width, depth)], scale=0.6 * scale)
    surfaces = [
        hang("wall", row, origin=(left, SHEET_HEIGHT, far)),
        hang("ground", ground, origin=(left, 0, far), down=(0, 0, -1)),
    ]
    middle = far * math.tan(yaw)
    spots = [(middle + x + between(rng, -1.5, 1.5), 0.0, far - 2.3) for x in (-9.0, -3.0, 3.0, 9.0)]
    return surfaces, spots


def hang_side_wall(
    sheet: Sheet, side: int, *, x: float, z: float, parts: dict[tuple[float, float], tuple[int, int]]
) -> list[Surface]:
    """Parts of a wall `x` metres to the left (side -1) or right (1) of the camera, which begins at `z` metres ahead.

    parts: {(start, end), in metres from the beginning: `reduce` of hang}.
    """
    surfaces = []
    for (start, end), reduce in parts.items():
        # The x axis of the left wall's sheet runs away from the camera, that of the right wall's towards it.
        part = sheet.crop(start, end) if side < 0 else sheet.crop(sheet.width - end, sheet.width - start)
        origin = (side * x, sheet.height, z + (start if side < 0 else end))
        surfaces.append(hang("wall", part, origin=origin, right=(0, 0, -side), reduce=reduce))
    return surfaces


def hang(
    kind: Literal["wall", "ground", "skyline"],
    sheet: Sheet,
    *,
    origin: Vector,
    right: Vector | np.ndarray = (1, 0, 0),
    down: Vector = (0, -1, 0),
    reduce: tuple[int, int] = (1, 1),
) -> Surface:
    """Hangs a sheet into space: its upper left corner at `origin` (metres), its edges along two unit vectors.

    `reduce` divides the texture's width and height by whole numbers.
    """
    colour, label = sheet.colour.convert("RGBa"), sheet.label
    if reduce != (1, 1):
        colour = colour.reduce(reduce)
        label = label.resize(colour.size, Image.Resampling.NEAREST)
    metres = np.array(reduce, float) / sheet.scale  # per pixel of the texture
    return Surface(
        kind=kind,
        colour=colour,
        label=label,
        origin=np.array(origin, float),
        right=metres[0] * np.array(right, float),
        down=metres[1] * np.array(down, float),
    )
