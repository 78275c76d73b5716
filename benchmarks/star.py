"""The stages of a block of the STAR generator, from this checkout: `inspatio bench star` with results kept here.

    python benchmarks/star.py --size 1.3b --random-weights --out benchmarks/results/star-1.3b-cpu.json

Takes the arguments of `inspatio bench star`; docs/cli.md has them, and the JSON says what was timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from machine import describe, write

from inspatio_core.bench.report import table
from inspatio_core.bench.star import compute_of, star
from inspatio_core.bench.verb import options_of
from inspatio_core.cli import build_parser

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Measure, print, write."""
    args = build_parser().parse_args(["bench", "star", *sys.argv[1:]])
    options = options_of(args)
    device, _ = compute_of(options.device, options.dtype)
    report = star(options, describe(str(device)), print)
    print(table(report))
    write(report, args.out or RESULTS / f"star-{args.size}-{device.type}.json")


if __name__ == "__main__":
    main()
