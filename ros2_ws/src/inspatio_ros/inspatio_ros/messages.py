"""From arrays to messages: camera_info, clouds, poses. Images are in images.py, frames in frames.py."""

from __future__ import annotations

import numpy as np
import torch
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, Transform, TransformStamped
from sensor_msgs.msg import CameraInfo, PointCloud2, PointField
from std_msgs.msg import Header

from inspatio_core.geometry.camera import unproject
from inspatio_core.geometry.point_map import MapChanges, MapPoints
from inspatio_ros import frames
from inspatio_ros.images import write_bytes

_FIELD_TYPES = {"float32": PointField.FLOAT32, "int32": PointField.INT32, "uint8": PointField.UINT8}

POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<f4")])
"""A point of ``camera/points``: metres in the optical frame and the colour packed as 0x00RRGGBB."""

MAP_POINT = np.dtype({
    "names": ["x", "y", "z", "rgb", "id", "confidence", "origin"],
    "formats": ["<f4", "<f4", "<f4", "<f4", "<i4", "<f4", "u1"],
    "offsets": [0, 4, 8, 12, 16, 20, 24],
    "itemsize": 28,
})  # fmt: skip
"""A point of ``cloud_map`` and ``cloud_map_updates``: metres in ``map``; ``origin`` 0 observed, 1 generated. In an
update each point replaces the one with its ``id``; a point without a position (NaN) says that its ``id`` is gone."""


def time(seconds: float) -> Time:
    """Seconds as a Time, to the nanosecond."""
    nanoseconds = round(seconds * 1e9)
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def camera_info(K: np.ndarray, size: tuple[int, int], header: Header) -> CameraInfo:
    """CameraInfo of an ideal pinhole camera: K float64 [3, 3] in pixels, size (height, width)."""
    (fx, _, cx), (_, fy, cy), _ = K.tolist()
    return CameraInfo(
        header=header,
        height=size[0],
        width=size[1],
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
    )


def pose(T: np.ndarray) -> Pose:
    """A rigid 4x4 as a Pose."""
    msg = Pose()
    msg.position.x, msg.position.y, msg.position.z = T[:3, 3].tolist()
    q = msg.orientation
    q.x, q.y, q.z, q.w = frames.quaternion(T).tolist()
    return msg


def transform(parent_from_child: np.ndarray, parent: str, child: str, stamp: Time) -> TransformStamped:
    """The transform ``parent -> child`` of tf."""
    p = pose(parent_from_child)
    msg = TransformStamped(header=Header(stamp=stamp, frame_id=parent), child_frame_id=child)
    t = Transform(rotation=p.orientation)
    t.translation.x, t.translation.y, t.translation.z = p.position.x, p.position.y, p.position.z
    msg.transform = t
    return msg


def matrix(p: Pose | Transform) -> np.ndarray:
    """A Pose or Transform as a rigid 4x4; the quaternion may have any length but zero."""
    position, q = (p.position, p.orientation) if isinstance(p, Pose) else (p.translation, p.rotation)
    return frames.matrix((position.x, position.y, position.z), (q.x, q.y, q.z, q.w))


def packed_rgb(rgb: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] as float32 [...] whose bits are 0x00RRGGBB, the PCL convention."""
    bgr0 = np.zeros((*rgb.shape[:-1], 4), np.uint8)
    bgr0[..., :3] = rgb[..., ::-1]
    return bgr0.view("<f4")[..., 0]


def _describe(msg: PointCloud2, dtype: np.dtype, height: int, width: int, dense: bool) -> np.ndarray:
    """Set everything but the header and return the points as a writable structured array [height * width]."""
    msg.height, msg.width = height, width
    msg.point_step, msg.row_step = dtype.itemsize, dtype.itemsize * width
    msg.is_dense, msg.is_bigendian = dense, False
    if len(msg.fields) != len(dtype.names):
        msg.fields = [
            PointField(name=name, offset=dtype.fields[name][1], datatype=_FIELD_TYPES[dtype[name].name], count=1)
            for name in dtype.names
        ]
    return write_bytes(msg, dtype.itemsize * height * width).view(dtype)


def write_points(msg: PointCloud2, rgb: np.ndarray, depth: np.ndarray, known: np.ndarray, K: np.ndarray) -> PointCloud2:
    """An organised cloud in the optical frame: one point a pixel, NaN where the pixel is not known.

    Args:
        rgb: uint8 [H, W, 3]. depth: float32 [H, W], metres along z. known: bool [H, W]. K: float64 [3, 3], pixels.
    """
    height, width = depth.shape
    points = _describe(msg, POINT, height, width, dense=False).reshape(height, width)
    xyz = unproject(torch.from_numpy(np.where(known, depth, np.float32(np.nan))), torch.from_numpy(K)).numpy()
    points["x"], points["y"], points["z"] = xyz[..., 0], xyz[..., 1], xyz[..., 2]
    points["rgb"] = packed_rgb(rgb)
    return msg


def _fill_map(out: np.ndarray, points: MapPoints) -> None:
    xyz = frames.map_points(points.xyz.numpy())
    out["x"], out["y"], out["z"] = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    out["rgb"] = packed_rgb(points.rgb.numpy())
    out["id"], out["confidence"], out["origin"] = points.id.numpy(), points.confidence.numpy(), points.origin.numpy()


def write_map(msg: PointCloud2, points: MapPoints) -> PointCloud2:
    """The whole map as an unorganised cloud in ``map``."""
    count = len(points.xyz)
    _fill_map(_describe(msg, MAP_POINT, 1, count, dense=True), points)
    return msg


def write_map_changes(msg: PointCloud2, changes: MapChanges) -> PointCloud2:
    """What changed in the map, see ``MAP_POINT``."""
    added, removed = len(changes.added.xyz), len(changes.removed)
    out = _describe(msg, MAP_POINT, 1, added + removed, dense=removed == 0)
    _fill_map(out[:added], changes.added)
    gone = out[added:]
    gone[:] = np.zeros((), MAP_POINT)
    gone["x"] = gone["y"] = gone["z"] = np.nan
    gone["id"] = changes.removed.numpy()
    return msg
