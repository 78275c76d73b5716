"""Which pixels of a clip lie on moving objects: optical flow against the flow that camera motion and depth explain.

For frame i and a later or earlier frame j, frame j is warped into i by depth, intrinsics and poses, so that everything
static lies where it is in i; the optical flow that remains (OpenCV DIS) is motion, or an error. Three things keep
errors from counting: a small camera motion is fitted to the remaining flow, robustly, and taken off it (pose errors,
and a wrong scale of depth); what is left must exceed a floor of pixels, a share of the pixel's parallax (depth errors)
and a multiple of the frame's own median; pixels hidden in j say nothing. A pixel moves by one gap if it does
both backwards and forwards in time, where both can be seen; it moves if it does so by any gap (slow motion shows over
long gaps only). Flow is only believed where the images differ as it says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np

from inspatio_core.errors import InputError

_WORK_HEIGHT = 240  # of the shorter side: the flow runs at the integer fraction of the clip's size nearest to this
_HIDDEN = 0.15  # a pixel is hidden in the other frame where that is nearer by more than this share
_PARALLAX = 0.15  # share of a pixel's parallax that depth errors may explain
_VISIBLE = 2.0  # gray levels by which the images must differ for motion to show
_WEAK = 0.6  # most that flow without a visible difference counts
_CLOSE = 20  # pixels of a 480-row frame: gaps in a moving body that are closed
_REACH = 24  # pixels of a 480-row frame: how far a moving body extends over pixels that are hidden over some gap
_NOISE = 4.0  # multiple of the frame's median residual that noise may reach


def motion_masks(
    rgb: Callable[[int], np.ndarray],
    depth: Callable[[int], np.ndarray],
    K: np.ndarray,
    world_from_camera: np.ndarray,
    indices: Iterable[int],
    *,
    gaps: Sequence[int] = (2, 8),
    threshold_pixels: float = 1.5,
    dilate_pixels: int = 7,
) -> Iterator[np.ndarray]:
    """Masks of moving objects, one per index, in order.

    Args:
        rgb: frame i as uint8 [H, W, 3].
        depth: its depth as float32 [H, W], metres; not finite or <= 0 where unknown.
        K: float64 [N, 3, 3], pixels.
        world_from_camera: float64 [N, 4, 4].
        indices: the frames to do, 0 <= i < N; ascending order is fastest.
        gaps: distances in frames to compare over, both ways in time.
        threshold_pixels: least motion over a gap, beyond what camera and depth explain, in pixels of a frame
            of 480 rows (scaled to other sizes).
        dilate_pixels: margin added around moving pixels, in the same unit.

    Yields:
        bool [H, W], True on moving objects.

    Raises:
        InputError: K and poses of different lengths, no positive gap.
    """
    K, poses = np.asarray(K, np.float64), np.asarray(world_from_camera, np.float64)
    if K.shape[1:] != (3, 3) or poses.shape != (len(K), 4, 4):
        raise InputError(
            f"motion_masks: K {K.shape} and world_from_camera {poses.shape}; expected [N, 3, 3], [N, 4, 4]"
        )
    if not gaps or min(gaps) < 1:
        raise InputError(f"motion_masks: gaps {tuple(gaps)} must be positive numbers of frames")
    views = _Views(rgb, depth, K, poses, capacity=2 * max(gaps) + 2)
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    for i in indices:
        here = views[i]
        floor = threshold_pixels * here.scale
        score = np.zeros(here.gray.shape, np.float32)
        unseen = np.zeros(here.gray.shape, bool)
        for gap in gaps:
            scores = [_score(flow, here, views[j], floor) for j in (i - gap, i + gap) if 0 <= j < len(K)]
            if scores:
                both = np.fmin.reduce(scores)  # NaN: hidden there; the other one decides
                score = np.fmax(score, both)
                unseen |= np.isnan(both)
        yield _mask(score, unseen, here, dilate_pixels)


class _View:
    """One frame at working size: gray, depth (NaN where unknown), K, pose, pixels per pixel of a 480-row frame."""

    def __init__(self, rgb, depth, K, pose):
        height, width = depth.shape
        step = max(1, round(min(height, width) / _WORK_HEIGHT))
        self.full = (height, width)
        gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        size = (max(width // step, 1), max(height // step, 1))
        self.gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
        known = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float32)
        self.depth = cv2.resize(known, size, interpolation=cv2.INTER_NEAREST)
        ratio = np.array([size[0] / width, size[1] / height])
        self.K = K.copy()
        self.K[:2, :2] *= ratio[:, None]
        self.K[:2, 2] = (K[:2, 2] + 0.5) * ratio - 0.5
        self.pose = pose
        self.scale = min(size) / 480


class _Views:
    """Working-size frames, the last ``capacity`` of them kept."""

    def __init__(self, rgb, depth, K, poses, capacity):
        self._source = (rgb, depth, K, poses)
        self._kept: OrderedDict[int, _View] = OrderedDict()
        self._capacity = capacity

    def __getitem__(self, i: int) -> _View:
        if i not in self._kept:
            rgb, depth, K, poses = self._source
            self._kept[i] = _View(np.asarray(rgb(i)), np.asarray(depth(i)), K[i], poses[i])
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        self._kept.move_to_end(i)
        return self._kept[i]


def _score(flow: cv2.DISOpticalFlow, here: _View, there: _View, floor: float) -> np.ndarray:
    """How much each pixel moves between two frames, in thresholds: float32 [h, w], NaN where nothing is known."""
    height, width = here.gray.shape
    relative = np.linalg.inv(there.pose) @ here.pose
    u, v = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    rays = relative[:3, :3] @ np.linalg.inv(here.K)
    to, away = (there.K @ rays).astype(np.float32), (there.K @ relative[:3, 3]).astype(np.float32)
    far = [to[r, 0] * u + to[r, 1] * v + to[r, 2] for r in range(3)]  # where the pixel would be at infinite depth
    q = [far[r] * here.depth + away[r] for r in range(3)]
    z = np.where(q[2] > 1e-3, q[2], np.nan)
    map_u, map_v = q[0] / z, q[1] / z
    inside = (map_u > 0) & (map_u < width - 1) & (map_v > 0) & (map_v < height - 1)
    map_u, map_v = np.where(inside, map_u, -1e4), np.where(inside, map_v, -1e4)
    seen_depth = cv2.remap(there.depth, map_u, map_v, cv2.INTER_NEAREST, borderValue=float("nan"))
    usable = inside & ~(seen_depth < z * (1 - _HIDDEN))
    warped = cv2.remap(there.gray, map_u, map_v, cv2.INTER_LINEAR)
    warped = np.where(inside, warped, here.gray)
    rest = flow.calc(here.gray, warped, None)
    rest -= _camera_error(
        rest, (map_u - there.K[0, 2]) / there.K[0, 0], (map_v - there.K[1, 2]) / there.K[1, 1], z, usable, there.K
    )
    parallax = np.hypot(map_u - far[0] / far[2], map_v - far[1] / far[2])
    score = np.hypot(rest[..., 0], rest[..., 1]) / (floor + _PARALLAX * parallax)
    holds, changed = _evidence(here.gray, warped, rest)
    score = np.where(changed, score, np.minimum(score, _WEAK)) * holds
    score = np.where(usable, score, np.nan).astype(np.float32)
    sample = score[::4, ::4]
    sample = sample[np.isfinite(sample)]
    if sample.size:
        score /= max(1.0, _NOISE * float(np.median(sample)))
    return score


def _evidence(gray: np.ndarray, warped: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the images agree with the remaining flow, and where they differ at all: bool [h, w] each.

    Flow smears over the outlines of moving objects. If it were true there, the two images would differ by what it
    moves their gradients; where they differ by much less, the pixel stands still. Without texture nothing is refuted,
    and nothing is shown either.
    """
    gray = gray.astype(np.float32)
    window = (5, 5)
    expected = cv2.Sobel(gray, cv2.CV_32F, 1, 0, scale=0.125) * rest[..., 0]
    expected += cv2.Sobel(gray, cv2.CV_32F, 0, 1, scale=0.125) * rest[..., 1]
    contrast = np.sqrt(np.maximum(cv2.blur(gray * gray, window) - cv2.blur(gray, window) ** 2, 0))
    expected = np.minimum(cv2.blur(np.abs(expected), window), contrast)
    difference = cv2.blur(np.abs(gray - warped), window)
    return difference + 1 > 0.5 * expected, difference > _VISIBLE


