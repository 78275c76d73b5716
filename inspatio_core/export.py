"""Writing results: video, poses, depth. Nothing appears under its final name before it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from scipy.spatial.transform import Rotation

from inspatio_core.atomic import beside, replacing
from inspatio_core.errors import InputError
from inspatio_core.reference.scene import MILLIMETRE, write_image

MANIFEST = "render.json"
"""The file that marks a folder as written by a render, with the list of what it holds."""


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the missing parents of ``path``, and take them away again if the body fails."""
    missing = [p for p in path.parents if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError("no write permission")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path.parent}: cannot write there ({reason}); choose another place") from error
    try:
        yield
    except BaseException:
        for parent in missing:
            try:
                parent.rmdir()
            except OSError:
                break
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` on success, remove it on any failure."""
    path = Path(path).absolute()
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file name")
    with _parents(path), replacing(path) as partial:
        yield partial


def check_replaceable(path: str | Path) -> None:
    """Raise InputError unless ``path`` is free, an empty folder, or an earlier render and nothing else.

    A folder is replaced as a whole, so a foreign file in it (a user's notes, another program's result) stops the
    render instead of being lost.
    """
    path = Path(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: is a file; give -o a folder, or a name ending in .mp4 for the video alone")
    names = {p.name for p in path.iterdir()}
    if not names:
        return
    try:
        held = set(json.loads((path / MANIFEST).read_text())["files"]) | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is not empty and not an earlier render; choose another place") from None
    if foreign := sorted(names - held):
        raise InputError(f"{path}: holds {foreign[0]}, which is not part of the earlier render; choose another place")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it to ``path`` on success, remove it on any failure.

    An earlier render at ``path`` is replaced (see `check_replaceable`) and stays untouched when the body fails.
    """
    path = Path(path).absolute()
    check_replaceable(path)
    with _parents(path):
        partial, old = beside(path), beside(path)
        partial.mkdir()
        try:
            yield partial
            if path.exists():
                os.rename(path, old)
            os.rename(partial, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.rename(old, path)
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


class VideoWriter:
    """H.264 mp4, one frame at a time: yuv420p, BT.709 tagged, constant frame rate.

    Args:
        path: where the file goes, under this very name (wrap in `atomic_file` where that matters).
        size: (height, width), both even (4:2:0 chroma).
        fps: frames per second; broadcast rates such as 29.97 become their exact fraction.
        crf: x264 quality, smaller is better; 18 is visually lossless.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: float, crf: int = 18):
        height, width = size
        if height % 2 or width % 2:
            raise InputError(f"--size {height}x{width}: H.264 video needs an even height and width")
        if not (np.isfinite(fps) and 0 < fps <= 1000):
            raise InputError(f"--fps {fps}: give a frame rate above 0 and at most 1000")
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=frame_rate(fps), options={"crf": str(crf)})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        codec = self._stream.codec_context
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._size = size
        self.frames = 0

    def write(self, rgb: np.ndarray) -> None:
        """Append one frame, uint8 [H, W, 3]."""
        if rgb.shape != (*self._size, 3) or rgb.dtype != np.uint8:
            raise ValueError(f"expected uint8 {(*self._size, 3)}, got {rgb.dtype} {rgb.shape}")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        frame.pts = self.frames
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        if self._container is not None:
            container, self._container = self._container, None
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def frame_rate(fps: float) -> Fraction:
    """The fraction meant by ``fps``: 23.976 is 24000/1001, 24 is 24, anything else within 1e-4."""
    for base in (24, 30, 48, 60, 120):
        if abs(fps - base * 1000 / 1001) < 2e-3:
            return Fraction(base * 1000, 1001)
    return Fraction(fps).limit_denominator(1000)


def write_tum(path: str | Path, stamps: Sequence[float], poses: np.ndarray) -> None:
    """Poses as ``stamp tx ty tz qx qy qz qw`` lines (TUM RGB-D): world_from_camera [N, 4, 4], OpenCV axes, seconds.

    Neighbouring quaternions are sign-aligned, so the columns can be plotted or interpolated as they stand.
    """
    poses = np.asarray(poses, np.float64).reshape(-1, 4, 4)
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    for i in range(1, len(quaternions)):
        if quaternions[i] @ quaternions[i - 1] < 0:
            quaternions[i] *= -1
    rows = np.column_stack([np.asarray(stamps, np.float64), poses[:, :3, 3], quaternions])
    np.savetxt(path, rows, fmt="%.9f", header="timestamp tx ty tz qx qy qz qw (world_from_camera, OpenCV axes)")


def write_kitti(path: str | Path, poses: np.ndarray) -> None:
    """Poses as twelve numbers a line (KITTI odometry): the upper 3x4 of world_from_camera, row by row, OpenCV axes."""
    np.savetxt(path, np.asarray(poses, np.float64).reshape(-1, 4, 4)[:, :3].reshape(-1, 12), fmt="%.12g")


def write_depth_png(path: str | Path, depth: np.ndarray) -> None:
    """One depth map, float32 [H, W] in metres, as a 16-bit PNG in millimetres (0 = unknown)."""
    steps = np.clip(np.rint(depth / MILLIMETRE), 0, 65535).astype(np.uint16)
    write_image(path, steps, cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH)


def write_mask_png(path: str | Path, mask: np.ndarray) -> None:
    """One mask, bool [H, W], as a black and white PNG (lossless: a mask does not survive a video codec)."""
    write_image(path, mask.astype(np.uint8) * 255, cv2.IMWRITE_PNG_BILEVEL, 1)
