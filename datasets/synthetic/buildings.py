"""Buildings in a row: walls, roofs and rows of windows."""

from dataclasses import dataclass

import numpy as np

from datasets.synthetic.drawing import ROOF, SIGN, Colour, Sheet, any_window, hsv, tone, vivid
from datasets.synthetic.facades import draw_door, draw_shop, draw_window
from datasets.synthetic.randomness import between, pick
from datasets.synthetic.style import Style

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


@dataclass(frozen=True, kw_only=True)
class WindowGrid:
    """How the windows of a house are laid out: `columns` windows per storey, `pitch` metres apart."""

    house: House
    kind: str
    columns: int
    pitch: float
    width: float

    def left(self, column: int) -> float:
        """x of the left edge of the windows in a column."""
        return self.house.x0 + 0.3 + column * self.pitch + (self.pitch - self.width) / 2


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
    """A house with its roof, windows and ground floor."""
    draw_roof(sheet, rng, house)
    draw_walls(sheet, rng, house)
    grid = draw_upper_windows(sheet, rng, house)
    draw_eyecatcher(sheet, rng, house)
    if rng.random() < house.style.shops and house.width > 3.5:
        draw_shop(sheet, rng, (house.x0, 0, house.x1, house.ground), trim=house.style.trim)
    else:
        draw_ground_floor(sheet, rng, grid)


# ---- Walls and windows


def draw_walls(sheet: Sheet, rng: np.random.Generator, house: House) -> None:
    """The bare wall with lines of stone or panels, corner stones and a dark edge."""
    x0, x1, top, style = house.x0, house.x1, house.top, house.style
    sheet.rect((x0, 0, x1, top), house.wall)
    if style.courses:
        sheet.stripes((x0, style.courses, x1, top), style.courses, 0.09, tone(house.wall, 0.86))
    if rng.random() < 0.3:
        for x in (x0, x1 - 0.5):
            sheet.stripes((x, 0, x + 0.5, top - 0.4), 1.0, 0.55, style.trim)
    sheet.rect((x1 - 0.12, 0, x1, top), tone(house.wall, 0.6))


def draw_upper_windows(sheet: Sheet, rng: np.random.Generator, house: House) -> WindowGrid:
    """The windows above the ground floor. Returns their layout, which the ground floor follows."""
    style, kind = house.style, pick(rng, house.style.windows)
    columns = max(1, round((house.width - 0.6) / (style.bay * between(rng, 0.8, 1.3))))
    pitch = (house.width - 0.6) / columns
    width = pitch * (0.92 if kind == "ribbon" else between(rng, 0.42, 0.68))
    height = style.storey * between(rng, 0.45, 0.68)
    grid = WindowGrid(house=house, kind=kind, columns=columns, pitch=pitch, width=width)
    tiles = [draw_window(rng, style, kind=kind, size=(width, height), scale=sheet.scale) for _ in range(3)]
    blank = pick(rng, (-1, -1, -1, 0, columns - 1)) if columns > 2 else -1  # a column without windows
    for storey in range(house.storeys):
        y = house.ground + storey * style.storey + 0.25 * style.storey
        for column in range(columns):
            if column != blank and y + height < house.top:
                sheet.paste(pick(rng, tiles), (grid.left(column), y), any_window(rng))
    return grid


def draw_ground_floor(sheet: Sheet, rng: np.random.Generator, grid: WindowGrid) -> None:
    """A residential ground floor: a door among windows."""
    house, style = grid.house, grid.house.style
    sheet.rect((house.x0, 0, house.x1, 0.6), tone(house.wall, 0.65))
    door = int(rng.random() * grid.columns)
    tile = draw_window(rng, style, kind=grid.kind, size=(grid.width, 1.7), scale=sheet.scale)
    for column in range(grid.columns):
        left = grid.left(column)
        if column == door:
            draw_door(sheet, rng, left=left, size=(max(1.0, min(grid.width, 1.6)), 2.4), trim=style.trim)
        else:
            sheet.paste(tile, (left, 1.1), any_window(rng))
    sheet.rect((house.x0, house.ground - 0.25, house.x1, house.ground), style.trim)


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


