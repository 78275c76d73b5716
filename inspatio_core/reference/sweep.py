"""Plane sweep: depth of a clip with known poses of a moving camera, with a network's guess where it is unsure."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch

from inspatio_core.geometry.camera import scale_intrinsics
from inspatio_core.reference.depth import DepthMaps, Progress, upsample
from inspatio_core.reference.fastdepth import FastDepth, fit_to_points
from inspatio_core.reference.poses import Cameras, Frames

_PLANES = 48
_SHORT_SIDE = 160
_PARALLAX = 0.03  # baseline wanted between views, as a share of the typical depth
_MOST_SWEEPS = 200


class PlaneSweep:
    """A `DepthProvider` for posed clips.

    Four views are compared with each frame on planes of equal inverse depth (normalised correlation). Where that is
    sure, its depth counts; the rest is the network's guess, or without a network smooth, fitted to what is sure.
    """

    name = "sweep"

    def __init__(self, network: FastDepth | None = None):
        self._network = network

    def estimate(self, frames: Frames, cameras: Cameras, progress: Progress) -> DepthMaps:
        """Depth of every frame, in the units of the poses."""
        near, far = depth_range(cameras)
        source = "plane sweep" + (" + fastdepth" if self._network else "")
        maps = self._maps(frames, cameras, near, far, progress)
        return DepthMaps(maps, 1.5 * far, source, metric=cameras.metric)

    def _maps(
        self, frames: Frames, cameras: Cameras, near: float, far: float, progress: Progress
    ) -> Iterator[np.ndarray]:
        count = len(frames)
        step = max(1, int(np.ceil(count / _MOST_SWEEPS)))
        scale = _SHORT_SIDE / min(frames.size)
        size = tuple(max(8, round(s * scale)) for s in frames.size)
        K = scale_intrinsics(torch.as_tensor(cameras.K), frames.size, size).numpy()
        fused, last = None, -1
        for i in range(count):
            progress("depth", i / count)
            key = min(count - 1, i // step * step)
            if key != last:
                sure, log_depth = sweep(frames, cameras.world_from_camera, K, key, size, near, far)
                fused, last = self._fuse(frames, cameras, key, sure, log_depth, near, far), key
            yield 1 / upsample(np.exp(-fused), frames[i], reach=(0.01,))

    def _fuse(self, frames: Frames, cameras: Cameras, i: int, sure, log_depth, near: float, far: float) -> np.ndarray:
        """Log depth [h,w]: the sweep where it is sure, the guess fitted to that elsewhere."""
        height, width = log_depth.shape
        v, u = np.nonzero(sure)
        size = frames.size
        swept = np.column_stack(
            [(u + 0.5) * size[1] / width - 0.5, (v + 0.5) * size[0] / height - 0.5, np.exp(log_depth[v, u])]
        )
        known = np.concatenate([swept, *[p for p in (cameras.points.get(i),) if p is not None]])
        if self._network is not None:
            guess = cv2.resize(self._network.guess(frames.small(i), (1.0, 0.5)), (width, height))
        else:
            guess = np.full((height, width), np.log(np.sqrt(near * far)), np.float32)
        guess = fit_to_points(guess.astype(np.float32), known, size)
        weight = cv2.GaussianBlur(sure.astype(np.float32), (0, 0), 1.2) * sure
        return np.clip(weight * log_depth + (1 - weight) * guess, np.log(near), np.log(1.4 * far)).astype(np.float32)


def depth_range(cameras: Cameras) -> tuple[float, float]:
    """Nearest and farthest depth worth looking at, in the units of the poses."""
    depths = [p[:, 2] for p in cameras.points.values() if len(p)]
    if depths:
        low, high = np.quantile(np.concatenate(depths), (0.01, 0.99))
        return 0.6 * float(low), 1.5 * float(high)
    positions = cameras.world_from_camera[:, :3, 3]
    travelled = float(np.linalg.norm(positions.max(0) - positions.min(0)))
    return 0.3 * travelled, 40 * travelled


def neighbours(positions: np.ndarray, i: int, wanted: float) -> list[int]:
    """About four frames, on both sides in time where there are, whose distance from frame i is about `wanted`."""
    distance = np.linalg.norm(positions - positions[i], axis=-1)
    chosen = []
    for direction in (-1, 1):
        side = np.arange(i + direction, len(positions) if direction > 0 else -1, direction)
        one_sided = i + 3 * -direction not in range(len(positions))
        for goal in (1.5, 1.0, 0.75, 0.5) if one_sided else (1.0, 0.5):
            far_enough = side[distance[side] >= goal * wanted]
            if len(far_enough):
                chosen.append(int(far_enough[0]))
    if len(set(chosen)) < 2:
        chosen += [int(k) for k in np.argsort(-distance)[:2] if distance[k] > 0.1 * wanted]
    return sorted(set(chosen))


def sweep(
    frames: Frames,
    world_from_camera: np.ndarray,
    K: np.ndarray,
    i: int,
    size: tuple[int, int],
    near: float,
    far: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of frame i have a sure depth, bool [h,w], and log depth, float32 [h,w], at `size`, as is K."""
    height, width = size

    def gray(k: int) -> np.ndarray:
        small = cv2.resize(frames.small(k), (width, height), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255

    inverse = np.linspace(1 / far, 1 / near, _PLANES)
    middle = 2 / (1 / far + 1 / near)
    others = neighbours(world_from_camera[:, :3, 3], i, 2 * _PARALLAX * middle)
    if not others:
        return np.zeros(size, bool), np.full(size, np.log(middle), np.float32)
    here, box = gray(i), (7, 7)
    mean = cv2.blur(here, box)
    variance = cv2.blur(here * here, box) - mean * mean
    scores = np.full((len(others), _PLANES, height, width), -1, np.float32)
    for n, k in enumerate(others):
        there = gray(k)
        move = np.linalg.inv(world_from_camera[k]) @ world_from_camera[i]
        for p, w in enumerate(inverse):
            # A point on the plane z = 1/w: x' ~ K (R + t [0 0 w]) K^-1 x.
            H = K[k] @ (move[:3, :3] + w * move[:3, 3:] * np.array([[0, 0, 1.0]])) @ np.linalg.inv(K[i])
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            moved = cv2.warpPerspective(there, H, (width, height), flags=flags, borderValue=-1.0)
            mean_k = cv2.blur(moved, box)
            variance_k = cv2.blur(moved * moved, box) - mean_k * mean_k
            both = cv2.blur(here * moved, box) - mean * mean_k
            score = both / np.sqrt(np.maximum(variance * variance_k, 1e-8))
            scores[n, p] = np.where(moved < -0.01, -1, score)
    # The better half of the views: a point may be hidden in the others.
    best_views = np.sort(scores, axis=0)[-max(1, (len(others) + 1) // 2) :].mean(0)
    cost = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.0) for plane in best_views])
    at = cost.argmax(0)
    best = np.take_along_axis(cost, at[None], 0)[0]
    inner = np.clip(at, 1, _PLANES - 2)
    below, top, above = (np.take_along_axis(cost, inner[None] + o, 0)[0] for o in (-1, 0, 1))
    curve = np.minimum(below - 2 * top + above, -1e-4)
    offset = np.where(at == inner, np.clip(0.5 * (below - above) / curve, -0.5, 0.5), 0)
    found = inverse[at] + offset * (inverse[1] - inverse[0])
    planes = np.arange(_PLANES)[:, None, None]
    rival = np.where(np.abs(planes - at) > 2, cost, -1).max(0)
    sure = (best > 0.7) & (best - rival > 0.008) & (variance > 1e-4) & (at == inner)
    sure &= cv2.blur(sure.astype(np.float32), (5, 5)) > 0.4
    log_depth = -np.log(np.maximum(found, 1e-9)).astype(np.float32)
    steady = cv2.medianBlur(log_depth, 5)
    sure &= np.abs(log_depth - steady) < 0.1
    islands = np.where(sure, at, -_PLANES).astype(np.int16)
    cv2.filterSpeckles(islands, -_PLANES, 150, 2)  # small patches at odds with all around them are mistakes
    sure &= islands >= 0
    return sure, steady
