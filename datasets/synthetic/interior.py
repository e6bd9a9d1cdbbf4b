"""The inside of buildings: the walls, floor and ceiling of a corridor, and what stands along it."""

from dataclasses import dataclass

import numpy as np

from datasets.synthetic.drawing import Box, Colour, Sheet, hsv, tone, vivid
from datasets.synthetic.randomness import PlaceId, between, pick

DOOR_HEIGHT = 2.1  # metres
WOOD: Colour = (140, 105, 70)


@dataclass(frozen=True, kw_only=True)
class Decor:
    """What the corridors of a building have in common: colours; `height` of the ceiling in metres; `busy`, the share of
    the walls that something is on.
    """

    wall: Colour
    accent: Colour
    door: Colour
    floor: Colour
    ceiling: Colour
    metal: Colour
    height: float
    busy: float


def draw_decor(place: PlaceId) -> Decor:
    """The decor of the building that the place lies in, which takes the place of a street."""
    rng = place.street_stream(3)
    accent = hsv(rng.random(), between(rng, 0.3, 0.9), between(rng, 0.3, 0.8))
    plain = hsv(between(rng, 0.05, 0.17), between(rng, 0.0, 0.2), between(rng, 0.7, 0.95))
    return Decor(
        wall=pick(rng, (plain, plain, plain, hsv(rng.random(), between(rng, 0.1, 0.4), between(rng, 0.6, 0.9)))),
        accent=accent,
        door=pick(rng, (accent, accent, WOOD, tone(plain, 0.9), vivid(rng))),
        floor=hsv(rng.random(), between(rng, 0.0, 0.35), between(rng, 0.2, 0.65)),
        ceiling=hsv(0.13, between(rng, 0.0, 0.1), between(rng, 0.75, 0.95)),
        metal=hsv(rng.random(), between(rng, 0.0, 0.25), between(rng, 0.45, 0.8)),
        height=between(rng, 2.4, 3.3),
        busy=between(rng, 0.55, 0.95),
    )


def draw_wall(rng: np.random.Generator, decor: Decor, *, length: float, scale: float) -> Sheet:
    """A wall of `length` metres, at `scale` pixels per metre: doors, windows, notices and much else in a row."""
    sheet, x = Sheet(length, decor.height, scale, fill=decor.wall), 0.0
    if rng.random() < 0.3:  # a band along the wall
        y = between(rng, 0.8, 1.2)
        sheet.rect((0, y, length, y + between(rng, 0.1, 0.3)), decor.accent)
    kinds = (draw_door, draw_door, draw_glass, draw_notices, draw_panel, draw_opening, draw_fixtures, draw_grille)
    while x < length:
        end = x + between(rng, 0.9, 3.2)
        if rng.random() < decor.busy:
            pick(rng, kinds)(sheet, rng, decor, (x, end))
        x = end
    sheet.rect((0, 0, length, 0.1), tone(decor.floor, 0.7))
    sheet.weather(rng, 12)
    return sheet


# ---- Parts of a wall, each within a span (x0, x1) of it, in metres

Span = tuple[float, float]


def draw_door(sheet: Sheet, rng: np.random.Generator, decor: Decor, span: Span) -> None:
    """A door or two in a frame, with a pane, a sign, or neither."""
    leaves = 2 if span[1] - span[0] > 2.0 else 1
    colour = tone(pick(rng, (decor.door, decor.door, decor.accent)), between(rng, 0.85, 1.1))
    x0, x1 = span[0] + 0.05, span[0] + 0.05 + 0.85 * leaves
    sheet.rect((x0 - 0.08, 0, x1 + 0.08, DOOR_HEIGHT + 0.08), tone(pick(rng, (decor.accent, decor.metal)), 0.8))
    for left in np.arange(x0, x1 - 0.5, 0.85):
        sheet.rect((left, 0, left + 0.83, DOOR_HEIGHT), colour)
        detail = pick(rng, ("pane", "slit", "sign", "none"))
        if detail == "pane":
            sheet.rect((left + 0.15, 1.0, left + 0.68, 1.9), behind_glass(rng))
        elif detail == "slit":
            sheet.rect((left + 0.55, 0.9, left + 0.68, 1.9), behind_glass(rng))
        elif detail == "sign":
            sheet.rect((left + 0.2, 1.4, left + between(rng, 0.4, 0.65), between(rng, 1.6, 1.8)), (240, 240, 235))
        sheet.rect((left + 0.05, 0.95, left + 0.15, 1.05), tone(decor.metal, 0.6))
    if rng.random() < 0.5:
        sheet.rect((x1 + 0.15, 1.4, x1 + 0.35, 1.6), pick(rng, ((240, 240, 235), vivid(rng))))


