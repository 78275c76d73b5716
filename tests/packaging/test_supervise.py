"""`make run` ends everything that it started, however it is told to, and tells the right exit code."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.packaging.terminal import press_ctrl_c, start_in_terminal

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "supervise.py"

# A launcher with a grandchild, as `ros2 launch` has: "polite" ends on SIGINT, "stuck" ignores it, "orphaning" leaves
# its child behind in another session. All hold a file of Fast DDS's name open.
PROGRAM = """
import os, signal, subprocess, sys, time
kind, token, memory = sys.argv[1:4]
held = open(memory, "w")
if kind == "stuck":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
code = "import time\\nprint('up', flush=True)\\ntry: time.sleep(60)\\nexcept KeyboardInterrupt: pass"
child = subprocess.Popen([sys.executable, "-c", code, token], start_new_session=kind == "orphaning")
try:
    if kind != "orphaning":
        time.sleep(60)
    time.sleep(0.5)
except KeyboardInterrupt:
    child.wait()
"""


class Started:
    """The program under supervision, recognised in the process table by a token."""

    def __init__(self, tmp_path: Path, kind: str):
        self.token = uuid.uuid4().hex
        self.memory = Path("/dev/shm", f"fastrtps_test_{self.token}")
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        self.command = [sys.executable, str(SCRIPT), sys.executable, str(program), kind, self.token, str(self.memory)]
        (tmp_path / "Makefile").write_text(f"run:\n\t@exec {shlex.join(self.command)}\n")

    def left(self) -> list[str]:
        """Command lines of living processes that carry the token."""
        lines = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if self.token in line:
                    lines.append(line)
        return lines

    def assert_nothing_left(self, within: float = 6.0) -> None:
        deadline = time.monotonic() + within
        while (self.left() or self.memory.exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.left() == []
        assert not self.memory.exists()


def start(command, **options) -> subprocess.Popen:
    """Start a command in its own group and wait until the grandchild is up."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **options)
    assert process.stdout.readline() == b"up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_supervisor_alone(tmp_path, number):
    run = Started(tmp_path, "polite")
    process = start(run.command)
    process.send_signal(number)
    assert process.wait(6) == 0
    run.assert_nothing_left(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_make_alone_ends_everything(tmp_path, number):
    run = Started(tmp_path, "polite")
    process = start(["make", "-C", str(tmp_path), "--no-print-directory", "run"])
    process.send_signal(number)
    process.wait(6)
    run.assert_nothing_left()


def test_ctrl_c_in_a_terminal_lets_make_end_with_zero(tmp_path):
    run = Started(tmp_path, "polite")
    terminal = start_in_terminal(["make", "-C", str(tmp_path), "--no-print-directory", "run"])
    assert terminal.stdout.readline() == b"up\r\n"
    press_ctrl_c(terminal)
    shown, _ = terminal.communicate(timeout=6)
    assert terminal.returncode == 0
    assert b"Error" not in shown
    run.assert_nothing_left(0)


def test_what_does_not_end_is_killed(tmp_path):
    run = Started(tmp_path, "stuck")
    code = f"import sys; sys.path[:0] = [{str(SCRIPT.parent)!r}]; import supervise; "
    code += f"sys.exit(supervise.supervise({run.command[2:]!r}, grace=0.5))"
    process = start([sys.executable, "-c", code], stderr=subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    assert b"were killed" in process.communicate(timeout=6)[1]
    assert process.returncode == 1
    run.assert_nothing_left(0)


def test_an_orphan_is_ended_with_its_launcher(tmp_path):
    run = Started(tmp_path, "orphaning")
    process = start(run.command)
    assert process.wait(6) == 0
    run.assert_nothing_left(0)


@pytest.mark.parametrize(("code", "expected"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_the_exit_code_of_the_command(code, expected):
    assert subprocess.run([sys.executable, SCRIPT, "sh", "-c", code]).returncode == expected
