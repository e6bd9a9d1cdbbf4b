"""Buildings in a row: walls, roofs, windows, doors and shops."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from datasets.synthetic.drawing import (
    ROOF,
    SHOP,
    SIGN,
    Box,
    Colour,
    Sheet,
    Tile,
    any_window,
    fill_rounded_rectangle,
    hsv,
    tone,
    vivid,
)
from datasets.synthetic.randomness import between, pick
from datasets.synthetic.style import Style

OVERSAMPLING = 3  # windows are drawn this many times as large, then shrunk
SHEET_HEIGHT = 21.0  # metres, of the sheets that buildings are drawn on


@dataclass(frozen=True, kw_only=True)
class House:
    """A building from x0 to x1. `ground` and `top` are the heights of its ground floor and its wall (metres)."""

    style: Style
    x0: float
    x1: float
    storeys: int
    ground: float
    top: float
    wall: Colour

    @property
    def width(self) -> float:
        """Width in metres."""
        return self.x1 - self.x0


class Windows(NamedTuple):
    """How the windows of a house are laid out: their kind, width and left edges, in metres."""

    kind: str
    width: float
    lefts: list[float]


def draw_row(rng: np.random.Generator, style: Style, *, length: float, scale: float) -> Sheet:
    """A row of buildings of `length` metres, at `scale` pixels per metre."""
    sheet, x = Sheet(length, SHEET_HEIGHT, scale), -between(rng, 0, 5)
    while x < length:
        end = x + between(rng, 5.0, 11.0)
        if rng.random() < 0.08:  # a yard behind a wall
            end = x + between(rng, 2.0, 4.0)
            sheet.rect((x, 0, end, 2.0), tone(style.trim, 0.7))
            sheet.rect((x, 1.9, end, 2.1), tone(style.trim, 0.5), ROOF)
        else:
            draw_building(sheet, rng, plan_house(rng, style, x0=x, x1=end))
        x = end
    sheet.weather(rng, 30)
    return sheet


def plan_house(rng: np.random.Generator, style: Style, *, x0: float, x1: float) -> House:
    """Chooses colour and heights of a house between x0 and x1 (metres)."""
    hue = style.hue + style.hue_spread * rng.standard_normal()
    saturation = style.saturation * between(rng, 0.3, 1.5)
    wall = hsv(hue, saturation, style.value + 0.15 * rng.standard_normal())
    if rng.random() < style.painted:
        wall = hsv(0.75 * rng.random(), between(rng, 0.2, 0.75), between(rng, 0.4, 0.95))
    storeys = max(1, style.storeys + pick(rng, (-1, 0, 0, 1)))
    ground = between(rng, 3.3, 4.2)
    top = min(ground + storeys * style.storey, SHEET_HEIGHT - 2.0)
    return House(style=style, x0=x0, x1=x1, storeys=storeys, ground=ground, top=top, wall=wall)


def draw_building(sheet: Sheet, rng: np.random.Generator, house: House) -> None:
    """A house with its roof, walls, windows and ground floor."""
    x0, x1, top, style = house.x0, house.x1, house.top, house.style
    draw_roof(sheet, rng, house)
    sheet.rect((x0, 0, x1, top), house.wall)
    if style.courses:  # lines of stone or panels
        sheet.stripes((x0, style.courses, x1, top), style.courses, 0.09, tone(house.wall, 0.86))
    if rng.random() < 0.3:  # corner stones
        for x in (x0, x1 - 0.5):
            sheet.stripes((x, 0, x + 0.5, top - 0.4), 1.0, 0.55, style.trim)
    sheet.rect((x1 - 0.12, 0, x1, top), tone(house.wall, 0.6))
    windows = draw_upper_windows(sheet, rng, house)
    draw_eyecatcher(sheet, rng, house)
    if rng.random() < style.shops and house.width > 3.5:
        draw_shop(sheet, rng, (x0, 0, x1, house.ground), trim=style.trim)
    else:
        draw_ground_floor(sheet, rng, house, windows)


def draw_upper_windows(sheet: Sheet, rng: np.random.Generator, house: House) -> Windows:
    """The windows above the ground floor. Returns their layout, which the ground floor follows."""
    style, kind = house.style, pick(rng, house.style.windows)
    columns = max(1, round((house.width - 0.6) / (style.bay * between(rng, 0.8, 1.3))))
    pitch = (house.width - 0.6) / columns
    width = pitch * (0.92 if kind == "ribbon" else between(rng, 0.42, 0.68))
    height = style.storey * between(rng, 0.45, 0.68)
    lefts = [house.x0 + 0.3 + column * pitch + (pitch - width) / 2 for column in range(columns)]
    tiles = [draw_window(rng, style, kind=kind, size=(width, height), scale=sheet.scale) for _ in range(3)]
    blank = pick(rng, (-1, -1, -1, 0, columns - 1)) if columns > 2 else -1  # a column without windows
    for storey in range(house.storeys):
        y = house.ground + storey * style.storey + 0.25 * style.storey
        for column, left in enumerate(lefts):
            if column != blank and y + height < house.top:
                sheet.paste(pick(rng, tiles), (left, y), any_window(rng))
    return Windows(kind, width, lefts)


def draw_ground_floor(sheet: Sheet, rng: np.random.Generator, house: House, windows: Windows) -> None:
    """A residential ground floor: a door among windows."""
    kind, width, lefts = windows
    sheet.rect((house.x0, 0, house.x1, 0.6), tone(house.wall, 0.65))
    door = int(rng.random() * len(lefts))
    tile = draw_window(rng, house.style, kind=kind, size=(width, 1.7), scale=sheet.scale)
    for column, left in enumerate(lefts):
        if column == door:
            draw_door(sheet, rng, left=left, size=(max(1.0, min(width, 1.6)), 2.4), trim=house.style.trim)
        else:
            sheet.paste(tile, (left, 1.1), any_window(rng))
    sheet.rect((house.x0, house.ground - 0.25, house.x1, house.ground), house.style.trim)


def draw_eyecatcher(sheet: Sheet, rng: np.random.Generator, house: House) -> None:
    """A mural, a banner, discs or nothing: what people remember a house by."""
    kind, colour = pick(rng, ("mural", "banner", "discs", "none", "none")), vivid(rng)
    x0, x1, width, bottom, top = house.x0, house.x1, house.width, house.ground, house.top
    if kind == "banner":
        x, end = between(rng, x0 + 0.3, x1 - 1.4), min(top, bottom + 5.5)
        sheet.rect((x, bottom + 0.3, x + 1.1, end), colour)
        for y in np.arange(bottom + 0.8, end - 0.8, 0.9):
            sheet.rect((x + 0.25, y, x + between(rng, 0.5, 0.9), y + 0.5), (240, 235, 220))
    elif kind == "mural":
        left = between(rng, x0, x1 - 0.45 * width)
        sheet.rect((left, bottom + 0.2, left + 0.45 * width, top - 0.3), colour)
        for _ in range(4):
            centre = (left + 0.225 * width, between(rng, bottom + 1.2, top - 1.2))
            radii = (between(rng, 0.08, 0.2) * width, between(rng, 0.3, 0.9))
            sheet.ellipse(centre, radii, vivid(rng))
    elif kind == "discs":
        for x in np.arange(x0 + 0.8, x1 - 0.7, between(rng, 1.2, 2.5)):
            sheet.ellipse((x, bottom + 0.1), (0.4, 0.4), colour, label=SIGN)


def draw_roof(sheet: Sheet, rng: np.random.Generator, house: House) -> None:
    """A roof of one of the street's kinds, often with a chimney behind it. What snow stays on is labelled ROOF."""
    x0, x1, width, top = house.x0, house.x1, house.width, house.top
    wall, trim = house.wall, house.style.trim
    kind = pick(rng, house.style.roofs)
    colour = hsv(pick(rng, (0.03, 0.05, 0.6, 0.3)), between(rng, 0.1, 0.5), between(rng, 0.25, 0.5))
    rise = min(between(rng, 1.6, 3.2), SHEET_HEIGHT - top - 0.5)
    ridge = top + rise
    if rng.random() < 0.6:
        x = between(rng, x0 + 0.1 * width, x1 - 0.25 * width)
        sheet.rect((x, top, x + 0.9, ridge + 0.4), tone(wall, 0.7))
    if kind == "gable":
        middle = (x0 + x1) / 2
        sheet.polygon([(x0, top), (middle, ridge), (x1, top)], wall)
        for outer, inner in ((x0, x0 + 0.5), (x1, x1 - 0.5)):
            edge = [(outer, top), (middle, ridge), (middle, ridge - 0.5), (inner, top - 0.1)]
            sheet.polygon(edge, colour, ROOF)
    elif kind == "stepped":
        for step in range(4):
            left, right, end = x0 + step * width / 9, x1 - step * width / 9, top + (step + 1) * rise / 4
            sheet.rect((left, top, right, end), wall)
            sheet.rect((left, top + (step + 0.7) * rise / 4, right, end), trim, ROOF)
    elif kind == "parapet":
        sheet.rect((x0, top, x1, top + 0.5), tone(wall, 0.85))
        sheet.rect((x0 - 0.1, top + 0.4, x1 + 0.1, top + 0.65), trim, ROOF)
    else:  # seen from its long side
        inset = 0.6 if kind == "mansard" else 0.25 * width
        sheet.polygon([(x0, top), (x0 + inset, ridge), (x1 - inset, ridge), (x1, top)], colour, ROOF)
    if kind == "mansard":
        for x in np.arange(x0 + 1.4, x1 - 2.0, 3.0):  # dormer windows
            sheet.rect((x, top + 0.3, x + 1.2, top + 0.75 * rise), trim)
            sheet.rect((x + 0.2, top + 0.4, x + 1.0, top + 0.65 * rise), (50, 60, 75), any_window(rng))


