"""Camera path of a moving camera by structure from motion (COLMAP; extra ``sfm``)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from inspatio_core.geometry.camera import intrinsics_from_fov
from inspatio_core.geometry.motion import interpolate
from inspatio_core.reference.depth import Progress
from inspatio_core.reference.poses import ASSUMED_FOV, Cameras, Frames

_KEYFRAMES = 36
_IMAGE_SIDE = 832
_FEATURES = 2048
_MEDIAN_DEPTH = 3.0  # what the reconstruction, which has no scale of its own, is scaled to


class NoPath(Exception):
    """Structure from motion found no camera path; the message says why."""


class StructureFromMotion:
    """Poses by COLMAP on keyframes, interpolated on SE(3) in between; focal length refined when it is unknown.

    The scale is arbitrary: the median depth of the points becomes 3.
    """

    name = "sfm"

    def estimate(self, frames: Frames, K: np.ndarray | None, progress: Progress) -> Cameras:
        """Cameras of all frames. K: float64 [3,3] where intrinsics are known. Raises `NoPath`."""
        count = len(frames)
        keys = np.unique(np.linspace(0, count - 1, min(count, _KEYFRAMES)).round().astype(int))
        if len(keys) < 3:
            raise NoPath(f"{count} frames are too few")
        model = self._reconstruct(frames, keys, K, progress)
        focal, found = _registered(model, {frames.files[i].name: int(i) for i in keys})
        if len(found) < max(3, 0.7 * len(keys)):
            raise NoPath(f"only {len(found)} of {len(keys)} keyframes fit together")

        depths = np.concatenate([points[:, 2] for _, points in found.values() if len(points)] or [np.ones(1)])
        scale = _MEDIAN_DEPTH / float(np.median(depths))
        for pose, points in found.values():
            pose[:3, 3] *= scale
            points[:, 2] *= scale
        poses = _interpolated({i: pose for i, (pose, _) in found.items()}, count)
        height, width = frames.size
        matrix = intrinsics_from_fov(frames.size, ASSUMED_FOV).numpy() if K is None else K.copy()
        if K is None:
            matrix[0, 0] = matrix[1, 1] = focal
        notices = []
        angle = float(np.degrees(2 * np.arctan(width / 2 / matrix[0, 0])))
        if not 20 < angle < 120:
            notices.append(f"structure from motion: an angle of view of {angle:.0f} degrees is not plausible; give fov")
        return Cameras(
            K=np.tile(matrix, (count, 1, 1)),
            world_from_camera=poses,
            source=f"structure from motion ({len(found)} of {len(keys)} keyframes)",
            focal_source="estimated" if K is None else "given",
            points=_points_everywhere({i: points for i, (_, points) in found.items()}, poses, matrix, frames.size),
            notices=tuple(notices),
        )

    def _reconstruct(self, frames: Frames, keys: np.ndarray, K: np.ndarray | None, progress: Progress):
        """COLMAP's largest model of the keyframes."""
        import pycolmap

        pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
        names = [frames.files[i].name for i in keys]
        images = frames.files[0].parent
        height, width = frames.size
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = "SIMPLE_PINHOLE" if K is None else "PINHOLE"
        if K is None:
            params = (width / 2 / np.tan(np.radians(ASSUMED_FOV / 2)), width / 2, height / 2)
        else:
            params = (K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5)  # COLMAP's pixel centres are at half-integers
        reader.camera_params = ",".join(str(float(p)) for p in params)
        extraction = pycolmap.FeatureExtractionOptions()
        extraction.max_image_size = _IMAGE_SIDE
        extraction.sift.max_num_features = _FEATURES
        pairing = pycolmap.SequentialPairingOptions()
        pairing.overlap = 6
        mapping = pycolmap.IncrementalPipelineOptions()
        mapping.multiple_models = False
        mapping.min_model_size = 3
        mapping.random_seed = 0
        mapping.extract_colors = False
        mapping.ba_refine_focal_length = K is None
        mapping.ba_refine_extra_params = False
        mapping.mapper.init_min_tri_angle = 5.0
        mapping.mapper.abs_pose_refine_focal_length = False
        with tempfile.TemporaryDirectory(prefix="inspatio-sfm-") as folder:
            database = Path(folder) / "database.db"
            progress("camera", 0.05)
            pycolmap.extract_features(
                database, images, names, pycolmap.CameraMode.SINGLE, reader, extraction, pycolmap.Device.cpu
            )
            progress("camera", 0.4)
            pycolmap.match_sequential(database, pairing_options=pairing, device=pycolmap.Device.cpu)
            progress("camera", 0.6)
            models = pycolmap.incremental_mapping(database, images, Path(folder) / "models", mapping)
        progress("camera", 1.0)
        if not models:
            raise NoPath("too few points could be followed, or the camera only turns")
        return max(models.values(), key=lambda model: model.num_reg_images())


def _registered(model, index_of: dict[str, int]) -> tuple[float, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Focal length in pixels; by frame: world_from_camera [4,4], and the points seen as (u, v, depth) [P,3]."""
    found = {}
    focal = 0.0
    for image in model.images.values():
        if not image.has_pose:
            continue
        camera_from_world = np.eye(4)
        camera_from_world[:3] = image.cam_from_world().matrix()
        seen = [(p.xy, model.points3D[p.point3D_id].xyz) for p in image.points2D if p.has_point3D()]
        points = np.zeros((0, 3))
        if seen:
            xy, xyz = (np.array(part) for part in zip(*seen))
            depth = xyz @ camera_from_world[2, :3] + camera_from_world[2, 3]
            points = np.column_stack([xy - 0.5, depth])[depth > 0]
        found[index_of[image.name]] = (np.linalg.inv(camera_from_world), points)
        focal = float(model.cameras[image.camera_id].params[0])
    return focal, dict(sorted(found.items()))


def _interpolated(poses: dict[int, np.ndarray], count: int) -> np.ndarray:
    """world_from_camera [count,4,4] from some of them; before the first and after the last the nearest is kept."""
    known = sorted(poses)
    out = np.empty((count, 4, 4))
    for i in range(count):
        after = int(np.searchsorted(known, i))
        if after == len(known) or known[after] == i or after == 0:
            out[i] = poses[known[min(after, len(known) - 1)]]
            continue
        a, b = known[after - 1], known[after]
        out[i] = interpolate(torch.as_tensor(poses[a]), torch.as_tensor(poses[b]), (i - a) / (b - a)).numpy()
    return out


def _points_everywhere(
    points: dict[int, np.ndarray], poses: np.ndarray, K: np.ndarray, size: tuple[int, int]
) -> dict[int, np.ndarray]:
    """(u, v, depth) of points for every frame: those of the nearest keyframe, moved into it."""
    known = np.array(sorted(points))
    out = {}
    for i in range(len(poses)):
        key = int(known[np.abs(known - i).argmin()])
        if key == i or not len(points[key]):
            out[i] = points[key]
            continue
        u, v, z = points[key].T
        rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(z)]) * z
        move = np.linalg.inv(poses[i]) @ poses[key]
        x, y, z = move[:3, :3] @ rays + move[:3, 3:]
        u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
        inside = (z > 0) & (u >= 0) & (v >= 0) & (u <= size[1] - 1) & (v <= size[0] - 1)
        out[i] = np.column_stack([u, v, z])[inside]
    return out
