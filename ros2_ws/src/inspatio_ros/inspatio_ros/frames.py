"""The one place where the core's camera axes meet REP 103 / REP 105.

The core speaks OpenCV axes: camera x right, y down, z forward; its world frame is the first source camera.
ROS speaks x forward, y left, z up for ``map``, ``odom``, ``base_link`` and ``camera_link``, and OpenCV axes for
``camera_optical_frame`` only. ``map`` has the origin of the core's world and REP 103 axes; ``base_link`` and
``camera_link`` coincide.

All matrices are float64 NumPy 4x4, named ``a_from_b``: they take coordinates in b to coordinates in a.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

LINK_FROM_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Optical x (right) is link -y, y (down) is link -z, z (forward) is link x; as a quaternion (-.5, .5, -.5, .5)."""

OPTICAL_FROM_LINK = LINK_FROM_OPTICAL.T

PLANAR = np.array([1.0, 1, 0, 0, 0, 1])
"""What a ground robot can do of a twist (vx, vy, vz, wx, wy, wz) in base_link: no z, no roll, no pitch."""


def camera_twist(base_twist: np.ndarray, planar: bool = False) -> np.ndarray:
    """Body twist (v, w) of ``base_link`` to the same motion in camera axes.

    Args:
        base_twist: float64 [6], m/s and rad/s, x forward, y left, z up.
        planar: ignore z, roll and pitch.
    """
    twist = base_twist * PLANAR if planar else base_twist
    R = OPTICAL_FROM_LINK[:3, :3]
    return np.concatenate([R @ twist[:3], R @ twist[3:]])


def base_twist(twist: np.ndarray) -> np.ndarray:
    """Inverse of ``camera_twist``: float64 [6] in camera axes to float64 [6] in ``base_link``."""
    R = LINK_FROM_OPTICAL[:3, :3]
    return np.concatenate([R @ twist[:3], R @ twist[3:]])


def map_from_link(world_from_camera: np.ndarray) -> np.ndarray:
    """Pose of ``camera_link`` (= ``base_link``) in ``map``, from the core's ``world_from_camera``."""
    return LINK_FROM_OPTICAL @ world_from_camera @ OPTICAL_FROM_LINK


def world_from_camera(map_from_link: np.ndarray) -> np.ndarray:
    """Inverse of ``map_from_link``."""
    return OPTICAL_FROM_LINK @ map_from_link @ LINK_FROM_OPTICAL


def map_points(xyz: np.ndarray) -> np.ndarray:
    """Points [P, 3] of the core's world to ``map``."""
    return np.stack([xyz[:, 2], -xyz[:, 0], -xyz[:, 1]], -1)


def invert(T: np.ndarray) -> np.ndarray:
    """Inverse of a rigid 4x4."""
    out = np.eye(4)
    out[:3, :3] = T[:3, :3].T
    out[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return out


def matrix(position, quaternion) -> np.ndarray:
    """Rigid 4x4 from a position (x, y, z) and a quaternion (x, y, z, w) of any length but zero."""
    out = np.eye(4)
    out[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    out[:3, 3] = position
    return out


def quaternion(T: np.ndarray) -> np.ndarray:
    """Unit quaternion (x, y, z, w), w >= 0, of a rigid 4x4."""
    return Rotation.from_matrix(T[:3, :3]).as_quat(canonical=True)


class OdomTree:
    """Splits the pose of ``base_link`` in ``map`` into ``map -> odom`` and ``odom -> base_link`` (REP 105).

    ``odom -> base_link`` is continuous: it follows every motion and ignores jumps (reset, teleport), which move
    ``map -> odom`` instead.
    """

    def __init__(self):
        self.map_from_odom = np.eye(4)
        self.odom_from_base = np.eye(4)

    def update(self, map_from_base: np.ndarray, jump: bool) -> None:
        """Take the next pose; ``jump`` says that no motion led to it."""
        if jump:
            self.map_from_odom = map_from_base @ invert(self.odom_from_base)
        else:
            self.odom_from_base = invert(self.map_from_odom) @ map_from_base
