"""What stands or falls in front of the buildings: cars, people, rain, snow and leaves."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from datasets.synthetic.camera import Camera, Projected
from datasets.synthetic.drawing import Colour, fill_rounded_rectangle, hsv, planes, tone, vivid
from datasets.synthetic.light import Light
from datasets.synthetic.randomness import between, pick
from datasets.synthetic.scene import Scene

MIN_DEPTH = 3.0  # metres; nothing stands nearer to the camera


class Figure(NamedTuple):
    """A car or a person in the scene; x and z in metres."""

    x: float
    z: float
    person: bool


def draw_traffic(
    canvas: np.ndarray, rng: np.random.Generator, scene: Scene, *, camera: Camera, light: Light, movement: float
) -> None:
    """Adds cars on the road and people on the pavement to the canvas; more of them with more `movement`."""
    figures = [draw_figure(rng, scene) for _ in range(int(between(rng, 0, 2 + 3 * movement)))]
    # The overlay is drawn twice as large and shrunk. It is black where it is empty: its average is premultiplied.
    overlay = Image.new("RGBA", (2 * scene.size[0], 2 * scene.size[1]))
    draw = ImageDraw.Draw(overlay)
    for figure in sorted(figures, key=lambda figure: -figure.z):
        seen = camera.project(np.array((figure.x, 0, figure.z)))
        if seen is None or seen.depth <= MIN_DEPTH:
            continue
        foot = Projected(2 * seen.x, 2 * seen.y, seen.depth, scale=2 * seen.scale)
        if figure.person:
            draw_person(draw, rng, foot)
        else:
            draw_car(draw, rng, foot, rear=scene.style.along)
    if not figures:
        return
    pixels = np.asarray(overlay.reduce(2)).transpose(2, 0, 1).astype(np.float32, order="C")
    canvas *= 1 - pixels[3] / 255
    canvas += pixels[:3] * (light.ambient + 0.5 * light.sun)


def draw_figure(rng: np.random.Generator, scene: Scene) -> Figure:
    """A person on the pavement or a car on the road; indoors, a person."""
    half, person = scene.style.distance, rng.random() < 0.5
    if scene.style.indoors:
        return Figure(between(rng, -0.6, 0.6) * half, between(rng, 3.5, 14), person=True)
    if scene.style.along:
        side = between(rng, half - 2.2, half - 0.6) if person else between(rng, 1.0, half - 3.0)
        return Figure(pick(rng, (-1, 1)) * side, between(rng, 8, 22), person)
    depth = between(rng, half - 2.8, half - 0.8) if person else between(rng, 0.55, 0.7) * half
    return Figure(half * math.tan(scene.yaw) + between(rng, -11, 11), depth, person)


def draw_car(draw: ImageDraw.ImageDraw, rng: np.random.Generator, foot: Projected, *, rear: bool) -> None:
    """A car, seen from its side or its rear."""
    x, y, _, s = foot
    body = hsv(rng.random(), pick(rng, (0.05, 0.1, 0.7)), between(rng, 0.2, 0.85))
    length = 1.8 if rear else between(rng, 3.8, 4.8)  # what is seen of it, in metres
    tall = pick(rng, (1.45, 1.5, 2.1))
    shadow = (x - 0.55 * length * s, y - 0.12 * s, x + 0.55 * length * s, y + 0.15 * s)
    draw.ellipse(shadow, (15, 15, 18, 170))
    for wheel in (-0.4, 0.4) if rear else (-0.3, 0.3):
        wide = 0.14 if rear else 0.33
        box = (x + (wheel * length - wide) * s, y - 0.64 * s, x + (wheel * length + wide) * s, y)
        draw.ellipse(box, (22, 22, 24, 255))
    hull = (x - length / 2 * s, y - 0.95 * s, x + length / 2 * s, y - 0.28 * s)
    fill_rounded_rectangle(draw, hull, 0.2 * s, fill=body)
    below, above = (0.42, 0.36) if rear else (0.34, 0.22)  # half widths of the cabin, in lengths
    for shrink, colour in ((1.0, body), (0.86, (45, 55, 65, 255))):
        low, high = below * shrink * length * s, above * shrink * length * s
        sill, roof = y - 0.9 * s, y - (0.9 + (tall - 0.9) * shrink) * s
        draw.polygon([(x - low, sill), (x - high, roof), (x + high, roof), (x + low, sill)], colour)
    lamp: Colour = (200, 60, 45, 255) if rear else (235, 225, 190, 255)
    for side in (-1, 1):
        end = x + side * 0.45 * length * s
        draw.ellipse((end - 0.1 * s, y - 0.8 * s, end + 0.1 * s, y - 0.62 * s), lamp)


def draw_person(draw: ImageDraw.ImageDraw, rng: np.random.Generator, foot: Projected) -> None:
    """A person, tall or short."""
    coat, legs = vivid(rng), tone(vivid(rng), 0.5)
    x, y, s = foot.x, foot.y, foot.scale * between(rng, 0.9, 1.1)
    stride = between(rng, 0.05, 0.25)
    for side in (-1, 1):
        draw.line((x, y - 0.85 * s, x + side * stride * s, y), legs, max(1, round(0.16 * s)))
    body = (x - 0.23 * s, y - 1.45 * s, x + 0.23 * s, y - 0.75 * s)
    fill_rounded_rectangle(draw, body, 0.12 * s, fill=coat)
    skin = pick(rng, ((225, 180, 150), (120, 85, 65), (60, 45, 40)))
    draw.ellipse((x - 0.13 * s, y - 1.75 * s, x + 0.13 * s, y - 1.45 * s), skin)


def draw_falling(canvas: np.ndarray, rng: np.random.Generator, light: Light) -> None:
    """Adds streaks of rain, flakes of snow or falling leaves to the canvas."""
    height, width = canvas.shape[1:]
    number = {"rain": 70, "snow": 110}.get(light.weather, 5 if light.autumn else 0)
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
    colour = (225, 230, 238) if light.weather in ("rain", "snow") or light.leaf is None else light.leaf
    canvas += np.asarray(image, np.float32) / 255 * (planes(colour) - canvas)
