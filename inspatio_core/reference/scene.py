"""Scene folders: a clip with depth, poses, intrinsics and masks, in the layout of nerfstudio, written and read.

::

    scene/
        transforms.json       nerfstudio's, plus what it has no word for
        images/000000.jpg     frames, in order of time
        depth/000000.png      16-bit, z along the optical axis = value * depth_unit_scale_factor, 0 = unknown
        masks/000000.png      optional; white = static, black = something moves there

``transforms.json`` holds, beside nerfstudio's ``camera_model, w, h, fl_x, fl_y, cx, cy`` (pixel centres at
half-integers there: ``cx`` is ours + 0.5) and per frame ``file_path, depth_file_path, mask_path, transform_matrix``
(camera to world, OpenGL axes: x right, y up, z backward):

    ================================  ============================================================================
    ``depth_unit_scale_factor``       scene units per count of a depth image (nerfstudio's option of the same name)
    ``fps``                           frames per second of the source
    ``metric``, ``metres_per_unit``   whether the scale is known, and the metres of one scene unit
    ``depth_source, pose_source``     what made depth and poses
    ``focal_source``                  ``given``, ``estimated`` or ``assumed``
    ``name, caption, notices``        for the user
    frames: ``true_moving_path``      exact masks of moving things (rendered scenes), white = moving
    ================================  ============================================================================

Folders written by other tools are read too; then every entry of the table may be missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from inspatio_core.errors import InputError
from inspatio_core.reference.reference import Reference

TRANSFORMS = "transforms.json"
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV camera axes -> OpenGL camera axes, and back
MILLIMETRE = 0.001
_MOST_PIXELS = 65536  # a side
_SHORTEST, _LONGEST = 1e-3, 1e9  # pixels, of focal lengths


def read_image(path: Path) -> np.ndarray:
    """uint8 [H,W,3] RGB of an image file of any kind, turned upright. Raises `InputError`."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise InputError(f"{path}: {'not an image' if path.is_file() else 'no such file'}; give a jpg, png or webp")
    return image


def write_image(path: Path, image: np.ndarray, *params: int) -> None:
    """Write an RGB, grey or 16-bit image; `params` as of ``cv2.imwrite``. Raises `OSError` when that fails."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), image, params):
        raise OSError(f"cannot write {path}")


def read_depth(path: Path, unit: float = MILLIMETRE) -> np.ndarray:
    """float32 [H,W] in scene units from a 16-bit PNG (times `unit`), an .npy (times `unit`), or a PNG whose RGBA bytes
    are the little-endian float32 of each pixel (as it is). Unknown values are left as they are. Raises `InputError`.
    """
    try:
        if path.suffix == ".npy":
            depth = np.load(path)
            return depth.reshape(depth.shape[:2]).astype(np.float32) * np.float32(unit)
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError, cv2.error) as error:
        raise InputError(f"{path}: cannot be read as depth ({error})") from None
    if image is not None and image.dtype == np.uint16 and image.ndim == 2:
        return image.astype(np.float32) * np.float32(unit)
    if image is not None and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 4:
        rgba = np.ascontiguousarray(image[..., [2, 1, 0, 3]])
        return rgba.view("<f4")[..., 0].astype(np.float32)
    what = "is missing or broken" if image is None else "is not a depth image"
    raise InputError(f"{path}: {what}; depth is a 16-bit PNG, a PNG of float32 bytes, or .npy")


def natural_order(name: str) -> list:
    """Sort key that puts frame_2 before frame_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(name))]


