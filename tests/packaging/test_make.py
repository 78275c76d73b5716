"""`make run` as a user types it: frames come over DDS, Ctrl-C ends it with exit code 0 and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import environment
import pytest
import run as make_run
import supervise

from tests.packaging.terminal import press_ctrl_c, start_in_terminal

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.ros
def test_make_run_serves_frames_and_ends_with_zero_on_ctrl_c():
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    terminal = start_in_terminal(["make", "-C", str(ROOT), "run"])
    rclpy.init()
    node = rclpy.create_node("spectator")
    frames = []
    node.create_subscription(Image, "camera/image_raw", frames.append, qos_profile_sensor_data)
    started: list[int] = []
    try:
        deadline = time.monotonic() + 60.0
        while len(frames) < 10 and time.monotonic() < deadline:
            rclpy.spin_once(node, timeout_sec=0.1)
        started = supervise.descendants(terminal.pid)
        memory = supervise.shared_memory(started)
        press_ctrl_c(terminal)
        shown, _ = terminal.communicate(timeout=6)
        assert len(frames) >= 10, shown.decode()
        assert terminal.returncode == 0, shown.decode()
        assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
        left = {name for name in memory if Path("/dev/shm", name).exists()}
        assert left <= supervise.shared_memory([os.getpid()])
    finally:
        supervise.send(started, 9)
        node.destroy_node()
        rclpy.shutdown()


def test_run_tells_a_missing_video_in_one_line():
    env = {**os.environ, "VIDEO": "no such clip.mp4", "ROS": "none"}
    command = [ROOT / ".venv" / "bin" / "python", ROOT / "scripts" / "run.py"]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.strip() == "make run: VIDEO=no such clip.mp4: no such file, folder or shipped scene"


@pytest.mark.parametrize(
    "kind, chosen",
    [(environment.NONE, ["--generator", "star", "--size", "64x96"]),
     (environment.INSTALLED, ["generator:=star", "--size", "64x96"])],
)  # fmt: skip
def test_the_generator_has_a_variable_of_its_own(monkeypatch, kind, chosen):
    started = []
    monkeypatch.setattr(make_run, "supervise", lambda command, env: started.append(command) or 0)
    monkeypatch.setattr(environment, "find_ros", lambda env: kind)
    monkeypatch.setattr(environment, "workspace_environment", lambda kind, env: {})
    monkeypatch.setenv("GENERATOR", "star")
    monkeypatch.setenv("ARGS", "--size 64x96")
    assert make_run.main() == 0 and started[0][-len(chosen) :] == chosen
    monkeypatch.setenv("GENERATOR", "")
    assert make_run.main() == 0 and not any("generator" in str(word) for word in started[1])
