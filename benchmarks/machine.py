"""What a benchmark's numbers hold for, and where they are written. Standard library only: other Pythons run it, too."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

LOAD_AT_START = os.getloadavg()[0]  # before the benchmark itself adds to it


def describe() -> dict:
    """Processor, cores, torch's threads (None where torch is not loaded), Python, and the load average when the
    benchmark began: timings on a busy machine are worth less."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    torch = sys.modules.get("torch")
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "load_at_start": round(LOAD_AT_START, 2),
        "python": platform.python_version(),
    }


def write(result: dict, path: Path) -> None:
    """Write `result` as JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
