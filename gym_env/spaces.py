"""Spaces, and the way between them and the core's cameras. The one place that turns axes.

Actions and poses are in *base axes* (x forward, y left, z up, right-handed; REP 103), the core is in *camera axes*
(x right, y down, z forward). Both have their origin in the camera.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gym_env.settings import Settings

BASE_FROM_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Rotation: ``v_base = BASE_FROM_CAMERA @ v_camera``."""

DISCRETE_MOVES = ("stay", "forward", "backward", "turn_left", "turn_right", "strafe_left", "strafe_right")
"""Meaning of the discrete actions 0, 1, 2, ... Each is a twist at the full speed of its axis."""

PLAYHEAD_CHOICES = (0.0, 1.0, -1.0)
"""Playhead rates of the discrete choice: pause, play, reverse."""

POSITION_LIMIT = 1000.0
"""Bound of an observed position per axis and of an observed depth, metres. Beyond it they saturate."""

_AXES = ("vx", "vy", "vz", "wx", "wy", "wz")
_PLANAR = ("vx", "vy", "wz")
_MOVES = {"stay": {}, "forward": {"vx": 1}, "backward": {"vx": -1}, "turn_left": {"wz": 1}, "turn_right": {"wz": -1},
          "strafe_left": {"vy": 1}, "strafe_right": {"vy": -1}}  # fmt: skip


