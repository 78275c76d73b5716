"""A corner of two walls and a floor with textures, ray-cast exactly: frames whose camera is known."""

import math

import cv2
import numpy as np
import torch

from inspatio_core.evaluation.camera import View
from inspatio_core.geometry.camera import intrinsics_from_fov

H, W = 128, 224
K = intrinsics_from_fov((H, W), 70.0)


def _texture(seed):
    draw = np.random.default_rng(seed)
    noise = sum(
        scale * cv2.resize(draw.normal(size=(n, n, 3)).astype(np.float32), (512, 512), interpolation=cv2.INTER_CUBIC)
        for n, scale in ((16, 30), (64, 25), (128, 20))
    )
    return torch.from_numpy((128 + noise).clip(0, 255)).permute(2, 0, 1)[None]


# normal, distance along it, the two axes of its texture
PLANES = (
    ((0.0, 0.0, 1.0), 5.0, (0, 1)),
    ((1.0, 0.0, 0.0), 2.5, (2, 1)),
    ((0.0, 1.0, 0.0), 1.2, (0, 2)),
)


def camera_at(yaw=0.0, right=0.0, forward=0.0):
    """World from camera: turned right by `yaw` degrees, moved by metres along the world's axes."""
    pose = torch.eye(4, dtype=torch.float64)
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    pose[:3, :3] = torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], dtype=torch.float64)
    pose[0, 3], pose[2, 3] = right, forward
    return pose


def render(pose, seed=0):
    """rgb uint8 [H, W, 3] and depth float32 [H, W] from a pose; twice as many rays as pixels each way."""
    v, u = torch.meshgrid(
        (torch.arange(2 * H, dtype=torch.float64) - 0.5) / 2,
        (torch.arange(2 * W, dtype=torch.float64) - 0.5) / 2,
        indexing="ij",
    )
    rays = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)], -1) @ pose[:3, :3].T
    rgb, depth = torch.zeros(2 * H, 2 * W, 3), torch.full((2 * H, 2 * W), math.inf, dtype=torch.float64)
    for i, (normal, distance, axes) in enumerate(PLANES):
        n = torch.tensor(normal, dtype=torch.float64)
        z = (distance - n @ pose[:3, 3]) / (rays @ n)
        nearer = (z > 0) & (z < depth)
        points = pose[:3, 3] + z[..., None] * rays
        grid = (points[..., axes] / 6.0).float()[None]
        colours = torch.nn.functional.grid_sample(_texture(10 * seed + i), grid, align_corners=False)
        rgb[nearer] = colours[0].permute(1, 2, 0)[nearer]
        depth[nearer] = z[nearer]
    rgb = torch.nn.functional.avg_pool2d(rgb.permute(2, 0, 1), 2).permute(1, 2, 0)
    return rgb.round().to(torch.uint8), exact_depth(pose)


def exact_depth(pose):
    """z at the pixels' centres, float32 [H, W]."""
    v, u = torch.meshgrid(torch.arange(H, dtype=torch.float64), torch.arange(W, dtype=torch.float64), indexing="ij")
    rays = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)], -1) @ pose[:3, :3].T
    depth = torch.full((H, W), math.inf, dtype=torch.float64)
    for normal, distance, _ in PLANES:
        n = torch.tensor(normal, dtype=torch.float64)
        z = (distance - n @ pose[:3, 3]) / (rays @ n)
        depth = torch.where((z > 0) & (z < depth), z, depth)
    return depth.float()


def view_at(pose, seed=0):
    rgb, depth = render(pose, seed)
    return View(rgb, depth, K, pose)
