"""PointMap: the expanding, bounded, coloured point cloud of a slot (its explicit memory).

What a frame does to the map, in this order:

1. **Compare.** Every stored point is projected into the frame. Where the frame's depth is clearly behind the point
   (over a few pixels around, so that silhouettes are spared) the frame sees *through* it: it is carved away, unless the
   point is observed and the frame only generated. Where the depth agrees, the point is seen again and covers its
   pixels; it is dropped instead, to make way for this frame's pixels, if the frame is the better view: observed before
   generated, then the finer, then the more confident.
2. **Insert.** Every valid pixel that is not moving and not yet covered becomes a point in its voxel, unless that is
   taken; of several pixels in one voxel the one nearest its centre stays. The point is the pixel's own: its position,
   its colour, no average, so that the view it came from gets back what it gave.

A voxel's edge is ``voxel_pixels`` pixels at the pixel's depth, rounded to a power of two: near things are kept finely,
far ones coarsely, both at the same density on the screen. The level is part of the hash key. Points carry half-extents
(``radius``) for splatting.

When the map is full the points seen longest ago go first, of these the least confident, then the first in storage.

Points live in preallocated arrays behind an open-addressing hash; nothing grows after construction.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from inspatio_core.atomic import replacing
from inspatio_core.errors import InputError
from inspatio_core.geometry import _point_map_numba as kernels
from inspatio_core.geometry._point_map_numba import (
    COVERED,
    DEPTH_ONLY,
    HALF_RANGE,
    INSERTABLE,
    LEVEL_BIAS,
    LEVEL_BITS_AT,
    REACH,
    X_BITS_AT,
    Y_BITS_AT,
)
from inspatio_core.geometry.splat import Splat, splat_points

__all__ = [
    "GENERATED", "OBSERVED", "POINT_BYTES", "MapChanges", "MapPoints", "PointMap", "load_points", "save_points",
    "to_open3d", "without_outliers",
]  # fmt: skip

OBSERVED = 0
GENERATED = 1

_FIELDS = {
    # name: (dtype, columns, in MapPoints)
    "key": (np.int64, 1, False),
    "xyz": (np.float32, 3, True),
    "rgb": (np.uint8, 3, True),
    "radius": (np.float32, 1, True),
    "level": (np.int8, 1, False),
    "origin": (np.uint8, 1, True),
    "confidence": (np.float32, 1, True),
    "last_seen": (np.float32, 1, True),
    "last_tick": (np.int64, 1, False),
    "views": (np.uint8, 1, False),
}
_SHOWN = ("xyz", "rgb", "radius", "origin")
_RADIUS = 1.0  # of a point, in voxel edges: two neighbours' points may lie almost two edges apart
_TOP, _FREE, _REVISION, _ALIVE = range(4)


class MapPoints(NamedTuple):
    """P points of a map, CPU tensors, world frame."""

    xyz: Tensor  # float32 [P, 3], metres
    rgb: Tensor  # uint8 [P, 3]
    radius: Tensor  # float32 [P], metres: half extent for splatting
    origin: Tensor  # uint8 [P]: OBSERVED or GENERATED
    confidence: Tensor  # float32 [P]
    last_seen: Tensor  # float32 [P]: stamp of the last frame that saw the point
    id: Tensor  # int32 [P] in [0, limit): the point's place in its map; another point may take it once this one is gone


POINT_BYTES = 32
"""Bytes of one point in MapPoints: what turns a budget of bytes per second into ``max_points``."""


class MapChanges(NamedTuple):
    """What happened to a map since a cursor."""

    added: MapPoints  # new, changed or replaced points: each overwrites what the consumer holds under its id
    removed: Tensor  # int32 [R]: ids that are empty now
    cursor: int  # hand it to the next call


class PointMap:
    """The point map of one slot.

    Every public method may be called from any thread: one lock guards the map, a snapshot is taken under it, and the
    compiled loops run without the interpreter's lock. Tensors handed out are copies or never written again.
    The same insertions in the same order give the same map, bit for bit, however they are spread over time.

    Args:
        limit: the most points the map holds. Memory is ``nbytes``, about 70 bytes a point, all of it allocated here.
        voxel_pixels: voxel edge in pixels at a pixel's depth. It is raised where a frame would need more than half
            of ``limit``.
        carve_ratio: a point is seen through where the frame's depth is farther than its own by more than this share.
        merge_ratio: a point is the same surface as a pixel where their depths differ by at most its radius + this
            share of the depth.
        edge_pixels: pixels around a point's own that must all be seen through as well.
        min_views: points that fewer frames (of different stamps) have seen are kept, but not shown. 1 where moving
            objects are masked; 2 or 3 keeps most of them out of a map whose frames carry no masks.
        backend: ``numba``, or ``plain`` (numpy and a dict: slow, to compare with).

    Raises:
        InputError: limit or voxel_pixels not positive, unknown backend.
    """

    def __init__(
        self,
        limit: int = 500_000,
        voxel_pixels: float = 1.5,
        *,
        carve_ratio: float = 0.05,
        merge_ratio: float = 0.01,
        edge_pixels: int = 2,
        min_views: int = 1,
        backend: str = "numba",
    ):
        if not 1 <= limit <= 1 << 29:
            raise InputError(f"limit: {limit} is not a number of points from 1 to {1 << 29}")
        if not (math.isfinite(voxel_pixels) and voxel_pixels > 0):
            raise InputError(f"voxel_pixels: {voxel_pixels} is not a size; use a positive number such as 1.5")
        if backend not in ("numba", "plain"):
            raise InputError(f"backend: '{backend}' is not one of numba, plain")
        self.limit = int(limit)
        self.voxel_pixels = float(voxel_pixels)
        self.carve_ratio, self.merge_ratio, self.edge_pixels = float(carve_ratio), float(merge_ratio), int(edge_pixels)
        self.min_views = int(min_views)
        self.backend = backend
        self._lock = threading.Lock()
        self._data = {
            name: np.zeros((limit, columns) if columns > 1 else limit, dtype)
            for name, (dtype, columns, _) in _FIELDS.items()
        }
        self._data["key"][:] = -1
        self._revision = np.zeros(limit, np.int64)
        self._free = np.zeros(limit, np.int32)
        self._drop = np.zeros(limit, np.int32)
        self._counters = np.zeros(4, np.int64)
        self._tick = 0
        self._table = np.full(1 << max(2 * limit - 1, 1).bit_length(), -1, np.int32)
        self._rows: dict[int, int] = {}
        self._shown: tuple[int, MapPoints] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the preallocated storage; constant."""
        arrays = (*self._data.values(), self._revision, self._free, self._drop, self._table)
        return sum(a.nbytes for a in arrays)

    def __len__(self) -> int:
        """Number of points held, shown or not."""
        return int(self._counters[_ALIVE])

    # ---------------------------------------------------------------------------------------------- insertion

    def insert(
        self,
        rgb: Tensor | np.ndarray,
        depth: Tensor | np.ndarray,
        valid: Tensor | np.ndarray,
        K: Tensor | np.ndarray,
        world_from_camera: Tensor | np.ndarray,
        origin: int,
        confidence: float | Tensor | np.ndarray = 1.0,
        stamp: float = 0.0,
        moving: Tensor | np.ndarray | None = None,
    ) -> None:
        """Take one frame into the map.

        Args:
            rgb: uint8 [H, W, 3].
            depth: float32 [H, W], z in metres; not finite or <= 0 counts as not valid.
            valid: bool [H, W]: where rgb and depth were observed or generated. Leave out what was merely filled.
            K: float64 [3, 3], pixels.
            world_from_camera: float64 [4, 4].
            origin: OBSERVED or GENERATED.
            confidence: >= 0, of the whole frame, or of each pixel: float32 [H, W].
            stamp: seconds (or any number that tells frames apart); kept as ``last_seen``.
            moving: bool [H, W]: pixels on moving objects. They are not inserted; their depth still carves.

        Raises:
            InputError: shapes that do not fit, an unknown origin, a confidence that is no number.
        """
        rgb, depth, valid = _numpy(rgb, np.uint8), _numpy(depth, np.float32), _numpy(valid, np.bool_)
        K, pose = _numpy(K, np.float64), _numpy(world_from_camera, np.float64)
        if depth.ndim != 2 or rgb.shape != (*depth.shape, 3) or valid.shape != depth.shape:
            raise InputError(
                f"PointMap.insert: rgb {rgb.shape}, depth {depth.shape}, valid {valid.shape} do not fit; "
                "expected [H, W, 3], [H, W], [H, W]"
            )
        if K.shape != (3, 3) or pose.shape != (4, 4) or not (np.isfinite(K).all() and np.isfinite(pose).all()):
            raise InputError("PointMap.insert: K must be a finite [3, 3], world_from_camera a finite [4, 4]")
        if origin not in (OBSERVED, GENERATED):
            raise InputError(f"PointMap.insert: origin {origin} is neither OBSERVED (0) nor GENERATED (1)")
        if not math.isfinite(stamp):
            raise InputError(f"PointMap.insert: stamp {stamp} is not usable")
        one = np.ndim(confidence) == 0
        sure = np.full(depth.shape, confidence, np.float32) if one else _numpy(confidence, np.float32)
        if sure.shape != depth.shape or not (np.isfinite(sure).all() and (sure >= 0).all()):
            raise InputError(f"PointMap.insert: confidence must be a number >= 0, or {list(depth.shape)} of them")
        status = (valid & np.isfinite(depth) & (depth > 0)).astype(np.uint8)
        depth = np.where(status > 0, depth, np.float32(0))
        if moving is None:
            status *= INSERTABLE
        else:
            moving = _numpy(moving, np.bool_)
            if moving.shape != depth.shape:
                raise InputError(f"PointMap.insert: moving {moving.shape} does not fit depth {depth.shape}")
            status = np.where(moving, status * np.uint8(DEPTH_ONLY), status * np.uint8(INSERTABLE))
        level = self._levels(depth, K)
        camera = np.linalg.inv(pose)[:3]
        rays = pose[:3, :3] @ np.linalg.inv(K)
        frame = (origin, sure, np.float32(stamp))
        with self._lock:
            self._tick += 1
            self._compare(status, depth, level, np.ascontiguousarray(camera), K, frame)
            self._insert_pixels(status, rgb, depth, level, rays, np.ascontiguousarray(pose[:3, 3]), frame)

    def _levels(self, depth: np.ndarray, K: np.ndarray) -> np.ndarray:
        """log2 of the voxel edge of every pixel, rounded, int8 [H, W]."""
        pixels = max(self.voxel_pixels, math.sqrt(2 * depth.size / self.limit))
        scale = np.float32(math.sqrt(2) * pixels / math.sqrt(abs(K[0, 0] * K[1, 1])))
        exponent = ((depth * scale).view(np.int32) >> 23) - 127  # floor(log2), from the float's own exponent
        return np.clip(exponent, -24, 24).astype(np.int8)

    def _compare(self, status, depth, level, camera, K, frame) -> None:
        side = 2 * self.edge_pixels + 1
        d = self._data
        if self.backend == "plain":
            nearest = ndimage.minimum_filter(depth, side, mode="constant", cval=np.inf)
            drop = self._associate_plain(status, depth, nearest, level, camera, K, frame)
        else:
            nearest = cv2.erode(depth, np.ones((side, side), np.uint8))
            count = kernels.associate(
                status, depth, nearest, level, camera, K, self.carve_ratio, self.merge_ratio, *frame, self._tick,
                self.min_views, d["key"], d["xyz"], d["radius"], d["level"], d["origin"], d["confidence"],
                d["last_seen"], d["last_tick"], d["views"], self._revision, self._counters, self._drop,
            )  # fmt: skip
            drop = self._drop[:count]
        self._remove(drop)

    def _insert_pixels(self, status, rgb, depth, level, rays, centre, frame) -> None:
        d, first_new, start = self._data, int(self._counters[_REVISION]), 0
        while True:
            if self.backend == "plain":
                start = self._insert_plain(start, status, rgb, depth, level, rays, centre, frame, first_new)
            else:
                start = kernels.insert(
                    start, status, rgb, depth, level, rays, centre, *frame, self._tick, _RADIUS,
                    self.min_views, self._table, d["key"], d["xyz"], d["rgb"], d["radius"], d["level"], d["origin"],
                    d["confidence"], d["last_seen"], d["last_tick"], d["views"], self._revision, self._free,
                    self._counters, first_new,
                )  # fmt: skip
            if start == depth.size or not self._evict():
                return

    def _evict(self) -> bool:
        """Make room: drop a sixteenth of the map, seen longest ago first. False if this frame has seen every point."""
        old = np.flatnonzero((self._data["key"] >= 0) & (self._data["last_tick"] < self._tick))
        if old.size == 0:
            return False
        count = min(max(self.limit // 16, 1), old.size)
        # Non-negative floats order as their bits do.
        rank = (self._data["last_tick"][old] << 32) | self._data["confidence"][old].view(np.int32)
        worst = np.partition(rank, count - 1)[count - 1]
        below = old[rank < worst]
        ties = old[rank == worst][: count - below.size]
        self._remove(np.sort(np.concatenate([below, ties])).astype(np.int32))
        return True

    def _remove(self, rows: np.ndarray) -> None:
        if self.backend == "plain":
            for row in rows.tolist():
                del self._rows[int(self._data["key"][row])]
                self._data["key"][row] = -1
                self._free[self._counters[_FREE]] = row
                self._counters += (0, 1, 1, -1)
                self._revision[row] = self._counters[_REVISION]
        else:
            kernels.remove(rows, self._table, self._data["key"], self._free, self._counters, self._revision)

    # ---------------------------------------------------------------------------------- plain versions of kernels

    def _associate_plain(self, status, depth, nearest, level, camera, K, frame) -> np.ndarray:
        """``kernels.associate`` in numpy: marks seen points and covered pixels, returns the rows to drop."""
        origin, confidence, stamp = frame
        d, (height, width) = self._data, depth.shape
        rows = np.flatnonzero(d["key"][: self._counters[_TOP]] >= 0)
        p = d["xyz"][rows].astype(np.float64)
        x, y, z = (c[0] * p[:, 0] + c[1] * p[:, 1] + c[2] * p[:, 2] + c[3] for c in camera)
        ahead = z > 1e-6
        rows, x, y, z = rows[ahead], x[ahead], y[ahead], z[ahead]
        u = np.floor((K[0, 0] * x + K[0, 1] * y) / z + K[0, 2] + 0.5)
        v = np.floor(K[1, 1] * y / z + K[1, 2] + 0.5)
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        rows, z, u, v = rows[inside], z[inside], u[inside].astype(np.int64), v[inside].astype(np.int64)
        through = (status[v, u] > 0) & (nearest[v, u] * (1.0 - self.carve_ratio) > z)
        slack = d["radius"][rows] + self.merge_ratio * z
        seen = (status[v, u] >= INSERTABLE) & ~through & (np.abs(z - depth[v, u]) <= slack)
        better = level[v, u] < d["level"][rows]
        better |= (level[v, u] == d["level"][rows]) & (confidence[v, u] > d["confidence"][rows])
        better = (origin < d["origin"][rows]) | ((origin == d["origin"][rows]) & better)
        drop = (through & (origin <= d["origin"][rows])) | (seen & better)
        kept = seen & ~better
        self._see(rows[kept], stamp)
        reach = np.minimum((d["radius"][rows] * K[0, 0] / z + 0.5).astype(np.int64), REACH)
        for b in range(-REACH, REACH + 1):
            for a in range(-REACH, REACH + 1):
                vb, ua = v + b, u + a
                near = kept & (max(abs(a), abs(b)) <= reach) & (vb >= 0) & (vb < height) & (ua >= 0) & (ua < width)
                vb, ua = vb[near], ua[near]
                hit = (status[vb, ua] >= INSERTABLE) & (np.abs(z[near] - depth[vb, ua]) <= slack[near])
                status[vb[hit], ua[hit]] = COVERED
        return rows[drop].astype(np.int32)

    def _see(self, rows, stamp) -> None:
        d = self._data
        d["last_tick"][rows] = self._tick
        again = rows[d["last_seen"][rows] != stamp]
        d["last_seen"][again] = stamp
        d["views"][again] = np.minimum(d["views"][again].astype(np.int64) + 1, 255)
        shown = again[d["views"][again] == self.min_views]
        self._revision[shown] = self._counters[_REVISION] + 1 + np.arange(shown.size)
        self._counters[_REVISION] += shown.size

    def _insert_plain(self, start, status, rgb, depth, level, rays, centre, frame, first_new) -> int:
        """``kernels.insert`` with a dict: pixel by pixel from flat index ``start``, returns where room ran out."""
        origin, confidence, stamp = frame
        d, width = self._data, depth.shape[1]
        for index in range(start, depth.size):
            v, u = divmod(index, width)
            if status[v, u] != INSERTABLE:
                continue
            sure = confidence[v, u]
            ray = rays[:, 0] * u + rays[:, 1] * v + rays[:, 2]
            xyz = (ray * np.float64(depth[v, u]) + centre).astype(np.float32)
            lev = int(level[v, u])
            while np.abs(np.floor(xyz.astype(np.float64) * 2.0**-lev)).max() >= HALF_RANGE:
                lev += 1
            scaled = xyz.astype(np.float64) * 2.0**-lev
            cell = np.floor(scaled)
            ix, iy, iz = (int(c) + HALF_RANGE for c in cell)
            key = ((lev + LEVEL_BIAS) << LEVEL_BITS_AT) | (ix << X_BITS_AT) | (iy << Y_BITS_AT) | iz
            row = self._rows.get(key)
            if row is None:
                if self._counters[_FREE] > 0:
                    self._counters[_FREE] -= 1
                    row = int(self._free[self._counters[_FREE]])
                elif self._counters[_TOP] < self.limit:
                    row = int(self._counters[_TOP])
                    self._counters[_TOP] += 1
                else:
                    return index
                self._rows[key] = row
                self._counters[_ALIVE] += 1
                d["key"][row], d["views"][row] = key, 1
            elif self._revision[row] > first_new:
                d["last_tick"][row] = self._tick
                old = (d["xyz"][row].astype(np.float64) * 2.0**-lev - cell - 0.5) ** 2
                new = (scaled - cell - 0.5) ** 2
                if new[0] + new[1] + new[2] >= old[0] + old[1] + old[2]:
                    continue
            else:
                self._see(np.array([row]), stamp)
                if origin > d["origin"][row] or (origin == d["origin"][row] and sure <= d["confidence"][row]):
                    continue
            d["xyz"][row], d["rgb"][row], d["radius"][row] = xyz, rgb[v, u], np.float32(_RADIUS * 2.0**lev)
            d["level"][row], d["origin"][row], d["confidence"][row] = lev, origin, sure
            d["last_seen"][row], d["last_tick"][row] = stamp, self._tick
            self._counters[_REVISION] += 1
            self._revision[row] = self._counters[_REVISION]
        return depth.size

    # ---------------------------------------------------------------------------------------------------- reading

    def _points_at(self, rows: np.ndarray) -> MapPoints:
        values = [torch.from_numpy(self._data[name][rows]) for name, (_, _, public) in _FIELDS.items() if public]
        return MapPoints(*values, id=torch.from_numpy(rows.astype(np.int32)))

    def _is_shown(self) -> np.ndarray:
        return (self._data["key"] >= 0) & (self._data["views"] >= self.min_views)

    def points(self) -> MapPoints:
        """Every point of the map, in storage order: a snapshot."""
        with self._lock:
            return self._points_at(np.flatnonzero(self._is_shown()))

    def render(self, K: Tensor, world_from_camera: Tensor, size: tuple[int, int]) -> Splat:
        """The map seen by a camera: ``Splat`` of rgb [h, w, 3], depth [h, w], known [h, w] (see ``splat_points``).

        Args:
            K: float64 [3, 3], pixels.
            world_from_camera: float64 [4, 4].
            size: (h, w).
        """
        with self._lock:
            revision = int(self._counters[_REVISION])
            if self._shown is None or self._shown[0] != revision:
                self._shown = (revision, self._points_at(np.flatnonzero(self._is_shown())))
            points = self._shown[1]
        return splat_points(points.xyz, points.rgb, points.radius, K, world_from_camera, size)

    def changes(self, cursor: int, max_points: int) -> MapChanges:
        """What changed since ``cursor``, oldest change first, at most ``max_points`` points (added + removed).

        Start with cursor 0 and nothing held; for each call write ``added`` under their ids, then drop ``removed``. Once
        a call returns nothing, what is held is what ``points()`` gives, in xyz, rgb, radius and origin (confidence and
        last_seen are those of the time of the change). This holds across ``clear`` and ``load_state_dict``.

        Raises:
            InputError: max_points below 1.
        """
        if max_points < 1:
            raise InputError(f"max_points: {max_points} would never show anything; use 1 or more")
        with self._lock:
            changed = np.flatnonzero(self._revision > cursor)
            if changed.size > max_points:
                changed = changed[np.argpartition(self._revision[changed], max_points)[:max_points]]
            changed = changed[np.argsort(self._revision[changed])]
            if changed.size:
                cursor = int(self._revision[changed[-1]])
            shown = self._is_shown()[changed]
            removed = torch.from_numpy(changed[~shown].astype(np.int32))
            return MapChanges(self._points_at(changed[shown]), removed, cursor)

    # ------------------------------------------------------------------------------------------------------ state

    def clear(self) -> None:
        """Forget every point."""
        with self._lock:
            before = self._is_shown()
            self._data["key"][:] = -1
            self._reindex(top=0, free=np.empty(0, np.int32), tick=0)
            self._mark(before)

    def state_dict(self) -> dict[str, Any]:
        """The map's state: tensors and numbers. A map that loads it goes on exactly as this one would."""
        with self._lock:
            top = int(self._counters[_TOP])
            state: dict[str, Any] = {name: torch.from_numpy(self._data[name][:top].copy()) for name in _FIELDS}
            state["free"] = torch.from_numpy(self._free[: self._counters[_FREE]].copy())
            state["tick"] = self._tick
            state["limit"] = self.limit
            state["voxel_pixels"] = self.voxel_pixels
            return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the map that ``state`` was taken from.

        Raises:
            InputError: it came from a map of another limit or voxel size, or something is missing.
        """
        missing = {*_FIELDS, "free", "tick", "limit", "voxel_pixels"} ^ set(state)
        if missing:
            raise InputError(f"PointMap state: missing or extra entries {sorted(missing)}; load what state_dict gave")
        if (state["limit"], state["voxel_pixels"]) != (self.limit, self.voxel_pixels):
            raise InputError(
                f"PointMap state: of a map with limit {state['limit']} and voxel_pixels {state['voxel_pixels']}, "
                f"this one has {self.limit} and {self.voxel_pixels}; make them equal"
            )
        top = state["key"].shape[0]
        with self._lock:
            changed = np.zeros(self.limit, np.bool_)
            before = self._is_shown()
            for name in _FIELDS:
                new = state[name].numpy()
                if name in _SHOWN:
                    differs = self._data[name][:top] != new
                    changed[:top] |= differs if differs.ndim == 1 else differs.any(axis=1)
                self._data[name][:top] = new
            self._data["key"][top:] = -1
            self._reindex(top, state["free"].numpy(), state["tick"])
            after = self._is_shown()
            self._mark((after & changed) | (after != before))

    def _reindex(self, top: int, free: np.ndarray, tick: int) -> None:
        self._free[: free.size] = free
        self._tick = tick
        self._counters[_TOP], self._counters[_FREE], self._counters[_ALIVE] = top, free.size, top - free.size
        if self.backend == "plain":
            self._rows = {int(k): row for row, k in enumerate(self._data["key"][:top]) if k >= 0}
        else:
            kernels.build_table(self._table, self._data["key"], top)

    def _mark(self, changed: np.ndarray) -> None:
        rows = np.flatnonzero(changed)
        self._revision[rows] = self._counters[_REVISION] + 1 + np.arange(rows.size)
        self._counters[_REVISION] += rows.size

    # ----------------------------------------------------------------------------------------------------- export

    def save(self, path: str | Path) -> None:
        """Write every point to a ``.ply`` or ``.pcd`` file (see ``save_points``)."""
        save_points(path, self.points())


def _numpy(value: Tensor | np.ndarray, dtype: type) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.ascontiguousarray(value, dtype=dtype)


# --------------------------------------------------------------------------------------------------------- Open3D


def _open3d():
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise InputError(
            f"open3d cannot be imported ({str(error).splitlines()[0]}); install it with: pip install 'inspatio[open3d]'"
        ) from None
    return open3d


def to_open3d(points: MapPoints) -> Any:
    """The points as an ``open3d.geometry.PointCloud``: world frame, metres, colours in [0, 1].

    Raises:
        InputError: Open3D (the ``open3d`` extra) is not there.
    """
    open3d = _open3d()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.xyz.to(torch.float64).numpy()))
    cloud.colors = open3d.utility.Vector3dVector(points.rgb.to(torch.float64).numpy() / 255)
    return cloud


def without_outliers(points: MapPoints, neighbours: int = 20, deviations: float = 2.0) -> MapPoints:
    """The points without lone ones: Open3D's statistical outlier removal.

    Args:
        points: of any map.
        neighbours: how many neighbours a point's mean distance is taken over.
        deviations: standard deviations above the mean of all mean distances at which a point is an outlier.

    Raises:
        InputError: Open3D (the ``open3d`` extra) is not there.
    """
    _, kept = to_open3d(points).remove_statistical_outlier(neighbours, deviations)
    kept = torch.tensor(kept, dtype=torch.int64)
    return MapPoints(*(field[kept] for field in points))


# ---------------------------------------------------------------------------------------------------------- files

_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip
_PLY_ROW = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("origin", "u1"),
     ("radius", "<f4"), ("confidence", "<f4"), ("last_seen", "<f4")]
)  # fmt: skip
_PCD_ROW = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<f4"), ("origin", "u1"), ("radius", "<f4"),
     ("confidence", "<f4"), ("last_seen", "<f4")]
)  # fmt: skip


def save_points(path: str | Path, points: MapPoints) -> None:
    """Write points to ``.ply`` (binary little endian) or ``.pcd`` (binary), under a temporary name first.

    Both hold x, y, z (metres, world frame: x right, y down, z forward of the first source camera), colour, origin,
    radius, confidence and last_seen. The colour of a .pcd is packed into a float ``rgb`` as PCL does.

    Raises:
        InputError: another suffix, or a folder that cannot be written to.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".ply", ".pcd"):
        raise InputError(f"{path}: unknown kind of point file '{kind}'; use .ply or .pcd")
    count = points.xyz.shape[0]
    rows = np.zeros(count, _PLY_ROW if kind == ".ply" else _PCD_ROW)
    for axis, name in enumerate("xyz"):
        rows[name] = points.xyz[:, axis].numpy()
    for name in ("origin", "radius", "confidence", "last_seen"):
        rows[name] = getattr(points, name).numpy()
    red, green, blue = points.rgb.numpy().T
    if kind == ".ply":
        rows["red"], rows["green"], rows["blue"] = red, green, blue
        names = {"<f4": "float", "|u1": "uchar"}
        properties = "\n".join(f"property {names[t.str]} {n}" for n, (t, _) in rows.dtype.fields.items())
        header = f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{properties}\nend_header\n"
    else:
        packed = (red.astype(np.uint32) << 16) | (green.astype(np.uint32) << 8) | blue
        rows["rgb"] = packed.view(np.float32)
        types = [t for t, _ in rows.dtype.fields.values()]
        header = (
            "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
            f"FIELDS {' '.join(rows.dtype.names)}\n"
            f"SIZE {' '.join(str(t.itemsize) for t in types)}\n"
            f"TYPE {' '.join('F' if t.kind == 'f' else 'U' for t in types)}\n"
            f"COUNT {' '.join('1' for _ in types)}\n"
            f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA binary\n"
        )
    try:
        with replacing(path) as partial, open(partial, "wb") as file:
            file.write(header.encode("ascii"))
            file.write(rows.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def load_points(path: str | Path) -> MapPoints:
    """Read a binary ``.ply`` (little endian) or ``.pcd``; what the file does not hold is 0 (confidence: 1).

    Raises:
        InputError: no such file, not such a file, or cut short.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        rows = _ply_rows(content) if content.startswith(b"ply") else _pcd_rows(content)
        xyz = np.stack([rows[n] for n in "xyz"], axis=1).astype(np.float32)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: not a readable binary .ply or .pcd point file ({error})") from None
    names, count = rows.dtype.names, len(rows)
    if "red" in names:
        rgb = np.stack([rows[n] for n in ("red", "green", "blue")], axis=1).astype(np.uint8)
    elif "rgb" in names:
        packed = np.ascontiguousarray(rows["rgb"]).view(np.uint32)
        rgb = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    else:
        rgb = np.zeros((count, 3), np.uint8)

    def column(name, dtype, default=0):
        return torch.from_numpy(rows[name].astype(dtype) if name in names else np.full(count, default, dtype))

    return MapPoints(
        torch.from_numpy(xyz),
        torch.from_numpy(rgb),
        column("radius", np.float32),
        column("origin", np.uint8),
        column("confidence", np.float32, 1),
        column("last_seen", np.float32),
        torch.arange(count, dtype=torch.int32),
    )


def _ply_rows(content: bytes) -> np.ndarray:
    head, found, body = content.partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    if not found or "format binary_little_endian 1.0" not in lines:
        raise ValueError("expected a header with 'format binary_little_endian 1.0'")
    elements = [line.split() for line in lines if line.startswith("element ")]
    if not elements or elements[0][1] != "vertex":
        raise ValueError("expected 'element vertex' first")
    properties = []
    for line in lines[lines.index(" ".join(elements[0])) + 1 :]:
        if line.startswith("element "):
            break
        if line.startswith("property "):
            _, kind, name = line.split()
            properties.append((name, _PLY_TYPES[kind]))
    return np.frombuffer(body, np.dtype(properties), int(elements[0][2]))


def _pcd_rows(content: bytes) -> np.ndarray:
    head, found, body = content.partition(b"\nDATA binary\n")
    if not found:
        raise ValueError("expected a header that ends in 'DATA binary'")
    header = dict(
        line.split(maxsplit=1) for line in head.decode("ascii").splitlines() if line.strip() and line[0] != "#"
    )
    fields, sizes, types = header["FIELDS"].split(), header["SIZE"].split(), header["TYPE"].split()
    counts = header.get("COUNT", " ".join("1" for _ in fields)).split()
    row = [
        (name, f"<{kind.lower()}{size}", *([(int(n),)] if int(n) > 1 else []))
        for name, size, kind, n in zip(fields, sizes, types, counts, strict=True)
    ]
    return np.frombuffer(body, np.dtype(row), int(header["POINTS"]))
