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
_FEWEST, _FEWEST_CELLS = 8, 5  # corners, and cells of an 8 x 5 grid with corners, that motion can be judged by
_AS_ONE = 0.42  # share of the textured picture that moves as one when the camera does
_HARDLY = 0.25  # share that stands below which the camera moves, however things go apart


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


def camera_motion(frames: Frames, samples: int = 12) -> float | None:
    """How far the camera's own motion shifts the picture within the clip.

    Corners of some frames are followed over short and long gaps. The camera moves where a large part of the textured
    picture moves as one (by one affine map), whatever stands still beside it (a car's hood, a gripper, captions), or
    where hardly anything stands. It stands where things move one by one, or a smaller part does.

    Returns:
        Pixels of `frames.small`; up to `STILL` when the camera stands; None when nobody can tell, because there is too
        little texture or most of it is lost from one frame to the next.
    """
    count = len(frames)
    if count < 2:
        return 0.0

    def gray(i: int) -> np.ndarray:
        return cv2.cvtColor(frames.small(i), cv2.COLOR_RGB2GRAY)

    indices = np.unique(np.linspace(0, count - 1, samples).round().astype(int))
    views = [gray(i) for i in indices]
    neighbours = [gray(min(i + 1, count - 1)) if i + 1 < count else None for i in indices]
    moved, told = [], 0
    for a, (view, following) in enumerate(zip(views, neighbours)):
        corners = cv2.goodFeaturesToTrack(view, 400, 0.01, 8)
        if corners is None or len(corners) < _FEWEST:
            continue
        shifts = [
            None if other is None else _common_shift(view, other, corners)
            for other in (following, *(views[b] for b in (a + 1, a + 4) if b < len(views)))
        ]
        moved += [shift for shift in shifts if shift is not None]
        told += any(shift is not None for shift in shifts)
    if not moved or max(moved) <= STILL and told < 0.5 * (len(views) - 1):
        return None
    return max(moved)


def _common_shift(a: np.ndarray, b: np.ndarray, corners: np.ndarray) -> float | None:
    """Pixels by which the picture moves as one from a to b, 0 when it stands; None when too few corners are found.

    Every cell of a grid has one vote, shared by its corners.
    """
    options = {"winSize": (21, 21), "maxLevel": 4}
    there, ok, _ = cv2.calcOpticalFlowPyrLK(a, b, corners, None, **options)
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(b, a, there, None, **options)
    sure = (ok & ok_back).ravel().astype(bool) & (np.abs(back - corners).max(-1).ravel() < 0.7)
    start, end = corners[:, 0], there[:, 0]
    cells = (start // (max(a.shape) / 8)).astype(int) @ [1, 100]
    _, cells, sizes = np.unique(cells, return_inverse=True, return_counts=True)
    vote = 1 / sizes[cells] / len(sizes)
    if sure.sum() < _FEWEST or len(sizes) < _FEWEST_CELLS or vote[sure].sum() < 0.5:
        return None
    shift = np.linalg.norm(end - start, axis=-1)
    moves = sure & (shift > STILL)
    if vote[moves].sum() < _AS_ONE:
        return 0.0
    typical = float(np.median(shift[moves]))
    if vote[sure & ~moves].sum() < _HARDLY * vote[sure].sum():
        return typical
    tolerance = max(1.0, 0.2 * typical)
    _, inliers = cv2.estimateAffine2D(start[moves], end[moves], method=cv2.RANSAC, ransacReprojThreshold=tolerance)
    return typical if inliers is not None and vote[moves] @ inliers.ravel() >= _AS_ONE else 0.0
