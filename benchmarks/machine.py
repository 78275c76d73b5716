"""What a benchmark's numbers hold for, and where they are written: as `inspatio bench` tells it."""

from inspatio_core.bench.machine import LOAD_AT_START, describe, write

__all__ = ["LOAD_AT_START", "describe", "write"]
