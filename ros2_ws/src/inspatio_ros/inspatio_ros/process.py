"""A node's life as a process: signals, and not outliving the launch that started it. Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies: a killed ``ros2 launch`` leaves no orphan that holds the device."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Stop:
    """Set by SIGINT, SIGTERM or SIGHUP, or by the program itself.

    Handlers are installed explicitly: a shell starts ``command &`` with SIGINT ignored. A SIGHUP that is ignored
    stays so (``nohup``). Until ``armed``, a signal ends the process at once with exit code 0: nothing needs to be
    taken down yet.
    """

    def __init__(self):
        self.event = threading.Event()
        self.armed = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if not self.armed:
            os._exit(0)
        self.event.set()

    def exit_within(self, seconds: float, code: int) -> None:
        """From now on the process lives no longer than this, whatever hangs."""

        def leave() -> None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

        timer = threading.Timer(seconds, leave)
        timer.daemon = True
        timer.start()
