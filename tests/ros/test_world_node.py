"""A world launched as users launch it, driven over DDS."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped
from inspatio_ros import frames, images, messages
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import Log, Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, ListParameters, SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from sensor_msgs_py import point_cloud2
from simulation_interfaces.msg import Result, SimulationState, SimulatorFeatures
from simulation_interfaces.srv import (
    GetSimulationState,
    GetSimulatorFeatures,
    ResetSimulation,
    SetSimulationState,
    StepSimulation,
)
from std_msgs.msg import Float64, Header, Int64
from std_srvs.srv import Trigger
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

from inspatio_core.geometry.camera import project
from inspatio_core.geometry.motion import se3_exp
from tests.ros.graph import PATIENCE, until

FPS = 24.0
BLOCK = 4


def stamp_of(msg) -> float:
    return msg.header.stamp.sec + msg.header.stamp.nanosec * 1e-9


def exp(twist, seconds: float) -> np.ndarray:
    return se3_exp(torch.tensor(twist, dtype=torch.float64) * seconds).numpy()


def pose_at(x=0.0, y=0.0, z=0.0, yaw=0.0) -> Pose:
    T = exp((0, 0, 0, 0, 0, yaw), 1.0)
    T[:3, 3] = x, y, z
    return messages.pose(T)


def same_frame(topics) -> list:
    """One message of each topic, all of the same stamp."""

    def find():
        stamps = set.intersection(*({stamp_of(m) for m in list(t.messages)} for t in topics))
        return stamps and max(stamps)

    stamp = until(find, f"one stamp on {[t.name for t in topics]}")
    return [next(m for m in t.messages if stamp_of(m) == stamp) for t in topics]


def steps(world, odom, frames: int) -> list:
    """Step and return the odometry of exactly these frames."""
    have = len(odom.messages)
    world.step(frames)
    return odom.wait(have + frames)[have:]


@pytest.fixture
def paused(world):
    """The shared world, paused on a block's end, with a subscribed odometry."""
    world.pause()
    world.odom = world.stepped_topic(Odometry, "odom")
    return world


def set_parameter(world, name: str, value):
    kinds = {
        bool: ("bool_value", ParameterType.PARAMETER_BOOL),
        float: ("double_value", ParameterType.PARAMETER_DOUBLE),
        int: ("integer_value", ParameterType.PARAMETER_INTEGER),
        str: ("string_value", ParameterType.PARAMETER_STRING),
    }
    field, kind = kinds[type(value)]
    parameter = Parameter(name=name, value=ParameterValue(type=kind, **{field: value}))
    return world.call(SetParameters, "set_parameters", parameters=[parameter]).results[0]


def test_image_depth_points_and_camera_info_agree(world):
    world.twist(0.3, 0.2, 0, 0, 0, 0.1)
    time.sleep(0.3)
    kinds = {
        "camera/image_raw": Image,
        "camera/camera_info": CameraInfo,
        "camera/depth/image_raw": Image,
        "camera/depth/camera_info": CameraInfo,
        "camera/points": PointCloud2,
    }
    topics = [world.topic(kind, name) for name, kind in kinds.items()]
    image, info, depth, depth_info, cloud = same_frame(topics)
    assert {m.header.frame_id for m in (image, info, depth, cloud)} == {"camera_optical_frame"}
    assert (image.encoding, depth.encoding, image.height, image.width) == ("rgb8", "32FC1", 120, 208)
    assert info == depth_info and (info.height, info.width) == (120, 208)
    rgb, z = images.read(image), images.read(depth)
    assert z.min() > 0 and np.isfinite(z).all() and rgb.std() > 5
    assert (cloud.height, cloud.width, cloud.row_step) == (120, 208, 208 * cloud.point_step)
    points = point_cloud2.read_points(cloud).reshape(120, 208)
    known = np.isfinite(points["x"])
    assert known.mean() > 0.5 and not cloud.is_dense
    xyz = np.stack([points[c] for c in "xyz"], -1)[known]
    K = np.reshape(info.k, (3, 3))
    uv, depth_of = project(torch.from_numpy(xyz).double(), torch.from_numpy(K))
    v, u = np.nonzero(known)
    assert np.abs(uv.numpy() - np.stack([u, v], -1)).max() < 1e-3
    assert np.abs(depth_of.numpy() - z[known]).max() < 1e-5
    bits = points["rgb"].copy().view(np.uint32)[known]
    assert np.array_equal(np.stack([bits >> 16, bits >> 8 & 255, bits & 255], -1), rgb[known])


