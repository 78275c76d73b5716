"""Motion: SE(3) integration of twists, targets and paths, block by block, vectorised over slots.

A twist is float64 [6] = (vx, vy, vz, wx, wy, wz) in camera axes (OpenCV: x right, y down, z forward), m/s and rad/s,
body frame: a constant twist over t seconds takes a pose T to T @ exp(t * twist), exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import RIGID_TOLERANCE, invert_pose, is_rigid, nearest_rigid

# Below this angle the coefficients are summed as series: four terms are exact to rounding there.
_SERIES_BELOW = 0.1


def _skew(w: Tensor) -> Tensor:
    x, y, z = w.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def se3_exp(xi: Tensor) -> Tensor:
    """Rigid transforms [..,4,4] float64 of twists xi [..,6] = (v, w) taken for unit time. Closed form, any angle."""
    xi = xi.to(torch.float64)
    v, w = xi[..., :3], xi[..., 3:]
    xx = (w * w).sum(-1)
    theta = xx.sqrt()
    small = theta < _SERIES_BELOW
    safe = torch.where(small, 1.0, theta)
    a = torch.where(small, 1 - xx / 6 * (1 - xx / 20 * (1 - xx / 42)), safe.sin() / safe)
    half = torch.where(small, 1 - xx / 24 * (1 - xx / 80 * (1 - xx / 168)), (safe / 2).sin() / (safe / 2))
    b = half * half / 2  # (1 - cos) / theta**2 without its cancellation
    c = torch.where(small, (1 - xx / 20 * (1 - xx / 42 * (1 - xx / 72))) / 6, (1 - a) / (safe * safe))
    W = _skew(w)
    WW = W @ W
    eye = torch.eye(3, dtype=xi.dtype, device=xi.device)
    a, b, c = (k[..., None, None] for k in (a, b, c))
    out = torch.zeros(*xi.shape[:-1], 4, 4, dtype=xi.dtype, device=xi.device)
    out[..., :3, :3] = eye + a * W + b * WW
    out[..., :3, 3:] = (eye + b * W + c * WW) @ v[..., None]
    out[..., 3, 3] = 1.0
    return out


def quaternion_from_rotation(R: Tensor) -> Tensor:
    """Unit quaternions [..,4] = (w, x, y, z) with w >= 0 of rotations R [..,3,3]; stable for every angle."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = R.flatten(-2).unbind(-1)
    # Four rows, each the quaternion times four times one of its entries: the largest entry gives the best row.
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20], -1),
            torch.stack([m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )
    best = torch.diagonal(rows, dim1=-2, dim2=-1).argmax(-1)
    q = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)


def rotation_from_quaternion(q: Tensor) -> Tensor:
    """Rotations [..,3,3] of quaternions [..,4] = (w, x, y, z), which need not have unit length but must not be zero."""
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        -1,
    ).unflatten(-1, (3, 3))  # fmt: skip


def se3_log(T: Tensor) -> Tensor:
    """Twists [..,6] float64 with se3_exp(se3_log(T)) = T for rigid T [..,4,4]. Angle in [0, pi], stable throughout."""
    T = T.to(torch.float64)
    q = quaternion_from_rotation(T[..., :3, :3])
    axis, length = q[..., 1:], q[..., 1:].norm(dim=-1)
    theta = 2.0 * torch.atan2(length, q[..., 0])
    # Near 0: theta / length -> 2 (q is a unit quaternion), with a relative error of length**2 / 6.
    tiny = length < 1e-9
    w = axis * torch.where(tiny, 2.0, theta / torch.where(tiny, 1.0, length))[..., None]
    xx = theta * theta
    small = theta < _SERIES_BELOW
    safe = torch.where(small, 1.0, theta)
    series = (1 + xx / 60 * (1 + xx / 42 * (1 + xx / 40))) / 12
    d = torch.where(small, series, (1 - safe / 2 / torch.tan(safe / 2)) / (safe * safe))
    W = _skew(w)
    t = T[..., :3, 3:]
    Wt = W @ t
    v = t - Wt / 2 + d[..., None, None] * (W @ Wt)
    return torch.cat([v.squeeze(-1), w], -1)


def interpolate(a: Tensor, b: Tensor, alpha: float | Tensor) -> Tensor:
    """Poses [..,4,4] on the screw motion from a (alpha 0) to b (alpha 1), both [..,4,4]; alpha a number or [..]."""
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=a.device)
    xi = se3_log(invert_pose(a.to(torch.float64)) @ b.to(torch.float64))
    return a.to(torch.float64) @ se3_exp(alpha[..., None] * xi)


