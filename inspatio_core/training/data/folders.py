"""Recorded clips on disk: folders in the style of RealEstate10K (one moving camera) and MultiCamVideo (ten cameras).

Both come back in our conventions: world_from_camera with OpenCV axes in a right-handed world, intrinsics in pixels
with pixel centres at integer coordinates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import invert_pose, is_rigid, nearest_rigid, scale_intrinsics

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
SENSOR = 23.76
"""Millimetres, width of the MultiCamVideo sensor."""


@dataclass(eq=False)
class Recording:
    """V synchronised cameras over F frames, without depth.

    rgb: uint8 [V,F,H,W,3]. K: float64 [V,F,3,3]. world_from_camera: float64 [V,F,4,4]. metric: whether in metres.
    """

    rgb: Tensor
    K: Tensor
    world_from_camera: Tensor
    fps: float
    name: str
    metric: bool


# ---- RealEstate10K --------------------------------------------------------------------------------------------------


def re10k_clips(root: str | Path) -> list[Path]:
    """The camera files (*.txt whose frames lie beside them) below a folder, sorted."""
    return sorted(p for p in Path(root).rglob("*.txt") if _frames_beside(p) is not None)


def read_re10k_cameras(path: str | Path) -> tuple[np.ndarray, Tensor, Tensor]:
    """Timestamps int64 [F] in microseconds, K float64 [F,3,3] for a picture of 1x1, and world_from_camera [F,4,4].

    The file: a URL, then per frame the timestamp, fx fy cx cy in widths and heights of the picture, two zeros, and the
    3x4 matrix camera_from_world row by row. The scale of a clip is arbitrary. Raises `InputError`.

    K is that of a picture of one pixel with its centre at 0: cx = 0 in the middle; `scale_intrinsics` from (1, 1) makes
    it that of any size.
    """
    path = Path(path)
    try:
        lines = path.read_text().splitlines()[1:]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    rows = []
    for number, line in enumerate(lines, 2):
        if line.strip():
            try:
                row = [float(k) for k in line.split()]
            except ValueError:
                row = []
            if len(row) != 19:
                raise InputError(f"{path}: line {number} needs 19 numbers: time, fx fy cx cy, 0 0, a 3x4 matrix")
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: no frames in it")
    table = torch.tensor(rows, dtype=torch.float64)
    K = torch.zeros(len(rows), 3, 3, dtype=torch.float64)
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = table[:, 1], table[:, 2], 1.0
    K[:, 0, 2], K[:, 1, 2] = table[:, 3] - 0.5, table[:, 4] - 0.5
    camera_from_world = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    camera_from_world[:, :3] = table[:, 7:].view(-1, 3, 4)
    return table[:, 0].round().long().numpy(), K, invert_pose(_rigid(camera_from_world, path))


def read_re10k(
    path: str | Path, size: tuple[int, int], *, start: int = 0, frames: int | None = None, stride: int = 1
) -> Recording:
    """The clip of a camera file, resized and cropped to `size` (height, width); V = 1.

    Its pictures lie beside it in a folder of its name, called by their timestamps or in the order of the lines, or in a
    video of its name, cut to the clip (as many frames as lines) or whole (found by time). Raises `InputError`.
    """
    path = Path(path)
    times, K, poses = read_re10k_cameras(path)
    chosen = _choose(len(times), start, frames, stride, path)
    source = _frames_beside(path)
    if source is None:
        raise InputError(f"{path}: needs a folder or a video of the same name beside it")
    if source.is_dir():
        files = sorted((p for p in source.iterdir() if p.suffix.lower() in _IMAGES), key=_natural)
        by_time = {int(p.stem): p for p in files if p.stem.isdecimal()}
        if all(int(t) in by_time for t in times[chosen]):
            files = [by_time[int(t)] for t in times[chosen]]
        elif len(files) == len(times):
            files = [files[i] for i in chosen]
        else:
            raise InputError(f"{source}: {len(files)} pictures for {len(times)} lines, not called by their timestamps")
        pictures = [_read_image(p) for p in files]
    else:
        _, total = _video_info(source)
        if total == len(times):
            pictures = _read_video(source, indices=chosen)
        else:
            pictures = _read_video(source, seconds=times[chosen] / 1e6)
    steps = np.diff(times[chosen])
    fps = 1e6 / float(np.median(steps)) if len(steps) and (steps > 0).all() else 30.0
    rgb, K = _fit(pictures, K[chosen], (1, 1), size, path)
    return Recording(rgb[None], K[None], poses[chosen][None], fps, path.stem, metric=False)


def _frames_beside(path: Path) -> Path | None:
    folder = path.with_suffix("")
    if folder.is_dir():
        return folder
    return next((v for v in (path.with_suffix(s) for s in _VIDEOS) if v.is_file()), None)


# ---- MultiCamVideo --------------------------------------------------------------------------------------------------


def multicam_scenes(root: str | Path) -> list[Path]:
    """The scene folders (with cameras/camera_extrinsics.json and videos/) below a folder, sorted."""
    found = Path(root).rglob("cameras/camera_extrinsics.json")
    return sorted((p.parent.parent for p in found if (p.parent.parent / "videos").is_dir()), key=lambda p: str(p))


def unreal_pose(matrix: Tensor) -> Tensor:
    """world_from_camera [..,4,4] in metres from Unreal's camera matrices [..,4,4] as MultiCamVideo stores them.

    Stored are rows: the camera's axes forward, right, up and its place in centimetres, in a left-handed world of X
    forward, Y right, Z up. The camera's columns become right, down, forward; so do the world's axes, which makes it
    right-handed.
    """
    T = matrix.to(torch.float64).mT[..., [1, 2, 0, 3]].clone()
    T[..., :, 1] *= -1.0
    T[..., :3, 3] /= 100.0
    T = T[..., [1, 2, 0, 3], :]
    T[..., 1, :] *= -1.0
    return T


def read_multicam_cameras(scene: str | Path) -> dict[str, Tensor]:
    """world_from_camera [F,4,4] of every camera of a scene folder. Raises `InputError`."""
    path = Path(scene) / "cameras" / "camera_extrinsics.json"
    try:
        table = json.loads(path.read_text())
        steps = [table[name] for name in sorted(table, key=_natural_name)]
        names = sorted(steps[0], key=_natural_name)
        stored = {name: torch.tensor([_numbers(step[name]) for step in steps]) for name in names}
        poses = {name: unreal_pose(rows.view(-1, 4, 4)) for name, rows in stored.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError):
        raise InputError(f'{path}: needs {{"frame0": {{"cam01": "[4] [4] [4] [4] numbers", ...}}, ...}}') from None
    return {name: _rigid(T, path) for name, T in poses.items()}


def read_multicam(
    scene: str | Path,
    size: tuple[int, int],
    *,
    cameras: Sequence[str] | None = None,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    focal: float | None = None,
) -> Recording:
    """Some cameras (default: all) of a scene folder, resized and cropped to `size` (height, width).

    focal: millimetres; default: from the folder's name above the scene, as in "f18_aperture10". Raises `InputError`.
    """
    scene = Path(scene)
    poses = read_multicam_cameras(scene)
    if focal is None:
        found = re.match(r"f(\d+(?:\.\d+)?)", scene.parent.name)
        if not found:
            raise InputError(f"{scene}: give its focal length; the folder above should be called like f18_aperture10")
        focal = float(found[1])
    names = list(cameras) if cameras is not None else list(poses)
    missing = [n for n in names if n not in poses]
    if missing or not names:
        raise InputError(f"{scene}: no camera {', '.join(missing)}; it has {', '.join(poses)}")
    rgb, K, T, fps = [], [], [], 15.0
    for name in names:
        video = scene / "videos" / f"{name}.mp4"
        if not video.is_file():
            raise InputError(f"{video}: no such file")
        chosen = _choose(len(poses[name]), start, frames, stride, video)
        fps, total = _video_info(video)
        if total <= chosen[-1]:
            raise InputError(f"{video}: {total} frames, but frame {chosen[-1]} has a camera pose")
        pictures = _read_video(video, indices=chosen)
        height, width = pictures[0].shape[:2]
        f = focal / SENSOR * width
        k = torch.tensor([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]], dtype=torch.float64)
        pictures, k = _fit(pictures, k.repeat(len(chosen), 1, 1), (height, width), size, video)
        rgb.append(pictures)
        K.append(k)
        T.append(poses[name][chosen])
    return Recording(torch.stack(rgb), torch.stack(K), torch.stack(T), fps / stride, scene.name, metric=True)


def _numbers(text: str) -> list[float]:
    values = [float(k) for k in text.replace("[", " ").replace("]", " ").split()]
    if len(values) != 16:
        raise ValueError
    return values


# ---- pictures -------------------------------------------------------------------------------------------------------


def _natural_name(name: str):
    return [int(k) if k.isdecimal() else k for k in re.split(r"(\d+)", name)]


def _natural(path: Path):
    return _natural_name(path.name)


def _rigid(T: Tensor, path: Path) -> Tensor:
    fine = is_rigid(T, tol=1e-3)
    if not bool(fine.all()):
        raise InputError(f"{path}: the camera of frame {int((~fine).nonzero()[0])} is no rotation and translation")
    return nearest_rigid(T)


def _choose(total: int, start: int, frames: int | None, stride: int, path: Path) -> list[int]:
    if start < 0 or stride < 1 or (frames is not None and frames < 1):
        raise InputError(f"{path}: need start >= 0, stride >= 1, frames >= 1, got {start}, {stride}, {frames}")
    chosen = list(range(start, total, stride))[:frames]
    if not chosen or (frames is not None and len(chosen) < frames):
        raise InputError(f"{path}: {total} frames; not enough for {frames or 1} from {start} in steps of {stride}")
    return chosen


def _read_image(path: Path) -> np.ndarray:
    from inspatio_core.reference.scene import read_image

    return read_image(path)


def _decode(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            first = float((stream.start_time or 0) * stream.time_base)
            for frame in container.decode(stream):
                yield float(frame.time or 0.0) - first, frame
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise InputError(f"{path}: not a video that can be read ({error})") from None


def _video_info(path: Path) -> tuple[float, int]:
    """Rate and number of frames; decodes where the file does not say."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate, total = float(stream.average_rate or 30), stream.frames
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise InputError(f"{path}: not a video that can be read ({error})") from None
    return rate, total or sum(1 for _ in _decode(path))