def _camera_error(rest, x, y, z, usable, K) -> np.ndarray:
    """The part of the remaining flow that a small camera motion explains: float32 [h, w, 2], fitted robustly."""

    def columns(x, y, near):
        zero = np.zeros_like(x)
        along_u = np.stack([near, zero, -x * near, -x * y, 1 + x * x, -y], -1) * np.float32(K[0, 0])
        along_v = np.stack([zero, near, -y * near, -(1 + y * y), x * y, x], -1) * np.float32(K[1, 1])
        return along_u, along_v

    near = 1 / z
    s = (slice(2, None, 6), slice(2, None, 6))
    use = usable[s]
    if np.count_nonzero(use) < 30:
        return np.zeros_like(rest)
    a_u, a_v = columns(x[s][use], y[s][use], near[s][use])
    a = np.concatenate([a_u, a_v]).astype(np.float64)
    b = np.concatenate([rest[s][use][:, 0], rest[s][use][:, 1]]).astype(np.float64)
    solution = np.zeros(6)
    damping = 1e-6 * np.eye(6) * np.trace(a.T @ a)
    for _ in range(6):
        error = (b - a @ solution).reshape(2, -1)
        size = np.hypot(error[0], error[1])
        scale = max(float(np.median(size)), 0.05) * 2
        weight = np.tile((1 / (1 + (size / scale) ** 2)) ** 2, 2)
        aw = a * weight[:, None]
        solution = np.linalg.solve(aw.T @ a + damping, aw.T @ b)
    a_u, a_v = columns(x, y, near)
    fitted = np.stack([a_u @ solution.astype(np.float32), a_v @ solution.astype(np.float32)], -1)
    return np.where(usable[..., None], fitted, 0).astype(np.float32)


def _mask(score: np.ndarray, unseen: np.ndarray, here: _View, margin: float) -> np.ndarray:
    """Score to mask, full size: weak pixels count next to strong ones, unseen ones near them, specks do not."""
    core = cv2.morphologyEx((score > _WEAK).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    core = cv2.morphologyEx(core, cv2.MORPH_CLOSE, _disc(_CLOSE * here.scale))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(core, connectivity=8)
    strong = np.bincount(labels[score > 1.0], minlength=count)
    keep = (strong >= 12) & (stats[:, cv2.CC_STAT_AREA] >= 20)
    keep[0] = False
    mask = keep[labels].astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask |= cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED) & (score > 0.5)
    mask |= _dilated(mask, _REACH * here.scale) & unseen
    mask = _dilated(mask, margin * here.scale)
    height, width = here.full
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def _disc(radius: float) -> np.ndarray:
    side = 2 * round(radius) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _dilated(mask: np.ndarray, radius: float) -> np.ndarray:
    return cv2.dilate(mask, _disc(radius))