def behind_glass(rng: np.random.Generator) -> Colour:
    """A room behind a pane: dark, or lit."""
    return hsv(between(rng, 0.05, 0.6), between(rng, 0.0, 0.3), pick(rng, (0.1, 0.15, 0.25, 0.8, 0.95)))


def draw_glass(sheet: Sheet, rng: np.random.Generator, decor: Decor, span: Span) -> None:
    """A window to a room, in panes, above a painted wall or down to the floor."""
    bottom, top = pick(rng, (0.1, 0.9, 1.1)), between(rng, 1.9, 2.3)
    sheet.rect((span[0], 0, span[1], top + 0.1), pick(rng, (decor.accent, decor.wall, decor.metal)))
    glass, panes = behind_glass(rng), pick(rng, (1, 2, 3))
    width = (span[1] - span[0]) / panes
    for left in span[0] + width * np.arange(panes):
        sheet.rect((left + 0.06, bottom, left + width - 0.06, top), glass)
        if rng.random() < 0.6:
            draw_clutter(sheet, rng, (left + 0.06, bottom, left + width - 0.06, bottom + 0.5 * (top - bottom)))


def draw_clutter(sheet: Sheet, rng: np.random.Generator, box: Box) -> None:
    """Desks, screens and shelves in a box (metres)."""
    x0, y0, x1, y1 = box
    for _ in range(int(between(rng, 3, 9))):
        x, y = between(rng, x0, x1), between(rng, y0, y1)
        right, above = min(x + between(rng, 0.1, 0.7), x1), min(y + between(rng, 0.1, 0.5), y1)
        dull = hsv(rng.random(), between(rng, 0, 0.4), between(rng, 0.1, 0.9))
        sheet.rect((x, y, right, above), pick(rng, (dull, dull, vivid(rng))))


def draw_notices(sheet: Sheet, rng: np.random.Generator, decor: Decor, span: Span) -> None:
    """Posters, or a board with sheets of paper."""
    x0, x1 = span[0] + 0.1, span[1] - 0.1
    if rng.random() < 0.4:
        sheet.rect((x0, 0.9, x1, 2.0), pick(rng, (WOOD, (235, 238, 240), tone(decor.accent, 0.7))))
    for _ in range(int(between(rng, 1, 5))):
        x, y = between(rng, x0, max(x0, x1 - 0.5)), between(rng, 1.0, 1.6)
        width, height = between(rng, 0.2, 0.6), between(rng, 0.25, 0.7)
        sheet.rect((x, y, x + width, y + height), pick(rng, ((245, 245, 240), (245, 245, 240), vivid(rng))))
        for line in np.arange(y + 0.05, y + height - 0.08, 0.12):
            sheet.rect((x + 0.04, line, x + width * between(rng, 0.4, 0.9), line + 0.05), vivid(rng))


def draw_panel(sheet: Sheet, rng: np.random.Generator, decor: Decor, span: Span) -> None:
    """A part of the wall in another colour, up to the ceiling."""
    colour = pick(rng, (decor.accent, decor.accent, tone(decor.wall, 0.75), decor.door))
    sheet.rect((span[0], 0, span[1], decor.height), colour)


def draw_opening(sheet: Sheet, rng: np.random.Generator, decor: Decor, span: Span) -> None:
    """A passage to a lit or dark room, with what stands in it."""
    top = pick(rng, (decor.height, 2.3))
    room = tone(decor.wall, pick(rng, (0.3, 0.6, 1.0, 1.1)))
    sheet.rect((span[0], 0, span[1], top), room)
    sheet.rect((span[0], 0, span[1], between(rng, 0.5, 0.9)), tone(decor.floor, 0.9))
    draw_clutter(sheet, rng, (span[0], 0.3, span[1], 1.4))


def draw_fixtures(sheet: Sheet, rng: np.random.Generator, decor: Decor, span: Span) -> None:
    """An extinguisher, switches, pipes, a radiator."""
    x, kind = between(rng, span[0], span[1] - 0.3), pick(rng, ("extinguisher", "box", "pipe", "radiator"))
    if kind == "extinguisher":
        sheet.rect((x, 0.6, x + 0.18, 1.15), (190, 30, 30))
        sheet.rect((x, 1.4, x + 0.25, 1.65), (190, 30, 30))
    elif kind == "box":
        sheet.rect((x, 1.1, x + between(rng, 0.15, 0.6), between(rng, 1.3, 1.9)), tone(decor.metal, 0.8))
    elif kind == "pipe":
        sheet.rect((x, 0, x + 0.12, decor.height), tone(pick(rng, (decor.metal, decor.accent)), 0.8))
    else:
        sheet.rect((span[0], 0.15, span[1], 0.75), decor.metal)
        sheet.stripes((span[0], 0.15, span[1], 0.75), 0.12, 0.03, tone(decor.metal, 0.6), upright=True)