def test_compressed_image_is_the_image(world):
    raw, compressed = same_frame(
        [world.topic(Image, "camera/image_raw"), world.topic(CompressedImage, "camera/image_raw/compressed")]
    )
    decoded = cv2.imdecode(np.frombuffer(compressed.data, np.uint8), cv2.IMREAD_COLOR_RGB)
    difference = np.abs(decoded.astype(int) - images.read(raw))
    assert "jpeg" in compressed.format and difference.mean() < 6


def test_cmd_vel_moves_the_camera_exactly_as_commanded(paused):
    set_parameter(paused, "cmd_vel_timeout", 100.0)
    tf = paused.graph.tf()
    start = messages.matrix(steps(paused, paused.odom, BLOCK)[-1].pose.pose)
    twist = (0.5, -0.2, 0.1, 0.05, -0.1, 0.4)
    paused.twist(*twist)
    try:
        odometry = steps(paused, paused.odom, 3 * BLOCK)
    finally:
        set_parameter(paused, "cmd_vel_timeout", 0.5)
    for i, msg in enumerate(odometry):
        expected = start @ exp(twist, (i + 1) / FPS)
        assert np.allclose(messages.matrix(msg.pose.pose), expected, atol=1e-6)
        v, w = msg.twist.twist.linear, msg.twist.twist.angular
        assert np.allclose((v.x, v.y, v.z, w.x, w.y, w.z), twist, atol=1e-6)
        assert (msg.header.frame_id, msg.child_frame_id) == ("odom", "base_link")
    last = odometry[-1]
    stamp = Time.from_msg(last.header.stamp)
    until(lambda: tf.can_transform("odom", "base_link", stamp), "tf of the last frame")
    assert np.allclose(
        messages.matrix(tf.lookup_transform("odom", "base_link", stamp).transform), messages.matrix(last.pose.pose)
    )
    optical = messages.matrix(tf.lookup_transform("base_link", "camera_optical_frame", stamp).transform)
    assert np.allclose(optical, frames.LINK_FROM_OPTICAL)


def test_driving_live_moves_the_image(world):
    """At speed, as a teleop does it: twists at 20 Hz; the poses follow the twists that odometry reports."""
    odom, image = world.topic(Odometry, "odom"), world.topic(Image, "camera/image_raw")
    image.wait(1)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        world.twist(0.4, 0, 0, 0, 0, 0.2)
        time.sleep(0.05)
    run = odom.next(2)
    run = list(odom.messages)
    moving = [m for m in run if m.twist.twist.linear.x > 0]
    assert len(moving) >= 2 * BLOCK
    for before, after in zip(moving, moving[1:], strict=False):
        if abs(stamp_of(after) - stamp_of(before) - 1 / FPS) < 1e-6:
            expected = messages.matrix(before.pose.pose) @ exp((0.4, 0, 0, 0, 0, 0.2), 1 / FPS)
            assert np.allclose(messages.matrix(after.pose.pose), expected, atol=1e-6)


def test_a_cmd_vel_times_out_on_sim_time(paused):
    """0.5 s are three blocks of four frames at 24 Hz: commits at 0, 1/6, 2/6, 3/6 s obey, the next does not."""
    paused.twist(0.6, 0, 0, 0, 0, 0)
    time.sleep(0.7)  # wall time does not count
    odometry = steps(paused, paused.odom, 6 * BLOCK)
    moving = [m.twist.twist.linear.x > 0 for m in odometry]
    assert moving == [True] * 4 * BLOCK + [False] * 2 * BLOCK


def test_planar_ignores_z_roll_and_pitch(paused):
    set_parameter(paused, "planar", True)
    try:
        paused.twist(0.3, 0.2, 0.5, 0.4, 0.3, 0.2)
        twist = steps(paused, paused.odom, BLOCK)[-1].twist.twist
    finally:
        set_parameter(paused, "planar", False)
    got = (twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.x, twist.angular.y, twist.angular.z)
    assert np.allclose(got, (0.3, 0.2, 0, 0, 0, 0.2))


