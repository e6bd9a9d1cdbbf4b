"""Street scenes: a place drawn from a seed, and photos of it.

A place is drawn once as textured planes in metres (walls, ground, skyline, trees); each photo looks at them through
another camera, in other light, weather and season. x runs to the right of the place's view, y up, z into the view.
"""
import colorsys
import math
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

PLACES_PER_STREET = 8
STREET, PLACE, PHOTO = range(3)  # what a random stream is for
WALL_HEIGHT = 21.0  # metres, of the sheet that walls are drawn on
TEXTURE_DETAIL = 1.35  # texture pixels per photo pixel, at the nearest wall
HALF_VIEW = math.radians(36)  # half the horizontal angle of view, before zoom
SHOP, SIGN, ROOF = 200, 220, 240  # values of the label map; 1 to 199 are windows, 0 is everything else
ROLES = {"train": (0.45, 0.35), "database": (0.2, 0.1), "query": (0.45, 0.5)}  # camera movement, share of hard light
LUMA = (0.3, 0.59, 0.11)


class Style(NamedTuple):
    """What the buildings of a street have in common; lengths in metres."""
    hue: float
    hue_spread: float
    saturation: float
    value: float
    windows: tuple
    roofs: tuple
    courses: float
    storey: float
    bay: float
    storeys: int
    shops: float
    trim: tuple
    paving: tuple
    road: tuple
    trees: float
    painted: float
    along: bool
    distance: float


class Surface(NamedTuple):
    """A textured plane: pixel (s, t) of the texture lies at `origin + s * right + t * down` (metres)."""
    kind: str
    colour: Image.Image  # RGBa, premultiplied; for a tree RGB = wood, leaf, shade
    label: Image.Image | None  # L
    origin: np.ndarray
    right: np.ndarray
    down: np.ndarray


class Scene(NamedTuple):
    """A place: its surfaces from far to near, its usual view and its street lamps [n, 3]."""
    style: Style
    surfaces: list
    lamps: np.ndarray
    yaw: float
    size: tuple
    heading: float


class Camera(NamedTuple):
    """position [3] in metres, rotation [3, 3] world to camera, intrinsics [3, 3] in pixels."""
    position: np.ndarray
    rotation: np.ndarray
    intrinsics: np.ndarray


class Light(NamedTuple):
    """Light and weather of a photo; colours are [3, 1, 1], factors or 0 to 255, `haze` is in 1/m."""
    ambient: np.ndarray
    sun: np.ndarray
    direction: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    dark: float
    haze: float
    weather: str
    leaf: tuple | None


class Photo(NamedTuple):
    """pixels uint8 [H, W, 3]; offset (east, north) in metres from the place; heading in degrees."""
    pixels: np.ndarray
    offset: tuple
    heading: int
    year: int
    month: int
    quality: int


def generator(seed, city, purpose, number, photo=0):
    """The random stream of one street, place or photo: the same whatever was drawn before it."""
    return np.random.default_rng([seed, zlib.crc32(city.encode()), purpose, number, photo])


def pick(rng, options):
    """One of the options."""
    return options[int(rng.random() * len(options))]


def between(rng, low, high):
    """A number between low and high, evenly spread."""
    return low + (high - low) * rng.random()


def hsv(hue, saturation, value):
    """An RGB colour of integers, 0 to 255."""
    rgb = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return tuple(int(255 * c) for c in rgb)


def tone(colour, factor):
    """The colour, lighter (factor above 1) or darker."""
    return tuple(min(255, int(c * factor)) for c in colour)


def planes(colour):
    """A colour as float32 [3, 1, 1], to go with pictures [3, H, W]."""
    return np.array(colour, np.float32).reshape(3, 1, 1)


def vivid(rng):
    """A strong colour."""
    return hsv(rng.random() ** 1.3, between(rng, 0.35, 0.9), between(rng, 0.35, 0.95))


# ---- Drawing in metres --------------------------------------------------------------------------------------------


