"""Everything the node publishes about a frame, and about the map. Only what is subscribed is made.

``Frames.publish`` is called by the show thread, once a frame; ``MapCloud`` has a thread of its own, because a large
cloud must not hold up a frame.
"""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from geometry_msgs.msg import TransformStamped, Twist
from nav_msgs.msg import Odometry
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from rclpy.time import Time as RosTime
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, Int64
from tf2_msgs.msg import TFMessage
from tf2_ros import Buffer, StaticTransformBroadcaster, TransformBroadcaster

from inspatio_core.geometry.point_map import PointMap
from inspatio_ros import frames, images, messages
from inspatio_ros.parameters import Settings
from inspatio_ros.worker import Frame

_IDENTITY = np.eye(4)


class FrameNames:
    """The names of the tf tree, each with the prefix."""

    def __init__(self, prefix: str):
        self.map = f"{prefix}map"
        self.odom = f"{prefix}odom"
        self.base = f"{prefix}base_link"
        self.camera = f"{prefix}camera_link"
        self.optical = f"{prefix}camera_optical_frame"


class Stamps:
    """One stamp a frame.

    With ``publish_clock`` it is sim time, exactly. Without, stamps follow the node's clock (the wall, or somebody
    else's /clock with ``use_sim_time``) in even steps of a frame, catching up when they are more than two frames off;
    while that clock has no time yet, they are sim time.
    """

    def __init__(self, node: Node, publish_clock: bool, period: float):
        self._clock = node.get_clock()
        self._own = publish_clock
        self._period = period
        self._last: float | None = None

    def stamp(self, sim_time: float) -> float:
        """Seconds for the frame shown now."""
        now = self._clock.now().nanoseconds * 1e-9
        if self._own or now == 0.0:
            return sim_time
        even = now if self._last is None else self._last + self._period
        if abs(now - even) > 2 * self._period:
            backwards = self._last is not None and now < self._last - 1.0
            even = now if backwards or self._last is None else max(now, self._last + 1e-3)
        self._last = even
        return even


class Tree:
    """tf both ways: sends this robot's frames and hears everybody else's.

    The frames of the robot itself enter ``buffer`` as they are sent, not by way of the network: a pose in
    ``base_link`` is relative to where the robot is now. ``/tf`` is subscribed only while somebody else publishes it:
    to hear itself every frame would keep the node from its work.
    """

    def __init__(self, node: Node, names: FrameNames):
        self.buffer = Buffer()
        self._own = {names.map, names.odom, names.base, names.camera, names.optical}
        self._authority = node.get_fully_qualified_name()
        self._dynamic = TransformBroadcaster(node)
        self._static = StaticTransformBroadcaster(node)
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        hear = partial(self._hear, self.buffer.set_transform_static)
        node.create_subscription(TFMessage, "/tf_static", hear, latched)
        self._node = node
        self._others: Subscription | None = None
        self._following = threading.Lock()

    def follow(self) -> None:
        """Listen to ``/tf`` or stop listening, as others come and go; to be called now and then, by any thread."""
        with self._following:
            others = self._node.count_publishers("/tf") > 1
            if others and self._others is None:
                hear = partial(self._hear, self.buffer.set_transform)
                self._others = self._node.create_subscription(TFMessage, "/tf", hear, 100)
            elif not others and self._others is not None:
                self._node.destroy_subscription(self._others)
                self._others = None

    def _hear(self, take: Callable, msg: TFMessage) -> None:
        for t in msg.transforms:
            if t.child_frame_id not in self._own:
                take(t, "tf")

    def send(self, transforms: list[TransformStamped]) -> None:
        """Transforms of one frame."""
        for t in transforms:
            self.buffer.set_transform(t, self._authority)
        self._dynamic.sendTransform(transforms)

    def send_static(self, transforms: list[TransformStamped]) -> None:
        """Transforms that never change."""
        for t in transforms:
            self.buffer.set_transform_static(t, self._authority)
        self._static.sendTransform(transforms)


