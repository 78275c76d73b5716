from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_random_agent_runs(tmp_path):
    command = [sys.executable, ROOT / "examples/gym_random_agent.py", "--worlds", "2", "--steps", "40"]
    command += ["--size", "32", "48", "--video", tmp_path / "agent.mp4"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert "2 worlds" in done.stdout and "2 episodes ended" in done.stdout
    assert (tmp_path / "agent.mp4").stat().st_size > 1000
