"""`make run` as a user types it: frames come over DDS, Ctrl-C ends it with exit code 0 and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import select
import threading
import time
from pathlib import Path

import pytest
import supervise

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """A command in a terminal of its own; what it prints is kept."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, env)
        self.shown = b""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        try:
            while data := os.read(self.terminal, 4096):
                self.shown += data
        except OSError:
            pass  # how Linux says that the other end of the terminal was closed

    def ctrl_c(self):
        os.write(self.terminal, b"\x03")

    def wait(self, seconds: float) -> int | None:
        """Exit code, None when it is still running after so long."""
        descriptor = os.pidfd_open(self.pid)
        ended = select.select([descriptor], [], [], seconds)[0]
        os.close(descriptor)
        if not ended:
            return None
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.reader.join(1.0)
        os.close(self.terminal)
        return code


@pytest.mark.slow
@pytest.mark.ros
def test_make_run_serves_frames_and_ends_with_zero_on_ctrl_c():
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    run = Terminal(["make", "-C", str(ROOT), "run"], dict(os.environ))
    rclpy.init()
    node = rclpy.create_node("spectator")
    frames = []
    node.create_subscription(Image, "camera/image_raw", frames.append, qos_profile_sensor_data)
    started: list[int] = []
    try:
        deadline = time.monotonic() + 60.0
        while len(frames) < 10 and time.monotonic() < deadline:
            rclpy.spin_once(node, timeout_sec=0.1)
        started = supervise.descendants(run.pid)
        memory = supervise.shared_memory(started)
        run.ctrl_c()
        code = run.wait(6.0)
        assert len(frames) >= 10, run.shown.decode()
        assert code == 0, run.shown.decode()
        assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
        left = {name for name in memory if Path("/dev/shm", name).exists()}
        assert left <= supervise.shared_memory([os.getpid()])
    finally:
        supervise.send(started, 9)
        node.destroy_node()
        rclpy.shutdown()


def test_run_tells_a_missing_video_in_one_line():
    env = {**os.environ, "VIDEO": "no such clip.mp4", "ROS": "none"}
    run = Terminal([str(ROOT / ".venv" / "bin" / "python"), str(ROOT / "scripts" / "run.py")], env)
    assert run.wait(20.0) == 2
    assert run.shown.decode().strip() == "make run: VIDEO=no such clip.mp4: no such file, folder or shipped scene"
