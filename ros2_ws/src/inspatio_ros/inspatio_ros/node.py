"""``world_node``: one world as a robot with a camera. Messages in, core calls, messages out."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Pose, PoseStamped, PoseWithCovarianceStamped, Twist, TwistStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import (
    InvalidParameterException,
    InvalidParameterTypeException,
    InvalidParameterValueException,
)
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time as RosTime
from std_msgs.msg import Float64, Header, Int64
from std_srvs.srv import Trigger
from tf2_ros import TransformException

from inspatio_core.errors import InputError
from inspatio_core.generators import check_size, make_generator
from inspatio_core.geometry.motion import Motion
from inspatio_core.reference import Reference, open_reference
from inspatio_core.session import Session
from inspatio_core.world import World, choose_device
from inspatio_ros import frames, messages, parameters
from inspatio_ros.commands import Commands
from inspatio_ros.outputs import Frames, MapCloud, Stamps
from inspatio_ros.process import Stop
from inspatio_ros.prompts import Prompts
from inspatio_ros.worker import State, Worker

FARTHEST = 1e4
"""Metres from the map's origin beyond which a camera_pose is taken for a mistake."""

THROTTLE = {"throttle_duration_sec": 2.0}


class WorldNode(Node):
    """Serves one world.

    Subscribes ``cmd_vel``, ``camera_pose``, ``initialpose``, ``~/playhead/rate``, ``~/playhead/jump``; offers
    ``~/playhead/play``, ``~/playhead/pause``, ``~/playhead/reverse`` and the simulation services below ``~/``; for
    what it publishes see ``outputs``, for parameters see ``parameters``.

    A pose names where ``camera_link`` (x forward, y left, z up) shall be, in the frame of its header; in a frame
    whose name ends in ``optical_frame`` it is a pose of the camera in optical axes.
    """

    def __init__(self, stop: Stop):
        super().__init__("world")
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.settings = parameters.declare(self)
        self.stop = stop
        self.error: BaseException | None = None
        self.reference: Reference | None = None
        self.notices: tuple[str, ...] = ()
        self.commands = Commands(self.settings.cmd_vel_timeout)
        self._stamps = Stamps(self, self.settings.publish_clock, 1.0 / self.settings.fps)
        self.frames = Frames(self, self.settings, self._stamps)
        self.worker = Worker(
            self._open_world,
            self.frames.publish,
            self.commands,
            on_loaded=self._loaded,
            on_failed=self._failed,
            fps=self.settings.fps,
            pacing=self.settings.pacing,
        )
        self.prompts = Prompts(self.worker, self.get_logger().info, self.get_logger().error)
        self._map = MapCloud(self, self.settings, self._map_stamp, self._point_map)
        self.create_subscription(
            TwistStamped if self.settings.stamped else Twist,
            "cmd_vel",
            self._on_twist_stamped if self.settings.stamped else self._on_twist,
            1,
        )
        self._waiting: tuple[float, str, Header, Pose, Callable] | None = None
        self._retry = self.create_timer(0.05, self._try_again, clock=steady, autostart=False)
        self.create_subscription(PoseStamped, "camera_pose", self._on_pose, 1)
        self.create_subscription(PoseWithCovarianceStamped, "initialpose", self._on_initial_pose, 1)
        self.create_subscription(Float64, "~/playhead/rate", self._on_rate, 1)
        self.create_subscription(Int64, "~/playhead/jump", self._on_jump, 1)
        for name, callback in (("play", self._play), ("pause", self._pause), ("reverse", self._reverse)):
            self.create_service(Trigger, f"~/playhead/{name}", callback)
        try:
            from inspatio_ros.simulation import SimulationServices
        except ImportError:
            self.get_logger().warning("simulation_interfaces is not installed: no simulator control services")
        else:
            SimulationServices(
                self,
                self.worker,
                reset=self._reset,
                halt=self._halt,
                quit=stop.event.set,
                about=self._about,
            )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 5)
        self.create_timer(
            1.0,
            self._every_second,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=steady,
        )
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._take_parameters)

    def start(self) -> None:
        """Begin loading; frames follow."""
        self.worker.start()
        self._map.start()

    def close(self, timeout: float) -> None:
        """End the threads."""
        self.worker.stop(timeout)
        self._map.stop(1.0)

    # ------------------------------------------------------------------------------------------------ the world

    def _open_world(self, progress) -> tuple[World, Session]:
        s = self.settings
        # What can be told at once is told before a clip is prepared for minutes.
        device, size = choose_device(s.device), None if s.size == "auto" else s.size
        progress("making the generator", 0.0)
        generator = make_generator(s.generator, options=s.options, device=device, size=size)
        if size is not None:
            check_size(generator.spec, size)
        self.notices = tuple(getattr(generator, "notices", ()))
        for notice in self.notices:
            self.get_logger().warning(notice)
        argument, source = s.source
        progress(f"opening {source}", 0.0)
        try:
            self.reference = open_reference(
                source, s.size, metres_per_unit=s.metres_per_unit or None, progress=progress
            )
        except InputError as error:
            raise InputError(f"{argument}: {error}") from None
        progress("building the world", 1.0)
        world = World(
            [self.reference],
            generator,
            size=self.reference.size,
            device=device,
            fps=s.fps,
            memory=s.memory,
            map_limit=s.map_limit,
            relative_to_source=s.relative_to_source,
            loop=s.loop,
        )
        progress("first block", 1.0)
        return world, world.start(seeds=s.seed)

    def _loaded(self) -> None:
        world, reference, log = self.worker.world, self.reference, self.get_logger()
        for notice in reference.notices:
            log.warning(notice)
        self.notices += tuple(reference.notices)
        if self.settings.generator == "geometric":
            if self.settings.checkpoint_path:
                log.warning("checkpoint_path: generator geometric uses no checkpoint, ignored")
            if unused := self.settings.unused:
                log.warning(f"{', '.join(unused)}: generator geometric has no network, ignored")
        if "text" in world.generator.spec.needs:
            self.prompts.followed = self._prompt(self.settings.prompt)
        elif self.settings.prompt:
            log.warning(f"prompt: generator {self.settings.generator}, with its model, reads no text, ignored")
        size = "x".join(map(str, world.size))
        log.info(
            f"driving {reference.name}: {reference.frame_count} frames at {reference.fps:g} fps, {size}, "
            f"generator {self.settings.generator} on {world.device}"
        )

    def _prompt(self, text: str) -> str:
        """What to follow where the parameter is ``text``."""
        caption = self.reference.caption if self.reference is not None else None
        return text or caption or ""

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self.stop.event.set()

    def _reset(self, state: bool, time: bool) -> None:
        if state:
            self._waiting = None
        if time:
            self.frames.tree.buffer.clear()
        self.worker.reset(state, time)
        if state:
            self.commands.playhead(loop=self.settings.loop)

    def _halt(self) -> None:
        self._waiting = None
        self.frames.tree.buffer.clear()
        self.worker.halt()
        self.commands.playhead(loop=self.settings.loop)

    def _about(self) -> str:
        if self.worker.world is None:
            return f"inspatio, generator {self.settings.generator}, loading"
        spec = self.worker.world.generator.spec
        return (
            f"inspatio, generator {spec.name} on {self.worker.world.device}. "
            f"A step is one frame of 1/{self.settings.fps:g} s; a motion is committed for a block of {spec.frames} "
            f"frames, so step by multiples of {spec.frames} to have every step obey the newest command."
        )

    def _point_map(self):
        session = self.worker.session
        return session.maps[0] if session is not None else None

    def _map_stamp(self) -> float:
        now = self.get_clock().now().nanoseconds * 1e-9
        return self.worker.time if self.settings.publish_clock or now == 0.0 else now

    # ------------------------------------------------------------------------------------------------- commands

    def _on_twist(self, msg: Twist) -> None:
        twist = np.array([msg.linear.x, msg.linear.y, msg.linear.z, msg.angular.x, msg.angular.y, msg.angular.z])
        if not np.isfinite(twist).all():
            self.get_logger().warning("cmd_vel: not a finite twist, ignored", **THROTTLE)
            return
        for part, limit in ((twist[:3], self.settings.max_linear), (twist[3:], self.settings.max_angular)):
            biggest = np.abs(part).max()
            length = biggest * np.linalg.norm(part / biggest) if biggest > 0 else 0.0
            if length > limit:
                part *= limit / length if math.isfinite(length) else 0.0
                self.get_logger().warning(
                    f"cmd_vel: a speed of {length:g} is beyond max_linear / max_angular, cut to {limit:g}", **THROTTLE
                )
        self._waiting = None
        self.commands.twist(frames.camera_twist(twist, self.settings.planar), self.worker.time)

    def _on_twist_stamped(self, msg: TwistStamped) -> None:
        if msg.header.frame_id not in ("", "base_link", self.frames.names.base):
            self.get_logger().warning(
                f"cmd_vel: frame '{msg.header.frame_id}' is not {self.frames.names.base}, ignored", **THROTTLE
            )
            return
        self._on_twist(msg.twist)

    def _on_pose(self, msg: PoseStamped) -> None:
        self._take_pose("camera_pose", msg.header, msg.pose, Motion.target)

    def _on_initial_pose(self, msg: PoseWithCovarianceStamped) -> None:
        self._take_pose("initialpose", msg.header, msg.pose.pose, Motion.teleport)

    def _take_pose(self, topic: str, header, pose, kind) -> None:
        p, q = pose.position, pose.orientation
        norm = math.hypot(q.x, q.y, q.z, q.w)
        if not (math.isfinite(p.x + p.y + p.z) and math.isfinite(norm) and norm > 1e-3):
            self.get_logger().warning(f"{topic}: not a finite pose with a rotation, ignored", **THROTTLE)
            return
        self._waiting = (time.monotonic() + self.settings.pose_timeout, topic, header, pose, kind)
        self._try_again()

    def _try_again(self) -> None:
        """Obey the pose that waits, if tf knows its frame by now; give it up when its time is over."""
        if (waiting := self._waiting) is None:
            self._retry.cancel()
            return
        until, topic, header, pose, kind = waiting
        try:
            target = self._map_from(header) @ messages.matrix(pose)
        except TransformException as error:
            if time.monotonic() < until:
                self.frames.tree.follow()
                if self._retry.is_canceled():
                    self._retry.reset()
                return
            self._waiting = None
            reason = " ".join(str(error).split())
            self.get_logger().warning(
                f"{topic}: frame '{header.frame_id}' is not known, ignored ({reason})", **THROTTLE
            )
            return
        self._waiting = None
        if np.abs(target[:3, 3]).max() > FARTHEST:
            self.get_logger().warning(f"{topic}: more than {FARTHEST:g} m from the map's origin, ignored", **THROTTLE)
            return
        if header.frame_id.endswith("optical_frame"):
            target = target @ frames.OPTICAL_FROM_LINK
        self.commands.pose(kind(torch.from_numpy(frames.world_from_camera(target))))

    def _map_from(self, header) -> np.ndarray:
        """``map`` from the frame of a header, at its stamp if tf has that, else the newest."""
        if header.frame_id == self.frames.names.map:
            return np.eye(4)
        where = (self.frames.names.map, header.frame_id)
        stamp = RosTime.from_msg(header.stamp)
        if stamp.nanoseconds == 0 or not self.frames.tree.buffer.can_transform(*where, stamp):
            stamp = RosTime()
        return messages.matrix(self.frames.tree.buffer.lookup_transform(*where, stamp).transform)

    def _on_rate(self, msg: Float64) -> None:
        self._playhead("rate", rate=msg.data)

    def _on_jump(self, msg: Int64) -> None:
        count = self.reference.frame_count if self.reference is not None else None
        if count is not None and not 0 <= msg.data < count:
            self.get_logger().warning(
                f"playhead/jump: {msg.data} is not a frame of 0..{count - 1}, ignored", **THROTTLE
            )
            return
        self._playhead("jump", jump=float(msg.data))

    def _playhead(self, topic: str, **changes) -> None:
        try:
            self.commands.playhead(**changes)
        except InputError as error:
            self.get_logger().warning(f"playhead/{topic}: {error}, ignored", **THROTTLE)

    def _play(self, request, response):
        self.commands.playhead(paused=False)
        response.success = True
        return response

    def _pause(self, request, response):
        self.commands.playhead(paused=True)
        response.success = True
        return response

    def _reverse(self, request, response):
        self.commands.reverse()
        response.success = True
        return response

    # ----------------------------------------------------------------------------------------------- parameters

    def _check_parameters(self, changes) -> SetParametersResult:
        try:
            for parameter in changes:
                if parameter.name == "loop":
                    parameters.check_choice("loop", parameter.value)
                elif parameter.name == "prompt":
                    self.prompts.check(self._prompt(parameter.value))
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _take_parameters(self, changes) -> None:
        for parameter in changes:
            if parameter.name in parameters.PARAMETERS:
                setattr(self.settings, parameter.name, parameter.value)
            if parameter.name == "loop":
                self.commands.playhead(loop=parameter.value)
            elif parameter.name == "cmd_vel_timeout":
                self.commands.timeout = parameter.value
            elif parameter.name == "prompt":
                self.prompts.take(self._prompt(parameter.value))

    # ---------------------------------------------------------------------------------------------- diagnostics

    def _every_second(self) -> None:
        self.frames.tree.follow()
        msg = DiagnosticArray(status=[self._status()])
        msg.header.stamp = messages.time(self._map_stamp())
        self._diagnostics.publish(msg)

    def _status(self) -> DiagnosticStatus:
        worker, reference, s = self.worker, self.reference, self.settings
        status = DiagnosticStatus(level=DiagnosticStatus.OK, name=f"{self.get_fully_qualified_name()}: world")
        stage, fraction = worker.stage
        values = {"state": worker.state.value, "generator": s.generator}
        if worker.state is State.LOADING:
            status.message = f"loading: {stage}"
            values |= {"loading": stage, "loading progress": f"{fraction:.0%}"}
        else:
            status.message = worker.state.value
        if worker.world is not None and worker.session is not None and reference is not None:
            times = worker.compute_times() * 1e3
            rate = worker.rate()
            status.hardware_id = str(worker.world.device)
            values |= {
                "device": str(worker.world.device),
                "reference": reference.name,
                "source frames": reference.frame_count,
                "depth source": reference.depth_source,
                "pose source": reference.pose_source,
                "metric depth": reference.metric,
                "metres per unit": f"{reference.metres_per_unit:g}",
                "size": "x".join(map(str, worker.world.size)),
                "pacing": s.pacing,
                "sim time [s]": f"{worker.time:.3f}",
                "frames shown": worker.shown_total,
                "rate [Hz]": f"{rate:.2f}",
                "wanted rate [Hz]": f"{s.fps:g}",
                "late blocks": worker.late_blocks,
                "dropped frames": worker.dropped_frames,
                "block compute median [ms]": f"{np.median(times):.1f}" if len(times) else "",
                "block compute 95% [ms]": f"{np.quantile(times, 0.95):.1f}" if len(times) else "",
                "map points": len(worker.session.maps[0]),
                "map limit": s.map_limit,
            }
            if self.prompts.followed is not None:
                values["prompt"] = self.prompts.followed
            values |= {f"notice {i + 1}": notice for i, notice in enumerate(self.notices)}
            if self.notices:
                status.level = DiagnosticStatus.WARN
                status.message = "; ".join(self.notices)
        status.values = [KeyValue(key=k, value=str(v)) for k, v in values.items()]
        return status