class Sheet:
    """A drawing of `width` x `height` metres, y up, with a label map beside the colours."""

    def __init__(self, width, height, scale):
        self.width, self.height, self.scale = width, height, scale
        size = (max(2, round(width * scale)), max(2, round(height * scale)))
        self.colour, self.label = Image.new("RGBA", size), Image.new("L", size)
        self.draw, self.draw_label = ImageDraw.Draw(self.colour), ImageDraw.Draw(self.label)

    def rect(self, x0, y0, x1, y1, colour, label=0):
        """Fills a rectangle."""
        s, h = self.scale, self.height
        left, top = round(x0 * s), round((h - y1) * s)
        box = (left, top, max(left, round(x1 * s) - 1), max(top, round((h - y0) * s) - 1))
        self.draw.rectangle(box, colour)
        self.draw_label.rectangle(box, label)

    def polygon(self, points, colour, label=0):
        """Fills a polygon of (x, y) points."""
        pixels = [(x * self.scale, (self.height - y) * self.scale) for x, y in points]
        self.draw.polygon(pixels, colour)
        self.draw_label.polygon(pixels, label)

    def ellipse(self, x, y, rx, ry, colour, label=0):
        """Fills an ellipse about (x, y)."""
        s, h = self.scale, self.height
        box = ((x - rx) * s, (h - y - ry) * s, (x + rx) * s, (h - y + ry) * s)
        self.draw.ellipse(box, colour)
        self.draw_label.ellipse(box, label)

    def paste(self, tile, x, y, label):
        """Puts a (colour, glass) tile with its lower left corner at (x, y)."""
        colour, glass = tile
        at = (round(x * self.scale), round((self.height - y) * self.scale) - colour.height)
        self.colour.paste(colour.convert("RGB"), at, colour)
        self.label.paste(label, (*at, at[0] + glass.width, at[1] + glass.height), glass)

    def weather(self, rng, strength):
        """Multiplies stains and grain into the colours."""
        size = self.colour.size
        coarse = rng.integers(255 - 2 * strength, 256, (size[1] // 12 + 2, size[0] // 12 + 2), np.uint8)
        stain = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
        grain = Image.fromarray(rng.integers(255 - strength, 256, (size[1], size[0]), np.uint8))
        noise = ImageChops.multiply(stain, grain)
        self.colour = ImageChops.multiply(self.colour, Image.merge("RGBA", (*(noise,) * 3, Image.new("L", size, 255))))


def window_tile(rng, style, kind, width, height, scale):
    """A window as (RGBA colours, L mask of its glass), drawn three times as large and shrunk."""
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    w, h = 3 * size[0], 3 * size[1]
    colour, glass = Image.new("RGBA", (w, h)), Image.new("L", (w, h))
    draw, draw_glass = ImageDraw.Draw(colour), ImageDraw.Draw(glass)
    side = 0.22 * w if kind == "shutters" else 0.0
    frame = min(0.09 * w, 0.12 * h)
    pane = hsv(between(rng, 0.5, 0.65), between(rng, 0.1, 0.4), between(rng, 0.15, 0.45))
    if side:
        draw.rectangle((0, 0, w, h), hsv(style.hue + 0.4, 0.5, 0.5))
    outer, inner = (side, 0, w - side - 1, h - 1), (side + frame, frame, w - side - frame, h - frame)
    radius = 0.5 * (w - 2 * side) if kind == "arched" else 0
    draw.rounded_rectangle(outer, radius, style.trim, corners=(True, True, False, False))
    for target, fill in ((draw, pane), (draw_glass, 255)):
        target.rounded_rectangle(inner, max(0, radius - frame), fill, corners=(True, True, False, False))
    if rng.random() < 0.35:  # a blind or a curtain, part of what tells places apart
        top = inner[1] + radius / 2
        draw.rectangle((inner[0], top, inner[2], top + h * between(rng, 0.15, 0.5)), vivid(rng))
    bars = {"sash": (1, 2), "ribbon": (4, 1), "casement": (2, 3)}.get(kind, (2, 1))
    for x in (side + (w - 2 * side) * i / bars[0] for i in range(1, bars[0])):
        draw.rectangle((x - frame / 3, frame, x + frame / 3, h - frame), style.trim)
    for y in (h * i / bars[1] for i in range(1, bars[1])):
        draw.rectangle((side + frame, y - frame / 3, w - side - frame, y + frame / 3), style.trim)
    if kind == "balcony":
        for x in range(0, w, max(4, w // 7)):
            draw.rectangle((x, 0.6 * h, x + w // 20, h), tone(style.trim, 0.35))
        draw.rectangle((0, 0.58 * h, w, 0.64 * h), tone(style.trim, 0.35))
    draw.rectangle((0, h - frame, w, h), tone(style.trim, 0.8))
    return colour.resize(size, Image.Resampling.BOX), glass.resize(size, Image.Resampling.BOX)


def any_window(rng):
    """The label of a window, which decides when it is lit."""
    return 1 + int(rng.random() * (SHOP - 1))


def draw_sign(sheet, rng, x0, y0, x1, y1):
    """A shop sign with strokes that read as letters."""
    back, ink = vivid(rng), pick(rng, ((245, 240, 225), (30, 25, 30), (240, 215, 80)))
    sheet.rect(x0, y0, x1, y1, back, SIGN)
    letter = 0.62 * (y1 - y0)
    x, low, high = x0 + between(rng, 0.3, 0.9), y0 + 0.2 * (y1 - y0), y1 - 0.2 * (y1 - y0)
    while x + letter < x1 - 0.3:
        if rng.random() < 0.85:
            sheet.rect(x, low, x + 0.25 * letter, high, ink, SIGN)
            bar = pick(rng, (low, (low + high) / 2, high - 0.2 * letter))
            sheet.rect(x, bar, x + 0.8 * letter, bar + 0.2 * letter, ink, SIGN)
            if rng.random() < 0.5:
                sheet.rect(x + 0.6 * letter, low, x + 0.8 * letter, high, ink, SIGN)
        x += 1.15 * letter


def draw_door(sheet, rng, x, width, height, trim):
    """A door of this width and height at x, with its frame."""
    colour = vivid(rng)
    sheet.rect(x - 0.15, 0, x + width + 0.15, height + 0.2, trim)
    sheet.rect(x, 0, x + width, height, colour)
    sheet.rect(x + 0.15 * width, 0.55 * height, x + 0.85 * width, 0.9 * height, tone(colour, 0.5), any_window(rng))
    sheet.rect(x + 0.15 * width, 0.12 * height, x + 0.85 * width, 0.45 * height, tone(colour, 0.75))


def draw_shop(sheet, rng, x0, x1, top, trim):
    """The ground floor of a shop: display windows, a door, a sign, often an awning."""
    sheet.rect(x0, 0, x1, top, tone(vivid(rng), 0.6))
    door = between(rng, x0 + 0.4, x1 - 1.6)
    for a, b in ((x0 + 0.4, door - 0.3), (door + 1.5, x1 - 0.4)):
        if b - a > 0.6:
            sheet.rect(a, 0.6, b, top - 1.1, trim)
            sheet.rect(a + 0.12, 0.72, b - 0.12, top - 1.22, hsv(rng.random(), 0.35, between(rng, 0.3, 0.6)), SHOP)
    draw_door(sheet, rng, door, 1.1, 2.2, trim)
    draw_sign(sheet, rng, x0 + 0.2, top - 0.85, x1 - 0.2, top - 0.05)
    if rng.random() < 0.5:
        stripes, x, width = (vivid(rng), pick(rng, ((240, 235, 225), vivid(rng)))), x0 + 0.2, between(rng, 0.4, 1.0)
        number = 0
        while x < x1 - 0.2:
            end = min(x + width, x1 - 0.2)
            sheet.polygon([(x, top - 0.85), (end, top - 0.85), (end + 0.1, top - 1.6), (x + 0.1, top - 1.6)],
                          stripes[number % 2])
            x, number = end, number + 1


def draw_roof(sheet, rng, kind, x0, x1, top, wall, style):
    """A roof above height `top`; what snow stays on is labelled ROOF."""
    width, colour = x1 - x0, hsv(pick(rng, (0.03, 0.05, 0.6, 0.3)), between(rng, 0.1, 0.5), between(rng, 0.25, 0.5))
    rise = min(between(rng, 1.6, 3.2), sheet.height - top - 0.5)
    if rng.random() < 0.6:
        x = between(rng, x0 + 0.1 * width, x1 - 0.25 * width)
        sheet.rect(x, top, x + 0.9, top + rise + 0.4, tone(wall, 0.7))
    if kind == "gable":
        sheet.polygon([(x0, top), ((x0 + x1) / 2, top + rise), (x1, top)], wall)
        for a, b in ((x0, x0 + 0.5), (x1, x1 - 0.5)):
            sheet.polygon([(a, top), ((x0 + x1) / 2, top + rise), ((x0 + x1) / 2, top + rise - 0.5), (b, top - 0.1)],
                          colour, ROOF)
    elif kind == "stepped":
        for step in range(4):
            sheet.rect(x0 + step * width / 9, top, x1 - step * width / 9, top + (step + 1) * rise / 4, wall)
            sheet.rect(x0 + step * width / 9, top + (step + 0.7) * rise / 4, x1 - step * width / 9,
                       top + (step + 1) * rise / 4, style.trim, ROOF)
    elif kind == "parapet":
        sheet.rect(x0, top, x1, top + 0.5, tone(wall, 0.85))
        sheet.rect(x0 - 0.1, top + 0.4, x1 + 0.1, top + 0.65, style.trim, ROOF)
    else:
        inset = 0.6 if kind == "mansard" else 0.25 * width
        sheet.polygon([(x0, top), (x0 + inset, top + rise), (x1 - inset, top + rise), (x1, top)], colour, ROOF)
        for x in np.arange(x0 + 1.4, x1 - 2.0, 3.0) if kind == "mansard" else ():
            sheet.rect(x, top + 0.3, x + 1.2, top + 0.75 * rise, style.trim)
            sheet.rect(x + 0.2, top + 0.4, x + 1.0, top + 0.65 * rise, (50, 60, 75), any_window(rng))


def draw_walls(sheet, rng, style, x0, x1, top, wall):
    """The bare wall with its courses of stone or panels, darker towards the street."""
    sheet.rect(x0, 0, x1, top, wall)
    if style.courses:
        for y in np.arange(style.courses, top, style.courses):
            sheet.rect(x0, y, x1, y + 0.09, tone(wall, 0.86))
    if rng.random() < 0.3:
        for x in (x0, x1 - 0.5):
            for y in np.arange(0.0, top - 0.4, 1.0):
                sheet.rect(x, y, x + 0.5, y + 0.55, style.trim)
    sheet.rect(x1 - 0.12, 0, x1, top, tone(wall, 0.6))


def draw_extra(sheet, rng, x0, x1, bottom, top):
    """A mural, a banner or a hanging sign: what people remember a house by."""
    kind, colour, width = pick(rng, ("mural", "banner", "discs", "none", "none")), vivid(rng), x1 - x0
    if kind == "banner":
        x = between(rng, x0 + 0.3, x1 - 1.4)
        sheet.rect(x, bottom + 0.3, x + 1.1, min(top, bottom + 5.5), colour)
        for y in np.arange(bottom + 0.8, min(top, bottom + 5.5) - 0.8, 0.9):
            sheet.rect(x + 0.25, y, x + between(rng, 0.5, 0.9), y + 0.5, (240, 235, 220))
    elif kind == "mural":
        left = between(rng, x0, x1 - 0.45 * width)
        sheet.rect(left, bottom + 0.2, left + 0.45 * width, top - 0.3, colour)
        for _ in range(4):
            sheet.ellipse(left + 0.225 * width, between(rng, bottom + 1.2, top - 1.2), between(rng, 0.08, 0.2) * width,
                          between(rng, 0.3, 0.9), vivid(rng))
    elif kind == "discs":
        for x in np.arange(x0 + 0.8, x1 - 0.7, between(rng, 1.2, 2.5)):
            sheet.ellipse(x, bottom + 0.1, 0.4, 0.4, colour, SIGN)


def draw_building(sheet, rng, style, x0, x1):
    """One building of a row, between x0 and x1 (metres)."""
    wall = hsv(style.hue + style.hue_spread * rng.standard_normal(), style.saturation * between(rng, 0.3, 1.5),
               style.value + 0.15 * rng.standard_normal())
    if rng.random() < style.painted:
        wall = hsv(0.75 * rng.random(), between(rng, 0.2, 0.75), between(rng, 0.4, 0.95))
    storeys, ground = max(1, style.storeys + pick(rng, (-1, 0, 0, 1))), between(rng, 3.3, 4.2)
    top = min(ground + storeys * style.storey, sheet.height - 2.0)
    draw_roof(sheet, rng, pick(rng, style.roofs), x0, x1, top, wall, style)
    draw_walls(sheet, rng, style, x0, x1, top, wall)
    kind, columns = pick(rng, style.windows), max(1, round((x1 - x0 - 0.6) / (style.bay * between(rng, 0.8, 1.3))))
    pitch = (x1 - x0 - 0.6) / columns
    width = pitch * (0.92 if kind == "ribbon" else between(rng, 0.42, 0.68))
    height = style.storey * between(rng, 0.45, 0.68)
    tiles = [window_tile(rng, style, kind, width, height, sheet.scale) for _ in range(3)]
    blank = pick(rng, (-1, -1, -1, 0, columns - 1)) if columns > 2 else -1
    for storey in range(storeys):
        y = ground + storey * style.storey + 0.25 * style.storey
        for column in range(columns):
            if column != blank and y + height < top:
                sheet.paste(pick(rng, tiles), x0 + 0.3 + column * pitch + (pitch - width) / 2, y,
                            any_window(rng))
    draw_extra(sheet, rng, x0, x1, ground, top)
    if rng.random() < style.shops and x1 - x0 > 3.5:
        draw_shop(sheet, rng, x0, x1, ground, style.trim)
    else:
        sheet.rect(x0, 0, x1, 0.6, tone(wall, 0.65))
        door, tile = int(rng.random() * columns), window_tile(rng, style, kind, width, 1.7, sheet.scale)
        for column in range(columns):
            left = x0 + 0.3 + column * pitch + (pitch - width) / 2
            if column == door:
                draw_door(sheet, rng, left, max(1.0, min(width, 1.6)), 2.4, style.trim)
            else:
                sheet.paste(tile, left, 1.1, any_window(rng))
        sheet.rect(x0, ground - 0.25, x1, ground, style.trim)


def draw_row(rng, style, length, scale):
    """A row of buildings of `length` metres."""
    sheet, x = Sheet(length, WALL_HEIGHT, scale), -between(rng, 0, 5)
    while x < length:
        end = x + between(rng, 5.0, 11.0)
        if rng.random() < 0.08:  # a yard behind a wall
            end = x + between(rng, 2.0, 4.0)
            sheet.rect(x, 0, end, 2.0, tone(style.trim, 0.7), 0)
            sheet.rect(x, 1.9, end, 2.1, tone(style.trim, 0.5), ROOF)
        else:
            draw_building(sheet, rng, style, x, end)
        x = end
    sheet.weather(rng, 30)
    return sheet


def draw_ground(rng, style, width, depth, kerbs, scale):
    """Road and pavements, `width` metres across and `depth` deep; `kerbs` lists pavements as (x0, z0, x1, z1)."""
    sheet = Sheet(width, depth, scale)
    sheet.rect(0, 0, width, depth, style.road)
    across = kerbs[0][2] - kerbs[0][0] > kerbs[0][3] - kerbs[0][1]
    middle = depth / 2 - 1.0 if across else width / 2
    for start in np.arange(0.0, width if across else depth, 3.0):
        line = (start, middle, start + 1.6, middle + 0.18) if across else (middle, start, middle + 0.18, start + 1.6)
        sheet.rect(*line, (215, 212, 200))
    if rng.random() < 0.5:  # a zebra crossing
        at = between(rng, 0.35, 0.65) * (width if across else 14.0)
        stripe = pick(rng, ((225, 225, 220), (220, 190, 60)))
        for start in np.arange(0.0, depth if across else width, 1.0):
            box = (at, start, at + 3.0, start + 0.5) if across else (start, at, start + 0.5, at + 3.0)
            sheet.rect(*box, stripe)
    for x0, z0, x1, z1 in kerbs:
        sheet.rect(x0, z0, x1, z1, tone(style.paving, 1.2))
        sheet.rect(x0 + 0.2, z0 + 0.2, x1 - 0.2, z1 - 0.2, style.paving)
        for x in np.arange(x0, x1, 1.5):
            sheet.rect(x, z0, x + 0.1, z1, tone(style.paving, 0.85))
        for z in np.arange(z0, z1, 1.5):
            sheet.rect(x0, z, x1, z + 0.1, tone(style.paving, 0.85))
    sheet.weather(rng, 40)
    return sheet


def draw_skyline(rng, width, height, scale):
    """Towers and hills far away."""
    sheet = Sheet(width, height, scale)
    hill = [(x, 6 + 8 * rng.random()) for x in np.linspace(0, width, 9)]
    sheet.polygon([(0, 0), *hill, (width, 0)], hsv(between(rng, 0.22, 0.4), 0.25, 0.4))
    x = 0.0
    while x < width:
        end, top = x + between(rng, 6, 22), between(rng, 5, height if rng.random() < 0.3 else 0.5 * height)
        sheet.rect(x, 0, end, top, hsv(rng.random(), 0.15, between(rng, 0.35, 0.65)))
        for y in np.arange(3, top - 3, 4.0):
            sheet.rect(x + 1.5, y, end - 1.5, y + 1.2, (70, 75, 85), any_window(rng))
        x = end + between(rng, 0, 12)
    return sheet


def draw_tree(rng, scale):
    """A tree 4 x 7 metres as an RGB image: wood, leaves, shade of the leaves."""
    size = (round(4 * scale), round(7 * scale))
    wood, leaf, shade = (Image.new("L", size, fill) for fill in (0, 0, 128))
    draw, draw_leaf, draw_shade = (ImageDraw.Draw(image) for image in (wood, leaf, shade))
    fork, crown = between(rng, 2.0, 2.8), between(rng, 1.2, 1.8)
    draw.line((2 * scale, 7 * scale, 2 * scale, (7 - fork) * scale), 255, max(1, round(0.28 * scale)))
    for _ in range(9):
        x, y = 2 + between(rng, -1, 1) * 0.85 * crown, 7 - fork - between(rng, 0.8, 3.2)
        middle = ((2 + (x - 2) * 0.3) * scale, (y + (7 - fork - y) * 0.45) * scale)
        draw.line((2 * scale, (7 - fork + 0.2) * scale, *middle), 255, max(1, round(0.13 * scale)))
        draw.line((*middle, x * scale, y * scale), 255, max(1, round(0.07 * scale)))
    for _ in range(80):
        angle, reach = between(rng, 0, 2 * math.pi), math.sqrt(rng.random())
        x, y, r = 2 + crown * reach * math.cos(angle), 2.9 + 1.9 * reach * math.sin(angle), between(rng, 0.14, 0.36)
        box = ((x - r) * scale, (y - r) * scale, (x + r) * scale, (y + r) * scale)
        draw_leaf.ellipse(box, 255)
        draw_shade.ellipse(box, int(between(rng, 110, 190) - 18 * (y - 2.9)))
    return Image.merge("RGB", (wood, leaf, shade))


# ---- A place as planes in space -----------------------------------------------------------------------------------


def draw_style(seed, city, street):
    """The style of a street."""
    rng = generator(seed, city, STREET, street)
    grey = between(rng, 0.28, 0.45)
    along = rng.random() < 0.4
    return Style(
        hue=pick(rng, (0.02, 0.06, 0.1, 0.13, 0.6 * rng.random())), hue_spread=pick(rng, (0.04, 0.08, 0.2)),
        saturation=between(rng, 0.1, 0.6), value=between(rng, 0.52, 0.88),
        windows=tuple(pick(rng, ("sash", "arched", "ribbon", "shutters", "balcony", "casement")) for _ in range(2)),
        roofs=tuple(pick(rng, ("gable", "stepped", "parapet", "mansard", "hip")) for _ in range(2)),
        courses=pick(rng, (0, 0.4, 0.8, 1.6)), storey=between(rng, 2.9, 3.7), bay=between(rng, 1.9, 3.2),
        storeys=pick(rng, (1, 2, 2, 3, 3, 4)), shops=between(rng, 0.15, 0.85),
        trim=pick(rng, ((235, 230, 215), (205, 200, 190), (80, 75, 75), (150, 110, 80))),
        paving=hsv(between(rng, 0.05, 0.15), between(rng, 0.0, 0.2), grey + 0.18), road=hsv(0.6, 0.05, grey),
        trees=pick(rng, (0, 1, 2, 3)), painted=between(rng, 0.2, 0.7), along=along,
        distance=between(rng, 5.0, 8.0) if along else between(rng, 11, 17))


def plane(kind, sheet, origin, right, down, reduce=(1, 1)):
    """A surface of a sheet whose upper left corner is `origin`; `right` and `down` are unit vectors."""
    colour, label = sheet.colour.convert("RGBa"), sheet.label
    if reduce != (1, 1):
        colour, label = colour.reduce(reduce), label.resize(
            (-(-label.width // reduce[0]), -(-label.height // reduce[1])), Image.Resampling.NEAREST)
    metre = np.array(reduce, float) / sheet.scale
    return Surface(kind, colour, label, np.array(origin, float), metre[0] * np.array(right, float),
                   metre[1] * np.array(down, float))


def crop(sheet, x0, x1):
    """The part of the sheet from x0 to x1."""
    part = Sheet(x1 - x0, sheet.height, sheet.scale)
    box = (round(x0 * sheet.scale), 0, round(x0 * sheet.scale) + part.colour.width, sheet.colour.height)
    part.colour, part.label = sheet.colour.crop(box), sheet.label.crop(box)
    return part


def side_walls(rng, style, scale, length):
    """Both sides of a street that runs away from the camera, the far part at less detail."""
    surfaces, near = [], 15.0
    for side in (-1, 1):
        row = draw_row(rng, style, length, scale)
        for start, end, reduce in ((near, length, (3, 2)), (0.0, near, (1, 1))):
            # The left wall is read towards the view, the right wall out of it.
            part = crop(row, start, end) if side < 0 else crop(row, length - end, length - start)
            origin = (side * style.distance, WALL_HEIGHT, 1.0 + (start if side < 0 else end))
            surfaces.append(plane("wall", part, origin, (0, 0, -side), (0, -1, 0), reduce))
    return surfaces


def along_surfaces(rng, style, scale, focal):
    """A view along a street, closed by a row of houses."""
    length, half = between(rng, 26, 48), style.distance
    end_scale = TEXTURE_DETAIL * focal / length
    row = draw_row(rng, style, 40.0, end_scale)
    kerbs = [(0, 0, 2.2, length + 4), (2 * half - 2.2, 0, 2 * half, length + 4)]
    ground = draw_ground(rng, style, 2 * half, length + 4, kerbs, 0.6 * scale)
    surfaces = [plane("wall", row, (-20, WALL_HEIGHT, length + 6), (1, 0, 0), (0, -1, 0)),
                plane("ground", ground, (-half, 0, length + 1), (1, 0, 0), (0, 0, -1))]
    surfaces += side_walls(rng, style, scale, length)
    spots = [(side * (half - 1.5), 0.0, z) for side in (-1, 1) for z in (9.0, 17.0, 25.0)]
    return surfaces, spots


def across_surfaces(rng, style, scale, yaw):
    """A view of the houses on the other side of a street."""
    far = style.distance
    left, right = (far * math.tan(min(max(yaw + turn, -1.2), 1.2)) + shift for turn, shift in ((-0.85, -3), (0.85, 3)))
    row = draw_row(rng, style, right - left, scale)
    ground = draw_ground(rng, style, right - left, far + 4, [(0, far + 1, right - left, far + 4)], 0.6 * scale)
    surfaces = [plane("wall", row, (left, WALL_HEIGHT, far), (1, 0, 0), (0, -1, 0)),
                plane("ground", ground, (left, 0, far), (1, 0, 0), (0, 0, -1))]
    middle = far * math.tan(yaw)
    spots = [(middle + x + between(rng, -1.5, 1.5), 0.0, far - 2.3) for x in (-9.0, -3.0, 3.0, 9.0)]
    return surfaces, spots


def draw_place(seed, city, place, size):
    """Draws a place for photos of `size` = (width, height) pixels.

    `city` names a training city, or is "val" or "test"; `place` counts from 0. Returns a Scene.
    """
    street = place // PLACES_PER_STREET
    style, rng = draw_style(seed, city, street), generator(seed, city, PLACE, place)
    focal = 0.5 * max(size[0], 4 / 3 * size[1]) / math.tan(HALF_VIEW)
    yaw = between(rng, -0.12, 0.12) if style.along else between(rng, -0.45, 0.45)
    scale = TEXTURE_DETAIL * focal / (9.0 if style.along else style.distance)
    if style.along:
        surfaces, spots = along_surfaces(rng, style, scale, focal)
    else:
        surfaces, spots = across_surfaces(rng, style, scale, yaw)
    towards, right = np.array((math.sin(yaw), 0, math.cos(yaw))), np.array((math.cos(yaw), 0, -math.sin(yaw)))
    skyline = draw_skyline(rng, 400.0, 45.0, TEXTURE_DETAIL * focal / 150)
    surfaces.insert(0, plane("skyline", skyline, 150 * towards - 200 * right + (0, 45, 0), right, (0, -1, 0)))
    order = rng.permutation(len(spots))
    trees = sorted((spots[i] for i in order[:style.trees]), key=lambda spot: -spot[2])
    for spot in trees:
        image = draw_tree(rng, scale)
        grown = between(rng, 0.8, 1.25) / scale
        corner = np.array(spot) + grown * np.array((-0.5 * image.width, image.height, 0))
        surfaces.append(Surface("tree", image, None, corner, np.array((grown, 0, 0)), np.array((0, -grown, 0))))
    lamps = np.array([spots[i] for i in order[style.trees:style.trees + 2]]).reshape(-1, 3) + (0, 5.0, 0)
    return Scene(style, surfaces, lamps, yaw, tuple(size), 360 * generator(seed, city, STREET, street, 1).random())


# ---- A photo of a place -------------------------------------------------------------------------------------------


def draw_camera(rng, scene, movement):
    """The camera of a photo, as (Camera, yaw in radians)."""
    width, height = scene.size
    shift = np.array((between(rng, -2.6, 2.6), between(rng, -0.3, 0.8), between(rng, -2.0, 2.0))) * movement
    yaw = scene.yaw + movement * between(rng, -0.17, 0.17)
    pitch, roll = between(rng, 0.03, 0.2), movement * between(rng, -0.06, 0.06)
    if scene.style.along:
        shift[0] *= 0.7
    focal = 0.5 * max(width, 4 / 3 * height) / math.tan(HALF_VIEW) * math.exp(movement * between(rng, -0.2, 0.25))
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    turn = np.array(((cy, 0, -sy), (0, 1, 0), (sy, 0, cy)))
    tilt = np.array(((1, 0, 0), (0, cp, -sp), (0, sp, cp)))
    bank = np.array(((cr, sr, 0), (-sr, cr, 0), (0, 0, 1)))
    lens = np.array(((focal, 0, width / 2), (0, -focal, height / 2), (0, 0, 1)))
    return Camera(np.array((0, 1.7, 0)) + shift, bank @ tilt @ turn, lens), yaw


def draw_light(rng, hard, month):
    """Light and weather of a photo; `hard` is the chance of dusk, night, rain, fog or snow."""
    kind = pick(rng, ("dusk", "night", "night", "rain", "fog", "snow")) if rng.random() < hard else pick(
        rng, ("noon", "noon", "evening", "overcast"))
    dark, weather, azimuth = 0.0, kind, between(rng, 0, 2 * math.pi)
    elevation = between(rng, 0.15, 0.35) if kind == "evening" else between(rng, 0.6, 1.1)
    direction = np.array((math.cos(azimuth) * math.cos(elevation), math.sin(elevation),
                          math.sin(azimuth) * math.cos(elevation)))
    ambient, sun, zenith, horizon = {
        "noon": ((0.62, 0.66, 0.74), (0.62, 0.58, 0.48), (70, 125, 205), (190, 215, 235)),
        "evening": ((0.48, 0.48, 0.56), (0.85, 0.52, 0.25), (95, 120, 175), (250, 190, 130)),
        "overcast": ((0.82, 0.84, 0.86), (0, 0, 0), (165, 170, 178), (205, 208, 212)),
        "rain": ((0.52, 0.55, 0.6), (0, 0, 0), (105, 112, 122), (150, 156, 164)),
        "fog": ((0.78, 0.79, 0.8), (0, 0, 0), (185, 188, 190), (196, 198, 200)),
        "snow": ((0.85, 0.88, 0.93), (0, 0, 0), (190, 195, 203), (215, 218, 224)),
        "dusk": ((0.38, 0.36, 0.44), (0, 0, 0), (45, 50, 105), (225, 130, 95)),
        "night": ((0.28, 0.28, 0.34), (0, 0, 0), (8, 10, 28), (45, 38, 45)),
    }[kind]
    if kind in ("dusk", "night"):
        dark, weather = 1.0 if kind == "night" else 0.7, pick(rng, ("clear", "clear", "rain"))
    haze = between(rng, 0.012, 0.035) if kind == "fog" else between(rng, 0.001, 0.005)
    leaf = hsv(between(rng, 0.22, 0.34), between(rng, 0.4, 0.7), between(rng, 0.4, 0.65))
    if month in (9, 10, 11):
        leaf = hsv(between(rng, 0.02, 0.14), 0.75, between(rng, 0.5, 0.8))
    if month in (12, 1, 2) or kind == "snow":
        leaf = None
    return Light(planes(ambient), planes(sun), direction, planes(zenith), planes(horizon), dark, haze, weather, leaf)


def draw_background(rng, camera, light, size, road):
    """Sky with clouds above the horizon and bare ground below it: float32 [3, H, W]."""
    width, height = size
    up = (camera.rotation.T @ np.linalg.inv(camera.intrinsics))[1]
    rise = (up[0] * (np.arange(width) + 0.5) + up[1] * (np.arange(height)[:, None] + 0.5) + up[2]).astype(np.float32)
    blend = np.sqrt(np.clip(rise * 1.5, 0, 1))
    sky = light.horizon + blend * (light.zenith - light.horizon)
    noise = Image.fromarray(rng.integers(0, 256, (5, 7), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    cloud = np.clip(np.asarray(noise, np.float32) / 255 - between(rng, 0.3, 0.9), 0, 1)
    sky += cloud * np.float32(1 - light.dark) * (235 - sky)
    return np.where(rise > 0, sky, planes(road) * light.ambient)


def visible_box(forward, surface, size):
    """The part of the photo that a surface may cover as (x0, y0, x1, y1), and whether all of it is in view."""
    w, h = surface.colour.size
    corners = forward @ np.array(((0, w, w, 0), (0, 0, h, h), (1, 1, 1, 1)), float)
    if corners[2].min() < 0.2:
        return (0, 0, *size), False
    points = corners[:2] / corners[2]
    (x0, y0), (x1, y1) = np.floor(points.min(1)).astype(int), np.ceil(points.max(1)).astype(int)
    return (max(0, x0), max(0, y0), min(size[0], x1), min(size[1], y1)), True


def warp(image, backward, box):
    """The part `box` of the photo, looked up in a texture through `backward` (photo to texture) [3, 3]."""
    x0, y0, x1, y1 = (int(v) for v in box)
    matrix = backward @ np.array(((1, 0, x0), (0, 1, y0), (0, 0, 1)))
    coefficients = (matrix / matrix[2, 2]).ravel()[:8].tolist()
    return image.transform((x1 - x0, y1 - y0), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)


def window_table(rng, light):
    """How bright each label value shines: reflections by day, lit windows, shops and signs in the dark."""
    table = (20 * rng.random(256)).astype(np.uint8)
    if light.dark:
        lit = rng.random(256) < between(rng, 0.25, 0.6)
        table = np.where(lit, rng.integers(120, 256, 256), 10)
        table[SHOP], table[SIGN] = rng.integers(90, 256), rng.integers(60, 200)
    table[0] = table[ROOF] = 0
    return table.tolist()


def cast_shadow(rng, size):
    """Shadows of the buildings opposite, on a small L image: 255 in the shadow."""
    image = Image.new("L", (64, 32))
    x, points, level = 0.0, [(0, 32)], between(rng, 6, 30)
    while x < 64:
        height, end = level + between(rng, -5, 5), x + between(rng, 5, 16)
        points += [(x, height), (end, height)]
        x = end
    ImageDraw.Draw(image).polygon([*points, (64, 32)], 255)
    return image.resize((size[0] // 2 + 1, size[1] // 2 + 1), Image.Resampling.BILINEAR)


def tree_colours(masks, light):
    """RGB [3, h, w] and alpha [h, w] of a tree for the season, from its masks [3, h, w] of 0 to 255."""
    wood, leaf, shade = masks / 255
    trunk = planes((225, 228, 235) if light.weather == "snow" else (70, 55, 45))
    if light.leaf is None:
        return wood * trunk, wood
    return leaf * (0.4 + 1.2 * shade) * planes(light.leaf) + (1 - leaf) * wood * trunk, np.maximum(wood, leaf)


def sunlit(rng, surface, light, backward, box):
    """How much sun reaches the pixels of a surface: a number or [h, w], 0 to 1."""
    normal = np.cross(surface.down, surface.right)
    facing = float(light.direction @ normal) / np.linalg.norm(normal)
    if surface.kind in ("tree", "skyline"):
        return abs(facing)
    if facing <= 0:
        return 0.0
    shadow = cast_shadow(rng, surface.colour.size)
    half = np.diag((0.5, 0.5, 1.0)) @ backward
    return facing * (1 - np.asarray(warp(shadow, half, box), np.float32) / 255)


def snowed(surface):
    """The texture with snow on the roofs."""
    image = surface.colour.copy()
    image.paste((228, 232, 240, 255), mask=surface.label.point([0] * ROOF + [230] * (256 - ROOF)))
    return image


def paint(canvas, rng, surface, camera, light, table, lamps):
    """Composites one surface onto the photo [3, H, W], lit and hazed."""
    forward = camera.intrinsics @ camera.rotation @ np.stack(
        (surface.right, surface.down, surface.origin - camera.position), 1)
    box, whole = visible_box(forward, surface, canvas.shape[:0:-1])
    if box[2] <= box[0] or box[3] <= box[1]:
        return
    view, backward = (slice(None), slice(box[1], box[3]), slice(box[0], box[2])), np.linalg.inv(forward)
    image = snowed(surface) if light.weather == "snow" and surface.label is not None else surface.colour
    pixels = np.asarray(warp(image, backward, box)).transpose(2, 0, 1).astype(np.float32, order="C")
    rgb, alpha = tree_colours(pixels, light) if surface.kind == "tree" else (pixels[:3], pixels[3] / 255)
    x, y = np.arange(box[0], box[2]) + 0.5, np.arange(box[1], box[3])[:, None] + 0.5
    near = (backward[2, 0] * x + backward[2, 1] * y + backward[2, 2]).astype(np.float32)  # 1 / depth
    if not whole:  # a plane that reaches behind the camera is looked up there too
        rgb, alpha = rgb * (near > 1e-3), alpha * (near > 1e-3)
    if surface.kind == "ground":
        rgb = rgb + (225 - rgb) * alpha * 0.75 if light.weather == "snow" else rgb
        rgb = 0.6 * rgb + alpha * 0.18 * light.horizon if light.weather == "rain" else rgb
    shining = light.ambient + lamps[view] if light.dark else light.ambient
    if light.sun.any():
        shining = shining + light.sun * sunlit(rng, surface, light, backward, box)
    shone = rgb * shining
    if surface.label is not None and surface.kind != "ground":
        glow = np.asarray(warp(surface.label.point(table), backward, box), np.float32) / 255
        shone += glow * (0.6 * rgb + (planes((190, 154, 98)) if light.dark else 0.75 * light.horizon))
    if light.haze > 0.006 or surface.kind == "skyline":
        shone += (1 - np.exp(-light.haze / np.maximum(near, 1e-3))) * (alpha * light.horizon - shone)
    canvas[view] *= 1 - alpha
    canvas[view] += shone


def lamp_light(scene, camera, light, size):
    """Extra light near the street lamps in the dark: float32 [3, H, W]."""
    total = np.zeros((size[1], size[0]), np.float32)
    for lamp in scene.lamps if light.dark else ():
        x, y, depth = camera.intrinsics @ camera.rotation @ (lamp - camera.position)
        if depth > 1:
            radius = 4.5 * camera.intrinsics[0, 0] / depth
            across = ((np.arange(size[0]) - x / depth) / radius) ** 2
            down = ((np.arange(size[1]) - y / depth) / (1.3 * radius)) ** 2
            total += np.exp(-down)[:, None] * np.exp(-across)
    return total * planes((0.62, 0.5, 0.3))


def draw_car(draw, rng, x, y, s, rear):
    """A car standing at pixel (x, y), `s` pixels per metre, from its side or its rear."""
    body, glass = hsv(rng.random(), pick(rng, (0.05, 0.1, 0.7)), between(rng, 0.2, 0.85)), (45, 55, 65, 255)
    length = 1.8 if rear else between(rng, 3.8, 4.8)
    tall = pick(rng, (1.45, 1.5, 2.1))
    draw.ellipse((x - 0.55 * length * s, y - 0.12 * s, x + 0.55 * length * s, y + 0.15 * s), (15, 15, 18, 170))
    for wheel in (-0.4, 0.4) if rear else (-0.3, 0.3):
        wide = 0.14 if rear else 0.33
        box = (x + (wheel * length - wide) * s, y - 0.64 * s, x + (wheel * length + wide) * s, y)
        draw.ellipse(box, (22, 22, 24, 255))
    draw.rounded_rectangle((x - length / 2 * s, y - 0.95 * s, x + length / 2 * s, y - 0.28 * s), 0.2 * s, body)
    a, b = (0.42, 0.36) if rear else (0.34, 0.22)
    for shrink, colour in ((1.0, body), (0.86, glass)):
        roof = y - (0.9 + (tall - 0.9) * shrink) * s
        draw.polygon([(x - a * shrink * length * s, y - 0.9 * s), (x - b * shrink * length * s, roof),
                      (x + b * shrink * length * s, roof), (x + a * shrink * length * s, y - 0.9 * s)], colour)
    for side in (-1, 1):
        end = x + side * 0.45 * length * s
        lamp = (200, 60, 45, 255) if rear else (235, 225, 190, 255)
        draw.ellipse((end - 0.1 * s, y - 0.8 * s, end + 0.1 * s, y - 0.62 * s), lamp)


def draw_person(draw, rng, x, y, s):
    """A person standing at pixel (x, y), `s` pixels per metre."""
    coat, legs, s = vivid(rng), tone(vivid(rng), 0.5), s * between(rng, 0.9, 1.1)
    stride = between(rng, 0.05, 0.25)
    for side in (-1, 1):
        draw.line((x, y - 0.85 * s, x + side * stride * s, y), legs, max(1, round(0.16 * s)))
    draw.rounded_rectangle((x - 0.23 * s, y - 1.45 * s, x + 0.23 * s, y - 0.75 * s), 0.12 * s, coat)
    skin = pick(rng, ((225, 180, 150), (120, 85, 65), (60, 45, 40)))
    draw.ellipse((x - 0.13 * s, y - 1.75 * s, x + 0.13 * s, y - 1.45 * s), skin)


def draw_occluders(canvas, rng, scene, camera, light, movement):
    """Cars on the road and people on the pavement, drawn twice as large and shrunk."""
    size, half = scene.size, scene.style.distance
    overlay = Image.new("RGBA", (2 * size[0], 2 * size[1]))
    draw, spots = ImageDraw.Draw(overlay), []
    for _ in range(int(between(rng, 0, 2 + 3 * movement))):
        person = rng.random() < 0.5
        if scene.style.along:
            side = between(rng, half - 2.2, half - 0.6) if person else between(rng, 1.0, half - 3.0)
            spots.append((pick(rng, (-1, 1)) * side, between(rng, 8, 22), person))
        else:
            depth = between(rng, half - 2.8, half - 0.8) if person else between(rng, 0.55, 0.7) * half
            spots.append((half * math.tan(scene.yaw) + between(rng, -11, 11), depth, person))
    for x, z, person in sorted(spots, key=lambda spot: -spot[1]):
        u, v, depth = camera.intrinsics @ camera.rotation @ (np.array((x, 0, z)) - camera.position)
        if depth > 3:
            at = (2 * u / depth, 2 * v / depth, 2 * camera.intrinsics[0, 0] / depth)
            draw_person(draw, rng, *at) if person else draw_car(draw, rng, *at, scene.style.along)
    if not spots:
        return
    # Black where it is empty, so that the average is premultiplied by its alpha.
    pixels = np.asarray(overlay.reduce(2)).transpose(2, 0, 1).astype(np.float32, order="C")
    canvas *= 1 - pixels[3] / 255
    canvas += pixels[:3] * (light.ambient + 0.5 * light.sun)


def draw_falling(canvas, rng, light):
    """Streaks of rain, flakes of snow or falling leaves."""
    height, width = canvas.shape[1:]
    autumn = light.leaf is not None and light.leaf[0] > light.leaf[1]
    number = {"rain": 70, "snow": 110}.get(light.weather, 5 if autumn else 0)
    if not number:
        return
    image, unit = Image.new("L", (width, height)), height / 120
    draw, slant = ImageDraw.Draw(image), between(rng, -0.3, 0.3)
    for x, y, r in rng.random((number, 3)) * (width, height, 1):
        if light.weather == "rain":
            length = (5 + 8 * r) * unit
            draw.line((x, y, x + slant * length, y + length), 60, max(1, round(0.6 * unit)))
        else:
            draw.ellipse((x, y, x + (0.5 + 1.4 * r) * unit, y + (0.5 + 1.4 * r) * unit), 190)
    colour = light.leaf if light.weather not in ("rain", "snow") else (225, 230, 238)
    canvas += np.asarray(image, np.float32) / 255 * (planes(colour) - canvas)


def develop(canvas, rng, dark):
    """Exposure, white balance, vignetting, contrast, sensor noise and blur: float [3, H, W] to uint8 [H, W, 3]."""
    height, width = canvas.shape[1:]
    brightness = float(np.tensordot(LUMA, canvas.mean((1, 2)), 1)) / 255
    gain = (0.5 / (brightness + 0.03)) ** (0.85 - 0.25 * dark) * math.exp(between(rng, -0.25, 0.25))
    x, y = np.linspace(-1, 1, width) ** 2, np.linspace(-1, 1, height)[:, None] ** 2
    fall = (gain / 255 * (1 - between(rng, 0, 0.22) * (x + y))).astype(np.float32)
    image = canvas * fall * planes(np.exp(0.035 * rng.standard_normal(3)))
    image = 1 - np.exp(-1.1 * image - 0.5 * image * image)  # a shoulder as film has: lamps do not clip hard
    image **= np.float32(math.exp(between(rng, -0.25, 0.25)))
    sigma = between(rng, 1.0, 3.0) * (1 + 1.2 * dark)
    image = image * 255 + sigma * rng.standard_normal((height, width), np.float32)
    tint = rng.standard_normal((3, height // 2 + 1, width // 2 + 1), np.float32) * np.float32(0.6 * sigma)
    image += tint.repeat(2, 1).repeat(2, 2)[:, :height, :width]
    pixels = np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    if rng.random() < 0.2:
        blur = ImageFilter.BoxBlur(between(rng, 0.3, 0.8) * height / 120)
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).filter(blur))
    return np.ascontiguousarray(pixels)


def draw_photo(seed, city, place, photo, scene, role="train"):
    """Takes photo number `photo` of a scene; `role` (a key of ROLES) says how far it strays. Returns a Photo."""
    movement, hard = ROLES[role]
    rng = generator(seed, city, PHOTO, place, photo)
    year, month = 2008 + int(rng.random() * 15), 1 + int(rng.random() * 12)
    camera, yaw = draw_camera(rng, scene, movement)
    light = draw_light(rng, hard, month)
    canvas = draw_background(rng, camera, light, scene.size, scene.style.road)
    table, lamps = window_table(rng, light), lamp_light(scene, camera, light, scene.size)
    for surface in scene.surfaces:
        paint(canvas, rng, surface, camera, light, table, lamps)
    draw_occluders(canvas, rng, scene, camera, light, movement)
    draw_falling(canvas, rng, light)
    pixels, quality = develop(canvas, rng, light.dark), int(between(rng, 45, 95))
    turn, (right, _, ahead) = math.radians(scene.heading), camera.position
    offset = (right * math.cos(turn) + ahead * math.sin(turn), ahead * math.cos(turn) - right * math.sin(turn))
    return Photo(pixels, offset, round(scene.heading + math.degrees(yaw)) % 360, year, month, quality)


def render_photo(seed, city, place, photo, size=(160, 120), role="train"):
    """Draws one photo without writing it.

    `city` names a training city, or is "val" or "test"; `place` and `photo` count from 0; `size` is (width, height)
    in pixels; `role` is a key of ROLES. Returns uint8 RGB [height, width, 3], the pixels that `make_city` would write.
    """
    return draw_photo(seed, city, place, photo, draw_place(seed, city, place, size), role).pixels
