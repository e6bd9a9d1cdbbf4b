"""Parts of facades: windows, doors, signs and shops."""

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


def draw_window(rng: np.random.Generator, style: Style, *, kind: str, size: tuple[float, float], scale: float) -> Tile:
    """A window of `size` = (width, height) in metres, at `scale` pixels per metre."""
    small = tuple(max(2, round(metres * scale)) for metres in size)
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
