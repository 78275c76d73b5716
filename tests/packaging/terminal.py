"""A command in a terminal of its own, as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

SPAWN = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def start_in_terminal(command: list[str], env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start it; what it shows is the process's stdout, keys go to its stdin, its exit code is the process's."""
    spawn = [sys.executable, "-c", SPAWN, *command]
    return subprocess.Popen(spawn, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def press_ctrl_c(terminal: subprocess.Popen) -> None:
    """What the terminal's driver turns into SIGINT for the foreground group."""
    terminal.stdin.write(b"\x03")
    terminal.stdin.flush()
