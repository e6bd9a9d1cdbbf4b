"""Drawing in metres: colours, and sheets that hold a picture and a label map."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from datasets.synthetic.randomness import between

# Values of the label map. 1 to 199 are windows; 0 is everything else.
SHOP, SIGN, ROOF = 200, 220, 240

Colour = tuple[int, ...]  # red, green, blue and, where needed, alpha: 0 to 255
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour from hue (taken modulo 1), saturation and value (clipped to 0..1)."""
    rgb = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return tuple(int(255 * channel) for channel in rgb)


def tone(colour: Colour, factor: float) -> Colour:
    """The colour made lighter (factor above 1) or darker (factor below 1)."""
    return tuple(min(255, int(channel * factor)) for channel in colour)


def vivid(rng: np.random.Generator) -> Colour:
    """A strong random colour."""
    return hsv(rng.random() ** 1.3, between(rng, 0.35, 0.9), between(rng, 0.35, 0.95))


def planes(colour: Sequence[float] | np.ndarray) -> np.ndarray:
    """A colour as float32 [3, 1, 1], which broadcasts against pictures [3, H, W]."""
    return np.array(colour, np.float32).reshape(3, 1, 1)


def any_window(rng: np.random.Generator) -> int:
    """A random label for a window. Windows with the same label are lit together."""
    return 1 + int(rng.random() * (SHOP - 1))


def fill_rounded_rectangle(
    draw: ImageDraw.ImageDraw, box: Box, radius: float, fill: Colour | int, *, bottom: bool = True
) -> None:
    """Fills a rectangle (pixels) with rounded corners; without `bottom`, only the upper corners are rounded.

    It gives the pixels of ImageDraw.rounded_rectangle in Pillow 13. Pillow 10 to 12.0 give other pixels there, and
    raise ValueError where the radius exceeds half the width or height.
    """
    x0, y0, x1, y1 = (round(edge) for edge in box)
    diameter = min(box[2] - box[0], box[3] - box[1], 2 * radius)
    if bottom:
        round_sides = diameter >= x1 - x0 - 1  # no straight pixels are left between two corners
        diameter = x1 - x0 if round_sides else diameter
        round_ends = diameter >= y1 - y0 - 1
        diameter = y1 - y0 if round_ends else diameter
        if round_sides and round_ends:
            draw.ellipse(box, fill)
            return
    if diameter == 0:
        draw.rectangle(box, fill)
        return
    left, top, right, low = x0 + diameter, y0 + diameter, x1 - diameter, y1 - diameter
    corners: list[tuple[Box, int]] = [((x0, y0, left, top), 180), ((right, y0, x1, top), 270)]
    if bottom:
        corners += [((right, low, x1, y1), 0), ((x0, low, left, y1), 90)]
    for corner, start in corners:
        draw.pieslice(corner, start, start + 90, fill)
    inset = int(diameter // 2) + 1
    for inner in ((x0 + inset, y0, x1 - inset, y1), (x0, y0 + inset, x1, y1 - inset if bottom else y1)):
        if inner[0] <= inner[2] and inner[1] <= inner[3]:
            draw.rectangle(inner, fill)


class Tile(NamedTuple):
    """A small picture to paste onto a sheet."""

    colour: Image.Image  # RGBA
    glass: Image.Image  # L, 255 where the tile takes the label


class Sheet:
    """A picture of `width` x `height` metres with a label map beside it. x runs to the right, y up.

    colour: RGBA image of `scale` pixels per metre, transparent unless there is a `fill`. label: L image of the same
    size.
    """

    def __init__(self, width: float, height: float, scale: float, *, fill: Colour | None = None) -> None:
        self.width, self.height, self.scale = width, height, scale
        size = (max(2, round(width * scale)), max(2, round(height * scale)))
        self._use(Image.new("RGBA", size), Image.new("L", size))
        if fill:
            self.rect((0, 0, width, height), fill)

    def _use(self, colour: Image.Image, label: Image.Image) -> None:
        self.colour, self.label = colour, label
        self._draw, self._draw_label = ImageDraw.Draw(colour), ImageDraw.Draw(label)

    def rect(self, box: Box, colour: Colour, label: int = 0) -> None:
        """Fills the rectangle `box` (metres), at least one pixel wide and high."""
        x0, y0, x1, y1 = box
        left, top = round(x0 * self.scale), round((self.height - y1) * self.scale)
        right, bottom = round(x1 * self.scale) - 1, round((self.height - y0) * self.scale) - 1
        pixels = (left, top, max(left, right), max(top, bottom))
        self._draw.rectangle(pixels, colour)
        self._draw_label.rectangle(pixels, label)

    def stripes(self, box: Box, step: float, width: float, colour: Colour, *, upright: bool = False) -> None:
        """Draws stripes of `width` every `step` metres in a box: from its bottom to its top, or its left to its right
        if they are upright. The last one may reach beyond the box.
        """
        x0, y0, x1, y1 = box
        for start in np.arange(x0, x1, step) if upright else np.arange(y0, y1, step):
            self.rect((start, y0, start + width, y1) if upright else (x0, start, x1, start + width), colour)

    def polygon(self, points: Sequence[Point], colour: Colour, label: int = 0) -> None:
        """Fills a polygon, given by its corners (metres)."""
        pixels = [(x * self.scale, (self.height - y) * self.scale) for x, y in points]
        self._draw.polygon(pixels, colour)
        self._draw_label.polygon(pixels, label)

    def ellipse(self, centre: Point, radii: Point, colour: Colour, label: int = 0) -> None:
        """Fills an ellipse with horizontal and vertical `radii` (metres)."""
        (x, y), (rx, ry), s, h = centre, radii, self.scale, self.height
        pixels = ((x - rx) * s, (h - y - ry) * s, (x + rx) * s, (h - y + ry) * s)
        self._draw.ellipse(pixels, colour)
        self._draw_label.ellipse(pixels, label)

    def paste(self, tile: Tile, corner: Point, label: int) -> None:
        """Pastes a tile with its lower left corner at `corner` (metres); its glass gets the label."""
        colour, glass = tile
        left = round(corner[0] * self.scale)
        top = round((self.height - corner[1]) * self.scale) - colour.height
        self.colour.paste(colour.convert("RGB"), (left, top), colour)
        self.label.paste(label, (left, top, left + glass.width, top + glass.height), glass)

    def weather(self, rng: np.random.Generator, strength: int) -> None:
        """Darkens the colours with stains (by up to 2 * strength of 255) and grain (by up to strength)."""
        width, height = size = self.colour.size
        coarse = rng.integers(255 - 2 * strength, 256, (height // 12 + 2, width // 12 + 2), np.uint8)
        stain = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
        grain = Image.fromarray(rng.integers(255 - strength, 256, (height, width), np.uint8))
        noise = ImageChops.multiply(stain, grain)
        factors = Image.merge("RGBA", (noise, noise, noise, Image.new("L", size, 255)))
        self._use(ImageChops.multiply(self.colour, factors), self.label)

    def crop(self, x0: float, x1: float) -> "Sheet":
        """The part of the sheet between x0 and x1 (metres), at full height."""
        part = Sheet(x1 - x0, self.height, self.scale)
        left = round(x0 * self.scale)
        box = (left, 0, left + part.colour.width, self.colour.height)
        part._use(self.colour.crop(box), self.label.crop(box))
        return part
