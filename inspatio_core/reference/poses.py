"""Cameras of a clip: whether it moved, and what path and intrinsics to use when nobody gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from inspatio_core.geometry.camera import intrinsics_from_fov

ASSUMED_FOV = 60.0  # degrees, horizontal
STILL = 0.4  # `camera_motion` up to which a camera counts as standing: noise and codecs move corners that much


class Frames(Protocol):
    """Random access to the frames of a clip: ``frames[i]`` is uint8 [H,W,3], ``len(frames)`` their number, and
    ``frames.small(i)`` the same frame with a shorter side of at most 240 pixels, at hand at no cost.

    Attributes:
        size: (height, width). files: where the frames lie as images, one each.
    """

    size: tuple[int, int]
    files: list[Path]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...

    def small(self, index: int) -> np.ndarray:
        """uint8 [h,w,3]."""


@dataclass(frozen=True)
class Cameras:
    """Path and intrinsics of a clip.

    Attributes:
        K: float64 [N,3,3] at the frames' size. world_from_camera: float64 [N,4,4], OpenCV axes, any units.
        source: what made the path, for the user. focal_source: ``given``, ``estimated`` or ``assumed``.
        still: whether the camera stands. metric: whether translations are metres.
        points: for some frames, float64 [P,3] of (u, v, depth) of triangulated points.
        notices: one-line warnings.
    """

    K: np.ndarray
    world_from_camera: np.ndarray
    source: str
    focal_source: str = "assumed"
    still: bool = False
    metric: bool = False
    points: dict[int, np.ndarray] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def standing(count: int, size: tuple[int, int], fov: float | None = None, **details) -> Cameras:
    """A camera at the origin for `count` frames; `fov` is its horizontal angle of view in degrees, 60 when unknown."""
    K = intrinsics_from_fov(size, ASSUMED_FOV if fov is None else fov).numpy()
    return Cameras(
        K=np.tile(K, (count, 1, 1)),
        world_from_camera=np.tile(np.eye(4), (count, 1, 1)),
        focal_source="assumed" if fov is None else "given",
        **details,
    )


def camera_motion(frames: Frames, samples: int = 12) -> float:
    """How far the picture as a whole moves within the clip: pixels of `frames.small`; 0 if nobody can tell.

    Corners of some frames are followed over short and long gaps. What stands still in the picture speaks for a standing
    camera even when more of the picture moves, so the lower third of displacements, per cell of a grid, decides.
    """
    count = len(frames)
    if count < 2:
        return 0.0

    def gray(i: int) -> np.ndarray:
        return cv2.cvtColor(frames.small(i), cv2.COLOR_RGB2GRAY)

    indices = np.unique(np.linspace(0, count - 1, samples).round().astype(int))
    views = [gray(i) for i in indices]
    neighbours = [gray(min(i + 1, count - 1)) if i + 1 < count else None for i in indices]
    moved = []
    for a, (view, following) in enumerate(zip(views, neighbours)):
        later = [following] if following is not None else []
        later += [views[b] for b in (a + 1, a + 4) if b < len(views)]
        for other in later:
            shift = _typical_shift(view, other)
            if shift is not None:
                moved.append(shift)
    return max(moved, default=0.0)


def _typical_shift(a: np.ndarray, b: np.ndarray) -> float | None:
    corners = cv2.goodFeaturesToTrack(a, 400, 0.01, 8)
    if corners is None or len(corners) < 8:
        return None
    options = {"winSize": (21, 21), "maxLevel": 4}
    there, ok, _ = cv2.calcOpticalFlowPyrLK(a, b, corners, None, **options)
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(b, a, there, None, **options)
    sure = (ok & ok_back).ravel().astype(bool) & (np.abs(back - corners).max(-1).ravel() < 0.7)
    if sure.sum() < 8:
        return None
    start, shift = corners[sure, 0], np.linalg.norm((there - corners)[sure, 0], axis=-1)
    cells = (start // (max(a.shape) / 8)).astype(int)
    cells = cells[:, 0] * 100 + cells[:, 1]
    return float(np.quantile([np.quantile(shift[cells == c], 0.33) for c in np.unique(cells)], 0.33))