@dataclass(frozen=True)
class FileSource:
    """A `FrameSource` over files, one of each kind a frame.

    Attributes:
        to_depth: reads one depth file, in scene units. moving_white: whether white means moving in the masks.
    """

    images: tuple[Path, ...]
    depths: tuple[Path, ...]
    masks: tuple[Path, ...]
    to_depth: Callable[[Path], np.ndarray]
    moving_white: bool = False

    @property
    def has_moving(self) -> bool:
        """Whether there are masks."""
        return bool(self.masks)

    def rgb(self, index: int) -> np.ndarray:
        """uint8 [H,W,3]."""
        return read_image(self.images[index])

    def depth(self, index: int) -> np.ndarray:
        """float32 [H',W'] in scene units, as stored."""
        return self.to_depth(self.depths[index])

    def moving(self, index: int) -> np.ndarray:
        """bool [H',W'], True where something moves."""
        mask = cv2.imread(str(self.masks[index]), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise InputError(f"{self.masks[index]}: missing or not an image; masks are grey images, white = static")
        return (mask > 127) == self.moving_white


@dataclass(frozen=True)
class Scene:
    """What a scene folder's ``transforms.json`` says, checked: paths resolved, cameras in this project's conventions.

    Attributes:
        images, depths, masks, true_masks: one path a frame; the last three may be empty.
        size: (height, width). K: float64 [N,3,3] pixels, pixel centres at integers. world_from_camera: float64 [N,4,4],
        OpenCV axes, scene units. fps: frames per second. depth_unit: scene units per count of a depth image.
        metric: whether the scale is known. metres_per_unit: metres of one scene unit, None where it is not said.
        name, caption, depth_source, pose_source: as stored, or what stands for them. notices: one-line warnings.
        data: the JSON as it is.
    """

    path: Path
    images: tuple[Path, ...]
    depths: tuple[Path, ...]
    masks: tuple[Path, ...]
    true_masks: tuple[Path, ...]
    size: tuple[int, int]
    K: np.ndarray
    world_from_camera: np.ndarray
    fps: float
    depth_unit: float
    metric: bool
    metres_per_unit: float | None
    name: str
    caption: str | None
    depth_source: str
    pose_source: str
    notices: tuple[str, ...]
    data: dict


def is_scene(path: str | Path) -> bool:
    """Whether `path` is a folder with a ``transforms.json``."""
    return (Path(path) / TRANSFORMS).is_file()


class _Entries:
    """An object of the JSON whose entries are checked as they are read; null counts as missing.

    Args:
        where: what messages begin with. outer: where entries are looked for that are not here.
    """

    def __init__(self, data: dict, where: str, outer: _Entries | None = None):
        self._data, self._where, self._outer = data, where, outer

    def _get(self, key: str):
        found = self._data.get(key)
        return self._outer._get(key) if found is None and self._outer is not None else found

    def error(self, key: str, must: str) -> InputError:
        """What to raise about `key`."""
        return InputError(f"{self._where}{key} must be {must}, not {json.dumps(self._get(key))[:60]}")

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float | None:
        """A finite number from low to high."""
        found = self._get(key)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not low <= found <= high:
            raise self.error(key, f"a number from {low:g} to {high:g}")
        return float(found)

    def needed(self, key: str, low: float, high: float) -> float:
        """The same, of an entry that must be there."""
        found = self.number(key, low, high)
        if found is None:
            raise InputError(f"{self._where}no {key}; intrinsics are w, h, fl_x, fl_y, cx, cy")
        return found

    def text(self, key: str, default: str | None = None) -> str | None:
        """A string; an empty one counts as missing."""
        found = self._get(key)
        if found is not None and not isinstance(found, str):
            raise self.error(key, "a string")
        return found or default

    def flag(self, key: str) -> bool:
        """true or false; false where missing."""
        found = self._get(key)
        if found is not None and not isinstance(found, bool):
            raise self.error(key, "true or false")
        return bool(found)

    def texts(self, key: str) -> list[str]:
        """A list of strings; empty where missing."""
        found = self._get(key)
        if found is not None and not (isinstance(found, list) and all(isinstance(n, str) for n in found)):
            raise self.error(key, "a list of strings")
        return found or []

    def matrix(self, key: str) -> np.ndarray:
        """float64 [4,4]."""
        try:
            found = np.asarray(self._get(key), np.float64)
        except (TypeError, ValueError, OverflowError):
            found = None
        if found is None or found.shape != (4, 4):
            raise self.error(key, "a 4x4 matrix of numbers")
        return found


def read_scene(path: str | Path) -> Scene:
    """Read and check a folder's ``transforms.json``.

    Raises:
        InputError: one line that names the file, the entry and what it must be.
    """
    path = Path(path)
    file = path / TRANSFORMS
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        listed = sorted(data["frames"], key=lambda frame: natural_order(frame["file_path"]))
    except OSError:
        raise InputError(
            f"{path}: no {TRANSFORMS} in it; give a scene folder, a video, or a folder of images"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not a scene description ({type(error).__name__}: {error})") from None
    if not listed:
        raise InputError(f"{file}: lists no frames")
    top = _Entries(data, f"{file}: ")
    frames = [_Entries(frame, f"{file}: frame {i}: ", top) for i, frame in enumerate(listed)]
    own = [_Entries(frame, f"{file}: frame {i}: ") for i, frame in enumerate(listed)]

    def paths(key: str) -> tuple[Path, ...]:
        names = [name for frame in own if (name := frame.text(key))]
        if names and len(names) != len(frames):
            raise InputError(f"{file}: {len(names)} of {len(frames)} frames have a {key}; give it for all or none")
        for name in names:
            if not (path / name).is_file():
                raise InputError(f"{file}: names {name}, which is not there; prepare the scene anew")
        return tuple(path / name for name in names)

    images = paths("file_path")
    if not images:
        raise InputError(f"{file}: frames have no file_path")
    size = (int(frames[0].needed("h", 1, _MOST_PIXELS)), int(frames[0].needed("w", 1, _MOST_PIXELS)))
    seen = read_image(images[0]).shape[:2]
    if size != seen:
        raise InputError(f"{file}: w, h are {size[1]}, {size[0]}, but {images[0].name} is {seen[1]}x{seen[0]} pixels")
    K = np.zeros((len(frames), 3, 3))
    for i, frame in enumerate(frames):
        focal = frame.needed("fl_x", _SHORTEST, _LONGEST)
        K[i, 0, 0], K[i, 1, 1], K[i, 2, 2] = focal, frame.number("fl_y", _SHORTEST, _LONGEST, focal), 1
        K[i, 0, 2] = frame.number("cx", -_LONGEST, _LONGEST, size[1] / 2) - 0.5
        K[i, 1, 2] = frame.number("cy", -_LONGEST, _LONGEST, size[0] / 2) - 0.5
    notices = top.texts("notices")
    if any([top.number(k, -_LONGEST, _LONGEST, 0.0) for k in ("k1", "k2", "k3", "k4", "p1", "p2")]):
        notices = notices + [
            f"{path.name}: lens distortion in {TRANSFORMS} is ignored; undistort the images for best results"
        ]
    return Scene(
        path=path,
        images=images,
        depths=paths("depth_file_path"),
        masks=paths("mask_path"),
        true_masks=paths("true_moving_path"),
        size=size,
        K=K,
        world_from_camera=np.stack([frame.matrix("transform_matrix") @ OPENGL for frame in own]),
        fps=top.number("fps", 1e-3, 1e4, 24.0),
        depth_unit=top.number("depth_unit_scale_factor", 1e-12, 1e9, MILLIMETRE),
        metric=top.flag("metric"),
        metres_per_unit=top.number("metres_per_unit", 1e-12, 1e12),
        name=top.text("name", path.resolve().name),
        caption=top.text("caption"),
        depth_source=top.text("depth_source", "scene"),
        pose_source=top.text("pose_source", "scene"),
        notices=tuple(notices),
        data=data,
    )


def open_scene(path: str | Path, *, metres_per_unit: float | None = None, moving: str = "auto") -> Reference:
    """Open a scene folder that has depth.

    Args:
        metres_per_unit: overrides the scene's own.
        moving: ``auto`` takes the scene's masks, ``true`` the exact ones of a rendered scene, ``none`` none.
    """
    scene = read_scene(path)
    if not scene.depths:
        raise InputError(f"{scene.path}: its frames have no depth_file_path; prepare it with a depth provider first")
    if moving not in ("auto", "true", "none"):
        raise InputError(f"moving must be auto, true or none, not {moving!r}")
    if moving == "true" and not scene.true_masks:
        raise InputError(f"{scene.path}: has no exact moving masks (true_moving_path)")
    source = FileSource(
        images=scene.images,
        depths=scene.depths,
        masks={"auto": scene.masks, "true": scene.true_masks, "none": ()}[moving],
        to_depth=lambda file: read_depth(file, scene.depth_unit),
        moving_white=moving == "true",
    )
    return Reference.from_source(
        source,
        scene.K,
        scene.world_from_camera,
        fps=scene.fps,
        size=scene.size,
        name=scene.name,
        path=scene.path.resolve(),
        metric=scene.metric,
        metres_per_unit=scene.metres_per_unit if metres_per_unit is None else metres_per_unit,
        caption=scene.caption,
        depth_source=scene.depth_source,
        pose_source=scene.pose_source,
        notices=scene.notices,
    )


class SceneWriter:
    """Writes a scene folder under a temporary name and renames it when it is complete; a context manager.

    Left without `finish`, or by an exception, nothing remains. An existing scene folder at `out` is replaced as
    the last act (kept if not `replace`); any other non-empty folder or file is refused with `InputError`.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        replace: bool = True,
        image_suffix: str = ".jpg",
        quality: int = 95,
        png_level: int = 3,
        threads: int = 2,
    ):
        self.out = Path(out)
        if self.out.exists() and not is_scene(self.out) and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise InputError(f"{self.out}: exists and is not a scene folder; name another output")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".tmp", dir=self.out.parent))
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written ({error.strerror})") from None
        self._keep_existing = not replace
        self._suffix = image_suffix
        self._quality = quality
        self._png_level = png_level
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._pending: list[Future] = []

    def __enter__(self) -> SceneWriter:
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _submit(self, *task) -> None:
        """Queue a write; the queue is kept short, so that memory stays bounded however fast frames come."""
        self._pending.append(self._pool.submit(*task))
        while len(self._pending) > 4 * self._threads:
            self._pending.pop(0).result()

    def flush(self) -> None:
        """Wait for everything queued; raises what a write raised."""
        while self._pending:
            self._pending.pop(0).result()

    def file(self, kind: str, index: int) -> Path:
        """Where frame `index` of ``images``, ``depth``, ``masks`` or ``true_moving`` lies while writing."""
        folder = self.path / kind
        folder.mkdir(exist_ok=True)
        return folder / f"{index:06d}{self._suffix if kind == 'images' else '.png'}"

    def image(self, index: int, rgb: np.ndarray) -> None:
        """Queue frame `index`, uint8 [H,W,3]."""
        quality = cv2.IMWRITE_WEBP_QUALITY if self._suffix == ".webp" else cv2.IMWRITE_JPEG_QUALITY
        self._submit(write_image, self.file("images", index), rgb, quality, self._quality)

    def depth(self, index: int, depth: np.ndarray, unit: float) -> None:
        """Queue depth [H,W] in scene units; what is not positive and finite is stored as 0, unknown."""

        def write(path: Path) -> None:
            valid = np.isfinite(depth) & (depth > 0)
            counts = np.clip(np.rint(np.where(valid, depth, 0) / unit), valid, 65535).astype(np.uint16)
            write_image(path, counts, *PAETH, cv2.IMWRITE_PNG_COMPRESSION, self._png_level)

        self._submit(write, self.file("depth", index))

    def mask(self, index: int, moving: np.ndarray) -> None:
        """Queue a mask [H,W], True where something moves (stored black)."""
        self._submit(write_image, self.file("masks", index), np.where(moving, 0, 255).astype(np.uint8), *BILEVEL)

    def true_moving(self, index: int, moving: np.ndarray) -> None:
        """Queue an exact mask [H,W] of a rendered scene, True where something moves (stored white)."""
        self._submit(write_image, self.file("true_moving", index), np.where(moving, 255, 0).astype(np.uint8), *BILEVEL)

    def finish(
        self, K: np.ndarray, world_from_camera: np.ndarray, *, size: tuple[int, int], fps: float, **entries
    ) -> Path:
        """Write ``transforms.json`` and put the folder in its place.

        Args:
            K: [3,3] or [N,3,3]. world_from_camera: [N,4,4], OpenCV axes, scene units. size: (height, width).
            entries: further top-level entries, as in the table above.
        """
        self.flush()
        count = len(world_from_camera)
        K = np.broadcast_to(np.asarray(K, np.float64), (count, 3, 3))
        constant = bool((K == K[0]).all())

        def intrinsics(k: np.ndarray) -> dict:
            return {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5}

        kinds = {
            "images": "file_path",
            "depth": "depth_file_path",
            "masks": "mask_path",
            "true_moving": "true_moving_path",
        }
        frames = []
        for i in range(count):
            files = {key: self.file(kind, i) for kind, key in kinds.items() if (self.path / kind).is_dir()}
            frames.append(
                {key: file.relative_to(self.path).as_posix() for key, file in files.items()}
                | ({} if constant else intrinsics(K[i]))
                | {"transform_matrix": (np.asarray(world_from_camera[i], np.float64) @ OPENGL).tolist()}
            )
        data = {"camera_model": "OPENCV", "w": int(size[1]), "h": int(size[0])}
        data |= intrinsics(K[0]) if constant else {}
        data |= {"fps": float(fps)} | {k: v for k, v in entries.items() if v is not None} | {"frames": frames}
        (self.path / TRANSFORMS).write_text(_dumps(data), encoding="utf-8")
        os.chmod(self.path, 0o755)
        self._replace()
        return self.out

    def _replace(self) -> None:
        old = None
        if self._keep_existing and is_scene(self.out):
            return  # somebody else was faster
        if self.out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".old", dir=self.out.parent))
            os.rename(self.out, old / "scene")
        try:
            os.rename(self.path, self.out)
        except OSError:
            if not (self._keep_existing and is_scene(self.out)):  # else somebody was faster just now
                raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


BILEVEL = (cv2.IMWRITE_PNG_BILEVEL, 1)
PAETH = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH)  # a third smaller on depth than OpenCV's default


def _dumps(data: dict) -> str:
    """JSON with one frame a line: readable, and small in a diff."""
    frames = ",\n".join("  " + json.dumps(frame) for frame in data["frames"])
    head = json.dumps({k: v for k, v in data.items() if k != "frames"}, indent=1, ensure_ascii=False)
    return f'{head[:-2]},\n "frames": [\n{frames}\n ]\n}}\n'
