"""What measured numbers hold for, and where they are written. Standard library only: other Pythons run it, too."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

LOAD_AT_START = os.getloadavg()[0]  # before the measurement itself adds to it


def describe(device: str = "cpu") -> dict:
    """Processor, cores, torch and its threads (None where torch is not loaded), Python, and the load average when the
    measurement began: timings on a busy machine are worth less.

    For a CUDA ``device`` also the GPU, its memory and compute capability, the driver, CUDA and cuDNN.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    torch = sys.modules.get("torch")
    about = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "load_at_start": round(LOAD_AT_START, 2),
        "python": platform.python_version(),
        "torch": str(torch.__version__) if torch else None,
    }
    if str(device).startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "gpu": properties.name,
            "gpu_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def _driver() -> str | None:
    """Version of the NVIDIA driver."""
    version = Path("/proc/driver/nvidia/version")
    if version.exists() and (match := re.search(r"\b\d+\.\d+(?:\.\d+)?\b", version.read_text())):
        return match[0]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def write(result: dict, path: Path) -> None:
    """Write `result` as JSON, under a temporary name first, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
