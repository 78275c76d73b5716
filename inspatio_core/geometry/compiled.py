"""What compiled CPU paths share: how kernels are compiled, threads for their rows, and reusable memory."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit

WORTH_A_THREAD = 100_000
"""Work on fewer pixels than this is not shared out."""

kernel = njit(cache=True, nogil=True, error_model="numpy")

_local = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """This thread's reusable array: fresh pages for every frame would cost more than the warp itself."""
    arrays = _local.__dict__
    pool, view = arrays.get(name, (None, None))
    if view is None or view.shape != shape:
        count = math.prod(shape)
        if pool is None or pool.size < count:
            pool = np.empty(count, dtype)
        view = pool[:count].reshape(shape)
        arrays[name] = pool, view
    return view


class _Threads:
    """A few threads for the rows of a batch, made when first needed and made anew in a forked child."""

    def __init__(self):
        self._pool = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self):
        self._pool = None

    def over_rows(self, rows: int, pixels: int, work) -> None:
        """Call ``work(slice)`` on slices that cover all rows, side by side where that is worth a thread."""
        count = min(rows, torch.get_num_threads())
        if count < 2 or pixels < WORTH_A_THREAD:
            work(slice(0, rows))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="inspatio-rows")
        edges = [rows * i // count for i in range(count + 1)]
        jobs = [self._pool.submit(work, slice(a, b)) for a, b in zip(edges[1:-1], edges[2:], strict=True)]
        work(slice(edges[0], edges[1]))
        for job in jobs:
            job.result()


threads = _Threads()
