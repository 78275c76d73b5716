"""Starting and ending: arguments, bad input, signals, two worlds in one graph."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from inspatio_ros import messages, node, parameters
from launch import LaunchContext
from launch_ros.utilities import evaluate_parameters, normalize_parameters
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from simulation_interfaces.msg import SimulationState
from simulation_interfaces.srv import GetSimulationState

from inspatio_core import checkpoints
from inspatio_core.errors import InputError
from inspatio_core.generators import GeneratorOptions
from tests.fake_generator import FakeGenerator
from tests.ros.graph import SIZE, Driver, Launched, alive, until

ROOT = Path(__file__).resolve().parents[2]
EXECUTABLE = ROOT / "ros2_ws/src/inspatio_ros/exe/world_node"


def launch_file():
    spec = importlib.util.spec_from_file_location("world_launch", ROOT / "launch/world.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestArguments:
    def test_show_args_documents_every_argument(self):
        shown = subprocess.run(
            ["ros2", "launch", "inspatio", "world.launch.py", "--show-args"], capture_output=True, text=True, timeout=60
        )
        assert shown.returncode == 0, shown.stderr
        described = dict(re.findall(r"'(\w+)':\n\s+(.+)", shown.stdout))
        wanted = (
            "video scene generator checkpoint_path device dtype size fps seed pacing planar metres_per_unit stamped "
            "namespace frame_prefix publish_clock relative_to_source memory loop model codec tae_checkpoint_path "
            "prompt random_weights latents_per_block compile fp8"
        ).split()
        assert set(wanted) <= set(described) and all(len(d) > 10 for d in described.values())

    def test_launch_file_parameter_file_and_node_agree(self):
        import yaml

        ours = {name: default for name, (default, _) in parameters.PARAMETERS.items()}
        file = yaml.safe_load((ROOT / "config/world.yaml").read_text())["/**"]["ros__parameters"]
        assert file == {**ours, "size": "auto"}
        for name, kind, default, _ in launch_file().ARGUMENTS:
            value = default == "true" if kind is bool else kind(default)
            assert value == ours[name], name

    @pytest.mark.parametrize(
        "name, value, line",
        [
            ("size", "big", "size: 'big' is not HEIGHTxWIDTH"),
            ("size", "0x0", "size: 0x0 is not a size"),
            ("size", "480x9999", "size: 480x9999 is not a size"),
            ("pacing", "fast", "pacing: 'fast' is not one of"),
            ("dtype", "int4", "dtype: 'int4' is not one of"),
            ("codec", "vqgan", "codec: 'vqgan' is not one of"),
            ("tae_checkpoint_path", "/nowhere.pth", "tae_checkpoint_path: /nowhere.pth does not exist"),
            ("latents_per_block", -1, "latents_per_block"),
            ("loop", "twice", "loop: 'twice' is not one of"),
            ("checkpoint_path", "/nowhere.safetensors", "checkpoint_path: /nowhere.safetensors does not exist"),
            ("fps", 0.0, "fps"),
            ("seed", "seven", "seed"),
        ],
    )
    def test_a_bad_value_is_one_line_that_names_it(self, name, value, line):
        context = Context()
        rclpy.init(context=context)
        n = Node("n", context=context, parameter_overrides=[Parameter(name, value=value)])
        try:
            with pytest.raises(Exception) as caught:
                parameters.declare(n)
        finally:
            n.destroy_node()
            rclpy.shutdown(context=context)
        text, code = node.explain(caught.value, None)
        assert line in text and "\n" not in text and code == 2

    def test_memory_and_device_errors_name_the_argument(self):
        settings = SimpleNamespace(device="cuda:0", size=(480, 832))
        text, code = node.explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\n..."), settings)
        assert (code, "\n" in text) == (2, False) and "device:=cuda:0" in text and "size:=480x832" in text
        text, code = node.explain(InputError("device: 'cuda:3' is not here"), settings)
        assert (text, code) == ("device: 'cuda:3' is not here", 2)
        text, code = node.explain(ZeroDivisionError("division\nby zero"), settings)
        assert (text, code) == ("ZeroDivisionError: division by zero", 1)

    def test_parameters_make_the_generators_options(self):
        context = Context()
        rclpy.init(context=context)
        given = {"generator": "star", "model": "14b", "codec": "tae", "prompt": "a kitchen", "random_weights": True}
        given |= {"latents_per_block": 2, "compile": True, "fp8": True, "dtype": "float16"}
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        nodes = [Node("n", context=context, parameter_overrides=o) for o in (overrides, [])]
        try:
            settings, defaults = (parameters.declare(n) for n in nodes)
        finally:
            for n in nodes:
                n.destroy_node()
            rclpy.shutdown(context=context)
        del given["generator"]
        assert settings.options == GeneratorOptions(**given) and defaults.options == GeneratorOptions()
        assert defaults.unused == []
        assert settings.unused == ["model", "codec", "random_weights", "compile", "fp8", "dtype"]

    def test_what_is_opened(self):
        def source(**fields):
            return parameters.Settings.source.fget(SimpleNamespace(**{"video": "", "scene": "", **fields}))

        assert source(video="a.mp4") == ("video", "a.mp4")
        assert source(scene="here") == ("scene", "here")
        assert source() == ("scene", "courtyard")


def visited(monkeypatch, **given: str) -> list:
    """What the launch file gives the node as parameters, for these launch arguments: files and dicts."""
    module, context, nodes = launch_file(), LaunchContext(), []
    monkeypatch.setattr(module, "Node", lambda **settings: nodes.append(settings))
    context.launch_configurations.update(given)
    for action in module.generate_launch_description().entities:
        action.visit(context)
    return list(evaluate_parameters(context, normalize_parameters(nodes[0]["parameters"])))


class TestParameters:
    def test_what_is_given_wins_over_the_parameter_file_and_nothing_else_does(self, monkeypatch, tmp_path):
        file = tmp_path / "mine.yaml"
        file.touch()
        assert visited(monkeypatch) == []
        assert visited(monkeypatch, params_file=str(file)) == [file]
        given = visited(monkeypatch, params_file=str(file), fps="24.0", seed="0", planar="false", use_sim_time="auto")
        assert given == [file, {"fps": 24.0, "seed": 0, "planar": False}]
        assert visited(monkeypatch, use_sim_time="false") == [{"use_sim_time": False}]

    def test_words_stay_words(self, monkeypatch):
        assert visited(monkeypatch, scene="2024", world_frame="") == [{"scene": "2024", "world_frame": ""}]

    @pytest.mark.parametrize(
        "given, follows",
        [
            ({}, False),
            ({"publish_clock": False}, True),
            ({"publish_clock": False, "use_sim_time": False}, False),
            ({"use_sim_time": True}, True),
        ],
    )
    def test_who_does_not_publish_the_clock_follows_it_unless_told(self, given, follows):
        context = Context()
        rclpy.init(context=context)
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        n = Node("n", context=context, parameter_overrides=overrides)
        try:
            parameters.declare(n)
            assert n.get_parameter("use_sim_time").value is follows
        finally:
            n.destroy_node()
            rclpy.shutdown(context=context)


class TestTransport:
    def test_profile_and_allocator_are_set(self):
        env = launch_file().transport({})
        assert env["MALLOC_ARENA_MAX"] == "1"
        if shutil.disk_usage("/dev/shm").free >= 256 << 20:
            assert "134217728" in Path(env["FASTRTPS_DEFAULT_PROFILES_FILE"]).read_text()

    def test_what_the_user_has_set_is_left_alone(self):
        transport, profile = launch_file().transport, "FASTRTPS_DEFAULT_PROFILES_FILE"
        env = transport({profile: "mine.xml", "MALLOC_ARENA_MAX": "4"})
        assert profile not in env and "MALLOC_ARENA_MAX" not in env
        assert profile not in transport({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"})

    @pytest.mark.parametrize("free, segment", [(64 << 20, 32 << 20), (1 << 20, None)])
    def test_a_small_shared_memory_gets_a_small_segment_or_none(self, monkeypatch, tmp_path, free, segment):
        module = launch_file()
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        monkeypatch.setenv("INSPATIO_CACHE", str(tmp_path))
        file = module.transport({}).get("FASTRTPS_DEFAULT_PROFILES_FILE")
        if segment is None:
            assert file is None
        else:
            assert f"<segment_size>{segment}<" in Path(file).read_text()
            assert [p for p in tmp_path.rglob("*") if p.is_file()] == [Path(file)]

    def test_a_cache_that_cannot_be_written_costs_the_segment_and_no_more(self, monkeypatch, tmp_path):
        module = launch_file()
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
        (tmp_path / "file").touch()
        monkeypatch.setenv("INSPATIO_CACHE", str(tmp_path / "file"))
        env = module.transport({})
        assert "FASTRTPS_DEFAULT_PROFILES_FILE" not in env and env["MALLOC_ARENA_MAX"] == "1"


def run_node(capfd, *arguments: str, params_file: Path | None = None) -> tuple[int, list[str]]:
    """(exit code, lines) of the node with arguments that end it."""
    stop = SimpleNamespace(event=threading.Event(), armed=False, exit_within=lambda seconds, code: None)
    file = ["--params-file", str(params_file)] if params_file else []
    code = node.run(stop, ["--ros-args", *(a for v in arguments for a in ("-p", v)), *file])
    captured = capfd.readouterr()
    return code, (captured.out + captured.err).strip().splitlines()


class TestBadInput:
    def test_a_bad_video_is_one_clear_line_and_a_non_zero_exit(self, tmp_path):
        launched = Launched(f"video:={tmp_path}/none.mp4")
        ours = launched.failed()
        assert len(ours) == 1 and "[FATAL]" in ours[0], launched.output
        assert "video: " in ours[0] and "none.mp4" in ours[0]

    def test_the_launch_file_names_a_value_that_it_cannot_read(self, tmp_path):
        launched = Launched("fps:=abc")
        (line,) = launched.failed()
        assert "fps: 'abc' is not a number" in line

    @pytest.mark.parametrize(
        "name, value, line",
        [
            ("fps", "abc", "fps: 'abc' is not a number"),
            ("seed", "1.5", "seed: '1.5' is not a whole number"),
            ("planar", "maybe", "planar: 'maybe' is neither true nor false"),
            ("rviz", "maybe", "rviz: 'maybe' is neither true nor false"),
            ("use_sim_time", "maybe", "use_sim_time: 'maybe' is neither true nor false"),
            ("params_file", "/nowhere.yaml", "params_file: /nowhere.yaml: no such file"),
            ("log_level", "loud", "log_level: 'loud' is not one of"),
        ],
    )
    def test_every_such_value(self, monkeypatch, name, value, line):
        with pytest.raises(ValueError) as caught:
            visited(monkeypatch, **{name: value})
        assert line in str(caught.value) and "\n" not in str(caught.value)

    def test_a_parameter_file_that_ros_cannot_read(self, capfd, tmp_path):
        file = tmp_path / "broken.yaml"
        file.write_text("/**:\n  ros__parameters: [fps\n")
        code, output = run_node(capfd, params_file=file)
        assert code == 2 and "[FATAL]" in output[-1] and str(file) in output[-1], output

    @pytest.mark.parametrize(
        "value, line",
        [
            ("generator:=dreams", "generator: "),
            ("device:=cuda:77", "device: "),
            ("scene:=nowhere", "scene: nowhere: no such"),
            ("latents_per_block:=65", "latents_per_block"),
        ],
    )
    def test_a_bad_generator_device_or_scene(self, capfd, value, line):
        code, output = run_node(capfd, value)
        assert code == 2 and len(output) == 1, output
        assert "[FATAL]" in output[0] and line in output[0]

    def test_all_missing_weights_are_told_before_anything_is_opened(self, capfd, monkeypatch):
        monkeypatch.setattr(checkpoints, "locate", lambda name: None)
        monkeypatch.setattr(checkpoints.table, "locate", lambda name: None)
        monkeypatch.setattr(node, "open_reference", lambda *args, **kwargs: pytest.fail("the clip was opened"))
        code, output = run_node(capfd, "generator:=star")
        assert code == 2 and len(output) == 1 and "[FATAL]" in output[0], output
        for name in ("inspatio-world-1.3b", "wan2.1-vae", "umt5-xxl", "umt5-tokenizer"):
            assert output[0].count(f"{name} (") == 1

    def test_a_size_that_the_generator_does_not_work_at(self, capfd, monkeypatch):
        monkeypatch.setattr(node, "open_reference", lambda *args, **kwargs: pytest.fail("the clip was opened"))
        monkeypatch.setattr(node, "make_generator", lambda name, **options: FakeGenerator(multiple=16))
        code, output = run_node(capfd, "generator:=star", "size:=120x208")
        assert code == 2 and len(output) == 1 and "size: generator fake works at multiples of 16" in output[0], output


class TestSignals:
    @pytest.mark.parametrize(
        "number",
        [
            signal.SIGINT,
            signal.SIGKILL,
            pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
            pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        ],
    )
    def test_a_signal_to_the_launch_alone_ends_everything(self, number):
        launched = Launched(f"size:={SIZE}")
        pid = launched.node_pid()
        launched.wait_line("driving")
        start = time.monotonic()
        code = launched.end(number)
        until(lambda: not alive(pid), "the node to end", patience=5.0)
        assert time.monotonic() - start < 10
        if number == signal.SIGINT:
            assert code == 0 and "process has finished cleanly" in launched.output
        assert "Traceback" not in launched.output

    @pytest.mark.parametrize(
        "number, after",
        [
            (signal.SIGINT, 0.1),
            (signal.SIGTERM, 2.0),
            pytest.param(signal.SIGINT, 1.0, marks=pytest.mark.slow),
            pytest.param(signal.SIGHUP, 1.5, marks=pytest.mark.slow),
        ],
    )
    def test_a_signal_while_starting_or_loading_ends_the_node_with_0(self, number, after):
        process = subprocess.Popen(
            [sys.executable, str(EXECUTABLE)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell does for `command &`
        )
        until(lambda: "python" in Path(f"/proc/{process.pid}/comm").read_text(), "the interpreter")
        until(lambda: handles(process.pid, number), "its signal handler")
        time.sleep(after)
        process.send_signal(number)
        output, _ = process.communicate(timeout=10)
        assert process.returncode == 0, output
        assert "Traceback" not in output


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(caught, 16) >> (number - 1) & 1)


def status(topic) -> DiagnosticStatus | None:
    """The world's newest diagnostics."""
    found = [s for m in list(topic.messages) for s in m.status if s.name == "/world: world"]
    return found[-1] if found else None


