"""Camera paths from files: three-line trajectories, pose logs, smoothing, and where they put the target camera.

A trajectory file has three lines of keyframes: pitch in degrees (positive: the camera orbits up), yaw in degrees
(positive: left) and displacement. Keyframes are spread evenly over the clip, whatever their number. Further lines are
ignored.

Two modes:

* ``exact`` (default): the curves pass through their keyframes, without overshoot.
* ``compatible``: what the released program does, number for number: from four keyframes on a *smoothing* spline, which
  misses its keyframes (a displacement of 1 may become 0.78, frame 0 need not be the start pose) and angles in float32.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator, UnivariateSpline
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import RIGID_TOLERANCE, invert_pose, is_rigid, nearest_rigid
from inspatio_core.geometry.motion import quaternion_from_rotation, rotation_from_quaternion

Mode = Literal["exact", "compatible"]

MAX_KEYFRAME = 1e9
"""Keyframes are at most this large: float64 still tells a millionth of a degree there, and nothing overflows."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Keyframes of a trajectory file: float64 arrays of at least two entries each, lengths independent."""

    pitch: np.ndarray
    yaw: np.ndarray
    displacement: np.ndarray
    name: str = "trajectory"


class Curves(NamedTuple):
    """A trajectory sampled at n frames, float64 [n] each: degrees, degrees, and the two radii (see `sample`)."""

    pitch: np.ndarray
    yaw: np.ndarray
    radius: np.ndarray
    zoom: np.ndarray


def parse_trajectory(text: str, name: str = "trajectory") -> Trajectory:
    """A Trajectory from the three lines of its file. InputError naming `name` and the line where they are malformed."""
    lines = text.splitlines()
    curves = []
    for number, what in enumerate(("pitch", "yaw", "displacement"), 1):
        line = lines[number - 1] if number <= len(lines) else None
        if line is None or not line.strip():
            problem = "is empty" if line is not None else "is missing"
            raise InputError(f"{name}: line {number} ({what}) {problem}; write three lines: pitch, yaw, displacement")
        values = []
        for word in line.split():
            try:
                values.append(float(word))
            except ValueError:
                raise InputError(f"{name}: line {number} ({what}): {word[:40]!r} is not a number") from None
        if not np.isfinite(values).all():
            raise InputError(f"{name}: line {number} ({what}) contains NaN or infinity; write finite numbers")
        if np.abs(values).max() > MAX_KEYFRAME:
            limit = f"a number beyond {MAX_KEYFRAME:g}; write degrees, degrees and metres"
            raise InputError(f"{name}: line {number} ({what}) contains {limit}")
        if len(values) < 2:
            raise InputError(f"{name}: line {number} ({what}) has a single keyframe; write at least two")
        curves.append(np.array(values))
    return Trajectory(*curves, name=name)


def load_trajectory(path: str | Path) -> Trajectory:
    """A trajectory file. InputError, naming the file and the line, where it is missing or malformed."""
    return parse_trajectory(_read(Path(path), "trajectory"), str(path))


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what} file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"{path}: cannot read this {what} file: {reason}") from None


def _curve(keys: np.ndarray, n: int, mode: Mode, pin: bool) -> np.ndarray:
    at, x = np.linspace(0.0, 1.0, len(keys)), np.linspace(0.0, 1.0, n)
    if len(keys) <= 3:
        return np.interp(x, at, keys)
    if mode == "compatible":
        curve = UnivariateSpline(at, keys, k=3)(x)
    else:
        # Monotone between keyframes: a camera that is told to rest does not swing, as it would with a natural spline.
        curve = PchipInterpolator(at, keys)(x)
    if pin:
        curve[0] = keys[0]
        if n > 1 or mode == "compatible":
            curve[-1] = keys[-1]
    return curve


def curves(
    trajectory: Trajectory,
    n: int,
    mode: Mode = "exact",
    *,
    radius_scale: float = 1.0,
    zoom_scale: float | None = None,
    pin_ends: bool = True,
) -> Curves:
    """The curves of a trajectory at n >= 1 frames spread evenly over it, both ends included.

    radius_scale, zoom_scale: factors on the displacement keyframes *before* they are interpolated (in compatible mode
    the shape depends on them), for the orbit and for the zoom; zoom_scale defaults to radius_scale. pin_ends: give the
    displacement curves their first and last keyframe exactly (compatible mode; exact mode does so for all).
    """
    if n < 1:
        raise InputError(f"{trajectory.name}: a path needs at least 1 frame, got {n}")
    zoom_scale = radius_scale if zoom_scale is None else zoom_scale
    if not (math.isfinite(radius_scale) and math.isfinite(zoom_scale)):
        raise InputError(f"{trajectory.name}: radius scales must be finite, got {radius_scale} and {zoom_scale}")
    exact = mode == "exact"
    return Curves(
        _curve(trajectory.pitch, n, mode, exact),
        _curve(trajectory.yaw, n, mode, exact),
        _curve(trajectory.displacement * radius_scale, n, mode, exact or pin_ends),
        _curve(trajectory.displacement * zoom_scale, n, mode, exact or pin_ends),
    )


