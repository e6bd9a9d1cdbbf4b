"""Photos of a place."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from datasets.synthetic.camera import draw_camera
from datasets.synthetic.drawing import planes
from datasets.synthetic.foreground import draw_falling, draw_traffic
from datasets.synthetic.light import draw_glow, draw_indoor_light, draw_light, lamp_light
from datasets.synthetic.randomness import between, pick
from datasets.synthetic.rendering import Shot, draw_background, paint
from datasets.synthetic.scene import Scene

LUMA = (0.3, 0.59, 0.11)


class Role(NamedTuple):
    """What a photo is for: how far its camera strays (1 is far), and the chance of hard light."""

    movement: float
    hard_light: float


ROLES = {"train": Role(0.45, 0.35), "database": Role(0.2, 0.1), "query": Role(0.45, 0.5)}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo.

    pixels: uint8 [H, W, 3]. offset: (east, north) of the camera from its place, in metres. heading: in degrees,
    0 to 359. quality: of its JPEG file.
    """

    pixels: np.ndarray
    offset: tuple[float, float]
    heading: int
    year: int
    month: int
    quality: int


def draw_photo(scene: Scene, number: int, role: str = "train") -> Photo:
    """Takes photo `number` (from 0) of a scene. `role` is a key of ROLES.

    The photo depends on these arguments only, not on what was drawn before.
    """
    movement, hard_light = ROLES[role]
    rng = scene.place.photo_stream(number)
    year, month = 2008 + int(rng.random() * 15), pick(rng, scene.domain.months)
    camera = draw_camera(rng, scene, movement)
    light = (
        draw_indoor_light(rng) if scene.style.indoors else draw_light(rng, hard_light, month=month, domain=scene.domain)
    )
    canvas = draw_background(rng, camera, light, size=scene.size, road=scene.style.road)
    shot = Shot(camera=camera, light=light, glow=draw_glow(rng, light), lamps=lamp_light(scene, camera, light))
    for surface in scene.surfaces:
        paint(canvas, rng, surface, shot=shot)
    draw_traffic(canvas, rng, scene, camera=camera, light=light, movement=movement)
    draw_falling(canvas, rng, light)
    circle = None if camera.fisheye is None else camera.fisheye.circle()
    pixels, quality = develop(canvas, rng, light.dark, circle), int(between(rng, 45, 95))
    turn, (right, _, ahead) = math.radians(scene.heading), camera.position
    east, north = right * math.cos(turn) + ahead * math.sin(turn), ahead * math.cos(turn) - right * math.sin(turn)
    return Photo(
        pixels=pixels,
        offset=(east, north),
        heading=round(scene.heading + math.degrees(camera.yaw)) % 360,
        year=year,
        month=month,
        quality=quality,
    )


def develop(canvas: np.ndarray, rng: np.random.Generator, dark: float, circle: np.ndarray | None) -> np.ndarray:
    """Exposure, white balance, vignetting, contrast, sensor noise and blur: canvas [3, H, W] to uint8 [H, W, 3].

    `dark` is 0 by day to 1 by night: photos are darker and noisier then. circle: float32 [H, W], how much light a
    fisheye lens lets through, if there is one.
    """
    height, width = canvas.shape[1:]
    brightness = float(np.tensordot(LUMA, canvas.mean((1, 2)), 1)) / 255
    gain = (0.5 / (brightness + 0.03)) ** (0.85 - 0.25 * dark) * math.exp(between(rng, -0.25, 0.25))
    x, y = np.linspace(-1, 1, width) ** 2, np.linspace(-1, 1, height)[:, None] ** 2
    exposure = (gain / 255 * (1 - between(rng, 0, 0.22) * (x + y))).astype(np.float32)
    image = canvas * exposure * planes(np.exp(0.035 * rng.standard_normal(3)))
    if circle is not None:
        image *= circle
    image = 1 - np.exp(-1.1 * image - 0.5 * image * image)  # a shoulder like film's: lamps do not clip hard
    image **= np.float32(math.exp(between(rng, -0.25, 0.25)))
    sigma = between(rng, 1.0, 3.0) * (1 + 1.2 * dark)  # of grey noise; that of the colours is coarser
    image = image * 255 + sigma * rng.standard_normal((height, width), np.float32)
    tint = rng.standard_normal((3, height // 2 + 1, width // 2 + 1), np.float32) * np.float32(0.6 * sigma)
    image += tint.repeat(2, 1).repeat(2, 2)[:, :height, :width]
    pixels = np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    if rng.random() < 0.2:
        blur = ImageFilter.BoxBlur(between(rng, 0.3, 0.8) * height / 120)
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).filter(blur))
    return np.ascontiguousarray(pixels)
