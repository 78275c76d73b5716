"""The tests' end of the ROS graph: a node that listens, asks and publishes, and worlds started by `ros2 launch`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import rclpy
from geometry_msgs.msg import Pose, PoseStamped, Twist
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from simulation_interfaces.msg import Result, SimulationState
from simulation_interfaces.srv import SetSimulationState, StepSimulation
from std_msgs.msg import Header
from tf2_ros import Buffer, TransformListener

PATIENCE = 60.0
SIZE = "120x208"


def until(condition, what: str, patience: float = PATIENCE):
    """Wait for ``condition()`` to be true and return it."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:g} s in vain: {what}")
        time.sleep(0.005)
    return value


class Launched:
    """`ros2 launch inspatio world.launch.py ARGUMENTS`, its output collected, ended with the test."""

    def __init__(self, *arguments: str, threads: int = 1, env: dict[str, str] | None = None):
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **(env or {})}
        # A shell may have started pytest with SIGINT ignored; what it starts is to behave as from a terminal.
        self.process = subprocess.Popen(
            ["ros2", "launch", "inspatio", "world.launch.py", *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP)],
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_line(self, part: str) -> str:
        """The first line with ``part`` in it."""

        def found():
            line = next((line for line in list(self.lines) if part in line), None)
            if line is None and self.process.poll() is not None:
                raise AssertionError(f"launch ended without a line with {part!r}\n{self.output}")
            return line

        return until(found, f"a line with {part!r}")

    def failed(self) -> list[str]:
        """Wait for the launch to end by itself with a non-zero exit code; the lines that tell the user why."""
        until(lambda: self.process.poll() is not None, "the launch to end")
        assert self.end() != 0, self.output
        assert "Traceback" not in self.output
        ours = [line for line in self.lines if line.startswith("[world_node-1]")]
        return ours or [line for line in self.lines if "[ERROR] [launch]" in line]

    def node_pid(self) -> int:
        """The process id of the node."""
        line = self.wait_line("process started with pid")
        return int(line.split("[")[-1].split("]")[0])

    def end(self, number: int = signal.SIGINT, patience: float = 10.0) -> int:
        """Signal the launch, wait for its end, return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"launch did not end within {patience:g} s of {number!r}\n{self.output}") from None
        self._reader.join(5)
        return code


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Topic:
    """Messages of one topic, as they come."""

    def __init__(self, graph: Graph, kind: type, name: str, qos):
        self.messages: list = []
        self.name = name
        self._graph = graph
        self._subscription = graph.node.create_subscription(kind, name, self.messages.append, qos)

    def wait(self, count: int = 1) -> list:
        """At least ``count`` messages from the first that came."""
        until(lambda: len(self.messages) >= count, f"{count} messages on {self.name}, {len(self.messages)} came")
        return list(self.messages)

    def next(self, count: int = 1) -> list:
        """``count`` messages that come from now on."""
        have = len(self.messages)
        return self.wait(have + count)[have : have + count]

    def settle(self, quiet: float = 0.2) -> Topic:
        """Wait until nothing has come for a while."""
        have, since = len(self.messages), time.monotonic()
        while time.monotonic() - since < quiet:
            if len(self.messages) != have:
                have, since = len(self.messages), time.monotonic()
            time.sleep(0.01)
        return self

    def matched(self) -> Topic:
        """Wait until there is a publisher."""
        until(lambda: self._graph.node.count_publishers(self.name), f"a publisher of {self.name}")
        return self

    def close(self) -> None:
        self._graph.node.destroy_subscription(self._subscription)


class Graph:
    """A node of the tests, spun in a thread."""

    def __init__(self):
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("tests", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._publishers, self._clients, self._topics = {}, {}, []
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._stop = threading.Event()
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self.executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def topic(self, kind: type, name: str, qos: QoSProfile | int = 200) -> Topic:
        topic = Topic(self, kind, name, qos)
        self._topics.append(topic)
        return topic.matched()

    def close_topics(self) -> None:
        while self._topics:
            self._topics.pop().close()

    def publish(self, msg, name: str) -> None:
        """Publish once somebody listens; return once they have it."""
        publisher = self._publishers.get(name)
        if publisher is None:
            publisher = self._publishers[name] = self.node.create_publisher(type(msg), name, 10)
        until(publisher.get_subscription_count, f"a subscriber of {name}")
        publisher.publish(msg)
        assert publisher.wait_for_all_acked(Duration(seconds=PATIENCE)), f"{name} was not received"

    def call(self, kind: type, name: str, request=None):
        """Call a service and return its response."""
        client, request = self._clients.get(name), request or kind.Request()
        fresh = client is None
        if fresh:
            client = self._clients[name] = self.node.create_client(kind, name)
        assert client.wait_for_service(PATIENCE), f"no service {name}"
        future = client.call_async(request)
        if fresh:
            # Fast DDS drops an answer that is ready before the server has found the client's reader (it waits for a
            # tenth of a second, which on a busy machine may be too short). Only a client's first call can meet that.
            deadline = time.monotonic() + 10
            while not future.done() and time.monotonic() < deadline:
                time.sleep(0.005)
            future = future if future.done() else client.call_async(request)
        until(future.done, f"an answer of {name}")
        return future.result()

    def tf(self) -> Buffer:
        """A tf buffer that listens."""
        buffer = Buffer()
        buffer.listener = TransformListener(buffer, self.node)
        return buffer


class Driver:
    """What the tests do to one world, below a namespace."""

    def __init__(self, graph: Graph, launched: Launched, namespace: str = ""):
        self.graph, self.launched, self.namespace = graph, launched, namespace

    def topic(self, kind: type, name: str, qos: QoSProfile | int = 200) -> Topic:
        return self.graph.topic(kind, f"{self.namespace}/{name}", qos)

    def publish(self, msg, name: str) -> None:
        self.graph.publish(msg, f"{self.namespace}/{name}")
        time.sleep(0.15)  # received is not yet handled, and a service called next must not overtake it

    def call(self, kind: type, name: str, **fields):
        return self.graph.call(kind, f"{self.namespace}/world/{name}", kind.Request(**fields))

    def set_state(self, state: int) -> Result:
        return self.call(SetSimulationState, "set_simulation_state", state=SimulationState(state=state)).result

    def pause(self) -> None:
        codes = (Result.RESULT_OK, SetSimulationState.Response.ALREADY_IN_TARGET_STATE)
        assert self.set_state(SimulationState.STATE_PAUSED).result in codes

    def play(self) -> None:
        codes = (Result.RESULT_OK, SetSimulationState.Response.ALREADY_IN_TARGET_STATE)
        assert self.set_state(SimulationState.STATE_PLAYING).result in codes

    def step(self, frames: int = 4) -> None:
        result = self.call(StepSimulation, "step_simulation", steps=frames).result
        assert result.result == Result.RESULT_OK, result.error_message

    def stepped_topic(self, kind: type, name: str) -> Topic:
        """A topic of the paused world: from now on every step's messages come, and none from before."""
        topic = self.topic(kind, name)
        while not topic.messages:
            self.step(4)
            time.sleep(0.02)
        return topic.settle()

    def twist(self, *v: float) -> None:
        """Publish a cmd_vel: vx, vy, vz, wx, wy, wz."""
        msg = Twist()
        msg.linear.x, msg.linear.y, msg.linear.z, msg.angular.x, msg.angular.y, msg.angular.z = map(float, v)
        self.publish(msg, "cmd_vel")

    def pose(self, frame: str, pose: Pose) -> None:
        """Publish a camera_pose."""
        self.publish(PoseStamped(header=Header(frame_id=frame), pose=pose), "camera_pose")
