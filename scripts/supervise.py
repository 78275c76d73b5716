"""Run one command so that it, and everything it started, ends when it should: for `make run`.

What is in the way otherwise, all of it measured:

* GNU make, on SIGINT or SIGHUP, waits for its children without passing the signal on, then dies of it. Ctrl-C in a
  terminal goes to the whole foreground group, make included, so make would report an interrupt. Here this process
  takes the terminal's foreground for itself: make never sees the Ctrl-C, and ends with this process's exit code.
* A signal sent to make alone shows in /proc only: make no longer catches what it caught before.
* `ros2 launch` dies of SIGTERM at once and orphans its nodes. On SIGINT it waits for them, in the belief that a
  terminal has signalled them too. So SIGINT is what all of them get.
* Fast DDS leaves its shared memory behind when a process is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 4.0  # seconds from the request to the kill, so that all is over within 5
POLL = 0.1
FAST_DDS = ("fastrtps_", "sem.fastrtps_", "fastdds_", "sem.fastdds_")

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def processes() -> dict[int, tuple[int, str]]:
    """Every process: pid -> (parent's pid, state letter)."""
    table = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            table[int(entry.name)] = (int(fields[1]), fields[0])
    return table


def descendants(root: int) -> list[int]:
    """All living descendants of process `root`, children before grandchildren."""
    table = processes()
    found = [root]
    for pid in found:
        found += [child for child, (parent, state) in table.items() if parent == pid and state != "Z"]
    return found[1:]


def shared_memory(pids: Sequence[int]) -> set[str]:
    """Fast DDS's files in /dev/shm that these processes have mapped or open."""
    files = set()
    for pid in pids:
        try:
            used = [line.partition("/dev/shm/")[2] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
            used += [os.readlink(link.path).partition("/dev/shm/")[2] for link in os.scandir(f"/proc/{pid}/fd")]
        except OSError:
            continue  # it ended meanwhile, or is another user's
        files.update(name.removesuffix(" (deleted)") for name in used if name.startswith(FAST_DDS))
    return files


def caught_signals(pid: int) -> int:
    """Bit mask of the signals that process `pid` catches, 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)


class MakeWatch:
    """Says when a make above this process was told to stop and did not pass it on."""

    def __init__(self):
        self.caught: dict[int, int] = {}
        wanted = sum(1 << (number - 1) for number in STOPPING)
        pid = os.getppid()
        while Path(f"/proc/{pid}/comm").exists() and Path(f"/proc/{pid}/comm").read_text().strip() in ("make", "gmake"):
            self.caught[pid] = caught_signals(pid) & wanted
            pid = processes()[pid][0]

    def told_to_stop(self) -> bool:
        """Whether a make lost a handler since the start, or died."""
        return any(caught & ~caught_signals(pid) for pid, caught in self.caught.items())


class Foreground:
    """Holds the terminal's foreground, if this process was started in it, until closed."""

    def __init__(self):
        self.terminal = None
        self.group = os.getpgrp()
        if self.group == os.getpid():
            return  # started from the shell itself: the signals come here anyhow
        try:
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        if os.tcgetpgrp(terminal) != self.group:
            os.close(terminal)
            return
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # stopping this group would leave the shell waiting for make
        os.setpgid(0, 0)
        os.tcsetpgrp(terminal, os.getpid())
        self.terminal = terminal

    def close(self) -> None:
        """Give the foreground back."""
        if self.terminal is not None:
            try:
                os.tcsetpgrp(self.terminal, self.group)
            except OSError:
                pass  # the terminal was closed
            os.close(self.terminal)
            self.terminal = None


def send(pids: Sequence[int], number: int) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def reap(child: subprocess.Popen, deadline: float) -> None:
    """Wait for `child` and for every orphan that came to this process, at most until `deadline` (monotonic)."""
    while child.poll() is None or descendants(os.getpid()):
        if time.monotonic() > deadline:
            return
        time.sleep(POLL)


def collect_zombies() -> None:
    """Collect orphans that ended while they belonged to this process."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def supervise(
    command: Sequence[str | os.PathLike], env: Mapping[str, str] | None = None, grace: float = GRACE
) -> int:
    """Run `command` in a session of its own until it ends or this process is told to stop.

    Returns the command's exit code (128 + n when signal n ended it); 0 when it was stopped by SIGINT, SIGTERM or
    SIGHUP (to this process or to the make above it) and ended by itself; 1 when it had to be killed after `grace`
    seconds. Nothing that it started outlives the call.
    """
    asked: list[int] = []
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, lambda number, frame: asked.append(number))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    parent = os.getppid()
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    make = MakeWatch()
    foreground = Foreground()
    child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        ours: set[str] = set()
        looked = 0.0
        while child.poll() is None and not asked:
            time.sleep(POLL)
            if os.getppid() != parent or make.told_to_stop():
                asked.append(signal.SIGTERM)
            if time.monotonic() - looked > 2.0:
                ours |= shared_memory(descendants(os.getpid()))
                looked = time.monotonic()
        code = 0 if asked else child.returncode if child.returncode >= 0 else 128 - child.returncode
        ours |= shared_memory(descendants(os.getpid()))
        send(descendants(os.getpid()), signal.SIGINT)
        reap(child, time.monotonic() + grace)
        if left := descendants(os.getpid()):
            send(left, signal.SIGKILL)
            reap(child, time.monotonic() + 1.0)
            print(f"{len(left)} processes did not end within {grace:g} s and were killed", file=sys.stderr)
            code = code or 1
        collect_zombies()
        for name in ours - shared_memory(list(processes())):
            Path("/dev/shm", name).unlink(missing_ok=True)
        return code
    finally:
        foreground.close()


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