def draw_grille(sheet: Sheet, rng: np.random.Generator, decor: Decor, span: Span) -> None:
    """Shutters or a grille from the floor to above the doors."""
    top = between(rng, 1.9, decor.height)
    sheet.rect((span[0], 0, span[1], top), decor.metal)
    step, upright = between(rng, 0.08, 0.2), rng.random() >= 0.5
    sheet.stripes((span[0], 0, span[1], top), step, 0.4 * step, tone(decor.metal, 0.7), upright=upright)


# ---- Floor, ceiling and what stands on the floor


def draw_floor(rng: np.random.Generator, decor: Decor, *, size: tuple[float, float], scale: float) -> Sheet:
    """A floor, seen from above: carpet or tiles, some with a strip along the walls. size: (width, length) in metres."""
    width, length = size
    sheet = Sheet(width, length, scale, fill=decor.floor)
    tile = pick(rng, (0, 0.6, 1.2))
    if tile:
        for upright in (False, True):
            sheet.stripes((0, 0, width, length), tile, 0.05, tone(decor.floor, 0.8), upright=upright)
    if rng.random() < 0.5:
        colour = pick(rng, (decor.accent, tone(decor.floor, 0.6)))
        for x in (0.0, width - 0.25):
            sheet.rect((x, 0, x + 0.25, length), colour)
    sheet.weather(rng, 25)
    return sheet


def draw_ceiling(rng: np.random.Generator, decor: Decor, *, size: tuple[float, float], scale: float) -> Sheet:
    """A ceiling with lamps and vents in tiles. size: (width, length) in metres."""
    width, length = size
    sheet = Sheet(width, length, scale, fill=decor.ceiling)
    for left, upright in ((0, False), (0.3, True)):
        sheet.stripes((left, 0, width, length), 0.6, 0.03, tone(decor.ceiling, 0.88), upright=upright)
    spacing, x = between(rng, 1.8, 4.5), between(rng, 0.2, max(0.3, width - 0.9))
    lengthwise = rng.random() < 0.5
    for z in np.arange(between(rng, 0, spacing), length, spacing):
        lamp = (x, z, x + 0.3, z + 1.2) if lengthwise else (x, z, min(x + 1.2, width), z + 0.4)
        sheet.rect(lamp, (255, 255, 255))
        if rng.random() < 0.4:
            left, near = between(rng, 0, width - 0.6), z + between(rng, 1.3, 1.7)
            sheet.rect((left, near, left + 0.5, near + 0.5), tone(decor.metal, between(rng, 0.5, 0.9)))
    sheet.weather(rng, 6)
    return sheet


@dataclass(frozen=True, kw_only=True)
class Block:
    """What stands at a wall: a pillar, lockers, a cabinet. `side` is -1 (left) or 1; the rest in metres: from `near` to
    `far` along the corridor, `depth` out of the wall. front, end: its face along the corridor and the near one across.
    """

    side: int
    near: float
    far: float
    depth: float
    front: Sheet
    end: Sheet


def draw_blocks(rng: np.random.Generator, decor: Decor, *, length: float, scale: float) -> list[Block]:
    """What stands along a corridor, from far to near."""
    blocks = []
    for side in (-1, 1):
        z = between(rng, 0.5, 6.0)
        while z < length - 2:
            far = min(z + pick(rng, (between(rng, 0.3, 0.6), between(rng, 0.8, 3.0))), length)
            blocks.append(draw_block(rng, decor, span=(z, far), side=side, scale=scale))
            z = far + between(rng, 2.0, 12.0)
    return sorted(blocks, key=lambda block: -block.near)


def draw_block(rng: np.random.Generator, decor: Decor, *, span: Span, side: int, scale: float) -> Block:
    """A pillar where the span is short; else lockers, a cabinet or a shelf."""
    pillar = span[1] - span[0] < 0.7
    top = decor.height if pillar else between(rng, 1.8, 2.2)  # above the camera: blocks have no upper face
    depth = between(rng, 0.15, 0.45)
    colour = pick(rng, (decor.wall, tone(decor.wall, 0.9)) if pillar else (decor.metal, decor.door, WOOD))
    front = Sheet(span[1] - span[0], top, scale, fill=colour)
    end = Sheet(depth, top, scale, fill=tone(colour, 0.85))
    if not pillar:
        for widest, upright in ((0.6, True), (0.9, False)):
            box, step = (0, 0, front.width, top), between(rng, 0.3, widest)
            front.stripes(box, step, 0.03, tone(colour, 0.7), upright=upright)
    for sheet in (front, end):
        sheet.weather(rng, 12)
    return Block(side=side, near=span[0], far=span[1], depth=depth, front=front, end=end)
