"""Light, weather and season of a photo."""

import math
from dataclasses import dataclass

import numpy as np

from datasets.synthetic.camera import Camera
from datasets.synthetic.config import Domain
from datasets.synthetic.drawing import ROOF, SHOP, SIGN, Colour, hsv, planes
from datasets.synthetic.randomness import between, pick
from datasets.synthetic.scene import Scene

Factors = tuple[float, float, float]

AUTUMN, WINTER = (9, 10, 11), (12, 1, 2)  # months
HARD = ("dusk", "night", "night", "rain", "fog", "snow")
EASY = ("noon", "noon", "evening", "overcast")


# Of each kind of light: ambient light and sun (factors), zenith and horizon of the sky (0 to 255).
SKIES: dict[str, tuple[Factors, Factors, Colour, Colour]] = {
    "noon": ((0.62, 0.66, 0.74), (0.62, 0.58, 0.48), (70, 125, 205), (190, 215, 235)),
    "evening": ((0.48, 0.48, 0.56), (0.85, 0.52, 0.25), (95, 120, 175), (250, 190, 130)),
    "overcast": ((0.82, 0.84, 0.86), (0, 0, 0), (165, 170, 178), (205, 208, 212)),
    "rain": ((0.52, 0.55, 0.6), (0, 0, 0), (105, 112, 122), (150, 156, 164)),
    "fog": ((0.78, 0.79, 0.8), (0, 0, 0), (185, 188, 190), (196, 198, 200)),
    "snow": ((0.85, 0.88, 0.93), (0, 0, 0), (190, 195, 203), (215, 218, 224)),
    "dusk": ((0.38, 0.36, 0.44), (0, 0, 0), (45, 50, 105), (225, 130, 95)),
    "night": ((0.28, 0.28, 0.34), (0, 0, 0), (8, 10, 28), (45, 38, 45)),
}


@dataclass(frozen=True, kw_only=True)
class Light:
    """Light and weather of a photo.

    ambient, sun: float32 [3, 1, 1], factors. direction: float64 [3], unit vector towards the sun.
    zenith, horizon: float32 [3, 1, 1], 0 to 255. dark: 0 by day to 1 by night. haze: in 1/m.
    weather: a key of SKIES, or "clear" in the dark. leaf: RGB colour of the leaves, None if the trees are bare.
    """

    ambient: np.ndarray
    sun: np.ndarray
    direction: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    dark: float = 0.0
    haze: float = 0.0
    weather: str = "clear"
    leaf: Colour | None = None

    @property
    def autumn(self) -> bool:
        """Whether the leaves are red or yellow."""
        return self.leaf is not None and self.leaf[0] > self.leaf[1]


def draw_light(rng: np.random.Generator, hard: float, *, month: int, domain: Domain) -> Light:
    """Random light of the domain for a month (1 to 12); `hard` is the chance of dusk, night, rain, fog or snow.

    A domain with only hard light, or without any, always has that light.
    """
    first, second = (HARD, EASY) if rng.random() < hard else (EASY, HARD)
    kind = pick(rng, [k for k in first if k in domain.lights] or [k for k in second if k in domain.lights])
    azimuth = between(rng, 0, 2 * math.pi)
    elevation = between(rng, 0.15, 0.35) if kind == "evening" else between(rng, 0.6, 1.1)
    flat = math.cos(elevation)
    ambient, sun, zenith, horizon = SKIES[kind]
    dark = {"dusk": 0.7, "night": 1.0}.get(kind, 0.0)
    weather = pick(rng, ("clear", "clear", "rain")) if dark else kind
    haze = between(rng, 0.012, 0.035) if kind == "fog" else between(rng, 0.001, 0.005)
    leaf: Colour | None = hsv(between(rng, 0.22, 0.34), between(rng, 0.4, 0.7), between(rng, 0.4, 0.65))
    if month in AUTUMN:
        leaf = hsv(between(rng, 0.02, 0.14), 0.75, between(rng, 0.5, 0.8))
    if month in WINTER or kind == "snow":
        leaf = None
    return Light(
        ambient=planes(ambient),
        sun=planes(sun),
        direction=np.array((math.cos(azimuth) * flat, math.sin(elevation), math.sin(azimuth) * flat)),
        zenith=planes(zenith),
        horizon=planes(horizon),
        dark=dark,
        weather=weather,
        haze=haze,
        leaf=leaf,
    )


def draw_indoor_light(rng: np.random.Generator) -> Light:
    """The light of lamps: white, yellowish or bluish, and brighter or darker."""
    brightness, warmth = between(rng, 0.7, 1.15), between(rng, -0.06, 0.1)
    return Light(
        ambient=planes((brightness * (1 + warmth), brightness, brightness * (1 - warmth))),
        sun=planes((0, 0, 0)),
        direction=np.array((0.0, 1.0, 0.0)),
        zenith=planes((150, 150, 150)),
        horizon=planes((150, 150, 150)),
    )


def draw_glow(rng: np.random.Generator, light: Light) -> list[int]:
    """How bright each of the 256 labels shines: reflections by day; lit windows, shops and signs in the dark."""
    table = (20 * rng.random(256)).astype(np.uint8)
    if light.dark:
        lit = rng.random(256) < between(rng, 0.25, 0.6)
        table = np.where(lit, rng.integers(120, 256, 256), 10)
        table[SHOP], table[SIGN] = rng.integers(90, 256), rng.integers(60, 200)
    table[0] = table[ROOF] = 0
    return table.tolist()


def lamp_light(scene: Scene, camera: Camera, light: Light) -> np.ndarray:
    """Extra light near the street lamps in the dark: float32 [3, H, W], factors."""
    width, height = scene.size
    total = np.zeros((height, width), np.float32)
    for lamp in scene.lamps if light.dark else ():
        seen = camera.project(lamp)
        if seen is not None and seen.depth > 1:
            radius = 4.5 * seen.scale
            across = ((np.arange(width) - seen.x) / radius) ** 2
            down = ((np.arange(height) - seen.y) / (1.3 * radius)) ** 2
            total += np.exp(-down)[:, None] * np.exp(-across)
    return total * planes((0.62, 0.5, 0.3))
