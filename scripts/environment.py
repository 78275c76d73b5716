"""Which ROS 2 is used, the environment that it needs, and the colcon workspace on top of it.

Standard library only: set-up, `make run` and the tests all stand on this module. The order in which ROS 2 is looked
for: one that is sourced already, /opt/ros/jazzy, and last a prefix in .ros/ over a pip wheel. ROS=none uses none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PREFIX = ROOT / ".ros" / "jazzy"
SYSTEM = Path("/opt/ros/jazzy")
WORKSPACE = ROOT / "ros2_ws"
PACKAGES = ("inspatio", "inspatio_ros")
BUILD_STAMP = WORKSPACE / "install" / ".inspatio-build"

SOURCED, INSTALLED, WHEEL, NONE = "sourced", "installed", "wheel", "none"


class SetUpError(RuntimeError):
    """Something on this machine stands in the way; told in a line or two."""


def imports_rclpy(env: Mapping[str, str]) -> bool:
    """Whether the venv's Python (or, before there is one, this one) imports rclpy under `env`."""
    python = PYTHON if PYTHON.exists() else sys.executable
    return subprocess.run([python, "-c", "import rclpy"], env=dict(env), capture_output=True).returncode == 0


def find_ros(env: Mapping[str, str], system: Path = SYSTEM, works=imports_rclpy) -> str:
    """Which ROS 2 to use under `env`: SOURCED, INSTALLED (below `system`), WHEEL or NONE.

    `works(env)` says whether the sourced one serves this Python. Raises SetUpError for an unknown value of ROS.
    """
    choice = env.get("ROS", "")
    if choice not in ("", "auto", "none"):
        raise SetUpError(f"ROS={choice}: only ROS=none (no ROS 2 at all) or ROS=auto can be chosen")
    if choice == "none":
        return NONE
    if env.get("ROS_DISTRO") and works(env):
        return SOURCED
    if (system / "setup.sh").exists() and any(system.glob("lib/python3.12/site-packages/rclpy")):
        return INSTALLED
    return WHEEL


def without_ros(env: Mapping[str, str]) -> dict[str, str]:
    """`env` without a sourced ROS (one made for another Python, which must not mix with ours)."""
    prefixes = [p for name in ("AMENT_PREFIX_PATH", "COLCON_PREFIX_PATH") for p in env.get(name, "").split(":") if p]
    clean = {k: v for k, v in env.items() if not k.startswith(("AMENT_", "COLCON_", "ROS_DISTRO", "ROS_VERSION"))}
    for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "CMAKE_PREFIX_PATH"):
        if name in clean:
            kept = [e for e in clean[name].split(":") if not any(e == p or e.startswith(p + "/") for p in prefixes)]
            clean[name] = ":".join(kept)
    return {name: value for name, value in clean.items() if value}


def source(script: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The environment after a shell with `env` has sourced `script`."""
    shell = subprocess.run(["sh", "-c", '. "$0" >&2 && exec env -0', script], env=dict(env), capture_output=True)
    if shell.returncode:
        raise SetUpError(f"{script} cannot be sourced: {shell.stderr.decode(errors='replace').strip()}")
    pairs = (pair.partition("=") for pair in shell.stdout.decode(errors="surrogateescape").split("\0") if pair)
    return {name: value for name, _, value in pairs if name not in ("_", "SHLVL", "PWD", "OLDPWD")}


def venv_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with the venv active."""
    path = env.get("PATH", os.defpath).split(":")
    bin_folder = str(VENV / "bin")
    active = {**env, "VIRTUAL_ENV": str(VENV), "PATH": ":".join([bin_folder, *(p for p in path if p != bin_folder)])}
    active.pop("PYTHONHOME", None)
    return active


def ros_environment(kind: str, env: Mapping[str, str]) -> dict[str, str]:
    """`env` with the venv active and the ROS 2 of `kind` sourced."""
    env = venv_environment(env)
    if kind == INSTALLED:
        return source(SYSTEM / "setup.sh", without_ros(env))
    if kind == WHEEL:
        return source(PREFIX / "setup.sh", without_ros(env))
    return env


def workspace_environment(kind: str, env: Mapping[str, str]) -> dict[str, str]:
    """`ros_environment` with the workspace built, where it is stale, and sourced."""
    env = ros_environment(kind, env)
    build_workspace(env)
    return source(WORKSPACE / "install" / "setup.sh", env)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """One process at a time in this checkout; others wait."""
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def workspace_digest(env: Mapping[str, str]) -> str:
    """What the build depends on: the packaging files, which data and node scripts there are, and the ROS below.

    The contents of data and of Python files do not count: the build links to them.
    """
    digest = hashlib.sha256(f"{ROOT} {env.get('AMENT_PREFIX_PATH')}".encode())
    nodes = WORKSPACE / "src" / "inspatio_ros"
    for package in (ROOT, nodes):
        for name in ("package.xml", "setup.py", "setup.cfg"):
            digest.update((package / name).read_bytes())
    for folder in ("launch", "config", "rviz", "scenes", "traj", "checkpoints/tiny"):
        for path in sorted((ROOT / folder).rglob("*")):
            digest.update(f"{path.relative_to(ROOT)}\n".encode())
    for path in sorted((nodes / "exe").iterdir()):
        digest.update(f"{path.name}\n".encode())
    return digest.hexdigest()


def without_workspace(env: Mapping[str, str]) -> dict[str, str]:
    """`env` without this checkout's workspace, should that be sourced: it must not become its own underlay."""
    own = (str(WORKSPACE / "install"), str(WORKSPACE / "build"))
    clean = dict(env)
    for name in ("PATH", "AMENT_PREFIX_PATH", "COLCON_PREFIX_PATH", "LD_LIBRARY_PATH", "PYTHONPATH"):
        if name in clean:
            clean[name] = ":".join(entry for entry in clean[name].split(":") if not entry.startswith(own))
    return {name: value for name, value in clean.items() if value}


def build_workspace(env: Mapping[str, str]) -> bool:
    """Build both packages with `colcon build --symlink-install` unless nothing has changed since; whether it did."""
    env = without_workspace(env)
    digest = workspace_digest(env)
    with lock("workspace"):
        if BUILD_STAMP.exists() and BUILD_STAMP.read_text() == digest:
            return False
        BUILD_STAMP.unlink(missing_ok=True)
        for package in PACKAGES:  # a link build refuses what a plain build left
            for folder in ("build", "install"):
                shutil.rmtree(WORKSPACE / folder / package, ignore_errors=True)
        command = [VENV / "bin" / "colcon", "build", "--symlink-install", "--packages-select", *PACKAGES]
        build = subprocess.run(command, cwd=WORKSPACE, env=env, capture_output=True, text=True)
        if build.returncode:
            raise SetUpError(f"colcon build failed:\n{build.stdout}{build.stderr}".rstrip())
        BUILD_STAMP.write_text(digest)
        return True