def link_in_map(world, tf, stamp) -> np.ndarray:
    until(lambda: tf.can_transform("map", "camera_link", stamp), "tf of the last frame")
    return messages.matrix(tf.lookup_transform("map", "camera_link", stamp).transform)


def test_camera_pose_in_any_connected_frame_is_reached_in_a_block(paused):
    tf = paused.graph.tf()
    station = np.eye(4)
    station[:3, 3] = 0.5, 0.2, 0.1
    broadcaster = StaticTransformBroadcaster(paused.graph.node)
    broadcaster.sendTransform(messages.transform(station, "map", "station", Time().to_msg()))
    time.sleep(0.3)
    here = link_in_map(paused, tf, Time.from_msg(steps(paused, paused.odom, BLOCK)[-1].header.stamp))
    for frame, pose in (
        ("map", pose_at(0.3, -0.1, 0.05, 0.2)),
        ("station", pose_at(0.1, 0, 0, -0.1)),
        ("base_link", pose_at(0.2, 0, 0, 0.1)),
        ("camera_optical_frame", messages.pose(exp((0.1, 0, 0.2, 0, 0.1, 0), 1.0))),
    ):
        wanted = messages.matrix(pose)
        if frame == "camera_optical_frame":
            # Optical axes there: 0.2 m ahead and 0.1 m to the right, looking a little to the right.
            expected = here @ frames.LINK_FROM_OPTICAL @ wanted @ frames.OPTICAL_FROM_LINK
        else:
            expected = {"map": np.eye(4), "station": station, "base_link": here}[frame] @ wanted
        paused.pose(frame, pose)
        odometry = steps(paused, paused.odom, BLOCK)
        there = link_in_map(paused, tf, Time.from_msg(odometry[-1].header.stamp))
        assert np.allclose(there, expected, atol=1e-6), frame
        assert odometry[0].twist.twist.linear.x != 0, "it moves there, it does not jump"
        here = there


def test_a_camera_pose_waits_for_a_frame_that_somebody_else_begins_to_move(paused):
    tf = paused.graph.tf()
    broadcaster = TransformBroadcaster(paused.graph.node)

    def tell(frame: str, x: float):
        T = np.eye(4)
        T[0, 3] = x
        broadcaster.sendTransform(messages.transform(T, "map", frame, paused.odom.messages[-1].header.stamp))
        time.sleep(0.05)

    def reached():
        tell("cart", 0.7)
        stamp = Time.from_msg(steps(paused, paused.odom, BLOCK)[-1].header.stamp)
        return np.allclose(link_in_map(paused, tf, stamp)[:3, 3], (0.5, 0.1, 0), atol=1e-6)

    set_parameter(paused, "pose_timeout", PATIENCE)
    try:
        paused.pose("cart", pose_at(-0.2, 0.1))  # once, before anybody has told of a cart
        until(reached, "the pose in the frame of the cart")
        # A newer command takes the place of a pose that waits.
        paused.pose("later", pose_at(0.0))
        paused.twist(0, 0.3, 0, 0, 0, 0)
        for _ in range(5):
            tell("later", 2.0)
        twist = steps(paused, paused.odom, BLOCK)[-1].twist.twist
    finally:
        set_parameter(paused, "pose_timeout", 2.0)
    assert np.allclose((twist.linear.x, twist.linear.y), (0, 0.3))


def test_the_last_kind_of_command_wins(paused):
    paused.pose("map", pose_at(1.0))
    paused.twist(0, 0.3, 0, 0, 0, 0)
    twist = steps(paused, paused.odom, BLOCK)[-1].twist.twist
    assert np.allclose((twist.linear.x, twist.linear.y), (0, 0.3))
    paused.pose("base_link", pose_at(0.1))
    assert np.allclose(steps(paused, paused.odom, BLOCK)[-1].twist.twist.linear.x, 0.1 * FPS / BLOCK)
    assert np.allclose(steps(paused, paused.odom, BLOCK)[-1].twist.twist.linear.x, 0)