def rigid_poses(value: Any, name: str, dims: int, each: str = "frame") -> Tensor:
    """A user's pose [4,4] (dims 2) or poses [N,4,4] (dims 3): a float64 copy on the CPU, made exactly rigid.

    InputError, beginning with `name` and telling which `each` of several, where it is not finite, or farther than 1e-3
    from rigid.
    """
    try:
        T = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: not a matrix of numbers; give 4x4 world_from_camera poses") from error
    if T.dim() != dims or T.shape[-2:] != (4, 4) or T.numel() == 0:
        raise InputError(f"{name}: expected shape {'[N,4,4]' if dims == 3 else '[4,4]'}, got {list(T.shape)}")
    if not torch.isfinite(T).all():
        raise InputError(f"{name}: contains NaN or infinity; give finite numbers")
    rigid = is_rigid(T, RIGID_TOLERANCE)
    if not rigid.all():
        where = f" of {each} {int((~rigid).nonzero()[0])}" if dims == 3 else ""
        raise InputError(f"{name}: the pose{where} is not rigid (a rotation and a translation); orthonormalise it")
    return nearest_rigid(T)


@dataclass(frozen=True, eq=False)
class Motion:
    """What one slot's user asks of the camera for the next block. Immutable; made by the constructors below.

    kind: "hold", "twist", "target", "path" or "teleport". twist: [6], pose: [4,4], poses: [F,4,4]; all float64 on the
    CPU, each present only for its kinds. Poses that are rigid within 1e-3 are made exactly so; others raise InputError.
    """

    kind: Literal["hold", "twist", "target", "path", "teleport"]
    twist: Tensor | None = None
    pose: Tensor | None = None
    poses: Tensor | None = None

    @staticmethod
    def hold() -> Motion:
        """Stay where you are."""
        return _HOLD

    @staticmethod
    def from_twist(twist: Any) -> Motion:
        """Body twist [6] (vx, vy, vz, wx, wy, wz) in camera axes (OpenCV), m/s and rad/s, constant over the block.

        InputError unless 6 finite numbers.
        """
        try:
            v = torch.as_tensor(twist, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError("twist: not a list of numbers; give (vx, vy, vz, wx, wy, wz)") from error
        if v.shape != (6,):
            raise InputError(f"twist: expected 6 numbers (vx, vy, vz, wx, wy, wz), got shape {list(v.shape)}")
        if not torch.isfinite(v).all():
            raise InputError("twist: contains NaN or infinity; give finite numbers")
        return Motion("twist", twist=v.clone())

    @staticmethod
    def target(pose: Any) -> Motion:
        """Reach `pose` at the block's last frame, along the screw motion from where the camera is.

        pose: world_from_camera [4,4], OpenCV axes, metres. InputError unless finite and rigid.
        """
        return Motion("target", pose=rigid_poses(pose, "target pose", 2))

    @staticmethod
    def path(poses: Any) -> Motion:
        """One pose per frame of the block (trajectory files, replay).

        poses: world_from_camera [F,4,4], OpenCV axes, metres. InputError unless finite and rigid.
        """
        return Motion("path", poses=rigid_poses(poses, "path", 3))

    @staticmethod
    def teleport(pose: Any) -> Motion:
        """Jump: all frames of the block are at `pose`, and no twist is reported.

        pose: world_from_camera [4,4], OpenCV axes, metres. InputError unless finite and rigid.
        """
        return Motion("teleport", pose=rigid_poses(pose, "teleport pose", 2))


_HOLD = Motion("hold")


@njit(cache=True, nogil=True)
def _integrate(current, twists, dt, poses, applied):
    """poses[b,j] = current[b] @ exp(twists[b] * dt * (j+1)), one slot at a time: the bits of a slot are its own."""
    slots, frames = poses.shape[:2]
    for b in range(slots):
        for j in range(frames):
            s = dt * (j + 1)
            vx, vy, vz = twists[b, 0] * s, twists[b, 1] * s, twists[b, 2] * s
            x, y, z = twists[b, 3] * s, twists[b, 4] * s, twists[b, 5] * s
            xx = x * x + y * y + z * z
            if xx < _SERIES_BELOW * _SERIES_BELOW:
                a = 1 - xx / 6 * (1 - xx / 20 * (1 - xx / 42))
                half = 1 - xx / 24 * (1 - xx / 80 * (1 - xx / 168))
                c = (1 - xx / 20 * (1 - xx / 42 * (1 - xx / 72))) / 6
            else:
                theta = math.sqrt(xx)
                a = math.sin(theta) / theta
                half = math.sin(theta / 2) / (theta / 2)
                c = (1 - a) / xx
            k = half * half / 2
            # E = [R | V v] with R = 1 + a W + k W^2 and V = 1 + k W + c W^2, where W^2 = w w^T - |w|^2.
            r00, r01, r02 = 1 - k * (y * y + z * z), k * x * y - a * z, k * x * z + a * y
            r10, r11, r12 = k * x * y + a * z, 1 - k * (x * x + z * z), k * y * z - a * x
            r20, r21, r22 = k * x * z - a * y, k * y * z + a * x, 1 - k * (x * x + y * y)
            cx, cy, cz = y * vz - z * vy, z * vx - x * vz, x * vy - y * vx
            tx = vx + k * cx + c * (y * cz - z * cy)
            ty = vy + k * cy + c * (z * cx - x * cz)
            tz = vz + k * cz + c * (x * cy - y * cx)
            for i in range(3):
                m0, m1, m2 = current[b, i, 0], current[b, i, 1], current[b, i, 2]
                poses[b, j, i, 0] = m0 * r00 + m1 * r10 + m2 * r20
                poses[b, j, i, 1] = m0 * r01 + m1 * r11 + m2 * r21
                poses[b, j, i, 2] = m0 * r02 + m1 * r12 + m2 * r22
                poses[b, j, i, 3] = m0 * tx + m1 * ty + m2 * tz + current[b, i, 3]
                poses[b, j, 3, i] = 0.0
            poses[b, j, 3, 3] = 1.0
            for i in range(6):
                applied[b, j, i] = twists[b, i]


def _block_poses_twist_torch(current: Tensor, twists: Tensor, frames: int, dt: float) -> tuple[Tensor, Tensor]:
    """The plain version of `block_poses_twist`, for any device."""
    times = dt * torch.arange(1, frames + 1, dtype=torch.float64, device=current.device)
    poses = current[:, None] @ se3_exp(twists[:, None] * times[:, None])
    return poses, twists[:, None].repeat(1, frames, 1)


def block_poses_twist(current: Tensor, twists: Tensor, frames: int, dt: float) -> tuple[Tensor, Tensor]:
    """Poses of a block in which every slot moves at a constant twist: the path for many slots at high rates.

    current: [B,4,4] world_from_camera. twists: [B,6] body twists. frames: F >= 1. dt: seconds between frames.
    Returns poses [B,F,4,4], where frame j is current @ exp(twist * dt * (j+1)), and the twists per frame [B,F,6];
    float64 on the device of `current`. Raises InputError on wrong shapes and non-finite twists.
    """
    _check_block(current, frames, dt)
    twists = twists.to(device=current.device, dtype=torch.float64)
    if twists.shape != (current.shape[0], 6):
        raise InputError(f"twists: expected [{current.shape[0]},6], got {list(twists.shape)}")
    current = current.to(torch.float64)
    if current.device.type != "cpu":
        if not torch.isfinite(twists).all():
            raise InputError("twists: contain NaN or infinity; give finite numbers")
        return _block_poses_twist_torch(current, twists, frames, dt)
    rates = twists.numpy(force=True)
    if not np.isfinite(rates).all():
        raise InputError("twists: contain NaN or infinity; give finite numbers")
    slots = current.shape[0]
    poses, applied = np.empty((slots, frames, 4, 4)), np.empty((slots, frames, 6))
    _integrate(np.ascontiguousarray(current.numpy(force=True)), np.ascontiguousarray(rates), float(dt), poses, applied)
    return torch.from_numpy(poses), torch.from_numpy(applied)


def block_poses(current: Tensor, motions: Sequence[Motion], frames: int, dt: float) -> tuple[Tensor, Tensor]:
    """Poses of a block in which every slot has its own Motion.

    current: [B,4,4] world_from_camera. motions: one per slot. frames: F >= 1. dt: seconds between frames.
    Returns poses [B,F,4,4] and the body twists [B,F,6] applied between consecutive frames (the first from `current`;
    zero for hold and teleport), float64. A target is met exactly at the last frame. Raises InputError where the number
    of motions is not B or a path has not F poses.
    """
    _check_block(current, frames, dt)
    if len(motions) != current.shape[0]:
        raise InputError(f"motions: need one per slot ({current.shape[0]}), got {len(motions)}")
    for slot, motion in enumerate(motions):
        if motion.kind == "path" and motion.poses.shape[0] != frames:
            raise InputError(f"path: slot {slot} has {motion.poses.shape[0]} poses for a block of {frames} frames")
    current = current.to(torch.float64)
    by_kind: dict[str, list[int]] = {}
    for slot, motion in enumerate(motions):
        by_kind.setdefault(motion.kind, []).append(slot)
    rates = torch.zeros(len(motions), 6, dtype=torch.float64, device=current.device)
    for slot in by_kind.get("twist", ()):
        rates[slot] = motions[slot].twist
    targets = by_kind.get("target")
    if targets:
        goals = torch.stack([motions[slot].pose for slot in targets]).to(current.device)
        rates[targets] = se3_log(invert_pose(current[targets]) @ goals) / (frames * dt)
    poses, applied = block_poses_twist(current, rates, frames, dt)

    if targets:
        poses[targets, -1] = goals
    for slot in by_kind.get("hold", ()):
        poses[slot] = current[slot]  # the product with exp(0) might turn -0.0 into 0.0
    for slot in by_kind.get("teleport", ()):
        poses[slot] = motions[slot].pose.to(current.device)
    paths = by_kind.get("path")
    if paths:
        poses[paths] = torch.stack([motions[slot].poses for slot in paths]).to(current.device)
        before = torch.cat([current[paths, None], poses[paths, :-1]], 1)
        applied[paths] = se3_log(invert_pose(before) @ poses[paths]) / dt
    return poses, applied


def _check_block(current: Tensor, frames: int, dt: float) -> None:
    if current.dim() != 3 or current.shape[1:] != (4, 4):
        raise InputError(f"current poses: expected [B,4,4], got {list(current.shape)}")
    if frames < 1 or not (dt > 0.0 and math.isfinite(dt)):
        raise InputError(f"a block needs at least 1 frame and a positive frame time, got {frames} frames of {dt} s")
