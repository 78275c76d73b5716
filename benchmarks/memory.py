"""What memory is worth on the sample scene: how much of a view is known, and how right it is, with memory on and off.

    python benchmarks/memory.py

From the first camera, after the clip has played once (the source camera has moved on): looking 0, 30, 0, 20 degrees to
the side, the share of pixels that are known; and at 0 degrees the mean absolute error, in grey levels, of still pixels
against the picture that was taken there.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import torch
from machine import describe, write

from inspatio_core.geometry.motion import Motion, se3_exp
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.reference import open_reference
from inspatio_core.world import World

YAWS = (0, 30, 0, 20)


def measure(memory: bool, size: tuple[int, int]) -> dict:
    """Known shares at each of ``YAWS`` and the error of still pixels at the first."""
    reference = open_reference("courtyard", size)
    first, moving = reference.rgb(0), open_reference("courtyard", size, moving="true").moving(0)
    with World(reference, size=size, device="cpu", loop="hold", memory=memory).start() as session:
        for _ in range(reference.frame_count // 4 + 3):
            session.step()
        session.step(Motion.teleport(torch.eye(4, dtype=torch.float64)), PlayheadCommand(paused=True))
        for _ in range(2):
            session.step()
        blocks = []
        for degrees in YAWS:
            turn = torch.tensor([0, 0, 0, 0, np.deg2rad(degrees), 0], dtype=torch.float64)
            blocks.append(session.step(Motion.target(se3_exp(turn))))
        points = len(session.maps[0])
    error = (blocks[0].rgb[0, -1].float() - first.float()).abs().mean(-1)
    both = blocks[0].known[0, -1] & blocks[2].known[0, -1]
    return {
        "known_share": [round(b.known[0, -1].float().mean().item(), 4) for b in blocks],
        "still_known_error_grey_levels": round(error[~moving & blocks[0].known[0, -1]].mean().item(), 2),
        "still_error_grey_levels": round(error[~moving].mean().item(), 2),
        "observed_pixels_equal_on_return": bool(torch.equal(blocks[0].rgb[0, -1][both], blocks[2].rgb[0, -1][both])),
        "map_points": points,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="480x832", help="height x width")
    parser.add_argument("--out", default=Path(__file__).parent / "results" / "memory.json", type=Path)
    args = parser.parse_args()
    size = tuple(int(n) for n in args.size.split("x"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "what": "known share at yaw 0, 30, 0, 20 degrees from the first camera after the clip has played once",
        "scene": "courtyard",
        "size": args.size,
        "yaw_degrees": YAWS,
        "machine": describe(),
        "commit": commit,
        "memory_on": measure(True, size),
        "memory_off": measure(False, size),
    }
    print(json.dumps(result, indent=2))
    write(result, args.out)


if __name__ == "__main__":
    main()
