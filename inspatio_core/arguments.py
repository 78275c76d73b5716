"""What users give a session for its slots, checked: one value for all slots or one a slot."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.motion import rigid_poses
from inspatio_core.geometry.playhead import PlayheadCommand


def several(value: Any) -> bool:
    """Whether this is a sequence, array or tensor of values and not a value."""
    return hasattr(value, "__len__") and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def whole(value: Any, what: str) -> int:
    """``value`` as an int; InputError, beginning with ``what``, where it is not a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{what}: {value!r} is not a whole number") from None


def one_each(slots: Sequence[int], value: Any, what: str, check: Callable[[Any], Any]) -> list:
    """One value a slot; ``check`` makes of each that is not None what is returned."""
    values = value if several(value) else [value] * len(slots)
    if len(values) != len(slots):
        raise InputError(f"{what}: {len(values)} given for {len(slots)} slots")
    return [v if v is None else check(v) for v in values]


def start_of(value: Any, commits: int, count: int) -> PlayheadCommand | None:
    """A slot's start in a clip of ``count`` frames: None, its first source frame, or those of all ``commits``."""
    if not several(value):
        return None if value is None else PlayheadCommand(jump=float(whole(value, "start_indices")))
    indices = [whole(i, "start_indices") for i in value]
    if len(indices) != commits or not 0 <= min(indices) <= max(indices) < count:
        raise InputError(f"start_indices: need 1 or {commits} frames a slot from 0 to {count - 1}, got {indices}")
    return PlayheadCommand(indices=indices)


def start_poses_of(poses: Any, slots: Sequence[int], commits: int) -> Tensor | None:
    """Start poses as ``reset`` takes them, checked, float64."""
    if poses is None:
        return None
    b, shape = len(slots), tuple(getattr(poses, "shape", ()))
    if shape == (b, commits, 4, 4):
        rows = zip(slots, poses, strict=True)
        return torch.stack([rigid_poses(p, f"start_poses of slot {s}", 3) for s, p in rows])
    if shape not in ((4, 4), (b, 4, 4)):
        raise InputError(f"start_poses: expected [4, 4], [{b}, 4, 4] or [{b}, {commits}, 4, 4], got {list(shape)}")
    return rigid_poses(poses, "start_poses", len(shape), "slot")
