"""Cameras: intrinsics, rigid poses, projection.

Conventions: poses are ``world_from_camera`` [..,4,4] float64 with OpenCV axes (x right, y down, z forward), metres.
Intrinsics K are [..,3,3] float64 in pixels with **pixel centres at integer coordinates**, so an image of width W spans
-0.5 .. W-0.5. A size is always (height, width). Depth is z in metres.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inspatio_core.errors import InputError

RIGID_TOLERANCE = 1e-3
"""How far a pose that a user gives may be from rigid: files carry 6 digits, converters lose some more."""


def scale_intrinsics(K: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Intrinsics [..,3,3] of the same picture resized from `from_size` to `to_size`, both (height, width).

    Exact for pixel centres at integers: u' = (u + 0.5) * s - 0.5, separately in x and y. Same dtype and device.
    """
    sy, sx = to_size[0] / from_size[0], to_size[1] / from_size[1]
    scale = K.new_tensor([[sx, 0.0, 0.5 * sx - 0.5], [0.0, sy, 0.5 * sy - 0.5], [0.0, 0.0, 1.0]])
    return scale @ K


def intrinsics_from_fov(size: tuple[int, int], fov: float, axis: str = "x") -> Tensor:
    """K [3,3] float64 of a centred camera with square pixels.

    size: (height, width). fov: full angle of view in degrees along `axis` ("x" horizontal, "y" vertical), 0 < fov < 180
    (InputError).
    """
    if axis not in ("x", "y") or not 0.0 < fov < 180.0:
        raise InputError(f"fov: need an angle between 0 and 180 degrees along x or y, got {fov} along {axis}")
    height, width = size
    focal = (width if axis == "x" else height) / (2.0 * math.tan(math.radians(fov) / 2.0))
    K = [[focal, 0.0, (width - 1) / 2.0], [0.0, focal, (height - 1) / 2.0], [0.0, 0.0, 1.0]]
    return torch.tensor(K, dtype=torch.float64)


def invert_pose(T: Tensor) -> Tensor:
    """Inverse of rigid transforms [..,4,4], by transposing the rotation."""
    Rt = T[..., :3, :3].mT
    return torch.cat([torch.cat([Rt, -(Rt @ T[..., :3, 3:])], -1), T[..., 3:, :]], -2)


def is_rigid(T: Tensor, tol: float = 1e-6) -> Tensor:
    """Bool [..]: which of T [..,4,4] are finite, proper, rigid transforms.

    tol: bound on every entry of R R^T - 1 and on the error of the last row.
    """
    T = T.to(torch.float64)
    R = T[..., :3, :3]
    eye = torch.eye(4, dtype=T.dtype, device=T.device)
    orthogonal = ((R @ R.transpose(-1, -2) - eye[:3, :3]).abs() <= tol).all(-1).all(-1)
    last_row = ((T[..., 3, :] - eye[3]).abs() <= tol).all(-1)
    finite = torch.isfinite(T).all(-1).all(-1)
    return finite & orthogonal & last_row & (torch.linalg.det(R) > 0.0)


def nearest_rigid(T: Tensor) -> Tensor:
    """Almost rigid transforms [..,4,4] with the rotation made orthonormal and the last row exact, float64.

    Transforms that are already orthonormal to 1e-12 come back unchanged, bit for bit. Three Newton steps of the polar
    decomposition, which is exact to rounding for deviations up to `RIGID_TOLERANCE`.
    """
    T = T.to(torch.float64)
    R = T[..., :3, :3]
    eye = torch.eye(3, dtype=T.dtype, device=T.device)
    good = ((R @ R.transpose(-1, -2) - eye).abs() <= 1e-12).all(-1).all(-1)[..., None, None]
    S = R
    for _ in range(3):
        S = S @ (3.0 * eye - S.transpose(-1, -2) @ S) / 2.0
    out = T.clone()
    out[..., :3, :3] = torch.where(good, R, S)
    out[..., 3, :3] = 0.0
    out[..., 3, 3] = 1.0
    return out


def _entries(K: Tensor, like: Tensor, extra: int) -> tuple[Tensor, ...]:
    """fx, fy, skew, cx, cy in the dtype and device of `like`, with `extra` trailing dimensions of size 1."""
    K = K.to(device=like.device, dtype=like.dtype)
    pick = (K[..., 0, 0], K[..., 1, 1], K[..., 0, 1], K[..., 0, 2], K[..., 1, 2])
    return tuple(k.reshape(k.shape + (1,) * extra) for k in pick)


def unproject(depth: Tensor, K: Tensor) -> Tensor:
    """Points [..,H,W,3] in camera axes of the pixels of depth [..,H,W], seen with K [..,3,3]. Dtype of `depth`."""
    fx, fy, skew, cx, cy = _entries(K, depth, 2)
    height, width = depth.shape[-2:]
    v = torch.arange(height, dtype=depth.dtype, device=depth.device)[:, None]
    u = torch.arange(width, dtype=depth.dtype, device=depth.device)[None, :]
    y = (v - cy) / fy
    x = (u - cx - skew * y) / fx
    return torch.stack(torch.broadcast_tensors(x * depth, y * depth, depth), -1)


def project(xyz: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates uv [..,2] and depth z [..] of points xyz [..,3] in camera axes; K [..,3,3] has the first of the
    leading dimensions of xyz, or none. Where z <= 0 the point is not visible and uv means nothing. Dtype of `xyz`."""
    fx, fy, skew, cx, cy = _entries(K, xyz, xyz.dim() - 1 - (K.dim() - 2))
    x, y, z = xyz.unbind(-1)
    return torch.stack([(fx * x + skew * y) / z + cx, fy * y / z + cy], -1), z
