"""The point map: cost of inserting, rendering and publishing at 480x832, and what lies on moving objects.

    python benchmarks/point_map.py [--frames 48] [--out benchmarks/results/point_map.json]

Times are of one thread: ``cpu`` is time the thread ran, ``wall`` is what a clock showed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from machine import describe, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from inspatio_core.geometry.point_map import OBSERVED, PointMap
from inspatio_core.reference.motion_mask import motion_masks
from tests.moving_scene import frame, view, yaw

SIZE = (480, 832)


class Clock:
    def __init__(self):
        self.samples = {}

    def time(self, name, call, *args, **options):
        wall, cpu = time.perf_counter(), time.thread_time()
        result = call(*args, **options)
        self.samples.setdefault(name, []).append((time.thread_time() - cpu, time.perf_counter() - wall))
        return result

    def summary(self):
        table = {}
        for name, samples in self.samples.items():
            cpu, wall = (1e3 * np.array(column) for column in zip(*samples))
            table[name] = {
                "cpu_median": round(float(np.median(cpu)), 2), "cpu_max": round(float(cpu.max()), 2),
                "wall_median": round(float(np.median(wall)), 2), "calls": len(samples),
            }  # fmt: skip
        return table


def insert(point_map, f, rgb=None, **options):
    point_map.insert(f.rgb if rgb is None else rgb, f.depth, f.depth > 0, f.K, f.pose, OBSERVED, **options)


def moving_share(frames, masks, step, **options):
    """Share of the shown points that lie on moving objects (their colour is the true mask), and their number."""
    point_map = PointMap(**options)
    for i in range(0, len(frames), step):
        label = np.repeat(frames[i].moving[..., None] * np.uint8(255), 3, axis=2)
        insert(point_map, frames[i], label, stamp=i, moving=masks[i])
    rgb = point_map.points().rgb
    return {"share": round(float((rgb[:, 0] > 0).float().mean()), 6), "points": len(rgb)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=48, help="frames of the scene with moving objects")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "point_map.json")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    clock = Clock()

    warm = PointMap()
    insert(warm, frame(0, SIZE))
    insert(warm, frame(9, SIZE))
    warm.render(torch.from_numpy(frame(0, SIZE).K), torch.eye(4, dtype=torch.float64), SIZE)

    frames = [frame(i, SIZE) for i in range(args.frames)]
    K, poses = np.stack([f.K for f in frames]), np.stack([f.pose for f in frames])
    iterator = motion_masks(lambda i: frames[i].rgb, lambda i: frames[i].depth, K, poses, range(len(frames)))
    masks = [clock.time("motion mask", next, iterator) for _ in frames]

    point_map, cursor = PointMap(), 0
    for i in range(0, len(frames), 4):
        f = frames[i]
        kind = "insert, first frame" if i == 0 else "insert, moving camera"
        clock.time(kind, insert, point_map, f, stamp=i, moving=masks[i])
        K_i, pose = torch.from_numpy(f.K), torch.from_numpy(f.pose)
        clock.time("render, map changed", point_map.render, K_i, pose, SIZE)
        clock.time("render, map as before", point_map.render, K_i, pose, SIZE)
        cursor = clock.time("changes, 50 000 points", point_map.changes, cursor, 50_000).cursor
    points = len(point_map)

    turning = PointMap()
    for n in range(40):  # mostly new ground: full after some frames, then evicting
        f = view(yaw(0.16 * n), SIZE)
        kind = "insert, filling up" if len(turning) < 0.9 * turning.limit else "insert, full and evicting"
        clock.time(kind, insert, turning, f, stamp=n)

    moving = {"pixels": round(float(np.mean([f.moving.mean() for f in frames])), 4)}
    none, true = [None] * len(frames), [f.moving for f in frames]
    for step in (1, 4):
        moving[f"every {step}"] = {
            "no mask": moving_share(frames, none, step),
            "no mask, min_views=2": moving_share(frames, none, step, min_views=2),
            "no mask, min_views=3": moving_share(frames, none, step, min_views=3),
            "estimated mask": moving_share(frames, masks, step),
            "true mask": moving_share(frames, true, step),
        }
    found = sum(int((m & f.moving).sum()) for m, f in zip(masks, frames)) / sum(int(f.moving.sum()) for f in frames)
    still = sum(int((m & ~f.moving).sum()) for m, f in zip(masks, frames)) / sum(int((~f.moving).sum()) for f in frames)
    result = {
        "machine": describe(), "size": SIZE, "limit": point_map.limit, "bytes": point_map.nbytes, "points": points,
        "milliseconds": clock.summary(), "on_moving_objects": moving,
        "estimated_mask": {"moving_pixels_found": round(found, 4), "still_pixels_masked": round(still, 4)},
    }  # fmt: skip
    print(f"{'480x832, ms of one thread':34}{'cpu median':>11}{'cpu max':>9}{'wall':>8}")
    for name, row in result["milliseconds"].items():
        print(f"{name:34}{row['cpu_median']:11.1f}{row['cpu_max']:9.1f}{row['wall_median']:8.1f}")
    print(json.dumps({k: result[k] for k in ("bytes", "points", "on_moving_objects", "estimated_mask")}, indent=1))
    write(result, args.out)


if __name__ == "__main__":
    main()
