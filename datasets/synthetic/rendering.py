"""Painting the sky and the surfaces of a place onto the canvas of a photo.

A canvas is float32 [3, H, W]: red, green and blue, about 0 to 255 and not clipped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from datasets.synthetic.camera import Camera, Fisheye
from datasets.synthetic.drawing import ROOF, Colour, planes
from datasets.synthetic.light import Light
from datasets.synthetic.randomness import between
from datasets.synthetic.scene import Surface

MIN_DEPTH = 0.2  # metres; a surface with a corner nearer than this counts as reaching behind the camera
MIN_INVERSE_DEPTH = 1e-3  # 1/m
CLEAR_HAZE = 0.006  # 1/m; up to this, haze shows on the skyline only


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What all surfaces of a photo share.

    glow: brightness of each of the 256 labels, 0 to 255. lamps: float32 [3, H, W], light of the lamps, factors.
    """

    camera: Camera
    light: Light
    glow: list[int]
    lamps: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Where a surface lies in a photo.

    view: selects its box, all that it may cover, from a canvas. near: 1 / depth of the box's pixels (fisheye:
    1 / distance), in 1/m: float32 [h, w], negative behind the camera. warp: (texture, its size relative to the
    surface's) -> the box's pixels, looked up in it: float32 [h, w] or [h, w, channels]. in_front: whether `warp` finds
    only what lies in front of the camera.
    """

    view: tuple[slice, slice, slice]
    near: np.ndarray
    warp: Callable[[Image.Image, float], np.ndarray]
    in_front: bool


def warp_straight(
    image: Image.Image, scale: float, *, box: tuple[int, int, int, int], backward: np.ndarray
) -> np.ndarray:
    """Footprint.warp of a pinhole. box: x0, y0, x1, y1. backward: float64 [3, 3], from photo to texture, both in
    pixels.
    """
    x0, y0, x1, y1 = box
    matrix = np.diag((scale, scale, 1.0)) @ backward @ np.array(((1, 0, x0), (0, 1, y0), (0, 0, 1)))
    coefficients = (matrix / matrix[2, 2]).ravel()[:8].tolist()
    size, method = (x1 - x0, y1 - y0), Image.Transform.PERSPECTIVE
    return np.asarray(image.transform(size, method, coefficients, Image.Resampling.BILINEAR), np.float32)


def warp_fisheye(image: Image.Image, scale: float, *, near: np.ndarray, lookup: np.ndarray) -> np.ndarray:
    """Footprint.warp of a fisheye lens. lookup: float32 [2, h, w]: s / d and t / d, where (s, t) is what a pixel sees
    of the texture and d = 1 / near its distance in metres.
    """
    texture = np.asarray(image)
    seen = near > MIN_INVERSE_DEPTH
    s, t = scale * lookup[:, seen] / near[seen] - 0.5  # pixels of the texture, from its centres
    inside = (s > -1) & (s < texture.shape[1]) & (t > -1) & (t < texture.shape[0])
    seen[seen] = inside
    pixels = np.zeros((*seen.shape, *texture.shape[2:]), np.float32)
    pixels[seen] = bilinear(texture, s[inside], t[inside])
    return pixels


def bilinear(texture: np.ndarray, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """A texture [H, W] or [H, W, C] at columns s [n] and rows t [n], -1 to W or H: [n] or [n, C]. It is 0 outside."""
    padded = np.pad(texture, ((1, 1), (1, 1), *((0, 0) for _ in texture.shape[2:])))
    column, row = np.floor(s).astype(np.int64), np.floor(t).astype(np.int64)
    channels = (1,) * (texture.ndim - 2)
    right, below = (s - column).reshape(-1, *channels), (t - row).reshape(-1, *channels)
    column, row = column + 1, row + 1  # in the padded texture
    above = padded[row, column] * (1 - right) + padded[row, column + 1] * right
    return above * (1 - below) + (padded[row + 1, column] * (1 - right) + padded[row + 1, column + 1] * right) * below


def draw_background(
    rng: np.random.Generator, camera: Camera, light: Light, *, size: tuple[int, int], road: Colour
) -> np.ndarray:
    """A canvas of `size` = (width, height) pixels: a cloudy sky above the horizon, bare ground below it."""
    rise = camera.elevation(size).astype(np.float32)
    blend = np.sqrt(np.clip(rise * 1.5, 0, 1))
    sky = light.horizon + blend * (light.zenith - light.horizon)
    noise = Image.fromarray(rng.integers(0, 256, (5, 7), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    cloud = np.clip(np.asarray(noise, np.float32) / 255 - between(rng, 0.3, 0.9), 0, 1)
    sky += cloud * np.float32(1 - light.dark) * (235 - sky)
    return np.where(rise > 0, sky, planes(road) * light.ambient)


def paint(canvas: np.ndarray, rng: np.random.Generator, surface: Surface, *, shot: Shot) -> None:
    """Paints a surface over what is on the canvas, lit and hazed."""
    light = shot.light
    footprint = find_footprint(surface, shot.camera, canvas)
    if footprint is None:
        return
    view, near = footprint.view, footprint.near
    image = surface.colour
    if light.weather == "snow" and surface.label is not None:
        image = image.copy()
        image.paste((228, 232, 240, 255), mask=surface.label.point([0] * ROOF + [230] * (256 - ROOF)))
    pixels = np.ascontiguousarray(footprint.warp(image, 1.0).transpose(2, 0, 1))
    rgb, alpha = tree_colours(pixels, light) if surface.kind == "tree" else (pixels[:3], pixels[3] / 255)
    if not footprint.in_front:  # the lookup also finds what lies behind the camera
        rgb, alpha = rgb * (near > MIN_INVERSE_DEPTH), alpha * (near > MIN_INVERSE_DEPTH)
    if surface.kind == "ground" and light.weather == "snow":
        rgb = rgb + (225 - rgb) * alpha * 0.75
    if surface.kind == "ground" and light.weather == "rain":  # it reflects the sky
        rgb = 0.6 * rgb + alpha * 0.18 * light.horizon
    illumination = light.ambient + shot.lamps[view] if light.dark else light.ambient
    if light.sun.any():
        illumination = illumination + light.sun * sunlit(rng, surface, light, footprint=footprint)
    shaded = rgb * illumination
    if surface.label is not None and surface.kind != "ground":
        glow = footprint.warp(surface.label.point(shot.glow), 1.0) / 255
        shaded += glow * (0.6 * rgb + (planes((190, 154, 98)) if light.dark else 0.75 * light.horizon))
    if light.haze > CLEAR_HAZE or surface.kind == "skyline":
        hazed = 1 - np.exp(-light.haze / np.maximum(near, MIN_INVERSE_DEPTH))
        shaded += hazed * (alpha * light.horizon - shaded)
    canvas[view] *= 1 - alpha
    canvas[view] += shaded


def find_footprint(surface: Surface, camera: Camera, canvas: np.ndarray) -> Footprint | None:
    """Where the surface lies on the canvas, None if it lies outside."""
    height, width = canvas.shape[1:]
    if camera.fisheye is not None:
        return fisheye_footprint(surface, camera, camera.fisheye)
    corner = surface.origin - camera.position
    forward = camera.projection @ np.stack((surface.right, surface.down, corner), 1)
    w, h = surface.colour.size
    corners = forward @ np.array(((0, w, w, 0), (0, 0, h, h), (1, 1, 1, 1)), float)
    in_front = bool(corners[2].min() >= MIN_DEPTH)
    box = (0, 0, width, height)
    if in_front:
        points = corners[:2] / corners[2]
        (x0, y0), (x1, y1) = np.floor(points.min(1)).astype(int), np.ceil(points.max(1)).astype(int)
        box = (max(0, int(x0)), max(0, int(y0)), min(width, int(x1)), min(height, int(y1)))
    if box[2] <= box[0] or box[3] <= box[1]:
        return None
    backward = np.linalg.inv(forward)
    x, y = np.arange(box[0], box[2]) + 0.5, np.arange(box[1], box[3])[:, None] + 0.5
    near = (backward[2, 0] * x + backward[2, 1] * y + backward[2, 2]).astype(np.float32)
    view = (slice(None), slice(box[1], box[3]), slice(box[0], box[2]))
    warp = partial(warp_straight, box=box, backward=backward)
    return Footprint(view=view, near=near, warp=warp, in_front=in_front)


def fisheye_footprint(surface: Surface, camera: Camera, fisheye: Fisheye) -> Footprint | None:
    """Where a fisheye lens sees the surface, None if it does not."""
    forward = np.stack((surface.right, surface.down, surface.origin - camera.position), 1)
    backward = (np.linalg.inv(forward) @ camera.rotation.T).astype(np.float32)
    s, t, near = lookup = np.tensordot(backward, fisheye.directions, 1)
    w, h = surface.colour.size
    seen = (near > MIN_INVERSE_DEPTH) & (s > -near) & (s < (w + 1) * near) & (t > -near) & (t < (h + 1) * near)
    if not seen.any():
        return None
    (y0, y1), (x0, x1) = (np.flatnonzero(seen.any(axis))[[0, -1]] + (0, 1) for axis in (1, 0))
    view = (slice(None), slice(y0, y1), slice(x0, x1))
    part = lookup[view]
    warp = partial(warp_fisheye, near=part[2], lookup=part[:2])
    return Footprint(view=view, near=part[2], warp=warp, in_front=True)


def tree_colours(masks: np.ndarray, light: Light) -> tuple[np.ndarray, np.ndarray]:
    """Colours [3, h, w] and alpha [h, w] of a tree for the season, from its masks [3, h, w] of 0 to 255."""
    wood, leaf, shade = masks / 255
    trunk = planes((225, 228, 235) if light.weather == "snow" else (70, 55, 45))
    if light.leaf is None:
        return wood * trunk, wood
    return leaf * (0.4 + 1.2 * shade) * planes(light.leaf) + (1 - leaf) * wood * trunk, np.maximum(wood, leaf)


def sunlit(rng: np.random.Generator, surface: Surface, light: Light, *, footprint: Footprint) -> float | np.ndarray:
    """How much sun reaches the pixels of a surface: a number or float64 [h, w], 0 to 1."""
    normal = np.cross(surface.down, surface.right)
    facing: float = light.direction @ normal / np.linalg.norm(normal)
    if surface.kind in ("tree", "skyline"):
        return abs(facing)
    if facing <= 0:
        return 0.0
    shadow = cast_shadow(rng, surface.colour.size)
    return facing * (1 - footprint.warp(shadow, 0.5) / 255)


def cast_shadow(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """The shadow of the buildings opposite: an L image of half of `size` (pixels), 255 in the shadow."""
    image = Image.new("L", (64, 32))
    x, points, level = 0.0, [(0.0, 32.0)], between(rng, 6, 30)
    while x < 64:
        height, end = level + between(rng, -5, 5), x + between(rng, 5, 16)
        points += [(x, height), (end, height)]
        x = end
    ImageDraw.Draw(image).polygon([*points, (64, 32)], 255)
    return image.resize((size[0] // 2 + 1, size[1] // 2 + 1), Image.Resampling.BILINEAR)
