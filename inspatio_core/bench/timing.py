"""Wall-clock times of stages and of single kernels, on a CPU and on CUDA."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def synchronise(device: torch.device) -> None:
    """Wait for all that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Times of consecutive stages: each lasts from the mark before to its own.

    Args:
        device: waited for at a mark, so that a stage's time holds all its work.
        fine: wait at every mark; otherwise at those with ``wait=True`` alone, and the others are not marked: the time
            up to a mark is then that of all stages since the last, with the work queued as it is in a real run.

    Attributes:
        seconds: of each stage since `start`; a stage marked twice has the sum.
    """

    def __init__(self, device: torch.device, fine: bool = True):
        self.device, self.fine = device, fine
        self.seconds: dict[str, float] = {}
        self._last = 0.0

    def start(self) -> None:
        """Begin anew."""
        synchronise(self.device)
        self.seconds = {}
        self._last = time.perf_counter()

    def mark(self, stage: str, wait: bool = False) -> None:
        """`stage` ends here."""
        if self.fine or wait:
            synchronise(self.device)
            now = time.perf_counter()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
            self._last = now


def spread(seconds: Sequence[float]) -> dict:
    """Median, best, worst and quartiles of some times, in milliseconds, and the times themselves."""
    ms = sorted(1e3 * s for s in seconds)
    low, _, high = statistics.quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else ms * 3
    return {
        "median_ms": statistics.median(ms),
        "best_ms": ms[0],
        "worst_ms": ms[-1],
        "quartiles_ms": [low, high],
        "samples_ms": [1e3 * s for s in seconds],
    }


def seconds_per_call(function: Callable[[], object], device: torch.device, budget: float = 0.5) -> float:
    """Median time of a call, warmed up. On CUDA of calls queued behind each other, by events, at least 5 ms of them."""
    function()
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    once = time.perf_counter() - start
    times = []
    if device.type == "cuda":
        calls = max(1, min(1000, round(0.005 / once)))
        for _ in range(max(3, min(20, round(budget / (calls * once))))):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / calls)
    else:
        for _ in range(max(1, min(20, round(budget / once)))):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