def _read_video(
    path: Path, indices: Sequence[int] | None = None, seconds: np.ndarray | None = None
) -> list[np.ndarray]:
    """uint8 [H,W,3] of the frames with these numbers, or nearest to these times; both in rising order."""
    wanted = list(indices) if indices is not None else list(seconds)
    out: list[np.ndarray] = []
    last_time, last = None, None
    for number, (time, frame) in enumerate(_decode(path)):
        if indices is not None:
            if number == wanted[len(out)]:
                out.append(frame.to_ndarray(format="rgb24"))
        else:
            while len(out) < len(wanted) and time >= wanted[len(out)]:  # this one or the one before
                t = wanted[len(out)]
                nearer = last is not None and t - last_time < time - t
                out.append((last if nearer else frame).to_ndarray(format="rgb24"))
            last_time, last = time, frame
        if len(out) == len(wanted):
            return out
    if seconds is not None and last is not None and len(wanted) - len(out) == 1 and wanted[-1] - last_time < 0.05:
        return [*out, last.to_ndarray(format="rgb24")]
    raise InputError(f"{path}: ends before frame or second {wanted[len(out)]}")


def _fit(pictures: list[np.ndarray], K: Tensor, of: tuple[int, int], size: tuple[int, int], path: Path):
    """Shrink or enlarge until `size` is covered, cut out the middle; rgb uint8 [F,H,W,3] and K [F,3,3] of it.

    of: the (height, width) that K belongs to.
    """
    from inspatio_core.reference.reference import resize_rgb

    full = pictures[0].shape[:2]
    if any(p.shape[:2] != full for p in pictures):
        raise InputError(f"{path}: pictures of different sizes")
    scale = max(size[0] / full[0], size[1] / full[1])
    covering = tuple(max(s, round(f * scale)) for s, f in zip(size, full))
    top, left = ((c - s) // 2 for c, s in zip(covering, size))
    K = scale_intrinsics(K, of, covering).clone()
    K[:, 0, 2] -= left
    K[:, 1, 2] -= top
    cut = [resize_rgb(p, covering)[top : top + size[0], left : left + size[1]] for p in pictures]
    return torch.from_numpy(np.ascontiguousarray(np.stack(cut))), K