def test_bad_commands_are_refused_with_a_warning_and_the_node_lives_on(paused):
    log = paused.topic(Log, "rosout")
    nan, huge = float("nan"), 1e30

    def warned(part: str):
        until(lambda: any(part in m.msg and m.level == 30 for m in list(log.messages)), f"a warning with {part!r}")
        log.messages.clear()

    def is_still():
        odometry = steps(paused, paused.odom, BLOCK)
        return all(m.twist.twist.linear.x == 0 for m in odometry)

    paused.twist(nan, 0, 0, 0, 0, 0)
    warned("not a finite twist")
    assert is_still()
    bad = pose_at(1.0)
    bad.position.z = nan
    paused.pose("map", bad)
    warned("not a finite pose")
    paused.pose("nowhere", pose_at(1.0))
    warned("frame 'nowhere' is not known")  # after pose_timeout, for which warnings of one kind are throttled too
    assert is_still()
    bad = pose_at(1.0)
    bad.orientation.w = bad.orientation.z = 0.0
    paused.pose("map", bad)
    warned("not a finite pose")
    paused.pose("map", pose_at(huge))
    warned("from the map's origin")
    assert is_still()
    paused.publish(Float64(data=nan), "world/playhead/rate")
    warned("playhead/rate")
    paused.publish(Int64(data=10**9), "world/playhead/jump")
    warned("is not a frame of")
    paused.twist(huge, 0, 0, 0, 0, -huge)
    warned("cut to")
    twist = steps(paused, paused.odom, BLOCK)[-1].twist.twist
    assert np.allclose((twist.linear.x, twist.angular.z), (5.0, -3.0))


class TestPlayhead:
    @pytest.fixture
    def playhead(self, paused):
        paused.indices = paused.stepped_topic(Int64, "world/playhead/frame")
        return paused

    def show(self, world, blocks: int = 1) -> list[int]:
        have = len(world.indices.messages)
        world.step(BLOCK * blocks)
        return [m.data for m in world.indices.wait(have + BLOCK * blocks)[have:]]

    def test_pause_holds_the_image_and_play_goes_on(self, playhead):
        image = playhead.stepped_topic(Image, "camera/image_raw")
        assert playhead.call(Trigger, "playhead/pause").success
        self.show(playhead, 3)  # what the last blocks before the pause put into the map comes into view until then
        assert len(set(self.show(playhead, 2))) == 1
        first, *others = image.settle().messages[-2 * BLOCK :]
        assert len(others) == 2 * BLOCK - 1 and all(m.data == first.data for m in others)
        assert playhead.call(Trigger, "playhead/play").success
        assert len(set(self.show(playhead, 2))) > 1
        assert image.settle().messages[-1].data != first.data

    def test_reverse_rate_and_jump(self, playhead):
        playhead.publish(Int64(data=10), "world/playhead/jump")
        assert self.show(playhead) == [10, 11, 12, 13]
        assert playhead.call(Trigger, "playhead/reverse").success
        assert self.show(playhead) == [14, 13, 12, 11]
        playhead.publish(Float64(data=2.0), "world/playhead/rate")
        assert self.show(playhead) == [10, 12, 14, 16]
        playhead.publish(Float64(data=-0.5), "world/playhead/rate")
        playhead.publish(Int64(data=9), "world/playhead/jump")
        assert self.show(playhead) == [9, 8, 8, 7]

    def test_loop_policy_is_a_parameter(self, playhead):
        playhead.publish(Int64(data=0), "world/playhead/jump")
        playhead.publish(Float64(data=-1.0), "world/playhead/rate")
        assert set_parameter(playhead, "loop", "hold").successful
        try:
            assert self.show(playhead) == [0, 0, 0, 0]
            refused = set_parameter(playhead, "loop", "forever")
            assert not refused.successful and "loop" in refused.reason
            assert set_parameter(playhead, "loop", "loop").successful
            indices = self.show(playhead, 2)
            assert indices[0] == 0 and indices[1] > indices[2] > 1
        finally:
            set_parameter(playhead, "loop", "bounce")