class Frames:
    """Publishers of one camera and its robot."""

    def __init__(self, node: Node, settings: Settings, stamps: Stamps):
        self.settings = settings
        self.names = FrameNames(settings.frame_prefix)
        self.tree = Tree(node, self.names)
        self._stamps = stamps
        self._split = frames.OdomTree()
        self._next_points = 0.0
        sensor = QoSProfile(depth=5)
        allow = QoSOverridingOptions.with_default_policies()

        def publisher(kind: type, topic: str):
            return node.create_publisher(kind, topic, sensor, qos_overriding_options=allow)

        self._image = publisher(Image, "camera/image_raw")
        self._compressed = publisher(CompressedImage, "camera/image_raw/compressed")
        self._info = publisher(CameraInfo, "camera/camera_info")
        self._depth = publisher(Image, "camera/depth/image_raw")
        self._depth_info = publisher(CameraInfo, "camera/depth/camera_info")
        self._points = publisher(PointCloud2, "camera/points")
        self._odom = publisher(Odometry, "odom")
        self._playhead = node.create_publisher(Int64, "~/playhead/frame", 5)
        self._clock = node.create_publisher(Clock, "/clock", 1) if settings.publish_clock else None
        # Kept and refilled: making 1 MB messages anew for every frame costs more than sending them.
        self._image_msg, self._depth_msg, self._points_msg = Image(), Image(), PointCloud2()
        self.tree.send_static(self._static_transforms())

    def _static_transforms(self) -> list[TransformStamped]:
        n, stamp = self.names, RosTime(clock_type=ClockType.ROS_TIME).to_msg()
        out = [
            messages.transform(_IDENTITY, n.base, n.camera, stamp),
            messages.transform(frames.LINK_FROM_OPTICAL, n.camera, n.optical, stamp),
        ]
        if self.settings.world_frame:
            out.append(messages.transform(_IDENTITY, self.settings.world_frame, n.map, stamp))
        return out

    def publish(self, frame: Frame, sim_time: float) -> None:
        """Publish all messages of one frame, under one stamp; the clock and tf go first."""
        stamp = messages.time(self._stamps.stamp(sim_time))
        n = self.names
        if self._clock is not None:
            self._clock.publish(Clock(clock=stamp))
        self._split.update(frames.map_from_link(frame.world_from_camera), frame.jump)
        self.tree.send([
            messages.transform(self._split.map_from_odom, n.map, n.odom, stamp),
            messages.transform(self._split.odom_from_base, n.odom, n.base, stamp),
        ])  # fmt: skip
        header = Header(stamp=stamp, frame_id=n.optical)
        if self._odom.get_subscription_count():
            self._odom.publish(self._odometry(frame, stamp))
        if self._image.get_subscription_count():
            self._image_msg.header = header
            self._image.publish(images.write(self._image_msg, frame.rgb, "rgb8"))
        info, depth_info = self._info.get_subscription_count(), self._depth_info.get_subscription_count()
        if info or depth_info:
            msg = messages.camera_info(frame.K, frame.depth.shape, header)
            if info:
                self._info.publish(msg)
            if depth_info:
                self._depth_info.publish(msg)
        if self._depth.get_subscription_count():
            self._depth_msg.header = header
            self._depth.publish(images.write(self._depth_msg, frame.depth, "32FC1"))
        if self._compressed.get_subscription_count():
            data = array.array("B", images.jpeg(frame.rgb, self.settings.jpeg_quality))
            self._compressed.publish(CompressedImage(header=header, format="rgb8; jpeg compressed bgr8", data=data))
        if self._points.get_subscription_count() and self._points_due(sim_time):
            self._points_msg.header = header
            self._points.publish(
                messages.write_points(self._points_msg, frame.rgb, frame.depth, frame.known, frame.K)
            )
        if self._playhead.get_subscription_count():
            self._playhead.publish(Int64(data=frame.source_index))

    def _points_due(self, sim_time: float) -> bool:
        every = 1.0 / self.settings.points_rate
        if not sim_time >= self._next_points - 1e-6 and sim_time > self._next_points - 2 * every:
            return False
        self._next_points = sim_time + every
        return True

    def _odometry(self, frame: Frame, stamp) -> Odometry:
        msg = Odometry(header=Header(stamp=stamp, frame_id=self.names.odom), child_frame_id=self.names.base)
        msg.pose.pose = messages.pose(self._split.odom_from_base)
        twist = frames.base_twist(frame.twist).tolist()
        out = Twist()
        out.linear.x, out.linear.y, out.linear.z, out.angular.x, out.angular.y, out.angular.z = twist
        msg.twist.twist = out
        return msg


class MapCloud:
    """``cloud_map`` (the whole map, for late joiners too) and ``cloud_map_updates`` (what changed), bounded in bytes.

    Args:
        stamp: gives the seconds to stamp a cloud with.
        point_map: gives the map, or None while there is none.
    """

    TICK = 0.25
    """Seconds between two updates."""

    def __init__(
        self, node: Node, settings: Settings, stamp: Callable[[], float], point_map: Callable[[], PointMap | None]
    ):
        self.settings = settings
        self._stamp, self._map = stamp, point_map
        self._frame = FrameNames(settings.frame_prefix).map
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._whole = node.create_publisher(PointCloud2, "cloud_map", latched)
        self._updates = node.create_publisher(PointCloud2, "cloud_map_updates", 10)
        self._whole_msg, self._update_msg = PointCloud2(), PointCloud2()
        self._cursor = 0
        self._next_whole = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="map-cloud", daemon=True)

    def start(self) -> None:
        """Start publishing."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop publishing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.wait(self.TICK):
            point_map = self._map()
            if point_map is not None:
                self._publish_updates(point_map)
                self._publish_whole(point_map)

    def _header(self) -> Header:
        return Header(stamp=messages.time(self._stamp()), frame_id=self._frame)

    def _publish_updates(self, point_map: PointMap) -> None:
        if not self._updates.get_subscription_count():
            self._cursor = 0  # who comes next gets everything
            return
        budget = int(self.settings.map_bandwidth * self.TICK / messages.MAP_POINT.itemsize)
        changes = point_map.changes(self._cursor, max(budget, 1))
        self._cursor = changes.cursor
        if len(changes.added.xyz) or len(changes.removed):
            self._update_msg.header = self._header()
            self._updates.publish(messages.write_map_changes(self._update_msg, changes))

    def _publish_whole(self, point_map: PointMap) -> None:
        now = time.monotonic()
        if now < self._next_whole or not self._whole.get_subscription_count():
            return
        points = point_map.points()
        self._whole_msg.header = self._header()
        self._whole.publish(messages.write_map(self._whole_msg, points))
        size = len(points.xyz) * messages.MAP_POINT.itemsize
        self._next_whole = now + max(1.0 / self.settings.map_rate, size / self.settings.map_bandwidth)
