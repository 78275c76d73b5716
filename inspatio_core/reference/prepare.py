"""From a clip to a scene folder: frames, cameras, depth and masks of what moves."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from inspatio_core import checkpoints
from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import RIGID_TOLERANCE, is_rigid, scale_intrinsics
from inspatio_core.geometry.trajectory import load_poses
from inspatio_core.reference import released
from inspatio_core.reference.depth import DepthMaps, DepthProvider, Progress, TiltedPlane
from inspatio_core.reference.fastdepth import FastDepth
from inspatio_core.reference.motion_mask import motion_masks
from inspatio_core.reference.poses import STILL, Cameras, camera_motion, standing
from inspatio_core.reference.reference import DEFAULT_MEDIAN_DEPTH, resize_depth, sanitise_depth
from inspatio_core.reference.scene import SceneWriter, is_scene, read_depth, read_image, read_scene
from inspatio_core.reference.video import Images, open_clip

LONGEST_SIDE = 1280
STANDING = "static camera"
_SMALL = 240  # shorter side, in pixels, of the frames that motion and masks are found on


@dataclass
class Given:
    """What a source brings along with its frames.

    K, world_from_camera: at `size`, the frames' full size, or None. depth: reads the depth of a frame, or None.
    metric: whether translations and depth are metres. entries: for ``transforms.json``, such as caption and name.
    """

    count: int | None = None
    size: tuple[int, int] | None = None
    K: np.ndarray | None = None
    world_from_camera: np.ndarray | None = None
    pose_source: str = "given"
    depth: Callable[[int], np.ndarray] | None = None
    depth_source: str = "given"
    metric: bool = False
    entries: dict = field(default_factory=dict)


class SmallImages:
    """Images of one size kept in an unnamed temporary file: appended in order, read in any."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()
        self._map: np.ndarray | None = None
        self._shape: tuple[int, ...] = ()
        self.count = 0

    def append(self, image: np.ndarray) -> None:
        """Add an image; all have the shape and type of the first."""
        self._shape, self._type = image.shape, image.dtype
        self.last = image
        self._file.write(np.ascontiguousarray(image).data)
        self.count += 1

    def __getitem__(self, index: int) -> np.ndarray:
        if self._map is None:
            self._file.flush()
            self._map = np.memmap(self._file, self._type, "r", shape=(self.count, *self._shape))
        return np.array(self._map[index])


