"""Playhead: which source frame each output frame shows.

Position is a real number of source frames; the frame on screen is its floor. Every output frame shows the frame at
the position, then the position moves by rate * step * direction, where step is the number of source frames per output
frame at rate 1. So the first frame of a fresh slot is frame 0, and n calls for one frame equal one call for n frames.

At the ends of a clip of N frames:

* ``loop``: frame 0 follows frame N-1, and the other way round when playing backwards;
* ``bounce``: 0, 1, .., N-1, N-2, .., 1, 0, 1, .. (the direction turns at the ends);
* ``hold``: the end frame stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor

from inspatio_core.errors import InputError

LOOPS = ("loop", "bounce", "hold")
_LOOP, _BOUNCE = LOOPS.index("loop"), LOOPS.index("bounce")
MAX_RATE = 1e6

# A position that repeated additions left a hair below an integer counts as that integer.
_SNAP = 1e-6


@dataclass(frozen=True)
class PlayheadCommand:
    """What to change before the next frame; None leaves things as they are. Out-of-range values raise InputError.

    rate: speed, 1 = the source's own, 0.5 half, negative backwards, |rate| <= 1e6. A rate of another sign than before
        also undoes the turn of a bounce, so that it means what its sign says; the same rate again changes nothing.
    paused: True stops, False plays.
    jump: position in source frames; one outside the clip wraps (loop) or stops at the end (bounce, hold).
    loop: what happens at the ends.
    freeze: show the current frame this many times more before moving on; 0 ends a freeze, a pause does not use it up.
    indices: the source index of every frame of this block (replay); the playhead then continues from the last one.
    A jump or indices end a running freeze.
    """

    rate: float | None = None
    paused: bool | None = None
    jump: float | None = None
    loop: Literal["loop", "bounce", "hold"] | None = None
    freeze: int | None = None
    indices: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not (_is_number(self.rate) and abs(self.rate) <= MAX_RATE):
            raise InputError(f"playhead rate: need a number between -1e6 and 1e6, got {self.rate}")
        if self.jump is not None and not (_is_number(self.jump) and abs(self.jump) <= 1e12):
            raise InputError(f"playhead jump: need a source frame number, got {self.jump}")
        if self.loop is not None and self.loop not in LOOPS:
            raise InputError(f"playhead loop: need one of {', '.join(LOOPS)}, got {self.loop!r}")
        if self.freeze is not None and not (_is_number(self.freeze) and 0 <= self.freeze <= 2**53):
            raise InputError(f"playhead freeze: need a number of frames >= 0, got {self.freeze}")


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


@njit(cache=True, nogil=True)
def _advance(slots, counts, steps, position, rate, direction, paused, freeze, loop, given, indices):
    """Emit, then move, frame by frame and slot by slot. `given[i]`: row i of `indices` is prescribed, not filled in."""
    for i in range(slots.shape[0]):
        b = slots[i]
        n = counts[b]
        frames = indices.shape[1]
        for j in range(frames):
            if given[i]:
                position[b] = indices[i, j]
                if j < frames - 1:
                    continue
            else:
                shown = int(math.floor(position[b] + _SNAP))
                indices[i, j] = shown % n if loop[b] == _LOOP else min(max(shown, 0), n - 1)
            if paused[b]:
                continue
            if freeze[b] > 0:
                freeze[b] -= 1
                continue
            velocity = rate[b] * steps[b] * direction[b]
            p = position[b] + velocity
            last = n - 1.0
            if loop[b] == _LOOP:
                p = p % n
            elif p < 0.0 or p > last:
                if loop[b] == _BOUNCE and n > 1:
                    # Up and down again is one period; the phase grows whichever way the clip is running.
                    phase = (p if velocity > 0.0 else -p) % (2.0 * last)
                    up = phase <= last
                    p = phase if up else 2.0 * last - phase
                    if up != (velocity > 0.0):
                        direction[b] = -direction[b]
                else:
                    p = min(max(p, 0.0), last)
            position[b] = p


class Playhead:
    """The playheads of B slots, independent of each other.

    frame_counts: source frames N >= 1 of each slot. steps: source frames per output frame at rate 1 of each slot, that
    is source fps / output fps. loop: what fresh slots do at the ends.

    The arrays of B entries `position`, `rate`, `direction`, `paused`, `freeze` (frames left) and `loop` (index into
    LOOPS) may be read at any time.
    """

    _STATE = ("frame_counts", "steps", "position", "rate", "direction", "paused", "freeze", "loop")

    def __init__(self, frame_counts: Sequence[int], steps: Sequence[float], loop: str = "loop") -> None:
        if loop not in LOOPS:
            raise InputError(f"playhead loop: need one of {', '.join(LOOPS)}, got {loop!r}")
        slots = len(frame_counts)
        self._default_loop = LOOPS.index(loop)
        self.frame_counts = np.ones(slots, np.int64)
        self.steps = np.ones(slots, np.float64)
        self.position = np.zeros(slots, np.float64)
        self.rate = np.ones(slots, np.float64)
        self.direction = np.ones(slots, np.float64)
        self.paused = np.zeros(slots, np.bool_)
        self.freeze = np.zeros(slots, np.int64)
        self.loop = np.zeros(slots, np.int64)
        self._every = np.arange(slots)
        self.reset(range(slots), frame_counts, steps)

    def __len__(self) -> int:
        return len(self.frame_counts)

    def reset(
        self, slots: Sequence[int], frame_counts: Sequence[int] | None = None, steps: Sequence[float] | None = None
    ) -> None:
        """Make `slots` fresh: frame 0, rate 1, playing, the constructor's loop; if need be for another clip."""
        slots = self._slots(slots)
        for name, values in (("frame_counts", frame_counts), ("steps", steps)):
            if values is not None and len(values) != len(slots):
                raise InputError(f"playhead {name}: need one per slot ({len(slots)}), got {len(values)}")
        if frame_counts is not None and not all(_is_number(n) and n >= 1 for n in frame_counts):
            raise InputError(f"playhead frame_counts: a clip needs at least one frame, got {list(frame_counts)}")
        if steps is not None and not all(_is_number(s) and 0.0 < s <= MAX_RATE for s in steps):
            raise InputError(f"playhead steps: need source fps / output fps > 0, got {list(steps)}")
        if frame_counts is not None:
            self.frame_counts[slots] = frame_counts
        if steps is not None:
            self.steps[slots] = steps
        self.position[slots] = 0.0
        self.rate[slots] = 1.0
        self.direction[slots] = 1.0
        self.paused[slots] = False
        self.freeze[slots] = 0
        self.loop[slots] = self._default_loop

    def advance(self, frames: int, commands: Sequence[PlayheadCommand | None] | None = None) -> Tensor:
        """Source indices int64 [B,frames] of the next frames of every slot, after its command (one per slot)."""
        return self._advance_slots(self._every, frames, commands)

    def advance_slots(
        self, slots: Sequence[int], frames: int, commands: Sequence[PlayheadCommand | None] | None = None
    ) -> Tensor:
        """`advance` for some slots only: int64 [len(slots),frames], one command per slot named. The others stay."""
        return self._advance_slots(self._slots(slots), frames, commands)

    def _advance_slots(
        self, slots: np.ndarray, frames: int, commands: Sequence[PlayheadCommand | None] | None
    ) -> Tensor:
        if frames < 1:
            raise InputError(f"playhead: need at least 1 frame, got {frames}")
        indices = np.empty((len(slots), frames), np.int64)
        given = np.zeros(len(slots), np.bool_)
        if commands is not None:
            if len(commands) != len(slots):
                raise InputError(f"playhead commands: need one per slot ({len(slots)}), got {len(commands)}")
            # All are checked before any is applied: a bad one leaves every slot as it was.
            for row, (slot, command) in enumerate(zip(slots, commands, strict=True)):
                if command is not None and command.indices is not None:
                    indices[row] = self._checked_indices(slot, frames, command.indices)
                    given[row] = True
            for slot, command in zip(slots, commands, strict=True):
                if command is not None:
                    self._apply(slot, command)
        _advance(
            slots, self.frame_counts, self.steps, self.position, self.rate, self.direction, self.paused, self.freeze,
            self.loop, given, indices,
        )  # fmt: skip
        return torch.from_numpy(indices)

    def _slots(self, slots: Sequence[int]) -> np.ndarray:
        slots = np.fromiter(slots, np.int64)
        if len(set(slots.tolist())) != len(slots) or (
            len(slots) and not (0 <= slots.min() and slots.max() < len(self))
        ):
            raise InputError(f"slots: need different numbers from 0 to {len(self) - 1}, got {slots.tolist()}")
        return slots

    def _checked_indices(self, slot: int, frames: int, indices: Sequence[int]) -> np.ndarray:
        values = np.asarray(indices)
        if values.shape != (frames,) or values.dtype.kind not in "iu":
            raise InputError(f"playhead indices: need {frames} whole numbers, one per frame, got {list(indices)}")
        if values.min() < 0 or values.max() >= self.frame_counts[slot]:
            raise InputError(
                f"playhead indices: slot {slot} has frames 0 to {self.frame_counts[slot] - 1}, got {values.tolist()}"
            )
        return values

    def _apply(self, slot: int, command: PlayheadCommand) -> None:
        if command.loop is not None:
            self.loop[slot] = LOOPS.index(command.loop)
            if command.loop != "loop":
                self.position[slot] = min(self.position[slot], self.frame_counts[slot] - 1.0)
        if command.rate is not None:
            if np.sign(command.rate) != np.sign(self.rate[slot]):
                self.direction[slot] = 1.0
            self.rate[slot] = command.rate
        if command.paused is not None:
            self.paused[slot] = command.paused
        if command.jump is not None:
            n = float(self.frame_counts[slot])
            wraps = self.loop[slot] == _LOOP
            self.position[slot] = command.jump % n if wraps else min(max(command.jump, 0.0), n - 1.0)
        if command.jump is not None or command.indices is not None:
            self.freeze[slot] = 0
        if command.freeze is not None:
            self.freeze[slot] = int(command.freeze)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the whole state: one tensor of B entries per name."""
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in self._STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Back to a `state_dict`, bit for bit. InputError where the names or the number of slots differ."""
        if set(state) != set(self._STATE):
            raise InputError(f"playhead state: need {sorted(self._STATE)}, got {sorted(state)}")
        for name, value in state.items():
            if tuple(value.shape) != (len(self),):
                raise InputError(f"playhead state: {name} has shape {list(value.shape)}, need [{len(self)}]")
        for name, value in state.items():
            getattr(self, name)[:] = value.numpy(force=True)
