"""The camera of a photo, and its lens."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from datasets.synthetic.randomness import between, pick
from datasets.synthetic.scene import Scene, focal_length

EYE_HEIGHT = 1.7  # metres


class Projected(NamedTuple):
    """A point in the picture: pixel (x, y), its depth in metres, and the scale there in pixels per metre. A fisheye has
    this scale around its centre; towards its edge, lengths that point away from the centre are shorter.
    """

    x: float
    y: float
    depth: float
    scale: float


@dataclass(frozen=True, kw_only=True)
class Fisheye:
    """An equidistant lens: a direction at an angle of a (radians) from its axis is seen focal * a pixels from `centre`.

    size: (width, height) of the photo, in pixels. radius: of the circle that the lens shows, in pixels.
    """

    size: tuple[int, int]
    focal: float
    centre: tuple[float, float]
    radius: float

    @cached_property
    def directions(self) -> np.ndarray:
        """Where each pixel looks, to the right, up and ahead: float32 [3, H, W], unit vectors."""
        x, y = self._from_centre()
        distance = np.hypot(x, y)
        sideways = np.sinc(distance / self.focal / np.pi) / self.focal  # sin(angle) / distance
        rays = np.broadcast_arrays(x * sideways, -y * sideways, np.cos(distance / self.focal))
        return np.stack(rays).astype(np.float32)

    def circle(self) -> np.ndarray:
        """1 within the circle, falling to 0 over its edge: float32 [H, W]."""
        return np.clip((self.radius - np.hypot(*self._from_centre())) / (0.04 * self.radius), 0, 1).astype(np.float32)

    def _from_centre(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = _pixel_centres(self.size)
        return x - self.centre[0], y - self.centre[1]

    def project(self, direction: np.ndarray) -> Projected:
        """A point [3], relative to the camera and in its axes (right, up, ahead), in metres."""
        x, y, depth = direction
        sideways = math.hypot(x, y)
        scale = self.focal * (math.atan2(sideways, depth) / sideways if sideways else 1 / depth)
        return Projected(self.centre[0] + scale * x, self.centre[1] - scale * y, depth, scale)


def _pixel_centres(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x [W] and y [H, 1] of the centres of the pixels of a photo of size = (width, height)."""
    return np.arange(size[0]) + 0.5, np.arange(size[1])[:, None] + 0.5


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera, which has a pinhole unless there is a fisheye lens.

    position: float64 [3], metres. rotation: float64 [3, 3], world to camera. intrinsics: of the pinhole, float64
    [3, 3], pixels. yaw: radians, to the right of the z axis.
    """

    position: np.ndarray
    rotation: np.ndarray
    intrinsics: np.ndarray
    yaw: float
    fisheye: Fisheye | None

    @property
    def projection(self) -> np.ndarray:
        """Maps a point relative to the camera to (x * depth, y * depth, depth): float64 [3, 3]."""
        return self.intrinsics @ self.rotation

    def project(self, point: np.ndarray) -> Projected | None:
        """A point [3] in metres; None if it lies behind the camera."""
        if self.fisheye is not None:
            projected = self.fisheye.project(self.rotation @ (point - self.position))
            return projected if projected.depth > 0 else None
        x, y, depth = self.projection @ (point - self.position)
        return Projected(x / depth, y / depth, depth, self.intrinsics[0, 0] / depth) if depth > 0 else None

    def elevation(self, size: tuple[int, int]) -> np.ndarray:
        """How steeply each pixel of a photo looks up: float64 [H, W], 0 at the horizon, growing upwards.

        Of a pinhole about the tangent of the angle, of a fisheye its sine.
        """
        if self.fisheye is not None:
            return np.tensordot(self.rotation.T[1], self.fisheye.directions, 1)
        up = (self.rotation.T @ np.linalg.inv(self.intrinsics))[1]
        x, y = _pixel_centres(size)
        return up[0] * x + up[1] * y + up[2]


def draw_camera(rng: np.random.Generator, scene: Scene, movement: float) -> Camera:
    """A random camera; `movement` scales how far it strays from the usual view of the scene."""
    width, height = scene.size
    shift = np.array((between(rng, -2.6, 2.6), between(rng, -0.3, 0.8), between(rng, -2.0, 2.0))) * movement
    yaw = scene.yaw + movement * between(rng, -0.17, 0.17)
    pitch, roll = between(rng, 0.03, 0.2), movement * between(rng, -0.06, 0.06)
    if scene.style.along:
        shift[0] *= 0.7  # a street has walls on both sides
    focal = focal_length(scene.size) * math.exp(movement * between(rng, -0.2, 0.25))
    if scene.style.indoors:
        shift *= (0.4 * scene.style.distance, 1.0, 1.6)
    return Camera(
        position=np.array((0, EYE_HEIGHT, 0)) + shift,
        rotation=rotation_matrix(yaw, pitch, roll),
        intrinsics=np.array(((focal, 0, width / 2), (0, -focal, height / 2), (0, 0, 1))),
        yaw=yaw,
        fisheye=draw_fisheye(rng, scene, movement),
    )


def draw_fisheye(rng: np.random.Generator, scene: Scene, movement: float) -> Fisheye | None:
    """The fisheye lens that a street is photographed with, None if it is another lens.

    Its circle may be smaller or larger than the photo, and shows 150 to 184 degrees. Each photo moves it a little.
    """
    own = scene.place.street_stream(4)
    if pick(own, scene.domain.lenses) != "fisheye":
        return None
    width, height = scene.size
    radius = between(own, 0.45, 0.65) * height * math.exp(movement * between(rng, -0.1, 0.1))
    middle = [0.5 * side + movement * between(rng, -0.08, 0.08) * height for side in (width, height)]
    half_angle = math.radians(between(own, 75, 92))
    return Fisheye(size=scene.size, focal=radius / half_angle, centre=(middle[0], middle[1]), radius=radius)


def rotation_matrix(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The rotation from world to camera for three angles in radians: float64 [3, 3]."""
    cy, sy, cp, sp, cr, sr = (f(angle) for angle in (yaw, pitch, roll) for f in (math.cos, math.sin))
    turn = np.array(((cy, 0, -sy), (0, 1, 0), (sy, 0, cy)))
    tilt = np.array(((1, 0, 0), (0, cp, -sp), (0, sp, cp)))
    bank = np.array(((cr, sr, 0), (-sr, cr, 0), (0, 0, 1)))
    return bank @ tilt @ turn