class WrittenFrames:
    """Frames on their way into a scene folder: written once, then read back, whole or small; the last few are kept."""

    def __init__(self, writer: SceneWriter, size: tuple[int, int], keep: int = 8):
        self.size, self.files = size, []
        self.small_size = tuple(max(1, round(s * min(1.0, _SMALL / min(size)))) for s in size)
        self._writer, self._keep, self._small = writer, keep, SmallImages()
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()

    def append(self, frame: np.ndarray) -> None:
        """Write the next frame."""
        index = len(self.files)
        self._writer.image(index, frame)
        self.files.append(self._writer.file("images", index))
        self._small.append(cv2.resize(frame, self.small_size[::-1], interpolation=cv2.INTER_AREA))

    def __len__(self) -> int:
        return len(self.files)

    def small(self, index: int) -> np.ndarray:
        """uint8 [h,w,3], the shorter side at most 240 pixels."""
        return self._small[int(index)]

    def __getitem__(self, index: int) -> np.ndarray:
        index = int(index)
        if index not in self._recent:
            self._recent[index] = read_image(self.files[index])
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return self._recent[index]


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    depth: str | Path | DepthProvider = "auto",
    poses: str | Path = "auto",
    fov: float | None = None,
    longest_side: int = LONGEST_SIDE,
    caption: str | None = None,
    masks: bool = True,
    replace_existing: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Write the scene folder of a video, an image, a folder of images, a scene folder or a DA3 folder.

    Args:
        out: the new folder. An existing scene folder is replaced at the end (kept if not `replace_existing`); anything
            else that exists is refused.
        depth: ``auto`` (the source's own; for moving cameras plane sweep; FastDepth; a tilted plane when its weights
            are not here), ``fastdepth``, ``sweep``, ``plane``, a DA3, Pi3 or scene folder of the same clip, or a
            provider object.
        poses: ``auto`` (the source's own; a standing camera where the picture stands; structure from motion),
            ``static``, ``sfm``, a DA3, Pi3 or scene folder, or a file of world_from_camera poses.
        fov: horizontal angle of view in degrees where the focal length is unknown (refused where it is known). Default:
            60, or estimated.
        longest_side: frames are shrunk to this.
        masks: whether to look for moving things and store masks.
        progress: told (stage, share of it done).

    Returns:
        `out`.

    Raises:
        InputError: bad source, option or output. Whatever happens, nothing half-written remains.
    """
    if longest_side < 64:
        raise InputError(f"longest_side: {longest_side} is too small; at least 64")
    if fov is not None and not 1 <= fov <= 170:
        raise InputError(f"fov: {fov} degrees is not an angle of view; 1 to 170")
    if not str(source).strip() or not str(out).strip():
        raise InputError("the name of the source or of the output is empty; give a path")
    source, out = Path(source), Path(out)
    progress = progress or (lambda stage, share: None)
    clip, given = _open(source, longest_side)
    _take(given, depth, "depth")
    _take(given, poses, "poses")
    if fov is not None and given.K is not None:
        raise InputError(f"{source}: fov is given, but intrinsics are known (scene, DA3 or Pi3 folder); leave fov out")
    try:
        with SceneWriter(out, replace=replace_existing) as writer:
            frames = WrittenFrames(writer, clip.size)
            for frame in itertools.islice(clip.frames(), given.count):
                frames.append(frame)
                progress("frames", min(1.0, len(frames) / max(1, clip.expected_frames)))
            if len(frames) == 0:
                raise InputError(f"{source}: no frame of it decodes; the file is empty or damaged")
            writer.flush()
            notices = [*clip.notices, *_check_counts(source, given, len(frames), clip)]
            cameras = _cameras(source.name, frames, given, poses, fov, progress)
            maps = _depth(frames, cameras, given, depth, progress)
            small_depth, median = _write_depth(writer, maps, frames)
            notices += [*cameras.notices, *maps.notices]
            if masks and len(frames) > 1 and (cameras.still or cameras.source != STANDING):
                _write_masks(writer, frames, cameras, small_depth, clip.fps, progress)
            metric = maps.metric
            entries = {
                "name": clip.name,
                "caption": caption,
                "metric": metric,
                "metres_per_unit": 1.0 if metric else DEFAULT_MEDIAN_DEPTH / median,
                "depth_unit_scale_factor": maps.unit,
                "depth_source": maps.source,
                "pose_source": cameras.source,
                "focal_source": cameras.focal_source,
                "notices": list(dict.fromkeys(notices)),
            }
            given.entries = {k: v for k, v in given.entries.items() if v is not None and k not in ("notices",)}
            entries = entries | {k: v for k, v in given.entries.items() if entries.get(k) is None or k == "name"}
            return writer.finish(cameras.K, cameras.world_from_camera, size=clip.size, fps=clip.fps, **entries)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None


# ------------------------------------------------------------------------------------------------- what the source is


def _open(source: Path, longest_side: int):
    if is_scene(source):
        scene = read_scene(source)
        clip = Images.of_files(scene.images, longest_side, scene.fps, scene.path.name)
        given = Given(
            count=len(scene.images),
            size=scene.size,
            K=scene.K,
            world_from_camera=scene.world_from_camera,
            pose_source=scene.pose_source,
            metric=scene.metric,
            entries={"name": scene.data.get("name"), "caption": scene.caption},
        )
        if scene.depths:
            given.depth = lambda i: read_depth(scene.depths[i], scene.depth_unit)
            given.depth_source = scene.depth_source
        return clip, given
    kind = released.kind(source)
    if kind:
        folder = released.read(source)
        if not folder.images:
            raise InputError(f"{source}: a {kind} folder without its frames; give the video, and this folder as depth")
        clip = Images.of_files(folder.images, longest_side, 24.0, source.name)
        given = Given(
            count=len(folder.images),
            size=folder.size,
            K=folder.K,
            world_from_camera=folder.world_from_camera,
            pose_source=kind,
            depth=folder.depth,
            depth_source=kind,
            metric=True,
        )
        return clip, given
    return open_clip(source, longest_side), Given()


def _take(given: Given, what, kind: str) -> None:
    """Let a folder given as `depth` or `poses` stand for the source's own."""
    known = ("auto", "fastdepth", "sweep", "plane") if kind == "depth" else ("auto", "static", "sfm")
    if not isinstance(what, (str, Path)) or str(what) in known:
        return
    path = Path(what)
    if released.kind(path):
        folder = released.read(path)
        count, size, K, path_poses, name = (
            folder.count, folder.size, folder.K, folder.world_from_camera, released.kind(path)
        )  # fmt: skip
        depth, metric = folder.depth, True
    elif is_scene(path):
        scene = read_scene(path)
        count, size, K, path_poses, name = len(scene.images), scene.size, scene.K, scene.world_from_camera, path.name
        depth = (lambda i: read_depth(scene.depths[i], scene.depth_unit)) if scene.depths else None
        metric = scene.metric
        if kind == "depth" and depth is None:
            raise InputError(f"depth {path}: that scene folder has no depth")
    elif kind == "poses" and path.is_file():
        loaded = np.asarray(load_poses(path))
        given.world_from_camera, given.pose_source, given.count = loaded, path.name, len(loaded)
        return
    else:
        raise InputError(f"{kind} {what}: not one of {', '.join(known)}, nor a DA3, Pi3 or scene folder")
    given.count = count
    if given.K is None:
        given.K, given.size = K, size
    if given.world_from_camera is None or kind == "poses":
        given.world_from_camera, given.pose_source = path_poses, name
    if kind == "depth":
        given.depth, given.depth_source, given.metric = depth, name, metric


def _check_counts(source: Path, given: Given, count: int, clip) -> list[str]:
    if given.count is None or given.count == count:
        more = clip.expected_frames > count and given.count is not None
        return [f"{source.name}: only its first {count} frames have depth and poses, and are used"] if more else []
    raise InputError(f"{source}: {count} frames, but depth or poses for {given.count}; they must be of the same clip")


# ------------------------------------------------------------------------------------------------------------- cameras


def _cameras(name: str, frames: WrittenFrames, given: Given, poses, fov: float | None, progress: Progress) -> Cameras:
    count, size = len(frames), frames.size
    K = None
    if given.K is not None:
        K = scale_intrinsics(torch.as_tensor(given.K), given.size, size).numpy()
    if given.world_from_camera is not None and poses != "static" and poses != "sfm":
        path = np.asarray(given.world_from_camera, np.float64)[:count]
        for i, rigid in enumerate(is_rigid(torch.as_tensor(path), RIGID_TOLERANCE).tolist()):
            if not rigid:
                raise InputError(f"{name}: the pose of frame {i} is not a rigid motion (a finite rotation and shift)")
        at_origin = standing(count, size, fov, source=given.pose_source)
        still = bool(np.abs(path - path[0]).max() < 1e-9)
        at_origin = replace(at_origin, world_from_camera=path, still=still, metric=given.metric)
        return at_origin if K is None else replace(at_origin, K=K[:count], focal_source="given")

    at_origin = standing(count, size, fov, source=STANDING, still=True)
    if K is not None:
        at_origin = replace(at_origin, K=K[:count], focal_source="given")
    if poses == "static":
        return at_origin
    progress("camera", 0.0)
    motion = camera_motion(frames) if poses == "auto" else np.inf
    if motion is None:
        notice = f"{name}: cannot tell whether the camera moves: taken as still; give poses (or poses sfm) if it moves"
        return replace(at_origin, notices=(notice,))
    if motion <= STILL:
        return at_origin
    moving = replace(at_origin, still=False)
    known_K = None if moving.focal_source == "assumed" else moving.K[0]
    if importlib.util.find_spec("pycolmap") is None:
        problem = "install the extra `inspatio[sfm]`"
        if poses == "sfm":
            raise InputError(f"poses sfm: pycolmap is not installed; {problem}")
    else:
        from inspatio_core.reference.sfm import NoPath, StructureFromMotion

        try:
            return StructureFromMotion().estimate(frames, known_K, progress)
        except NoPath as error:
            if poses == "sfm":
                raise InputError(f"{name}: structure from motion found no camera path ({error})") from None
            problem = f"structure from motion found no path ({error})"
    notice = f"moving camera but no poses: {problem}, or give poses; until then the camera is taken to stand still"
    return replace(moving, notices=(notice,))


# --------------------------------------------------------------------------------------------------------- depth, masks


def _depth(frames: WrittenFrames, cameras: Cameras, given: Given, depth, progress: Progress) -> DepthMaps:
    if given.depth is not None and (depth == "auto" or isinstance(depth, Path) or not _named(depth)):
        return _given_depth(frames, given, progress)
    return _provider(depth, cameras).estimate(frames, cameras, progress)


def _named(depth) -> bool:
    return not isinstance(depth, str) or depth in ("auto", "fastdepth", "sweep", "plane")


def _provider(depth, cameras: Cameras) -> DepthProvider:
    if not isinstance(depth, (str, Path)):
        return depth
    if depth == "plane":
        return TiltedPlane()
    if depth == "fastdepth":
        return FastDepth()
    posed = not cameras.still and cameras.source != STANDING
    network = FastDepth() if _has_fastdepth() else None
    if depth == "sweep" and not posed:
        raise InputError("depth sweep: needs a camera that moves, with poses; choose depth fastdepth or plane")
    if posed:
        from inspatio_core.reference.sweep import PlaneSweep

        return PlaneSweep(network)
    return network or TiltedPlane()


def _has_fastdepth() -> bool:
    return checkpoints.locate("fastdepth") is not None and importlib.util.find_spec("onnxruntime") is not None


def _given_depth(frames: WrittenFrames, given: Given, progress: Progress) -> DepthMaps:
    count = len(frames)
    far = 0.0
    for i in range(count):
        values = np.asarray(given.depth(i))
        finite = values[np.isfinite(values) & (values > 0)]
        if not finite.size:
            raise InputError(f"depth of frame {i}: no pixel has a finite, positive depth")
        # A handful of wild values must not cost everyone else their resolution.
        far = max(far, min(float(finite.max()), 20 * float(np.quantile(finite, 0.99))))

    def read() -> Iterable[np.ndarray]:
        for i in range(count):
            progress("depth", i / count)
            values = sanitise_depth(given.depth(i), f"depth of frame {i}", far)
            yield np.minimum(resize_depth(values, frames.size), far)

    return DepthMaps(iter(read()), far, given.depth_source, metric=given.metric)


def _write_depth(writer: SceneWriter, maps: DepthMaps, frames: WrittenFrames) -> tuple[SmallImages, float]:
    """Write all depth maps; the same at the frames' small size, and the median of their medians, in scene units."""
    small, medians = SmallImages(), []
    for i, depth in enumerate(maps.frames):
        writer.depth(i, depth, maps.unit)
        small.append(cv2.resize(depth, frames.small_size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))
        medians.append(np.median(small.last[::2, ::2]))
    writer.flush()
    return small, float(np.median(medians))


def _write_masks(
    writer: SceneWriter, frames: WrittenFrames, cameras: Cameras, depth: SmallImages, fps: float, progress: Progress
) -> None:
    """Find and write masks of what moves, from the small frames; at 20 frames a second and more for every other frame,
    the ones in between being the union of their neighbours'."""
    count, size = len(frames), frames.size
    K = scale_intrinsics(torch.as_tensor(cameras.K), size, frames.small_size).numpy()
    step = 2 if fps >= 20 and count > 8 else 1
    indices = sorted({*range(0, count, step), count - 1})
    found = motion_masks(frames.small, depth.__getitem__, K, cameras.world_from_camera, indices)
    before, written = None, 0
    for i, moving in zip(indices, found):
        progress("masks", i / count)
        for j in range(written, i + 1):
            here = moving if j == i or before is None else moving | before
            full = cv2.resize(here.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
            writer.mask(j, full > 0.5)
        before, written = moving, i + 1