def sample(
    trajectory: Trajectory,
    n: int,
    mode: Mode = "exact",
    *,
    radius_scale: float = 1.0,
    zoom_scale: float | None = None,
) -> Tensor:
    """Poses [n,4,4] float64 of a trajectory, relative to the start camera (OpenCV axes), at n frames.

    The camera orbits the point (0, 0, r) in front of the start camera and looks at it, where r is the displacement; a
    negative r turns it about a point behind it, r = 0 on the spot. Where pitch and yaw are zero throughout, it moves
    along its axis instead, by the displacement. The scales multiply the displacement (1 = as in the file, metres);
    zoom_scale is used instead of radius_scale where yaw is zero throughout.
    """
    c = curves(trajectory, n, mode, radius_scale=radius_scale, zoom_scale=zoom_scale)
    # What the curves are at the frames, not what the keyframes are, counts in compatible mode.
    pitch, yaw = (c.pitch, c.yaw) if mode == "compatible" else (trajectory.pitch, trajectory.yaw)
    r = c.radius if yaw.any() else c.zoom
    poses = np.zeros((n, 4, 4))
    poses[:, 3, 3] = 1.0
    if not pitch.any() and not yaw.any():
        poses[:, :3, :3] = np.eye(3)
        poses[:, 2, 3] = r
        return torch.from_numpy(poses)
    dtype = np.float32 if mode == "compatible" else np.float64
    a, b = np.radians(c.pitch).astype(dtype), np.radians(c.yaw).astype(dtype)
    ca, sa, cb, sb = (f.astype(np.float64) for f in (np.cos(a), np.sin(a), np.cos(b), np.sin(b)))
    poses[:, 0, 0], poses[:, 0, 1], poses[:, 0, 2] = cb, -sa * sb, ca * sb
    poses[:, 1, 1], poses[:, 1, 2] = ca, sa
    poses[:, 2, 0], poses[:, 2, 1], poses[:, 2, 2] = -sb, -sa * cb, ca * cb
    poses[:, 0, 3], poses[:, 1, 3], poses[:, 2, 3] = -r * ca * sb, -r * sa, r - r * ca * cb
    return torch.from_numpy(poses)


def without_translation(poses: Tensor) -> Tensor:
    """Trajectory poses [n,4,4] turning on the spot; a pure zoom, which does not turn at all, is left as it is."""
    eye = torch.eye(3, dtype=poses.dtype, device=poses.device)
    if (poses[:, :3, :3] == eye).all():
        return poses
    out = poses.clone()
    out[:, :3, 3] = 0.0
    return out


def relative_to_first(poses: Tensor) -> Tensor:
    """Poses [N,4,4] as seen from the first of them, which becomes the identity exactly."""
    out = invert_pose(poses[0]) @ poses
    out[0] = torch.eye(4, dtype=poses.dtype, device=poses.device)
    return out


def target_poses(
    source_c2w: Tensor,
    trajectory_poses: Tensor,
    relative_to_source: bool = False,
    rotation_only: bool = False,
    compatible: bool = False,
) -> Tensor:
    """Where the target camera is: world_from_camera [n,4,4] float64.

    source_c2w: [n,4,4] world_from_camera of the source frame that each output frame shows, or of any number of frames
    where not relative_to_source. trajectory_poses: [n,4,4] from `sample`. relative_to_source: the path rides on the
    source camera; otherwise it starts at the first source camera, and the source's own motion is undone. rotation_only:
    see `without_translation`.

    The world is the frame of the first source camera C0: use `relative_to_first` for the source, too. compatible: as
    the released program, which leaves the source where it is and puts C0^-1 before each trajectory pose; both are the
    same where source_c2w[0] is the identity.
    """
    source, path = source_c2w.to(torch.float64), trajectory_poses.to(torch.float64)
    if relative_to_source and len(source) != len(path):
        raise InputError(f"target poses: {len(source)} source poses for {len(path)} trajectory poses")
    if rotation_only:
        path = without_translation(path)
    if compatible:
        path = invert_pose(source[0]) @ path
    return relative_to_first(source) @ path if relative_to_source else path.clone()


