"""What surrounds the buildings: the ground, the skyline and trees."""

import math

import numpy as np
from PIL import Image, ImageDraw

from datasets.synthetic.drawing import Box, Sheet, any_window, hsv, tone
from datasets.synthetic.randomness import between, pick
from datasets.synthetic.style import Style


def draw_ground(
    rng: np.random.Generator, style: Style, *, size: tuple[float, float], kerbs: list[Box], scale: float
) -> Sheet:
    """A road with pavements, seen from above: `size` = (width, depth) in metres, at `scale` pixels per metre.

    `kerbs` gives the pavements as boxes in metres. The road runs along the longer side of the first one.
    """
    width, depth = size
    sheet = Sheet(width, depth, scale, fill=style.road)
    across = kerbs[0][2] - kerbs[0][0] > kerbs[0][3] - kerbs[0][1]
    x, y = width / 2, depth / 2 - 1.0
    line = (0, y, width, y + 0.18) if across else (x, 0, x + 0.18, depth)  # dashed, in the middle of the road
    sheet.stripes(line, 3.0, 1.6, (215, 212, 200), upright=across)
    if rng.random() < 0.5:  # a zebra crossing
        at = between(rng, 0.35, 0.65) * (width if across else 14.0)
        colour = pick(rng, ((225, 225, 220), (220, 190, 60)))
        box = (at, 0, at + 3.0, depth) if across else (0, at, width, at + 3.0)
        sheet.stripes(box, 1.0, 0.5, colour, upright=not across)
    for kerb in kerbs:
        x0, z0, x1, z1 = kerb
        sheet.rect(kerb, tone(style.paving, 1.2))
        sheet.rect((x0 + 0.2, z0 + 0.2, x1 - 0.2, z1 - 0.2), style.paving)
        for upright in (True, False):  # slabs
            sheet.stripes(kerb, 1.5, 0.1, tone(style.paving, 0.85), upright=upright)
    sheet.weather(rng, 40)
    return sheet


def draw_skyline(rng: np.random.Generator, size: tuple[float, float], scale: float) -> Sheet:
    """Towers in front of hills, far away: `size` = (width, height) in metres, at `scale` pixels per metre."""
    width, height = size
    sheet = Sheet(width, height, scale)
    hill = [(x, 6 + 8 * rng.random()) for x in np.linspace(0, width, 9)]
    sheet.polygon([(0, 0), *hill, (width, 0)], hsv(between(rng, 0.22, 0.4), 0.25, 0.4))
    x = 0.0
    while x < width:
        end, tallest = x + between(rng, 6, 22), height if rng.random() < 0.3 else 0.5 * height
        top = between(rng, 5, tallest)
        sheet.rect((x, 0, end, top), hsv(rng.random(), 0.15, between(rng, 0.35, 0.65)))
        for y in np.arange(3, top - 3, 4.0):
            sheet.rect((x + 1.5, y, end - 1.5, y + 1.2), (70, 75, 85), any_window(rng))
        x = end + between(rng, 0, 12)
    return sheet


def draw_tree(rng: np.random.Generator, scale: float) -> Image.Image:
    """A tree of 4 x 7 metres as an RGB image whose channels are wood, leaves and the leaves' brightness."""
    size = (round(4 * scale), round(7 * scale))
    wood, leaf, shade = (Image.new("L", size, fill) for fill in (0, 0, 128))
    draw_wood, draw_leaf, draw_shade = (ImageDraw.Draw(image) for image in (wood, leaf, shade))
    fork, crown = 7 - between(rng, 2.0, 2.8), between(rng, 1.2, 1.8)  # metres, from the top and to the sides
    draw_wood.line((2 * scale, 7 * scale, 2 * scale, fork * scale), 255, max(1, round(0.28 * scale)))
    for _ in range(9):  # bent branches
        x, y = 2 + between(rng, -1, 1) * 0.85 * crown, fork - between(rng, 0.8, 3.2)
        middle = ((2 + (x - 2) * 0.3) * scale, (y + (fork - y) * 0.45) * scale)
        draw_wood.line((2 * scale, (fork + 0.2) * scale, *middle), 255, max(1, round(0.13 * scale)))
        draw_wood.line((*middle, x * scale, y * scale), 255, max(1, round(0.07 * scale)))
    for _ in range(80):
        angle, reach = between(rng, 0, 2 * math.pi), math.sqrt(rng.random())
        x, y = 2 + crown * reach * math.cos(angle), 2.9 + 1.9 * reach * math.sin(angle)
        r = between(rng, 0.14, 0.36)
        box = ((x - r) * scale, (y - r) * scale, (x + r) * scale, (y + r) * scale)
        draw_leaf.ellipse(box, 255)
        draw_shade.ellipse(box, int(between(rng, 110, 190) - 18 * (y - 2.9)))
    return Image.merge("RGB", (wood, leaf, shade))