class TestSimulation:
    def test_features_and_state(self, world):
        features = world.call(GetSimulatorFeatures, "get_simulator_features").features
        for wanted in ("SIMULATION_RESET", "SIMULATION_STATE_PAUSE", "STEP_SIMULATION_SINGLE"):
            assert getattr(SimulatorFeatures, wanted) in features.features
        assert "geometric" in features.custom_info and f"{BLOCK} frames" in features.custom_info
        state = world.call(GetSimulationState, "get_simulation_state")
        assert state.state.state == SimulationState.STATE_PLAYING and state.result.result == Result.RESULT_OK

    def test_stepping_needs_a_pause_and_shows_that_many_frames(self, world):
        clock = world.graph.topic(Clock, "/clock")
        answer = world.call(StepSimulation, "step_simulation", steps=1).result
        assert answer.result == Result.RESULT_OPERATION_FAILED and "PAUSED" in answer.error_message
        world.pause()
        answer = world.set_state(SimulationState.STATE_PAUSED)
        assert answer.result == SetSimulationState.Response.ALREADY_IN_TARGET_STATE
        world.step(1)
        have = len(clock.settle().messages)
        world.step(5)
        ticks = [m.clock.sec + m.clock.nanosec * 1e-9 for m in clock.wait(have + 5)[have - 1 :]]
        assert np.allclose(np.diff(ticks), 1 / FPS, atol=1e-8)
        assert len(clock.settle().messages) == have + 5, "paused again"

    @pytest.mark.parametrize("target", ["STATE_PAUSED", "STATE_STOPPED", "STATE_PLAYING", "reset"])
    def test_a_long_step_ends_when_another_state_is_asked_for(self, paused, target):
        before = len(paused.odom.messages)
        with ThreadPoolExecutor(1) as pool:
            stepping = pool.submit(paused.call, StepSimulation, "step_simulation", steps=1_000_000)
            paused.odom.wait(before + 3)
            if target == "reset":
                result = paused.call(ResetSimulation, "reset_simulation").result
            else:
                result = paused.set_state(getattr(SimulationState, target))
            assert result.result == Result.RESULT_OK, result.error_message
            answer = stepping.result(PATIENCE).result
        assert answer.result == Result.RESULT_OPERATION_FAILED
        assert re.fullmatch(r"ended after \d+ of 1000000 steps", answer.error_message)
        wanted = SimulationState.STATE_PAUSED if target == "reset" else getattr(SimulationState, target)
        assert paused.call(GetSimulationState, "get_simulation_state").state.state == wanted

    def test_unknown_targets_are_refused(self, world):
        answer = world.set_state(SimulationState.STATE_NO_WORLD)
        assert answer.result == SetSimulationState.Response.INCORRECT_TRANSITION
        answer = world.call(ResetSimulation, "reset_simulation", scope=ResetSimulation.Request.SCOPE_SPAWNED).result
        assert answer.result == Result.RESULT_FEATURE_UNSUPPORTED

    def test_reset_moves_map_to_odom_and_odom_stays_continuous(self, paused):
        tf = paused.graph.tf()
        paused.twist(1.0, 0, 0, 0, 0, 0.5)
        before = steps(paused, paused.odom, BLOCK)[-1]
        reset = paused.call(ResetSimulation, "reset_simulation", scope=ResetSimulation.Request.SCOPE_STATE).result
        assert reset.result == Result.RESULT_OK, reset.error_message
        until(lambda: paused.odom.messages[-1] is not before, "the first frame after the reset")
        after = paused.odom.messages[-1]
        assert after.pose.pose == before.pose.pose and stamp_of(after) > stamp_of(before)
        assert np.allclose(link_in_map(paused, tf, Time.from_msg(after.header.stamp)), np.eye(4), atol=1e-9)

    def test_initialpose_teleports(self, paused):
        tf = paused.graph.tf()
        before = steps(paused, paused.odom, BLOCK)[-1]
        msg = PoseWithCovarianceStamped(header=Header(frame_id="map"))
        msg.pose.pose = pose_at(0.4, 0.3, 0, 0.2)
        paused.publish(msg, "initialpose")
        after = steps(paused, paused.odom, BLOCK)
        assert all(np.allclose(messages.matrix(m.pose.pose), messages.matrix(before.pose.pose)) for m in after)
        there = link_in_map(paused, tf, Time.from_msg(after[-1].header.stamp))
        assert np.allclose(there, messages.matrix(msg.pose.pose), atol=1e-6)

    def test_reset_of_all_sets_time_to_the_start(self, world):
        clock = world.graph.topic(Clock, "/clock")
        clock.wait(10)
        assert world.call(ResetSimulation, "reset_simulation").result.result == Result.RESULT_OK

        def went_back():
            ticks = [m.clock.sec + m.clock.nanosec * 1e-9 for m in list(clock.messages)]
            return [b for a, b in zip(ticks, ticks[1:], strict=False) if b < a]

        assert until(went_back, "the clock to go back")[0] == pytest.approx(1 / FPS, abs=1e-6)

    def test_stopped_is_paused_at_the_start(self, world):
        assert world.set_state(SimulationState.STATE_STOPPED).result == Result.RESULT_OK
        clock = world.graph.topic(Clock, "/clock")
        assert not clock.settle().messages
        assert world.call(GetSimulationState, "get_simulation_state").state.state == SimulationState.STATE_STOPPED
        world.play()
        clock.wait(3)