class Actions:
    """The action space of one world, and what a batch of actions means."""

    def __init__(self, settings: Settings):
        limits = np.array([settings.max_linear] * 3 + [settings.max_angular] * 3)
        to_camera = np.kron(np.eye(2), BASE_FROM_CAMERA)  # row vectors: base twist @ to_camera = camera twist
        self.discrete = settings.action == "discrete"
        self.playhead = settings.playhead_action
        if self.discrete:
            base = np.array([[_MOVES[move].get(axis, 0) for axis in _AXES] for move in DISCRETE_MOVES]) * limits
            self.matrix = base @ to_camera
            n = len(DISCRETE_MOVES)
            self.space = spaces.MultiDiscrete([n, len(PLAYHEAD_CHOICES)]) if self.playhead else spaces.Discrete(n)
        else:
            axes = _AXES if settings.action == "twist6" else _PLANAR
            chosen = [_AXES.index(axis) for axis in axes]
            self.matrix = to_camera[chosen]
            high = np.append(limits[chosen], 1.0) if self.playhead else limits[chosen]
            self.space = spaces.Box(-high.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def decode(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Body twists in camera axes, float64 [B, 6], and playhead rates [B] (None without ``playhead_action``).

        Continuous actions beyond the space are clipped to it.

        Args:
            actions: [B, ...] actions of the space.

        Raises:
            gymnasium.error.InvalidAction: wrong shape, NaN or infinite, or a choice that does not exist.
        """
        actions = np.asarray(actions)
        if actions.shape[1:] != self.space.shape:
            raise gym.error.InvalidAction(
                f"action: shape {actions.shape[1:]} is not that of the action space, {self.space.shape}"
            )
        if self.discrete:
            choices = actions.reshape(len(actions), -1)
            limits = self.space.nvec if self.playhead else self.space.n
            if choices.dtype.kind not in "iu" or (choices < 0).any() or (choices >= limits).any():
                raise gym.error.InvalidAction(f"action: {actions.tolist()} has a choice outside {self.space}")
            rates = np.take(PLAYHEAD_CHOICES, choices[:, 1]) if self.playhead else None
            return self.matrix[choices[:, 0]], rates
        if not np.isfinite(actions).all():
            raise gym.error.InvalidAction(f"action: {actions.tolist()} is not finite")
        actions = np.minimum(np.maximum(actions, self.space.low), self.space.high).astype(np.float64)
        if self.playhead:
            return actions[:, :-1] @ self.matrix, actions[:, -1]
        return actions @ self.matrix, None


class Observations:
    """The observation space of one world, and the arrays that fill it."""

    def __init__(self, settings: Settings):
        h, w = settings.size
        self.keys = settings.observation
        self.metres = settings.depth == "metres"
        self.near = np.float32(settings.depth_near)
        pose = np.array([POSITION_LIMIT] * 3 + [1.0] * 4, np.float32)
        depth_type = (POSITION_LIMIT, np.float32) if self.metres else (255, np.uint8)
        boxes = {
            "rgb": spaces.Box(0, 255, (h, w, 3), np.uint8),
            "depth": spaces.Box(0, depth_type[0], (h, w, 1), depth_type[1]),
            "pose": spaces.Box(-pose, pose, dtype=np.float32),
        }
        self.space = spaces.Dict({key: boxes[key] for key in self.keys})

    def encode(self, rgb: np.ndarray, depth: np.ndarray, pose: np.ndarray, start: np.ndarray) -> dict[str, np.ndarray]:
        """Observations of B worlds, in arrays of their own.

        Args:
            rgb: uint8 [B, h, w, 3].
            depth: float32 [B, h, w], metres, > 0.
            pose: float64 [B, 4, 4] ``world_from_camera`` now.
            start: float64 [B, 4, 4] ``world_from_camera`` at the episode's start.
        """
        found = {}
        for key in self.space:
            if key == "rgb":
                found[key] = np.array(rgb, order="C")
            elif key == "depth":
                found[key] = np.minimum(depth, POSITION_LIMIT) if self.metres else inverse_depth(depth, self.near)
                found[key] = np.ascontiguousarray(found[key])[..., None]
            else:
                found[key] = relative_pose(pose, start)
        return found


def inverse_depth(depth: np.ndarray, near: float) -> np.ndarray:
    """Depth in metres to uint8: ``round(255 * near / depth)``, 255 for anything nearer than ``near``."""
    level = (np.float32(255.0) * np.float32(near)) / depth
    level += np.float32(0.5)
    np.minimum(level, np.float32(255.0), out=level)
    return level.astype(np.uint8)


def relative_pose(pose: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Pose [B, 4, 4] seen from ``start`` [B, 4, 4] (both ``world_from_camera``) as float32 [B, 7] in base axes.

    Position x, y, z in metres, then the unit quaternion x, y, z, w of the rotation, w >= 0.
    """
    rotation = start[:, :3, :3].transpose(0, 2, 1) @ pose[:, :3, :3]
    position = np.einsum("bji,bj->bi", start[:, :3, :3], pose[:, :3, 3] - start[:, :3, 3])
    vector = np.empty((len(pose), 7), np.float32)
    vector[:, :3] = np.clip(position @ BASE_FROM_CAMERA.T, -POSITION_LIMIT, POSITION_LIMIT)
    vector[:, 3:] = quaternion(BASE_FROM_CAMERA @ rotation @ BASE_FROM_CAMERA.T)
    return vector


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrices [B, 3, 3] to unit quaternions [B, 4] (x, y, z, w), w >= 0; exact at half turns too."""
    outer = np.empty((len(rotation), 4, 4))  # 4 q q^T: its largest row, normalised, is q up to sign
    xx, yy, zz = rotation[:, 0, 0], rotation[:, 1, 1], rotation[:, 2, 2]
    outer[:, 0, 0] = 1 + xx - yy - zz
    outer[:, 1, 1] = 1 - xx + yy - zz
    outer[:, 2, 2] = 1 - xx - yy + zz
    outer[:, 3, 3] = 1 + xx + yy + zz
    outer[:, 0, 1] = outer[:, 1, 0] = rotation[:, 0, 1] + rotation[:, 1, 0]
    outer[:, 0, 2] = outer[:, 2, 0] = rotation[:, 0, 2] + rotation[:, 2, 0]
    outer[:, 1, 2] = outer[:, 2, 1] = rotation[:, 1, 2] + rotation[:, 2, 1]
    outer[:, 0, 3] = outer[:, 3, 0] = rotation[:, 2, 1] - rotation[:, 1, 2]
    outer[:, 1, 3] = outer[:, 3, 1] = rotation[:, 0, 2] - rotation[:, 2, 0]
    outer[:, 2, 3] = outer[:, 3, 2] = rotation[:, 1, 0] - rotation[:, 0, 1]
    rows = np.arange(len(rotation))
    q = outer[rows, np.einsum("bii->bi", outer).argmax(1)]
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    return np.where(q[:, 3:] < 0, -q, q)
