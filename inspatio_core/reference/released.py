"""Depth and pose folders of the released scripts.

* DA3: ``depth/%04d.png`` (RGBA bytes = little-endian float32), ``extrinsic.txt`` and ``intrinsic.txt`` (world-to-camera
  3x4 and 3x3 as plain rows), ``frames/%04d.jpg``.
* Pi3: ``depth/%06d.png`` (uint16 over the clip's range, ``metadata.txt``: minimum and maximum), ``extrinsics.txt`` and
  ``intrinsics.txt`` (one bracketed matrix a line). Its ``images/`` are cropped and do not fit the depth; the frames are
  taken from the DA3 folder beside it (``NAME_da3_tmp``), where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import RIGID_TOLERANCE, invert_pose, is_rigid, scale_intrinsics
from inspatio_core.reference.scene import natural_order, read_depth
from inspatio_core.reference.video import list_images

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)", re.IGNORECASE)
_NAMES = {"DA3": ("extrinsic.txt", "intrinsic.txt"), "Pi3": ("extrinsics.txt", "intrinsics.txt")}


@dataclass(frozen=True)
class ReleasedFolder:
    """A DA3 or Pi3 folder: world_from_camera float64 [N,4,4] and K float64 [N,3,3], metres and pixels at `size`.

    depth(i) is float32 [H,W] as stored. images: the frames, empty where the folder has none that fit.
    """

    count: int
    size: tuple[int, int]
    K: np.ndarray
    world_from_camera: np.ndarray
    depth: Callable[[int], np.ndarray]
    images: tuple[Path, ...]


def kind(path: str | Path) -> str | None:
    """``"DA3"``, ``"Pi3"``, or None for anything else."""
    path = Path(path)
    for name, files in _NAMES.items():
        if (path / "depth").is_dir() and all((path / file).is_file() for file in files):
            return name
    return None


def read_matrices(path: Path, rows: int, columns: int) -> np.ndarray:
    """float64 [N,rows,columns] from all numbers of a text file, in order, whatever brackets they stand in."""
    try:
        numbers = np.array([float(n) for n in _NUMBER.findall(path.read_text(encoding="utf-8"))])
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if numbers.size == 0 or numbers.size % (rows * columns):
        raise InputError(f"{path}: {numbers.size} numbers are no list of {rows}x{columns} matrices")
    return numbers.reshape(-1, rows, columns)


def read(path: str | Path) -> ReleasedFolder:
    """Read a folder that `kind` recognises. Raises `InputError` that names the file and what is wrong with it."""
    path = Path(path)
    name = kind(path)
    if name is None:
        raise InputError(f"{path}: neither a DA3 nor a Pi3 folder (depth/, extrinsic(s).txt, intrinsic(s).txt)")
    extrinsic, intrinsic = (path / file for file in _NAMES[name])
    files = sorted((path / "depth").glob("*.png"), key=lambda p: natural_order(p.name))
    w2c, K = read_matrices(extrinsic, 3, 4), read_matrices(intrinsic, 3, 3)
    if len(K) == 1:  # one camera for the whole clip
        K = np.repeat(K, len(files), axis=0)
    if not len(files) == len(w2c) == len(K):
        raise InputError(f"{path}: {len(files)} depth maps, {len(w2c)} poses, {len(K)} intrinsics; they must be equal")
    w2c = torch.cat([torch.as_tensor(w2c), torch.eye(4, dtype=torch.float64)[3:].expand(len(w2c), 1, 4)], dim=1)
    for i, rigid in enumerate(is_rigid(w2c, RIGID_TOLERANCE).tolist()):
        if not rigid:
            raise InputError(f"{extrinsic}: the pose of frame {i} is not a rigid motion (a finite rotation and shift)")

    if name == "Pi3":
        low, high = read_matrices(path / "metadata.txt", 1, 2)[0, 0]
        step = (high - low) / 65535

        def depth(index: int) -> np.ndarray:
            return (read_depth(files[index], 1.0) * np.float64(step) + low).astype(np.float32)

    else:

        def depth(index: int) -> np.ndarray:
            return read_depth(files[index], 1.0)

    frames = path / "frames" if name == "DA3" else path.with_name(path.name + "_da3_tmp") / "frames"
    images = tuple(list_images(frames)) if frames.is_dir() else ()
    if images and len(images) != len(files):
        raise InputError(f"{frames}: {len(images)} frames for {len(files)} depth maps; they must be of the same clip")
    size = depth(0).shape
    # The principal point is always half the size that the intrinsics are meant for.
    own_size = (2 * K[0, 1, 2], 2 * K[0, 0, 2])
    if max(abs(own / s - 1) for own, s in zip(own_size, size)) > 0.25:
        K = scale_intrinsics(torch.as_tensor(K), own_size, size).numpy()
    return ReleasedFolder(len(files), size, K, invert_pose(w2c).numpy(), depth, images)


def clip_depth_compatible(depth: np.ndarray) -> np.ndarray:
    """float32 [..,H,W], metres, limited to 1e-4..1e4 m as the released loader does; NaN stays NaN.

    Args:
        depth: float32 [..,H,W], metres, z along the optical axis; infinite values allowed.
    """
    return np.clip(depth, np.float32(1e-4), np.float32(1e4))


def resize_depth_compatible(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth [H,W] at `size` (height, width) as the released loader does: row i is row floor(i * H / height), so that
    it is up to a pixel off towards the origin; columns alike. NaN stays.

    `inspatio_core.reference.reference.resize_depth` is exact to half a pixel; this is not.
    """
    return cv2.resize(depth, size[::-1], interpolation=cv2.INTER_NEAREST)


def rescale_intrinsics_compatible(K: Tensor, size: tuple[int, int] = (480, 832)) -> Tensor:
    """K [..,3,3] as the released warp scales it: by size / (2 cx, 2 cy), the principal point half of `size`.

    `inspatio_core.geometry.camera.scale_intrinsics` is exact to half a pixel; this is not.
    """
    height, width = size
    out = K.clone()
    out[..., 0, 0] = K[..., 0, 0] * width / (2 * K[..., 0, 2])
    out[..., 1, 1] = K[..., 1, 1] * height / (2 * K[..., 1, 2])
    out[..., 0, 2], out[..., 1, 2] = width / 2, height / 2
    return out