# ---- Windows, doors and shops


def draw_window(rng: np.random.Generator, style: Style, *, kind: str, size: tuple[float, float], scale: float) -> Tile:
    """A window of `size` = (width, height) in metres, at `scale` pixels per metre."""
    small = max(2, round(size[0] * scale)), max(2, round(size[1] * scale))
    width, height = (OVERSAMPLING * side for side in small)  # in pixels, as all measures below; y points down
    frame = min(0.09 * width, 0.12 * height)
    left = 0.22 * width if kind == "shutters" else 0.0
    right = width - left
    radius = 0.5 * (width - 2 * left) if kind == "arched" else 0.0
    inner = (left + frame, frame, right - frame, height - frame)
    inner_radius = max(0, radius - frame)
    colour, glass = Image.new("RGBA", (width, height)), Image.new("L", (width, height))
    draw = ImageDraw.Draw(colour)
    pane = hsv(between(rng, 0.5, 0.65), between(rng, 0.1, 0.4), between(rng, 0.15, 0.45))
    if kind == "shutters":
        draw.rectangle((0, 0, width, height), hsv(style.hue + 0.4, 0.5, 0.5))
    fill_rounded_rectangle(draw, (left, 0, right - 1, height - 1), radius, fill=style.trim, bottom=False)
    fill_rounded_rectangle(draw, inner, inner_radius, fill=pane, bottom=False)
    fill_rounded_rectangle(ImageDraw.Draw(glass), inner, inner_radius, fill=255, bottom=False)
    if rng.random() < 0.35:  # a blind or a curtain, whose colour helps to tell places apart
        top = frame + radius / 2
        draw.rectangle((inner[0], top, inner[2], top + height * between(rng, 0.15, 0.5)), vivid(rng))
    columns, rows = {"sash": (1, 2), "ribbon": (4, 1), "casement": (2, 3)}.get(kind, (2, 1))
    for column in range(1, columns):
        x = left + (width - 2 * left) * column / columns
        draw.rectangle((x - frame / 3, inner[1], x + frame / 3, inner[3]), style.trim)
    for row in range(1, rows):
        y = height * row / rows
        draw.rectangle((inner[0], y - frame / 3, inner[2], y + frame / 3), style.trim)
    if kind == "balcony":
        railing = tone(style.trim, 0.35)
        for x in range(0, width, max(4, width // 7)):
            draw.rectangle((x, 0.6 * height, x + width // 20, height), railing)
        draw.rectangle((0, 0.58 * height, width, 0.64 * height), railing)
    draw.rectangle((0, height - frame, width, height), tone(style.trim, 0.8))
    return Tile(*(image.resize(small, Image.Resampling.BOX) for image in (colour, glass)))


def draw_sign(sheet: Sheet, rng: np.random.Generator, box: Box) -> None:
    """A shop sign with strokes that look like letters."""
    x0, y0, x1, y1 = box
    back, ink = vivid(rng), pick(rng, ((245, 240, 225), (30, 25, 30), (240, 215, 80)))
    sheet.rect(box, back, SIGN)
    letter = 0.62 * (y1 - y0)
    x, low, high = x0 + between(rng, 0.3, 0.9), y0 + 0.2 * (y1 - y0), y1 - 0.2 * (y1 - y0)
    while x + letter < x1 - 0.3:
        if rng.random() < 0.85:
            sheet.rect((x, low, x + 0.25 * letter, high), ink, SIGN)
            bar = pick(rng, (low, (low + high) / 2, high - 0.2 * letter))
            sheet.rect((x, bar, x + 0.8 * letter, bar + 0.2 * letter), ink, SIGN)
            if rng.random() < 0.5:
                sheet.rect((x + 0.6 * letter, low, x + 0.8 * letter, high), ink, SIGN)
        x += 1.15 * letter


def draw_door(sheet: Sheet, rng: np.random.Generator, *, left: float, size: tuple[float, float], trim: Colour) -> None:
    """A door of `size` = (width, height) at x = `left`, on the ground, with its frame around it."""
    (width, height), colour = size, vivid(rng)
    x0, x1 = left + 0.15 * width, left + 0.85 * width
    sheet.rect((left - 0.15, 0, left + width + 0.15, height + 0.2), trim)
    sheet.rect((left, 0, left + width, height), colour)
    sheet.rect((x0, 0.55 * height, x1, 0.9 * height), tone(colour, 0.5), any_window(rng))
    sheet.rect((x0, 0.12 * height, x1, 0.45 * height), tone(colour, 0.75))


def draw_shop(sheet: Sheet, rng: np.random.Generator, box: Box, *, trim: Colour) -> None:
    """The ground floor of a shop: display windows, a door, a sign and often an awning. The box starts at y = 0."""
    x0, _, x1, top = box
    sheet.rect(box, tone(vivid(rng), 0.6))
    door = between(rng, x0 + 0.4, x1 - 1.6)
    for left, right in ((x0 + 0.4, door - 0.3), (door + 1.5, x1 - 0.4)):
        if right - left > 0.6:
            sheet.rect((left, 0.6, right, top - 1.1), trim)
            pane = hsv(rng.random(), 0.35, between(rng, 0.3, 0.6))
            sheet.rect((left + 0.12, 0.72, right - 0.12, top - 1.22), pane, SHOP)
    draw_door(sheet, rng, left=door, size=(1.1, 2.2), trim=trim)
    draw_sign(sheet, rng, (x0 + 0.2, top - 0.85, x1 - 0.2, top - 0.05))
    if rng.random() < 0.5:  # a striped awning, seen a little from the side
        x, end, bottom, above = x0 + 0.2, x1 - 0.2, top - 1.6, top - 0.85
        stripes = (vivid(rng), pick(rng, ((240, 235, 225), vivid(rng))))
        width, number = between(rng, 0.4, 1.0), 0
        while x < end:
            right = min(x + width, end)
            corners = [(x, above), (right, above), (right + 0.1, bottom), (x + 0.1, bottom)]
            sheet.polygon(corners, stripes[number % 2])
            x, number = right, number + 1