def test_loading_is_visible_and_can_be_ended(graph, tmp_path):
    """The clip is a pipe that nobody writes to, so that the world is opening it for as long as it takes to look."""
    clip = tmp_path / "clip.mp4"
    os.mkfifo(clip)
    launched = Launched(f"video:={clip}", f"size:={SIZE}")
    try:
        diagnostics = graph.topic(DiagnosticArray, "/diagnostics")
        until(lambda: status(diagnostics), "diagnostics")
        answer = graph.call(GetSimulationState, "/world/get_simulation_state")
        assert answer.state.state == SimulationState.STATE_LOADING_WORLD
        seen = until(lambda: status(diagnostics), "diagnostics")
        values = {v.key: v.value for v in seen.values}
        assert values["state"] == "loading" and seen.message == f"loading: opening {clip}"
        assert values["loading progress"] == "0%"
    finally:
        graph.close_topics()
        assert launched.end() == 0, launched.output


def test_notices_reach_diagnostics_and_the_log(graph, tmp_path):
    """A pan, on a machine without structure from motion and without depth networks."""
    clip, hidden, cache = (tmp_path / name for name in ("clip", "hidden", "cache"))
    for folder in (clip, hidden):
        folder.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules |= dict.fromkeys(['pycolmap', 'onnxruntime'])\n")
    wall = cv2.resize(np.random.default_rng(0).integers(0, 255, (30, 60, 3), np.uint8), (600, 300))
    for i in range(4):
        cv2.imwrite(str(clip / f"{i}.png"), wall[60:180, 40 + 4 * i :][:, :208])
    env = {"INSPATIO_CACHE": str(cache), "PYTHONPATH": f"{hidden}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    launched = Launched(
        f"video:={clip}", f"size:={SIZE}", f"checkpoint_path:={tmp_path}", "fp8:=true", "prompt:=a wall", env=env
    )
    try:
        diagnostics = graph.topic(DiagnosticArray, "/diagnostics")
        until(lambda: (s := status(diagnostics)) and s.level == DiagnosticStatus.WARN, "a warning in diagnostics")
        seen = status(diagnostics)
        notices = [v.value for v in seen.values if v.key.startswith("notice ")]
        assert seen.message == "; ".join(notices) and len(notices) == 2
        for part in ("moving camera but no poses", "a tilted plane is used"):
            assert sum(part in notice for notice in notices) == 1, notices
            assert "[WARN]" in launched.wait_line(part)
        assert next(v.value for v in seen.values if v.key == "depth source") == "tilted plane"
        for part in (
            "checkpoint_path: generator geometric uses no checkpoint",
            "fp8: generator geometric has no network",
            "prompt: generator geometric, with its model, reads no text, ignored",
        ):
            assert "[WARN]" in launched.wait_line(part)
    finally:
        graph.close_topics()
        assert launched.end() == 0, launched.output


