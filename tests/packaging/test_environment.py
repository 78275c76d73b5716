"""Which ROS 2 is found, and how an environment is made of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import environment
import pytest
from environment import INSTALLED, NONE, SOURCED, WHEEL, SetUpError, find_ros

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def system(tmp_path):
    """A folder that looks like /opt/ros/jazzy."""
    (tmp_path / "lib/python3.12/site-packages/rclpy").mkdir(parents=True)
    (tmp_path / "setup.sh").write_text(f"export AMENT_PREFIX_PATH={tmp_path} ROS_DISTRO=jazzy\n")
    return tmp_path


def yes(env):
    return True


def no(env):
    return False


def test_ros_is_looked_for_in_order(system):
    nowhere = system / "nowhere"
    assert find_ros({"ROS_DISTRO": "jazzy"}, system, yes) == SOURCED
    assert find_ros({"ROS_DISTRO": "humble"}, system, no) == INSTALLED  # sourced, but for another Python
    assert find_ros({}, system, yes) == INSTALLED
    assert find_ros({}, nowhere, yes) == WHEEL
    assert find_ros({"ROS_DISTRO": "humble"}, nowhere, no) == WHEEL
    assert find_ros({"ROS": "none", "ROS_DISTRO": "jazzy"}, system, yes) == NONE
    with pytest.raises(SetUpError, match="ROS=humble"):
        find_ros({"ROS": "humble"}, system, yes)


def test_an_installed_ros_of_another_python_is_passed_over(system):
    (system / "lib/python3.12").rename(system / "lib/python3.10")
    assert find_ros({}, system, yes) == WHEEL


def test_a_sourced_ros_of_another_python_leaves_no_trace():
    env = {
        "AMENT_PREFIX_PATH": "/ws/install/a:/opt/ros/humble",
        "ROS_DISTRO": "humble",
        "ROS_DOMAIN_ID": "7",
        "PYTHONPATH": "/opt/ros/humble/lib/python3.10/site-packages:/mine",
        "LD_LIBRARY_PATH": "/opt/ros/humble/lib",
        "PATH": "/opt/ros/humble/bin:/usr/bin",
    }
    assert environment.without_ros(env) == {"ROS_DOMAIN_ID": "7", "PYTHONPATH": "/mine", "PATH": "/usr/bin"}


def test_source_keeps_odd_values_and_tells_errors(tmp_path):
    script = tmp_path / "a b.sh"
    script.write_text('echo noise; export LINES_OF="one\ntwo = 2"\n')
    env = environment.source(script, {"PATH": os.environ["PATH"], "KEPT": "x"})
    assert env["LINES_OF"] == "one\ntwo = 2"
    assert env["KEPT"] == "x"
    with pytest.raises(SetUpError, match="cannot be sourced"):
        environment.source(tmp_path / "missing.sh", env)


def test_find_python_takes_only_one_that_runs(tmp_path):
    script = ROOT / "scripts" / "find_python.sh"
    (tmp_path / "scripts").mkdir()
    copy = tmp_path / "scripts" / "find_python.sh"
    copy.write_bytes(script.read_bytes())
    shim = tmp_path / "bin" / "python3.12"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    env = {"PATH": f"{shim.parent}:/bin", "HOME": str(tmp_path)}
    for tool in ("sh", "dirname"):
        (shim.parent / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    env["PATH"] = str(shim.parent)

    refused = subprocess.run(["sh", copy], env=env, capture_output=True, text=True)
    assert refused.returncode == 1 and "No Python 3.12 found" in refused.stderr

    real = tmp_path / ".pyenv" / "versions" / "3.12.99" / "bin" / "python"
    real.parent.mkdir(parents=True)
    real.write_text("#!/bin/sh\nexit 0\n")
    real.chmod(0o755)
    found = subprocess.run(["sh", copy], env=env, capture_output=True, text=True)
    assert found.stdout.strip() == str(real)


@pytest.mark.ros
def test_a_second_build_does_nothing():
    env = environment.without_workspace(os.environ)
    assert environment.build_workspace(env) is False


@pytest.mark.ros
def test_the_sourced_environment_serves_the_ros_command_line():
    verbs = subprocess.run(["ros2", "--help"], capture_output=True, text=True).stdout
    assert {"launch", "interface", "topic", "run"} <= set(verbs.split())
    twist = subprocess.run(["ros2", "interface", "show", "geometry_msgs/msg/Twist"], capture_output=True, text=True)
    assert "Vector3  linear" in twist.stdout
    wrong = subprocess.run(["ros2", "launch", "inspatio", "no.launch.py"], capture_output=True, text=True)
    assert wrong.returncode != 0 and "'no.launch.py' was not found" in wrong.stderr
