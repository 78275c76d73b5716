"""The executable ``world_node``: signals first, then the heavy imports, then the node."""

from __future__ import annotations

import os
import sys


def main(args: list[str] | None = None) -> None:
    """Run the node until a signal or a failure; exit code 0, or 2 for bad input, or 1."""
    from inspatio_ros.process import Stop, die_with_parent

    die_with_parent()
    stop = Stop()
    # Waiting compute threads sleep instead of spinning: on few cores they would keep others from the frame in hand.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from inspatio_ros.node import run

    code = run(stop, args)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is taken down by now; the interpreter's own end takes seconds on a busy machine.
    os._exit(code)


if __name__ == "__main__":
    main()
