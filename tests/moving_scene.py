"""A ray-cast room with two still and two moving textured bodies and a moving camera: exact depth and masks."""

from typing import NamedTuple

import numpy as np


class Frame(NamedTuple):
    rgb: np.ndarray  # uint8 [H, W, 3]
    depth: np.ndarray  # float32 [H, W]
    moving: np.ndarray  # bool [H, W]
    K: np.ndarray  # float64 [3, 3]
    pose: np.ndarray  # float64 [4, 4], world_from_camera


_WALLS = [((0, 1, 0), 1.5), ((0, -1, 0), 2.5), ((0, 0, 1), 8.0), ((1, 0, 0), 5.0), ((-1, 0, 0), 5.0), ((0, 0, -1), 4.0)]


def _texture(position, seed):
    rng = np.random.default_rng(seed)
    value = np.zeros(position.shape)
    for octave in range(4):
        waves = rng.normal(size=(3, 3)) * 2.0**octave * 1.3
        value += np.sin(position @ waves.T + rng.uniform(0, 6.28, 3)) * 0.75**octave
    return np.clip(128 + 45 * value, 0, 255).astype(np.uint8)


def yaw(angle):
    """float64 [4, 4]: a turn to the right by ``angle`` radians."""
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    return pose


def intrinsics(size, focal=0.8):
    height, width = size
    return np.array([[focal * width, 0, (width - 1) / 2], [0, focal * width, (height - 1) / 2], [0, 0, 1.0]])


def view(pose, size, spheres=(), boxes=(), walls=True) -> Frame:
    """What a camera sees. spheres: (centre, radius, moving, seed); boxes: (centre, half sides, moving, seed)."""
    height, width = size
    K = intrinsics(size)
    v, u = np.mgrid[:height, :width].astype(np.float64)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T @ pose[:3, :3].T
    eye = pose[:3, 3]
    depth, rgb, moves = np.full(size, np.inf), np.zeros((*size, 3), np.uint8), np.zeros(size, bool)

    def paint(hit, t, origin, seed, moving):
        hit &= (t > 1e-3) & (t < depth)
        depth[hit], moves[hit] = t[hit], moving
        rgb[hit] = _texture(eye - origin + rays[hit] * t[hit][:, None], seed)

    for seed, (normal, distance) in enumerate(_WALLS if walls else ()):
        normal = np.array(normal, float)
        slope = rays @ normal
        paint(slope > 1e-9, (distance - normal @ eye) / np.maximum(slope, 1e-9), np.zeros(3), seed, False)
    for centre, radius, moving, seed in spheres:
        a, b, c = (rays**2).sum(-1), rays @ (eye - centre), ((eye - centre) ** 2).sum() - radius**2
        root = b * b - a * c
        paint(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, centre, seed, moving)
    for centre, half, moving, seed in boxes:
        ends = [(centre + sign * half - eye) / np.where(rays == 0, 1e-12, rays) for sign in (-1, 1)]
        enter, leave = np.minimum(*ends).max(-1), np.maximum(*ends).min(-1)
        paint(leave > enter, enter, centre, seed, moving)
    return Frame(rgb, depth.astype(np.float32), moves, K, pose)


def frame(i, size=(240, 416)) -> Frame:
    """Frame i of the moving scene; 48 frames are a good clip."""
    a = i / 60
    pose = yaw(0.35 * np.sin(2 * np.pi * a))
    pose[:3, 3] = [1.2 * a, 0.1 * np.sin(6 * a), 0.8 * a]
    spheres = [(np.array([-1.5 + 3 * a, 0.4, 4.0]), 0.55, True, 10), (np.array([1.8, 0.9, 5.0]), 0.6, False, 11)]
    boxes = [
        (np.array([1.6 - 2.5 * a, -0.3, 5.5 - 1.5 * a]), np.array([0.4, 0.5, 0.3]), True, 12),
        (np.array([-2.5, 0.8, 5.5]), np.array([0.6, 0.7, 0.5]), False, 13),
    ]
    return view(pose, size, spheres, boxes)
