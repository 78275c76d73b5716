"""What tests share: a cache folder of their own, and ROS 2.

ROS 2 is activated before anything is collected, on a domain of its own, or its tests are skipped by name.

A plain `pytest` in the venv is enough: where ROS 2 is not sourced yet, pytest starts itself anew in the environment
that has it. With ROS=none (or where there is no ROS 2) the tests below tests/ros and those marked `ros` are skipped.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROS_TESTS = ROOT / "tests" / "ros"
ACTIVE = "INSPATIO_TESTS_ROS"  # in the environment, once that is settled: "yes", or why there is no ROS 2

sys.path.insert(0, str(ROOT / "scripts"))
import environment  # noqa: E402


def environment_for_tests() -> dict[str, str]:
    """The environment to run the tests in, with ACTIVE set."""
    env = dict(os.environ)
    # Nobody's robot may be driven by a test, and two runs at once must not hear each other.
    env["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the programs do: on a busy machine spinning threads stall
    kind = environment.find_ros(env)
    if kind == environment.NONE:
        return {**env, ACTIVE: "ROS=none"}
    if kind == environment.WHEEL and not environment.PREFIX.exists():
        return {**env, ACTIVE: "no ROS 2 found; `make setup` installs one"}
    return {**environment.workspace_environment(kind, env), ACTIVE: "yes"}


def pytest_configure(config):
    if ACTIVE in os.environ or hasattr(config, "workerinput"):
        return
    try:
        env = environment_for_tests()
    except environment.SetUpError as error:
        raise pytest.UsageError(str(error)) from None
    if env[ACTIVE] != "yes":
        os.environ.update(env)
        return
    # Libraries on LD_LIBRARY_PATH are found only by a process that was started with it.
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
        capture.stop_global_capturing()
    sys.stdout.flush()
    os.execve(sys.executable, sys.orig_argv, env)


class SkippedTest(pytest.Item):
    """A test of a module that cannot be imported without ROS 2."""

    def __init__(self, *, line, **kwargs):
        super().__init__(**kwargs)
        self.line = line

    def runtest(self):
        pytest.skip(os.environ[ACTIVE])

    def reportinfo(self):
        return self.path, self.line - 1, self.name


class SkippedModule(pytest.Module):
    """A ROS test module where there is no ROS 2: its tests are read from its source, named and skipped."""

    def collect(self):
        for node in ast.parse(self.path.read_text()).body:
            for name, function in tests_of(node):
                yield SkippedTest.from_parent(self, name=name, line=function.lineno)


def tests_of(node):
    """(name, function) of every test that a module-level statement defines."""
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
        yield node.name, node
    elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
        for member in node.body:
            for name, function in tests_of(member):
                yield f"{node.name}::{name}", function


def pytest_pycollect_makemodule(module_path, parent):
    if os.environ[ACTIVE] != "yes" and ROS_TESTS in module_path.parents:
        return SkippedModule.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if ROS_TESTS in item.path.parents:
            item.add_marker("ros")
        if os.environ[ACTIVE] != "yes" and item.get_closest_marker("ros"):
            item.add_marker(pytest.mark.skip(reason=os.environ[ACTIVE]))


def pytest_report_header():
    return f"ROS 2: {os.environ[ACTIVE]}, domain {os.environ['ROS_DOMAIN_ID']}"


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """An empty cache folder: nothing prepared or downloaded earlier is found, and nothing is left behind."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("INSPATIO_CACHE", str(folder))
    return folder