# ---- Roofs. Their parts on which snow stays are labelled ROOF.


def draw_roof(sheet: Sheet, rng: np.random.Generator, house: House) -> None:
    """A roof of one of the street's kinds, often with a chimney behind it."""
    kind = pick(rng, house.style.roofs)
    colour = hsv(pick(rng, (0.03, 0.05, 0.6, 0.3)), between(rng, 0.1, 0.5), between(rng, 0.25, 0.5))
    rise = min(between(rng, 1.6, 3.2), SHEET_HEIGHT - house.top - 0.5)
    if rng.random() < 0.6:
        x = between(rng, house.x0 + 0.1 * house.width, house.x1 - 0.25 * house.width)
        sheet.rect((x, house.top, x + 0.9, house.top + rise + 0.4), tone(house.wall, 0.7))
    if kind == "gable":
        draw_gable(sheet, house, rise=rise, colour=colour)
    elif kind == "stepped":
        draw_stepped_gable(sheet, house, rise)
    elif kind == "parapet":
        draw_parapet(sheet, house)
    elif kind == "mansard":
        draw_slope(sheet, house, rise=rise, inset=0.6, colour=colour)
        draw_dormers(sheet, rng, house, rise=rise)
    else:
        draw_slope(sheet, house, rise=rise, inset=0.25 * house.width, colour=colour)


def draw_gable(sheet: Sheet, house: House, *, rise: float, colour: Colour) -> None:
    """A pointed wall with the edges of the roof on it."""
    x0, x1, top, middle = house.x0, house.x1, house.top, (house.x0 + house.x1) / 2
    sheet.polygon([(x0, top), (middle, top + rise), (x1, top)], house.wall)
    for outer, inner in ((x0, x0 + 0.5), (x1, x1 - 0.5)):
        edge = [(outer, top), (middle, top + rise), (middle, top + rise - 0.5), (inner, top - 0.1)]
        sheet.polygon(edge, colour, ROOF)


def draw_stepped_gable(sheet: Sheet, house: House, rise: float) -> None:
    """A wall that ends in four steps."""
    for step in range(4):
        left, right = house.x0 + step * house.width / 9, house.x1 - step * house.width / 9
        end = house.top + (step + 1) * rise / 4
        sheet.rect((left, house.top, right, end), house.wall)
        sheet.rect((left, house.top + (step + 0.7) * rise / 4, right, end), house.style.trim, ROOF)


def draw_parapet(sheet: Sheet, house: House) -> None:
    """A low wall in front of a flat roof."""
    sheet.rect((house.x0, house.top, house.x1, house.top + 0.5), tone(house.wall, 0.85))
    sheet.rect((house.x0 - 0.1, house.top + 0.4, house.x1 + 0.1, house.top + 0.65), house.style.trim, ROOF)


def draw_slope(sheet: Sheet, house: House, *, rise: float, inset: float, colour: Colour) -> None:
    """A roof seen from its long side, narrower by `inset` metres on both sides at its ridge."""
    ridge = [(house.x0 + inset, house.top + rise), (house.x1 - inset, house.top + rise)]
    sheet.polygon([(house.x0, house.top), *ridge, (house.x1, house.top)], colour, ROOF)


def draw_dormers(sheet: Sheet, rng: np.random.Generator, house: House, *, rise: float) -> None:
    """Windows in the roof, three metres apart."""
    top = house.top
    for x in np.arange(house.x0 + 1.4, house.x1 - 2.0, 3.0):
        sheet.rect((x, top + 0.3, x + 1.2, top + 0.75 * rise), house.style.trim)
        sheet.rect((x + 0.2, top + 0.4, x + 1.0, top + 0.65 * rise), (50, 60, 75), any_window(rng))
