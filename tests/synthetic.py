"""A tiny filmed place with exact depth and poses, for tests: a textured wall, a moving panel, a moving camera."""

import numpy as np
import torch

from inspatio_core.geometry.camera import intrinsics_from_fov
from inspatio_core.reference import Reference


def _texture(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.zeros((*x.shape, 3))
    for _ in range(6):
        fx, fy, phase = rng.uniform(0.5, 6, 3)
        out += rng.uniform(-1, 1, 3) * np.sin(fx * x + fy * y + phase)[..., None]
    return np.clip(128 + 40 * out, 0, 255).astype(np.uint8)


def make_reference(frames: int = 24, size=(48, 64), seed: int = 0, travel: float = 1.0, fps: float = 24.0) -> Reference:
    """A wall at 4 m, a panel crossing at 2 m, the camera sliding ``travel`` metres sideways and turning a little."""
    h, w = size
    K = intrinsics_from_fov(size, 70.0)
    k = K.numpy()
    v, u = np.mgrid[:h, :w].astype(np.float64)
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
    rgb, depth, moving, poses = [], [], [], []
    for i in range(frames):
        s = i / max(1, frames - 1)
        yaw = 0.15 * np.sin(2 * np.pi * s)
        R = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        centre = np.array([travel * s, 0.1 * np.sin(3 * s), 0.0])
        d = rays @ R.T
        colour, z = None, None
        for plane, seed_ in ((4.0, seed), (2.0, seed + 100)):
            t = (plane - centre[2]) / d[..., 2]
            p = centre + d * t[..., None]
            if colour is None:
                colour, z, mask = _texture(p[..., 0], p[..., 1], seed_), t, np.zeros((h, w), bool)
            else:
                x0 = -1.0 + 2.0 * s
                hit = (np.abs(p[..., 0] - x0) < 0.3) & (np.abs(p[..., 1]) < 0.4)
                colour = np.where(hit[..., None], _texture(p[..., 0] - x0, p[..., 1], seed_), colour)
                z, mask = np.where(hit, t, z), hit
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = R, centre
        rgb.append(colour)
        depth.append(z)
        moving.append(mask)
        poses.append(T)
    return Reference.from_arrays(
        torch.from_numpy(np.stack(rgb)),
        torch.from_numpy(np.stack(depth)).float(),
        K.expand(frames, 3, 3),
        torch.from_numpy(np.stack(poses)),
        fps=fps,
        name=f"synthetic-{seed}",
        moving=torch.from_numpy(np.stack(moving)),
    )