def explain(error: BaseException, settings: parameters.Settings | None) -> tuple[str, int]:
    """(one line for the user that names the argument to change, exit code) for what ended the node."""
    if isinstance(error, InputError):
        return " ".join(str(error).split()), 2
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error):
        where = settings.device if settings else "auto"
        size = settings.size if settings else "auto"
        size = size if isinstance(size, str) else f"{size[0]}x{size[1]}"
        return f"out of memory with device:={where} size:={size}; choose a smaller size or another device", 2
    if isinstance(error, (InvalidParameterException, InvalidParameterTypeException, InvalidParameterValueException)):
        return " ".join(str(error).split()), 2
    if isinstance(error, torch.AcceleratorError):
        return f"device: {str(error).splitlines()[0]}; try device:=cpu", 2
    return f"{type(error).__name__}: {' '.join(str(error).split())}", 1


def run(stop: Stop, args: list[str] | None = None) -> int:
    """Run the node until ``stop``; returns the exit code."""
    log = rclpy.logging.get_logger("world")
    try:
        try:
            rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        except RuntimeError as error:  # an argument or parameter file that ROS cannot read: it says which
            raise InputError(str(error).split(", at /")[0]) from error
        stop.armed = True
        node = WorldNode(stop)
    except Exception as error:
        line, code = explain(error, None)
        log.fatal(line)
        log.debug("".join(traceback.format_exception(error)))
        rclpy.try_shutdown()
        return code
    executor = MultiThreadedExecutor(num_threads=4)
    executor.add_node(node)
    node.start()
    try:
        while not stop.event.is_set():
            executor.spin_once(timeout_sec=0.1)
    except ExternalShutdownException:
        pass
    code = 0
    if node.error is not None:
        line, code = explain(node.error, node.settings)
        node.get_logger().fatal(line)
        node.get_logger().debug("".join(traceback.format_exception(node.error)))
    stop.exit_within(4.0, code)
    deadline = time.monotonic() + 2.5
    node.close(2.5)
    executor.shutdown(timeout_sec=max(0.1, deadline - time.monotonic()))
    node.destroy_node()
    rclpy.try_shutdown()
    return code
