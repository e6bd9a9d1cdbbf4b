"""The camera of a photo."""

import math
from dataclasses import dataclass

import numpy as np

from datasets.synthetic.randomness import between
from datasets.synthetic.scene import Scene, focal_length

EYE_HEIGHT = 1.7  # metres


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera.

    position: float64 [3], metres. rotation: float64 [3, 3], world to camera. intrinsics: float64 [3, 3], pixels.
    yaw: radians, to the right of the z axis.
    """

    position: np.ndarray
    rotation: np.ndarray
    intrinsics: np.ndarray
    yaw: float

    @property
    def projection(self) -> np.ndarray:
        """Maps a point relative to the camera to (x * depth, y * depth, depth): float64 [3, 3]."""
        return self.intrinsics @ self.rotation

    def project(self, point: np.ndarray) -> tuple[float, float, float]:
        """(x * depth, y * depth, depth) of a point [3] in metres; x and y are pixels, depth is in metres."""
        x, y, depth = self.projection @ (point - self.position)
        return x, y, depth


def draw_camera(rng: np.random.Generator, scene: Scene, movement: float) -> Camera:
    """A random camera; `movement` scales how far it strays from the usual view of the scene."""
    width, height = scene.size
    shift = np.array((between(rng, -2.6, 2.6), between(rng, -0.3, 0.8), between(rng, -2.0, 2.0))) * movement
    yaw = scene.yaw + movement * between(rng, -0.17, 0.17)
    pitch, roll = between(rng, 0.03, 0.2), movement * between(rng, -0.06, 0.06)
    if scene.style.along:
        shift[0] *= 0.7  # a street has walls on both sides
    focal = focal_length(scene.size) * math.exp(movement * between(rng, -0.2, 0.25))
    return Camera(
        position=np.array((0, EYE_HEIGHT, 0)) + shift,
        rotation=rotation_matrix(yaw, pitch, roll),
        intrinsics=np.array(((focal, 0, width / 2), (0, -focal, height / 2), (0, 0, 1))),
        yaw=yaw,
    )


def rotation_matrix(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The rotation from world to camera for three angles in radians: float64 [3, 3]."""
    cy, sy, cp, sp, cr, sr = (f(angle) for angle in (yaw, pitch, roll) for f in (math.cos, math.sin))
    turn = np.array(((cy, 0, -sy), (0, 1, 0), (sy, 0, cy)))
    tilt = np.array(((1, 0, 0), (0, cp, -sp), (0, sp, cp)))
    bank = np.array(((cr, sr, 0), (-sr, cr, 0), (0, 0, 1)))
    return bank @ tilt @ turn
