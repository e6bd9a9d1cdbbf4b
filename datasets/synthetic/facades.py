"""Parts of facades: windows, doors, signs and shops."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from datasets.synthetic.drawing import (
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


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """Measures of a window in pixels of its enlarged drawing, y down."""

    kind: str
    width: int
    height: int

    @property
    def side(self) -> float:
        """Width of each of the two shutters."""
        return 0.22 * self.width if self.kind == "shutters" else 0.0

    @property
    def frame(self) -> float:
        """Thickness of the frame."""
        return min(0.09 * self.width, 0.12 * self.height)

    @property
    def radius(self) -> float:
        """Radius of the frame's upper corners."""
        return 0.5 * (self.width - 2 * self.side) if self.kind == "arched" else 0.0

    @property
    def outer(self) -> Box:
        """The window with its frame."""
        return self.side, 0, self.width - self.side - 1, self.height - 1

    @property
    def inner(self) -> Box:
        """The pane within the frame."""
        return self.side + self.frame, self.frame, self.width - self.side - self.frame, self.height - self.frame


def draw_window(rng: np.random.Generator, style: Style, *, kind: str, size: tuple[float, float], scale: float) -> Tile:
    """A window of `size` = (width, height) in metres, at `scale` pixels per metre."""
    width, height = (max(2, round(metres * scale)) for metres in size)
    shape = WindowShape(kind=kind, width=OVERSAMPLING * width, height=OVERSAMPLING * height)
    colour = Image.new("RGBA", (shape.width, shape.height))
    glass = Image.new("L", colour.size)
    draw = ImageDraw.Draw(colour)
    pane = hsv(between(rng, 0.5, 0.65), between(rng, 0.1, 0.4), between(rng, 0.15, 0.45))
    if shape.side:
        draw.rectangle((0, 0, shape.width, shape.height), hsv(style.hue + 0.4, 0.5, 0.5))
    fill_rounded_rectangle(draw, shape.outer, shape.radius, fill=style.trim, bottom=False)
    inner_radius = max(0, shape.radius - shape.frame)
    fill_rounded_rectangle(draw, shape.inner, inner_radius, fill=pane, bottom=False)
    fill_rounded_rectangle(ImageDraw.Draw(glass), shape.inner, inner_radius, fill=255, bottom=False)
    if rng.random() < 0.35:
        draw_blind(draw, rng, shape)
    draw_bars(draw, shape, style.trim)
    if kind == "balcony":
        draw_balcony(draw, shape, tone(style.trim, 0.35))
    draw.rectangle((0, shape.height - shape.frame, shape.width, shape.height), tone(style.trim, 0.8))
    return Tile(*(image.resize((width, height), Image.Resampling.BOX) for image in (colour, glass)))


def draw_blind(draw: ImageDraw.ImageDraw, rng: np.random.Generator, shape: WindowShape) -> None:
    """A blind or a curtain. Its colour helps to tell places apart."""
    left, top, right, _ = shape.inner
    top += shape.radius / 2
    draw.rectangle((left, top, right, top + shape.height * between(rng, 0.15, 0.5)), vivid(rng))


def draw_bars(draw: ImageDraw.ImageDraw, shape: WindowShape, trim: Colour) -> None:
    """The bars that divide the pane into columns and rows."""
    columns, rows = {"sash": (1, 2), "ribbon": (4, 1), "casement": (2, 3)}.get(shape.kind, (2, 1))
    left, top, right, bottom = shape.inner
    half = shape.frame / 3
    for column in range(1, columns):
        x = shape.side + (shape.width - 2 * shape.side) * column / columns
        draw.rectangle((x - half, top, x + half, bottom), trim)
    for row in range(1, rows):
        y = shape.height * row / rows
        draw.rectangle((left, y - half, right, y + half), trim)


def draw_balcony(draw: ImageDraw.ImageDraw, shape: WindowShape, colour: Colour) -> None:
    """The railing of a balcony in front of the lower part of the window."""
    width, height = shape.width, shape.height
    for x in range(0, width, max(4, width // 7)):
        draw.rectangle((x, 0.6 * height, x + width // 20, height), colour)
    draw.rectangle((0, 0.58 * height, width, 0.64 * height), colour)


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
    if rng.random() < 0.5:
        draw_awning(sheet, rng, (x0 + 0.2, top - 1.6, x1 - 0.2, top - 0.85))


def draw_awning(sheet: Sheet, rng: np.random.Generator, box: Box) -> None:
    """A striped awning, seen a little from the side."""
    x, bottom, x1, top = box
    stripes = (vivid(rng), pick(rng, ((240, 235, 225), vivid(rng))))
    width, number = between(rng, 0.4, 1.0), 0
    while x < x1:
        end = min(x + width, x1)
        sheet.polygon([(x, top), (end, top), (end + 0.1, bottom), (x + 0.1, bottom)], stripes[number % 2])
        x, number = end, number + 1