def test_diagnostics_say_what_runs(world):
    def status():
        found = [s for m in list(topic.messages) for s in m.status if s.name == "/world: world"]
        return found and found[-1]

    topic = world.graph.topic(DiagnosticArray, "/diagnostics")
    values = {v.key: v.value for v in until(status, "diagnostics").values}
    assert values["state"] == "playing" and values["generator"] == "geometric" and values["device"]
    assert values["size"] == "120x208" and values["depth source"] and values["pose source"]
    for name in ("rate [Hz]", "late blocks", "block compute median [ms]", "map points", "metres per unit"):
        assert float(values[name]) >= 0
    first = topic.messages[0].header.stamp
    later = topic.next(2)[-1].header.stamp
    assert (later.sec, later.nanosec) > (first.sec, first.nanosec)


def test_cloud_map_reaches_late_joiners_and_updates_rebuild_it(world):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE)
    updates = world.topic(PointCloud2, "cloud_map_updates")
    updates.wait(1)
    world.call(Trigger, "playhead/pause")
    world.pause()
    held, used = {}, 0

    def matches():
        nonlocal used
        for cloud in updates.messages[used:]:
            for p in point_cloud2.read_points(cloud):
                if np.isnan(p["x"]):
                    held.pop(int(p["id"]), None)
                else:
                    held[int(p["id"])] = tuple(p)[:4]
            used += 1
        late = world.topic(PointCloud2, "cloud_map", latched)
        cloud = late.wait(1)[-1]
        late.close()
        whole = {int(p["id"]): tuple(p)[:4] for p in point_cloud2.read_points(cloud)}
        return cloud.header.frame_id == "map" and len(whole) > 1000 and whole == held

    until(matches, "the updates to add up to the map")


def test_parameters_are_described_and_checked(world):
    names = [n for n in world.call(ListParameters, "list_parameters").result.names if "." not in n]
    descriptors = world.call(DescribeParameters, "describe_parameters", names=names).descriptors
    ours = [d for d in descriptors if d.name not in ("use_sim_time", "start_type_description_service")]
    assert len(ours) > 20 and all(d.description for d in ours)
    assert next(d for d in ours if d.name == "fps").read_only
    assert not set_parameter(world, "fps", 12.0).successful
    assert not set_parameter(world, "jpeg_quality", 1000).successful
    assert set_parameter(world, "max_linear", 5.0).successful
    refused = set_parameter(world, "prompt", "a kitchen")
    assert (refused.successful, refused.reason) == (False, "prompt: generator geometric, with its model, reads no text")


def test_sensor_topics_are_reliable_and_nothing_is_made_for_nobody(world):
    for name in ("camera/image_raw", "camera/camera_info", "camera/depth/image_raw", "camera/points", "odom"):
        (info,) = world.graph.node.get_publishers_info_by_topic(f"/{name}")
        assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE, name
    (info,) = world.graph.node.get_publishers_info_by_topic("/cloud_map")
    assert info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL


def test_every_frame_arrives(world):
    """Reliable and paced: no gap between stamps, one frame a period of sim time."""
    image = world.topic(Image, "camera/image_raw", 50)
    stamps = [stamp_of(m) for m in image.next(30)]
    assert np.allclose(np.diff(stamps), 1 / FPS, atol=1e-6)