def smooth_poses(c2w: Tensor, sigma: float = 2.0, compatible: bool = False) -> Tensor:
    """Poses [N,4,4] float64 smoothed over time: Gaussian of `sigma` frames on quaternions and translations.

    Signs of neighbouring quaternions are aligned first, so that cameras may turn as far as they like. compatible:
    without that, as the released program, which flips where a camera turns far enough. Ends are reflected; the first
    pose moves a little: use `relative_to_first` on the result.
    """
    T = c2w.to(device="cpu", dtype=torch.float64)
    if compatible:
        q = Rotation.from_matrix(T[:, :3, :3].numpy()).as_quat()[:, [3, 0, 1, 2]]
    else:
        q = quaternion_from_rotation(T[:, :3, :3]).numpy()
        turned = (q[1:] * q[:-1]).sum(1) < 0
        q = q.copy()
        q[1:] *= np.where(np.cumsum(turned) % 2, -1.0, 1.0)[:, None]
    out = torch.zeros_like(T)
    out[:, :3, :3] = rotation_from_quaternion(torch.from_numpy(gaussian_filter1d(q, sigma, axis=0)))
    out[:, :3, 3] = torch.from_numpy(gaussian_filter1d(T[:, :3, 3].numpy(), sigma, axis=0))
    out[:, 3, 3] = 1.0
    return out.to(c2w.device)


def load_poses(path: str | Path) -> Tensor:
    """World_from_camera poses [N,4,4] float64 (OpenCV axes) of a pose log, in the order of the file.

    * text, one pose a row: 12 numbers (KITTI, 3x4 row by row), 16 numbers (4x4), or 8 numbers (TUM: stamp, x, y, z, qx,
      qy, qz, qw; the stamps are not used). Empty rows and rows beginning with # are skipped;
    * .json: nerfstudio transforms (OpenGL axes, converted);
    * .npy: [N,4,4] or [N,3,4].

    InputError, naming the file and the row, where it is malformed, not finite or not rigid.
    """
    path = Path(path)
    if path.suffix == ".npy":
        try:
            raw = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise InputError(f"{path}: no such pose file") from None
        except (OSError, ValueError, EOFError):
            raise InputError(f"{path}: not a .npy file of numbers") from None
        if raw.ndim != 3 or raw.shape[1:] not in ((4, 4), (3, 4)) or raw.dtype.kind not in "fiu":
            raise InputError(f"{path}: expected numbers of shape [N,4,4] or [N,3,4], got {raw.dtype} {list(raw.shape)}")
        rows = [(f"pose {i}", m) for i, m in enumerate(raw.astype(np.float64))]
    elif path.suffix == ".json":
        rows = _json_rows(path)
    else:
        rows = _text_rows(path)
    if not rows:
        raise InputError(f"{path}: contains no poses")
    poses = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    for i, (_, matrix) in enumerate(rows):
        poses[i, : len(matrix)] = torch.from_numpy(matrix)
    finite, rigid = torch.isfinite(poses).all(-1).all(-1), is_rigid(poses, RIGID_TOLERANCE)
    if not rigid.all():
        bad = int((~rigid).nonzero()[0])
        problem = "is not rigid (a rotation and a translation)" if finite[bad] else "contains NaN or infinity"
        raise InputError(f"{path}: {rows[bad][0]} {problem}; give world_from_camera poses")
    return nearest_rigid(poses)


def _text_rows(path: Path) -> list[tuple[str, np.ndarray]]:
    rows: list[tuple[str, np.ndarray]] = []
    width = None
    for number, line in enumerate(_read(path, "pose").splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            raise InputError(f"{path}: line {number} is not a row of numbers") from None
        width = width or len(values)
        if len(values) != width or width not in (8, 12, 16):
            wanted = width if width in (8, 12, 16) else "12 (KITTI), 16 (4x4) or 8 (TUM)"
            raise InputError(f"{path}: line {number} has {len(values)} numbers, need {wanted} in every row")
        if width == 8:
            matrix = np.eye(4)
            x, y, z, w = values[4:]
            length = np.linalg.norm(values[4:])
            if abs(length - 1.0) > 1e-2:
                raise InputError(f"{path}: line {number} has a quaternion of length {length:.3g}, not 1")
            matrix[:3, :3] = rotation_from_quaternion(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
            matrix[:3, 3] = values[1:4]
        else:
            matrix = values.reshape(-1, 4)
        rows.append((f"line {number}", matrix))
    return rows


def _json_rows(path: Path) -> list[tuple[str, np.ndarray]]:
    text = _read(path, "pose")
    try:
        frames = json.loads(text)["frames"]
        matrices = [np.array(frame["transform_matrix"], np.float64) for frame in frames]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not a transforms.json: needs frames, each with a numeric transform_matrix") from None
    for i, matrix in enumerate(matrices):
        if matrix.shape not in ((4, 4), (3, 4)):
            raise InputError(f"{path}: frame {i} has a transform_matrix of shape {list(matrix.shape)}, need 4x4")
    opencv_from_opengl = np.diag([1.0, -1.0, -1.0, 1.0])
    return [(f"frame {i}", m @ opencv_from_opengl) for i, m in enumerate(matrices)]