def test_two_worlds_in_one_graph(graph, tmp_path):
    """Each with its namespace and frames, one clock, one tree: each camera can be looked up in the other."""
    file = tmp_path / "right.yaml"
    file.write_text("/**:\n  ros__parameters:\n    publish_clock: false\n    fps: 12.0\n    seed: 3\n")
    left = Launched(f"size:={SIZE}", "namespace:=left", "frame_prefix:=left/")
    right = Launched(f"size:={SIZE}", "namespace:=right", "frame_prefix:=right/", f"params_file:={file}", "fps:=24.0")
    try:
        tf = graph.tf()
        clock = graph.topic(Clock, "/clock")
        frames = [f"{side}/camera_optical_frame" for side in ("left", "right")]
        until(lambda: tf.can_transform(*frames, Time()), "both cameras in one tree")
        assert graph.node.count_publishers("/clock") == 1 and clock.next(3)
        assert np.allclose(messages.matrix(tf.lookup_transform(*frames, Time()).transform), np.eye(4), atol=1e-6)
        names = ["fps", "seed", "publish_clock", "use_sim_time"]
        answer = graph.call(GetParameters, "/right/world/get_parameters", GetParameters.Request(names=names)).values
        assert (answer[0].double_value, answer[1].integer_value) == (24.0, 3), "the argument, then the file"
        assert (answer[2].bool_value, answer[3].bool_value) == (False, True)
        # Driving one moves one.
        driver = Driver(graph, left, "/left")
        driver.twist(1.0, 0, 0, 0, 0, 0)

        def moved():
            T = messages.matrix(tf.lookup_transform("world", frames[0], Time()).transform)
            return T[0, 3] > 0.3

        until(moved, "the left camera to move")
        still = messages.matrix(tf.lookup_transform("world", frames[1], Time()).transform)
        assert np.allclose(still[:3, 3], 0, atol=1e-9)
        newest = tf.lookup_transform("world", frames[1], Time()).header.stamp
        now = clock.messages[-1].clock
        assert abs((newest.sec - now.sec) + (newest.nanosec - now.nanosec) * 1e-9) < 2.0, "right follows left's clock"
    finally:
        graph.close_topics()
        codes = [launched.end() for launched in (left, right)]
        assert codes == [0, 0], left.output + right.output
