"""The newest wish of the user, latched by callbacks and taken once a block. Knows neither messages nor threads' order.

The last kind of command received wins; nothing is queued. Times are sim time in seconds.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from inspatio_core.geometry.motion import Motion
from inspatio_core.geometry.playhead import PlayheadCommand


class Commands:
    """Latch for motion and playhead, safe to use from any thread.

    Args:
        timeout: a twist older than this when a block is committed counts for nothing, seconds of sim time.
    """

    def __init__(self, timeout: float = 0.5):
        self.timeout = timeout
        self._lock = threading.Lock()
        self._twist: tuple[np.ndarray, float] | None = None
        self._motion: Motion | None = None
        self._playhead: dict[str, Any] = {}
        self._rate = 1.0
        self._reverse = False
        self._stride = 1

    def twist(self, camera_twist: np.ndarray, now: float) -> None:
        """Move like this from the next block on. float64 [6] in camera axes, m/s and rad/s."""
        with self._lock:
            self._twist, self._motion = (camera_twist, now), None

    def pose(self, motion: Motion) -> None:
        """A target (tracked) or a teleport for the next block; the camera then holds."""
        with self._lock:
            self._twist, self._motion = None, motion

    def playhead(self, **changes: Any) -> None:
        """Fields of PlayheadCommand to change at the next block; what a later call says replaces an earlier one."""
        PlayheadCommand(**changes)
        with self._lock:
            if "rate" in changes:
                self._rate, self._reverse = changes["rate"], False
            self._playhead.update(changes)

    def reverse(self) -> None:
        """Turn the playhead round at the next block, whichever way it moves by then."""
        with self._lock:
            self._reverse = not self._reverse

    def clear(self) -> None:
        """Forget everything, as after a reset: no motion, rate 1."""
        with self._lock:
            self._twist, self._motion, self._playhead = None, None, {}
            self._rate, self._reverse, self._stride = 1.0, False, 1

    def take(self, now: float, stride: int = 1, direction: float = 1.0) -> tuple[Motion, PlayheadCommand | None]:
        """What the next block shall do.

        Args:
            now: sim time, for the timeout of twists.
            stride: sim frames that each generated frame stands for; twist and playhead rate are scaled by it.
            direction: -1 if the playhead, bouncing, now moves against the sign of its rate.
        """
        with self._lock:
            motion = self._motion or Motion.hold()
            self._motion = None
            if self._twist is not None:
                twist, stamp = self._twist
                if now - stamp <= self.timeout:
                    motion = Motion.from_twist(twist * stride)
                else:
                    self._twist = None
            changes, self._playhead = self._playhead, {}
            if "rate" in changes or self._reverse or stride != self._stride:
                if "rate" not in changes:
                    self._rate *= direction
                if self._reverse:
                    self._rate = -self._rate
                changes["rate"] = self._rate * stride
            self._reverse, self._stride = False, stride
            return motion, PlayheadCommand(**changes) if changes else None
