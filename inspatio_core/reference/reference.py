"""`Reference`: the immutable clip a world is anchored to, and the bounded cache its frames are read through."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import invert_pose, is_rigid, scale_intrinsics

CACHE_BYTES = 1 << 30
DEFAULT_MEDIAN_DEPTH = 3.0  # metres; the scale given to clips that come without one
RIGID_TOLERANCE = 1e-3  # poses in text files carry few digits
LANDSCAPE, PORTRAIT = (480, 832), (832, 480)

_uids = itertools.count()


class FrameCache:
    """Least-recently-used tensors under a limit of bytes, safe to use from several threads.

    An entry larger than the limit is handed out and not kept.
    """

    def __init__(self, limit: int = CACHE_BYTES):
        self.limit = limit
        self.bytes = 0
        self._entries: OrderedDict[tuple, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        """The entry under `key`, made by `make` (outside the lock) when it is not there."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        value = make()
        with self._lock:
            if key in self._entries:
                return self._entries[key]
            self._entries[key] = value
            self.bytes += value.nbytes
            while self.bytes > self.limit:
                self.bytes -= self._entries.popitem(last=False)[1].nbytes
        return value


_shared_cache = FrameCache()


class FrameSource(Protocol):
    """Where the frames of a clip come from, in the clip's own units; any thread may call."""

    has_moving: bool

    def rgb(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3]."""

    def depth(self, index: int) -> np.ndarray:
        """float32 [H', W'], z along the optical axis; NaN, infinite and non-positive values allowed."""

    def moving(self, index: int) -> np.ndarray:
        """bool [H', W'], True where something moves; only asked where `has_moving`."""


@dataclass(frozen=True)
class ArraySource:
    """Frames held in memory: rgb uint8 [N,H,W,3], depth float32 [N,H,W], moving bool [N,H,W] or None."""

    rgb_frames: np.ndarray
    depth_frames: np.ndarray
    moving_frames: np.ndarray | None

    @property
    def has_moving(self) -> bool:
        """Whether there are masks."""
        return self.moving_frames is not None

    def rgb(self, index: int) -> np.ndarray:
        """uint8 [H,W,3]."""
        return self.rgb_frames[index]

    def depth(self, index: int) -> np.ndarray:
        """float32 [H,W] in scene units."""
        return self.depth_frames[index]

    def moving(self, index: int) -> np.ndarray:
        """bool [H,W], True where something moves."""
        return self.moving_frames[index]


def sanitise_depth(depth: np.ndarray, what: str = "depth", far: float | None = None) -> np.ndarray:
    """Depth that is finite and positive everywhere.

    Plus infinity (sky) becomes `far`, by default the largest finite value; NaN, zero and negative values take the
    nearest valid pixel's. Raises `InputError`, naming `what`, when no pixel is valid.

    Args:
        depth: float [H, W].
    """
    depth = np.asarray(depth, np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    if valid.all():
        return depth
    sky = np.isposinf(depth)
    if not valid.any():
        raise InputError(f"{what}: no pixel has a finite, positive depth; give depth in scene units, or leave it out")
    out = depth.copy()
    if sky.any():
        out[sky] = float(depth[valid].max()) if far is None else far
        valid = valid | sky
    if not valid.all():
        _, labels = cv2.distanceTransformWithLabels(
            (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        value_of = np.zeros(labels.max() + 1, np.float32)
        value_of[labels[valid]] = out[valid]
        out[~valid] = value_of[labels[~valid]]
    return out


def resize_rgb(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] at `size` (height, width): area average when shrinking, cubic when growing."""
    if image.shape[:2] == tuple(size):
        return image
    shrink = size[0] * size[1] <= image.shape[0] * image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Valid depth at `size` without inventing values between near and far.

    Inverse depth is interpolated (exact on planes) where the surroundings agree within 5 %; across depth edges the
    nearest pixel is taken. Half-pixel exact, as `scale_intrinsics`.
    """
    if depth.shape == tuple(size):
        return depth
    nearest = cv2.resize(depth, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    smooth = 1.0 / cv2.resize(1.0 / depth, size[::-1], interpolation=cv2.INTER_LINEAR)
    kernel = np.ones((3, 3), np.uint8)
    edge = (cv2.dilate(depth, kernel) > 1.05 * cv2.erode(depth, kernel)).astype(np.uint8)
    edge = cv2.resize(edge, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.where(edge > 0, nearest, smooth).astype(np.float32)


def auto_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size (height, width) that the released models work at for a clip of this size: 480x832, or 832x480."""
    return PORTRAIT if size[0] > size[1] else LANDSCAPE


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """A clip with depth, camera path and intrinsics, in metres; immutable, so ``copy`` and ``deepcopy`` give it back.

    Attributes:
        name: for messages; path: the scene folder or file it was opened from, None for arrays.
        fps: source frames per second. size: (height, width) that `rgb`, `depth` and `moving` come in.
        K: float64 [N,3,3], pixels at `size`, pixel centres at integer coordinates.
        world_from_camera: float64 [N,4,4], OpenCV axes, metres; the first is the identity.
        metric: whether the source knew its scale. metres_per_unit: what its units were multiplied by.
        median_depth: metres, over a few frames.
        depth_source, pose_source: what made depth and poses. notices: one-line warnings for the user.
    """

    name: str
    path: Path | None
    frame_count: int
    fps: float
    size: tuple[int, int]
    K: Tensor
    world_from_camera: Tensor
    metric: bool
    metres_per_unit: float
    median_depth: float
    caption: str | None = None
    depth_source: str = "given"
    pose_source: str = "given"
    notices: tuple[str, ...] = ()
    _source: FrameSource = field(default=None)
    _cache: FrameCache = field(default=None)
    _uid: int = field(default=0)

    @classmethod
    def from_source(
        cls,
        source: FrameSource,
        K,
        world_from_camera,
        *,
        fps: float,
        size: tuple[int, int],
        name: str,
        path: Path | None = None,
        metric: bool = True,
        metres_per_unit: float | None = None,
        cache: FrameCache | None = None,
        **details,
    ) -> Reference:
        """A reference over any `FrameSource`, its poses and depth brought to metres and to the first camera.

        Args:
            K: [3,3] or [N,3,3] at `size`. world_from_camera: [N,4,4] in the source's units and any world frame.
            metres_per_unit: default 1 for metric sources, else such that the median depth is 3 m.

        Raises:
            InputError: non-rigid poses, bad intrinsics, bad fps, no valid depth.
        """
        poses = torch.as_tensor(np.asarray(world_from_camera), dtype=torch.float64)
        if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
            raise InputError(f"{name}: poses must be [N,4,4] with N >= 1, not {list(poses.shape)}")
        count = len(poses)
        for i, rigid in enumerate(is_rigid(poses, RIGID_TOLERANCE).tolist()):
            if not rigid:
                raise InputError(f"{name}: the pose of frame {i} is not a rigid motion (a finite rotation and shift)")
        K = torch.as_tensor(np.asarray(K), dtype=torch.float64)
        if K.shape not in ((3, 3), (count, 3, 3)):
            raise InputError(f"{name}: intrinsics must be [3,3] or [{count},3,3], not {list(K.shape)}")
        K = K.expand(count, 3, 3).clone()
        if not (torch.isfinite(K).all() and (K[:, 0, 0] > 0).all() and (K[:, 1, 1] > 0).all()):
            raise InputError(f"{name}: intrinsics must be finite with positive focal lengths")
        if not (np.isfinite(fps) and fps > 0):
            raise InputError(f"{name}: frames per second must be positive, not {fps}")
        if metres_per_unit is not None and not (np.isfinite(metres_per_unit) and metres_per_unit > 0):
            raise InputError(f"{name}: metres_per_unit must be positive, not {metres_per_unit}")

        sample = sorted({round(i) for i in np.linspace(0, count - 1, 3)})
        median = float(
            np.median([np.median(sanitise_depth(source.depth(i), f"{name}: depth of frame {i}")) for i in sample])
        )
        scale = metres_per_unit or (1.0 if metric else DEFAULT_MEDIAN_DEPTH / median)
        poses = invert_pose(poses[:1]) @ poses
        poses[0] = torch.eye(4, dtype=torch.float64)
        poses[:, :3, 3] *= scale
        return cls(
            name=name,
            path=path,
            frame_count=count,
            fps=float(fps),
            size=tuple(size),
            K=K,
            world_from_camera=poses,
            metric=metric,
            metres_per_unit=scale,
            median_depth=median * scale,
            _source=source,
            _cache=_shared_cache if cache is None else cache,
            _uid=next(_uids),
            **details,
        )

    @classmethod
    def from_arrays(
        cls, rgb, depth, K, world_from_camera=None, fps: float = 24.0, name: str = "arrays", moving=None, **details
    ) -> Reference:
        """A reference from arrays or tensors: rgb uint8 [N,H,W,3], depth [N,H,W] in scene units, moving bool [N,H,W].

        Args:
            K: [3,3] or [N,3,3]. world_from_camera: [N,4,4], OpenCV axes; default a camera that stands still.
            details: `metric` (default True), `metres_per_unit`, `caption`, `depth_source`, `pose_source`, `notices`.

        Raises:
            InputError: shapes that do not fit, non-rigid poses, a frame without any valid depth.
        """
        rgb, depth = np.asarray(rgb), np.asarray(depth, np.float32)
        if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8 or len(rgb) == 0:
            raise InputError(f"{name}: rgb must be uint8 [N,H,W,3] with N >= 1, not {rgb.dtype} {list(rgb.shape)}")
        if depth.shape != rgb.shape[:3]:
            raise InputError(f"{name}: depth {list(depth.shape)} does not fit rgb {list(rgb.shape)}")
        if moving is not None:
            moving = np.asarray(moving, bool)
            if moving.shape != rgb.shape[:3]:
                raise InputError(f"{name}: moving {list(moving.shape)} does not fit rgb {list(rgb.shape)}")
        if world_from_camera is None:
            world_from_camera = np.tile(np.eye(4), (len(rgb), 1, 1))
        if len(world_from_camera) != len(rgb):
            raise InputError(f"{name}: {len(world_from_camera)} poses for {len(rgb)} frames")
        finite = depth[np.isfinite(depth)]
        far = float(finite.max()) if finite.size else None
        depth = np.stack([sanitise_depth(d, f"{name}: depth of frame {i}", far) for i, d in enumerate(depth)])
        source = ArraySource(rgb, depth, moving)
        return cls.from_source(source, K, world_from_camera, fps=fps, size=rgb.shape[1:3], name=name, **details)

    def __repr__(self) -> str:
        return f"Reference({self.name!r}, {self.frame_count} frames, {self.size[0]}x{self.size[1]}, {self.fps:g} fps)"

    def __copy__(self) -> Reference:
        return self  # nothing in it changes, so a copy (``gymnasium.make`` copies its arguments) is the thing itself

    def __deepcopy__(self, memo: dict) -> Reference:
        return self

    def _index(self, index: int) -> int:
        if not 0 <= index < self.frame_count:
            raise IndexError(f"frame {index} of {self.name}, which has {self.frame_count}")
        return int(index)

    def rgb(self, index: int) -> Tensor:
        """uint8 [H,W,3]. Shared with the cache: do not write into it."""
        index = self._index(index)

        def make() -> Tensor:
            return torch.tensor(resize_rgb(self._source.rgb(index), self.size))

        return self._cache.get((self._uid, "rgb", self.size, index), make)

    def depth(self, index: int) -> Tensor:
        """float32 [H,W], metres, finite and > 0 everywhere. Shared with the cache: do not write into it."""
        index = self._index(index)

        def make() -> Tensor:
            depth = sanitise_depth(self._source.depth(index), f"{self.name}: depth of frame {index}")
            return torch.tensor(resize_depth(depth, self.size) * np.float32(self.metres_per_unit))

        return self._cache.get((self._uid, "depth", self.size, index), make)

    def moving(self, index: int) -> Tensor | None:
        """bool [H,W], True where something moves by itself; None when the reference has no such masks."""
        index = self._index(index)
        if not self._source.has_moving:
            return None

        def make() -> Tensor:
            mask = self._source.moving(index).astype(np.uint8)
            return torch.tensor(cv2.resize(mask, self.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0)

        return self._cache.get((self._uid, "moving", self.size, index), make)

    def resized(self, size: tuple[int, int]) -> Reference:
        """The same clip at another (height, width), each axis stretched on its own; K follows, half-pixel exact."""
        size = tuple(int(s) for s in size)
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"{self.name}: size must be (height, width) in pixels, not {size}")
        if size == self.size:
            return self
        return replace(self, size=size, K=scale_intrinsics(self.K, self.size, size))
