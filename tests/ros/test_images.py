"""The built-in image converter, its fast path, and the clouds."""

import array
import sys
import types

import cv2
import numpy as np
import pytest
import torch
from inspatio_ros import images, messages
from sensor_msgs.msg import Image, PointCloud2
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header

from inspatio_core.geometry.camera import project
from inspatio_core.geometry.point_map import OBSERVED, PointMap


def sample(encoding: str, seed: int = 0) -> np.ndarray:
    dtype, channels = images.ENCODINGS[encoding]
    rng = np.random.default_rng(seed)
    shape = (5, 7) if channels == 1 else (5, 7, channels)
    if dtype == np.float32:
        return rng.random(shape, np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("encoding", images.ENCODINGS)
def test_round_trip(encoding):
    image = sample(encoding)
    msg = images.write(Image(), image, encoding)
    assert (msg.height, msg.width, msg.encoding) == (5, 7, encoding)
    assert msg.step == 7 * image.itemsize * images.ENCODINGS[encoding][1] and len(msg.data) == 5 * msg.step
    back = images.read(msg)
    assert back.dtype == image.dtype and np.array_equal(back, image)


def test_write_refills_the_same_buffer():
    msg = images.write(Image(), sample("rgb8", 1), "rgb8")
    data = msg.data
    assert isinstance(data, array.array)
    images.write(msg, sample("rgb8", 2), "rgb8")
    assert msg.data is data and np.array_equal(images.read(msg), sample("rgb8", 2))
    images.write(msg, np.zeros((2, 3, 3), np.uint8), "rgb8")
    assert len(msg.data) == 18


def test_write_takes_what_is_not_contiguous():
    image = sample("rgb8")[:, ::-1]
    assert np.array_equal(images.read(images.write(Image(), image, "rgb8")), image)


def test_read_honours_step_and_byte_order():
    image = sample("16UC1")
    rows = np.zeros((5, 20), np.uint8)
    rows[:, :14] = image.astype(">u2").view(np.uint8).reshape(5, 14)
    msg = Image(height=5, width=7, encoding="16UC1", is_bigendian=1, step=20, data=rows.tobytes())
    assert np.array_equal(images.read(msg), image)


@pytest.mark.parametrize(
    "change", [{"encoding": "yuv422"}, {"step": 3}, {"height": 6}], ids=["encoding", "step", "too few bytes"]
)
def test_read_refuses_what_cannot_be(change):
    msg = images.write(Image(), sample("rgb8"), "rgb8")
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(ValueError):
        images.read(msg)


def test_write_refuses_another_type():
    with pytest.raises(ValueError, match="32FC1"):
        images.write(Image(), sample("mono8"), "32FC1")


def test_bridge_converts_colour_orders():
    bridge, rgb = images.Bridge(), sample("rgb8")
    msg = bridge.cv2_to_imgmsg(rgb, "rgb8", header=Header(frame_id="there"))
    assert msg.header.frame_id == "there"
    assert np.array_equal(bridge.imgmsg_to_cv2(msg, "bgr8"), rgb[..., ::-1])
    assert np.array_equal(bridge.imgmsg_to_cv2(msg, "mono8"), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    assert bridge.cv2_to_imgmsg(sample("32FC1")).encoding == "32FC1"
    with pytest.raises(ValueError):
        bridge.imgmsg_to_cv2(msg, "32FC1")


def test_bridge_compresses():
    rgb = np.full((16, 24, 3), (200, 90, 30), np.uint8)
    msg = images.Bridge().cv2_to_compressed_imgmsg(rgb[..., ::-1], "png")
    back = cv2.imdecode(np.frombuffer(msg.data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert msg.format == "png" and np.array_equal(back, rgb)
    back = cv2.imdecode(np.frombuffer(images.jpeg(rgb, 95), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(back.astype(int) - rgb).max() <= 4


class _Broken(images.Bridge):
    def imgmsg_to_cv2(self, msg, desired_encoding="passthrough"):
        return super().imgmsg_to_cv2(msg, desired_encoding)[::-1]


@pytest.mark.parametrize("bridge, taken", [(images.Bridge, True), (_Broken, False)])
def test_cv_bridge_is_taken_if_it_passes_the_self_test(monkeypatch, bridge, taken):
    class CvBridge(bridge):
        pass

    monkeypatch.setitem(sys.modules, "cv_bridge", types.SimpleNamespace(CvBridge=CvBridge))
    assert isinstance(images.get_bridge(), CvBridge) == taken


def test_a_cv_bridge_that_does_not_import_is_passed_over(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    assert type(images.get_bridge()) is images.Bridge


def test_a_real_cv_bridge_agrees_with_the_built_in_one():
    cv_bridge = pytest.importorskip("cv_bridge", reason="this ROS 2 has no cv_bridge")
    if not images.works(cv_bridge.CvBridge()):
        pytest.skip("cv_bridge is installed but broken")
    for encoding in ("rgb8", "bgr8", "mono8", "16UC1", "32FC1"):
        real = cv_bridge.CvBridge().cv2_to_imgmsg(sample(encoding), encoding)
        assert bytes(real.data) == bytes(images.Bridge().cv2_to_imgmsg(sample(encoding), encoding).data)


K = np.array([[20.0, 0, 3.1], [0, 21.0, 2.2], [0, 0, 1]])


def test_points_land_on_their_pixels_with_their_colours():
    rgb, known = sample("rgb8"), sample("mono8") > 100
    depth = 1 + sample("32FC1")
    cloud = messages.write_points(PointCloud2(), rgb, depth, known, K)
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (5, 7, 16, 112)
    points = point_cloud2.read_points(cloud).reshape(5, 7)
    assert np.array_equal(np.isfinite(points["x"]), known)
    xyz = np.stack([points[c] for c in "xyz"], -1)[known]
    uv, z = project(torch.from_numpy(xyz).double(), torch.from_numpy(K))
    v, u = np.nonzero(known)
    assert np.allclose(uv, np.stack([u, v], -1), atol=1e-4) and np.allclose(z, depth[known])
    bits = points["rgb"].copy().view(np.uint32)
    assert np.array_equal(np.stack([bits >> 16, bits >> 8 & 255, bits & 255], -1), rgb)


def test_map_clouds_follow_the_map():
    point_map = PointMap(limit=100)
    pose = np.eye(4)

    def insert(depth):
        point_map.insert(sample("rgb8"), np.full((5, 7), depth, np.float32), np.ones((5, 7), bool), K, pose, OBSERVED)

    held = {}

    def follow(cursor):
        changes = point_map.changes(cursor, 1000)
        for p in point_cloud2.read_points(messages.write_map_changes(PointCloud2(), changes)):
            if np.isnan(p["x"]):
                held.pop(int(p["id"]), None)
            else:
                held[int(p["id"])] = tuple(p)[:4]
        return changes.cursor

    insert(2.0)
    cursor = follow(0)
    before = len(held)
    insert(4.0)  # farther: what was seen at 2 m is seen through now, and goes
    follow(cursor)
    whole = point_cloud2.read_points(messages.write_map(PointCloud2(), point_map.points()))
    assert 0 < before and {int(p["id"]): tuple(p)[:4] for p in whole} == held
    assert np.allclose(whole["x"], 4.0), "map x is the camera's forward axis"
    assert set(whole["origin"]) == {OBSERVED}


def test_camera_info_is_filled():
    info = messages.camera_info(K, (5, 7), Header(frame_id="f"))
    assert (info.height, info.width, info.distortion_model, list(info.d)) == (5, 7, "plumb_bob", [0.0] * 5)
    assert np.array_equal(np.reshape(info.k, (3, 3)), K) and np.array_equal(np.reshape(info.r, (3, 3)), np.eye(3))
    assert np.array_equal(np.reshape(info.p, (3, 4)), np.c_[K, np.zeros(3)])
