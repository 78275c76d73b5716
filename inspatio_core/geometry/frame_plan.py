"""Which source frames and which frames of a rendered path make up an offline clip.

Freezing a frame, cutting to the shortest clip, and the *adaptive rule*, which wants a camera to turn between 0.3 and
0.8 degrees per frame: a clip that is too short for its trajectory is extended to A / 0.8 frames for A degrees, at least
to 121, by playing the source back and forth.

* ``exact`` (default): the *trajectory* is sampled at the number of frames. The camera moves slower or faster, once
  along its path; a long clip is shown whole, at its own speed.
* ``compatible``: frames of the finished render are repeated or left out together with the source. An extended clip
  moves as fast as before and runs its path several times, back and forth; one too long for its trajectory is thinned
  to A / 0.3 frames; only 1000 source frames are used. This is what the released program does.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.trajectory import Trajectory

MAX_SOURCE_FRAMES = 1000
MIN_DEGREES_PER_FRAME = 0.3
MAX_DEGREES_PER_FRAME = 0.8
MIN_EXPANDED_FRAMES = 121
MAX_PLANNED_FRAMES = 100_000
"""A plan with more frames than this (more than an hour), and more than its source has, is taken for a mistake."""


class FramePlan(NamedTuple):
    """Frame j of the clip shows source frame source_indices[j] seen from pose render_indices[j] of a trajectory sampled
    at render_count poses. Both index tensors are int64 [n]."""

    source_indices: Tensor
    render_indices: Tensor
    render_count: int


def total_angle(trajectory: Trajectory) -> float:
    """Degrees that the keyframes of a trajectory turn through: the larger of the pitch and the yaw total."""
    return max(float(np.abs(np.diff(curve)).sum()) for curve in (trajectory.pitch, trajectory.yaw))


def _check_length(frames: float, count: int, reason: str) -> None:
    if frames > max(MAX_PLANNED_FRAMES, count):
        raise InputError(f"{reason} takes {frames:.6g} frames; at most {MAX_PLANNED_FRAMES} are planned")


def bounce(count: int, frames: int) -> Tensor:
    """Indices int64 [frames] into a clip of `count` frames: 0, 1, .., count-1, count-2, .., 0, 1, .. where more frames
    are wanted than the clip has, else spread evenly over it, rounded down. A clip of one frame gives zeros. InputError
    above MAX_PLANNED_FRAMES."""
    if count < 1 or frames < 0:
        raise InputError(f"bounce: need a clip of at least 1 frame and frames >= 0, got {count} and {frames}")
    _check_length(frames, count, "bounce: playing back and forth")
    if frames <= count:
        return torch.from_numpy(np.linspace(0, count - 1, frames).astype(np.int64))
    if count == 1:
        return torch.zeros(frames, dtype=torch.int64)
    period = 2 * (count - 1)
    phase = torch.arange(frames) % period
    return torch.minimum(phase, period - phase)


def freeze(count: int, repeat: int, frame: int | None = None) -> Tensor:
    """Indices int64 [count + repeat]: 0 .. count-1 with `frame` (default count // 2, else clamped into the clip)
    followed by `repeat` copies of itself. InputError above MAX_PLANNED_FRAMES."""
    if count < 1 or repeat < 0:
        raise InputError(f"freeze: need a clip of at least 1 frame and repeat >= 0, got {count} and {repeat}")
    _check_length(count + repeat, count, f"freeze: repeating a frame {repeat} times")
    frame = count // 2 if frame is None else min(max(frame, 0), count - 1)
    return torch.cat([torch.arange(frame + 1), torch.full((repeat,), frame), torch.arange(frame + 1, count)])


def adaptive_bounds(angle: float, frames: int) -> tuple[int, int]:
    """Fewest and most frames for a path that turns by `angle` degrees; `frames` for both where it does not turn."""
    if angle <= 1e-3:
        return frames, frames
    return (
        max(2, math.ceil(angle / MAX_DEGREES_PER_FRAME) + 1),
        max(2, math.floor(angle / MIN_DEGREES_PER_FRAME) + 1),
    )


def plan_frames(
    source_count: int,
    trajectory: Trajectory,
    *,
    render_count: int | None = None,
    mask_count: int | None = None,
    adaptive: bool = True,
    freeze_repeat: int = 0,
    freeze_frame: int | None = None,
    mode: Literal["exact", "compatible"] = "exact",
) -> FramePlan:
    """Frames of an offline clip.

    source_count: frames of the source; in compatible mode those past 1000 are left out. render_count, mask_count:
    frames of a finished render and its mask, if there is one (compatible mode only); default: as many as the source
    with its frozen frames.
    adaptive: apply the adaptive rule. freeze_repeat: extra copies of freeze_frame (default: the middle).

    Returns a FramePlan. In compatible mode render_indices may repeat and run backwards; in exact mode they are
    0 .. n-1 and render_count = n: sample the trajectory at that number. Raises InputError for an empty clip and, before
    anything is allocated, for a plan of more than MAX_PLANNED_FRAMES.
    """
    if source_count < 1:
        raise InputError("frame plan: the source has no frames")
    used = min(source_count, MAX_SOURCE_FRAMES) if mode == "compatible" else source_count
    source = freeze(used, freeze_repeat, freeze_frame)
    if mode == "exact" and (render_count is not None or mask_count is not None):
        raise InputError("frame plan: a finished render can only be planned in compatible mode")
    made = len(source) if render_count is None else render_count
    count = min(len(source), made, made if mask_count is None else mask_count)
    if count < 1:
        raise InputError("frame plan: the render or its mask has no frames")
    chosen = torch.arange(count)
    if adaptive:
        angle = total_angle(trajectory)
        rule = f"{trajectory.name}: turning {angle:g} degrees at {MAX_DEGREES_PER_FRAME} a frame"
        _check_length(angle / MAX_DEGREES_PER_FRAME + 1, count, rule)
        fewest, most = adaptive_bounds(angle, count)
        wanted = max(fewest, MIN_EXPANDED_FRAMES)
        if count < wanted:
            chosen = bounce(count, wanted)
        elif count > most and mode == "compatible":
            chosen = bounce(count, most)
    if mode == "compatible":
        return FramePlan(source[chosen], chosen, made)
    return FramePlan(source[chosen], torch.arange(len(chosen)), len(chosen))
