"""Splat, fill and point splat: milliseconds per frame, the dense formulation beside ours in one run.

    python benchmarks/geometry.py --out benchmarks/results/geometry.json --repeat 20

Every row is timed in the same process after a warm-up, the rows of a group in turns (so that a busy machine slows all
of them alike), in bursts of at least ten milliseconds. Reported are the median and the best wall time over the bursts,
and the least CPU time of all threads together. The frame is a tilted floor with a nearer disc; the camera turns 5
degrees and moves 25 cm. Nothing here asserts anything.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from machine import describe, write

from inspatio_core.geometry.fill import fill
from inspatio_core.geometry.splat import splat, splat_points, warp_compatible

SIZES = ((480, 832), (128, 224), (64, 64))
POINTS = 500_000


def scene(size):
    """rgb, depth, K, target_from_source: one frame and a move."""
    h, w = size
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    depth = 6 - 4 * y / h
    depth = torch.where((x - w / 2) ** 2 + (y - h / 2) ** 2 < (h / 4) ** 2, 1.5, depth).float()[None]
    rgb = torch.randint(0, 256, (1, h, w, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    f = 0.8 * w
    K = torch.tensor([[f, 0, (w - 1) / 2], [0, f, (h - 1) / 2], [0, 0, 1]], dtype=torch.float64)[None]
    a = math.radians(5)
    T = torch.tensor(
        [[math.cos(a), 0, math.sin(a), 0.2], [0, 1, 0, 0.05], [-math.sin(a), 0, math.cos(a), -0.15], [0, 0, 0, 1]],
        dtype=torch.float64,
    )[None]
    return rgb, depth, K, T


def groups(threads):
    """Yield (group name, {row name: function})."""
    for size in SIZES:
        rgb, depth, K, T = scene(size)
        h, w = size
        image = rgb.permute(0, 3, 1, 2).float() / 127.5 - 1
        eye = torch.eye(4, dtype=torch.float64)[None]
        seen = splat(rgb, depth, K, K, T)
        default = torch.tensor([3.0], dtype=torch.float64)
        yield (
            f"{h}x{w} splat",
            {
                "dense formulation (warp_compatible)": lambda a=(image, depth[:, None], eye, T, K): warp_compatible(*a),
                "splat, torch": lambda a=(rgb, depth, K, K, T): splat(*a, backend="torch"),
                "splat, numba (default)": lambda a=(rgb, depth, K, K, T): splat(*a),
            },
        )
        yield (
            f"{h}x{w} fill",
            {
                "fill, torch": lambda a=(*seen, default): fill(*a, backend="torch"),
                "fill, numba (default)": lambda a=(*seen, default): fill(*a),
            },
        )
        batch = 8
        many = [t.expand(batch, *t.shape[1:]).contiguous() for t in (rgb, depth, K, K, T)]
        dense = [t.expand(batch, *t.shape[1:]).contiguous() for t in (image, depth[:, None], eye, T, K)]
        yield (
            f"{h}x{w} splat, batch of {batch}, per frame",
            {
                "dense formulation (warp_compatible)": (lambda a=dense: warp_compatible(*a), batch),
                "splat, numba (default)": (lambda a=many: splat(*a), batch),
            },
        )
    g = torch.Generator().manual_seed(0)
    xyz = torch.randn((POINTS, 3), generator=g) * torch.tensor([3.0, 2.0, 3.0]) + torch.tensor([0, 0, 4.0])
    colour = torch.randint(0, 256, (POINTS, 3), generator=g, dtype=torch.uint8)
    radius = torch.full((POINTS,), 0.006)
    for size in SIZES[:2]:
        _, _, K, T = scene(size)
        yield (
            f"{size[0]}x{size[1]} splat_points, {POINTS} points in no order",
            {
                "splat_points, torch": lambda a=(xyz, colour, radius, K[0], T[0], size): splat_points(*a, "torch"),
                "splat_points, numba (default)": lambda a=(xyz, colour, radius, K[0], T[0], size): splat_points(*a),
            },
        )


BURST = 0.01  # seconds
REST = 0.03  # seconds; OpenMP's idle threads of the row before spin for a while, and take a core from this one


def measure(rows, repeat):
    rows = {name: row if isinstance(row, tuple) else (row, 1) for name, row in rows.items()}
    calls = {}
    for name, (function, _) in rows.items():
        function()
        start = time.perf_counter()
        function()
        calls[name] = max(1, math.ceil(BURST / (time.perf_counter() - start)))
    wall = {name: [] for name in rows}
    cpu = {name: [] for name in rows}
    for _ in range(repeat):
        for name, (function, frames) in rows.items():
            time.sleep(REST)
            start, start_cpu = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                function()
            per_frame = 1e3 / (frames * calls[name])
            wall[name].append((time.perf_counter() - start) * per_frame)
            cpu[name].append((time.process_time() - start_cpu) * per_frame)
    return [
        {
            "name": name,
            "median_ms": round(statistics.median(wall[name]), 3),
            "best_ms": round(min(wall[name]), 3),
            "cpu_ms": round(min(cpu[name]), 3),
        }
        for name in rows
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "geometry.json")
    parser.add_argument("--repeat", type=int, default=20, help="timed calls of each row (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and of the batch (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = describe()
    print(f"{about['cpu']}, {about['cores']} cores, load {about['load_at_start']}, {arguments.threads} threads")
    print()
    results = []
    for group, rows in groups(arguments.threads):
        measured = measure(rows, arguments.repeat)
        print(f"{group:56} {'median':>9} {'best':>9} {'cpu':>9}   ms per frame")
        for row in measured:
            print(f"  {row['name']:54} {row['median_ms']:9.3f} {row['best_ms']:9.3f} {row['cpu_ms']:9.3f}")
        if measured[0]["name"].startswith("dense"):
            dense, ours = measured[0], measured[-1]
            ratios = [dense[key] / ours[key] for key in ("median_ms", "best_ms", "cpu_ms")]
            print(f"  {'dense formulation / splat':54} " + " ".join(f"{ratio:8.1f}x" for ratio in ratios))
        results.append({"group": group, "rows": measured})
    record = {
        "machine": about,
        "threads": arguments.threads,
        "repeat": arguments.repeat,
        "torch": torch.__version__,
        "timed": "milliseconds per frame: median and best wall time, least CPU time of all threads together",
        "results": results,
    }
    write(record, arguments.out)
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
