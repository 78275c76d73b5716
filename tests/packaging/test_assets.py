"""Shipped data is found from every way of installing, whatever the current directory, without the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import environment
import pytest

from inspatio_core import assets
from inspatio_core.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
DATA = ("launch", "config", "rviz", "scenes", "traj", "checkpoints/tiny")
SOURCE = (
    *("inspatio_core", "gym_env", "resource", "setup.py", "setup.cfg", "pyproject.toml", "package.xml", "ros2_ws/src"),
    *DATA,
)

# Finds and reads each file named on stdin, and says where the code and the data lie.
PROBE = """
import json, sys
from inspatio_core import assets
found = {name: str(assets.find(name)) for name in json.load(sys.stdin)}
sizes = {name: len(open(path, "rb").read()) for name, path in found.items()}
print(json.dumps({"code": assets.__file__, "found": found, "sizes": sizes, "scenes": assets.scenes()}))
"""


def shipped_files(root: Path) -> dict[str, int]:
    """Relative path -> size of every file that must be found."""
    paths = (path.relative_to(root) for folder in DATA for path in (root / folder).rglob("*") if path.is_file())
    shown = (path for path in paths if not any(part.startswith((".", "__pycache__")) for part in path.parts))
    files = {str(path): (root / path).stat().st_size for path in shown}
    assert {"launch/world.launch.py", "traj/pan.txt", "scenes/courtyard/transforms.json"} <= files.keys()
    return files


def copy_source(to: Path) -> Path:
    """A copy of what packaging reads."""
    to.mkdir(parents=True)
    for name in SOURCE:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "install", "log")
            shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, to / name)
    return to


def probe(python: Path | str, names, env: dict[str, str], cwd: Path) -> dict:
    """What an installed inspatio finds, seen from the folder `cwd`."""
    asked = json.dumps(sorted(names))
    run = subprocess.run([python, "-c", PROBE], input=asked, env=env, cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def check(seen: dict, files: dict[str, int], prefix: Path) -> None:
    """Code and all data come from below `prefix`, whole."""
    assert Path(seen["code"]).is_relative_to(prefix)
    assert all(Path(path).is_relative_to(prefix) for path in seen["found"].values()), seen["found"]
    assert seen["sizes"] == files
    assert "courtyard" in seen["scenes"]


def below_workspace() -> dict[str, str]:
    """This environment with ROS 2 sourced, but not this checkout's workspace."""
    return environment.without_workspace(os.environ)


@pytest.mark.ros
def test_colcon_build_without_the_source_tree(tmp_path):
    source = copy_source(tmp_path / "src")
    files = shipped_files(source)
    env = below_workspace()
    colcon = [environment.VENV / "bin" / "colcon", "build", "--base-paths", source / "ros2_ws" / "src"]
    build = subprocess.run(colcon, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    source.rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "build")

    env = environment.source(tmp_path / "install" / "setup.sh", env)
    check(probe(sys.executable, files, env, tmp_path), files, tmp_path / "install" / "inspatio")
    nodes = subprocess.run(["ros2", "pkg", "executables", "inspatio_ros"], env=env, capture_output=True, text=True)
    assert nodes.stdout.split() == ["inspatio_ros", "world_node"]


@pytest.mark.ros
def test_colcon_build_with_links(tmp_path):
    """The workspace of this checkout, which `make` builds with --symlink-install."""
    files = shipped_files(ROOT)
    check(probe(sys.executable, files, dict(os.environ), tmp_path), files, environment.WORKSPACE)


def test_pip_install_without_the_source_tree(tmp_path):
    source = copy_source(tmp_path / "src")
    (source / "checkpoints").mkdir(exist_ok=True)
    (source / "checkpoints" / "downloaded.safetensors").write_bytes(b"a user's own weights")
    files = shipped_files(source)
    fresh = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    python = fresh / "bin" / "python"
    site = fresh / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "AMENT_PREFIX_PATH", "VIRTUAL_ENV")}
    install = "--no-input --disable-pip-version-check install --no-deps --no-build-isolation --ignore-installed".split()
    for package in (source, source / "ros2_ws" / "src" / "inspatio_ros"):
        command = [python, "-m", "pip", *install, package]
        pip = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert pip.returncode == 0, pip.stdout + pip.stderr
    source.rename(tmp_path / "gone")

    check(probe(python, files, env, tmp_path), files, fresh)
    assert not (fresh / "share" / "inspatio" / "checkpoints" / "downloaded.safetensors").exists()
    assert (fresh / "bin" / "inspatio").exists()
    # With the venv on AMENT_PREFIX_PATH, `ros2 run` and `ros2 launch` find both packages.
    markers = fresh / "share" / "ament_index" / "resource_index" / "packages"
    assert {marker.name for marker in markers.iterdir()} == {"inspatio", "inspatio_ros"}
    assert os.access(fresh / "lib" / "inspatio_ros" / "world_node", os.X_OK)


def test_an_ament_share_comes_before_the_checkout(tmp_path, monkeypatch):
    share = tmp_path / "share" / "inspatio"
    (share / "traj").mkdir(parents=True)
    (share / "traj" / "pan.txt").write_text("installed")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert assets.find("traj/pan.txt") != share / "traj" / "pan.txt"  # no marker: not an ament package
    marker = tmp_path / "share" / "ament_index" / "resource_index" / "packages" / "inspatio"
    marker.parent.mkdir(parents=True)
    marker.touch()
    assert assets.find("traj/pan.txt") == share / "traj" / "pan.txt"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../setup.py", "scenes/../../setup.py", "scenes/no such scene"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError):
        assets.find(name)


def test_cache_dir(tmp_path, monkeypatch):
    monkeypatch.delenv("INSPATIO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assets.cache_dir() == tmp_path / ".cache" / "inspatio"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.cache_dir() == tmp_path / "xdg" / "inspatio"
    monkeypatch.setenv("INSPATIO_CACHE", "~/own")
    assert assets.cache_dir() == tmp_path / "own"
