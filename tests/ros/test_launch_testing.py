"""The launch_testing test, run by its own runner: pytest loads none of ROS's plugins."""

import subprocess
import sys
from pathlib import Path


def test_drive_by_launch_testing():
    ran = subprocess.run(
        [sys.executable, "-c", "from launch_testing.launch_test import main; main()", "drive_launch.py"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
