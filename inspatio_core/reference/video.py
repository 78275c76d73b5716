"""Clips: a video file, a folder of images or one image, as upright RGB frames at a constant rate, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import cv2
import numpy as np

from inspatio_core.errors import InputError
from inspatio_core.reference.reference import resize_rgb
from inspatio_core.reference.scene import natural_order, read_image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}
MIN_SIDE = 16
MAX_FPS = 60.0
IMAGE_FPS = 24.0
_SLACK = 0.2  # seconds by which a file may be shorter than it states and count as whole
_REORDERED = 16  # frames that codecs store out of order, at most
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED: players then take BT.709 for HD


class Clip(Protocol):
    """A source of frames.

    Attributes:
        size: (height, width) of the frames that `frames` yields. fps: their rate.
        expected_frames: how many there should be; what `frames` yields decides.
        notices: one-line warnings; complete when `frames` is exhausted.
    """

    name: str
    size: tuple[int, int]
    fps: float
    expected_frames: int
    notices: list[str]

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H,W,3] RGB, in order of time."""


def limited_size(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """(height, width) shrunk so that neither exceeds `longest_side`; both even where something was shrunk."""
    if max(size) <= longest_side:
        return size
    scale = longest_side / max(size)
    return tuple(max(MIN_SIDE, 2 * round(s * scale / 2)) for s in size)


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if min(size) < MIN_SIDE:
        raise InputError(f"{path}: {size[1]}x{size[0]} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed")


class Video:
    """A video file of any container, codec, size and rate that FFmpeg decodes; a `Clip`.

    Frames come upright (rotation flag obeyed), with square pixels, at most `longest_side` long. A constant rate is kept
    frame by frame. A variable one becomes the file's usual rate (the inverse of its median frame distance, at most 60
    and at most twice as many frames as there are), each output frame being the source frame nearest in time. A file
    that ends early, or has broken parts, gives what decodes, and a notice.

    Raises:
        InputError: missing, not a video, no video in it, too small, no frame decodes.
    """

    def __init__(self, path: str | Path, longest_side: int = 1280):
        self.path = Path(path)
        self.name = self.path.stem
        self.notices: list[str] = []
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file; give a video, an image, or a folder")
        times, declared, broken = self._timestamps()
        self._truncated = broken or declared > len(times)
        self._fps_and_regularity(times)
        first = next(self._upright(), None)
        if first is None:
            raise InputError(f"{self.path}: no frame of it decodes; the file is empty or damaged")
        full = self._full_size
        _check_size(self.path, full)
        self.size = limited_size(full, longest_side)
        duration = (times[-1] - times[0]) if len(times) > 1 else 0.0
        self.expected_frames = len(times) if self.regular else round(duration * self.fps) + 1
        self._declared = max(declared, len(times))

    def _open(self):
        try:
            container = av.open(str(self.path))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.path}: not a video that can be read ({reason})") from None
        if not container.streams.video:
            container.close()
            raise InputError(f"{self.path}: has no video in it")
        return container

    def _timestamps(self) -> tuple[list[float], int, bool]:
        """Presentation times in order, the number of frames the file declares, whether reading stopped at an error."""
        times, unknown, broken, end = [], 0, False, 0.0
        with self._open() as container:
            stream = container.streams.video[0]
            declared = stream.frames if "mp4" in container.format.name else 0  # elsewhere it is a guess
            # Matroska and WebM state in their head how long the longest stream is.
            duration = (container.duration or 0) / av.time_base if "matroska" in container.format.name else 0.0
            self._average = float(stream.average_rate or stream.guessed_rate or 0)
            try:
                for packet in container.demux() if duration else container.demux(stream):
                    if packet.size == 0:
                        continue
                    if packet.pts is not None:
                        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    if packet.stream_index != stream.index:
                        continue
                    if packet.pts is None:
                        unknown += 1
                    else:
                        times.append(float(packet.pts * packet.time_base))
            except av.error.FFmpegError:
                broken = True
        if unknown:  # no timestamps to go by (raw streams, some AVI): trust the header
            step = 1 / (self._average or IMAGE_FPS)
            times = [i * step for i in range(len(times) + unknown)]
        if duration - end > max(_SLACK, 0.01 * duration):
            declared = len(times) + max(1, round((duration - end) * (self._average or IMAGE_FPS)))
        return sorted(times), declared, broken

    def _fps_and_regularity(self, times: list[float]) -> None:
        steps = np.diff(times)
        steps = steps[steps > 0]
        if len(steps) == 0:
            self.fps, self.regular = self._average or IMAGE_FPS, True
            return
        median = float(np.median(steps))
        mean = (times[-1] - times[0]) / (len(times) - 1)
        uneven = np.flatnonzero(np.abs(steps - median) > 0.25 * median + 0.0011)
        self.regular = len(uneven) == 0 and len(steps) == len(times) - 1
        rate = 1 / (mean if self.regular else median)
        if self._average and abs(rate / self._average - 1) < 0.01:
            rate = self._average
        snapped = Fraction(rate).limit_denominator(1001)
        self.fps = float(snapped) if abs(float(snapped) / rate - 1) < 1e-3 else rate
        if not self.regular:
            self.fps = min(self.fps, MAX_FPS, 2 * len(times) / (times[-1] - times[0]))
            if self._truncated and (uneven >= len(steps) - _REORDERED).all():
                return  # frames that the missing part would have filled in
            self.notices.append(
                f"{self.path.name}: variable frame rate; resampled to {self.fps:.4g} fps, nearest frame in time"
            )

    def _upright(self) -> Iterator[tuple[float | None, np.ndarray]]:
        """(time, frame) as decoded, turned upright and shrunk, at the rate of the file."""
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets)
                except StopIteration:
                    return
                except av.error.FFmpegError:
                    packet = None  # the file ends here: let out what the decoder still holds
                try:
                    decoded = stream.decode(packet)
                except av.error.FFmpegError:
                    decoded = []
                for frame in decoded:
                    yield frame.time, self._to_rgb(frame, stream)
                if packet is None:
                    return

    def _to_rgb(self, frame: av.VideoFrame, stream) -> np.ndarray:
        turns = round((frame.rotation or 0) / 90) % 4  # counter-clockwise
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        full = (frame.height, max(1, round(frame.width * aspect)))
        self._full_size = full[::-1] if turns % 2 else full
        height, width = getattr(self, "size", self._full_size)
        if turns % 2:
            height, width = width, height
        unspecified = int(frame.colorspace) == _UNSPECIFIED
        rgb = frame.reformat(
            width=width,
            height=height,
            format="rgb24",
            src_colorspace="ITU709" if unspecified and frame.height >= 720 else None,
            interpolation="AREA" if height * width < frame.height * frame.width else "BICUBIC",
        ).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, turns))

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H,W,3], in order of time; a few frames in memory at a time."""
        count = decoded = 0
        last, last_time, start = None, None, None
        for time, frame in self._upright():
            decoded += 1
            if self.regular or time is None:
                count += 1
                yield frame
                continue
            start = time if start is None else start
            while last is not None and start + count / self.fps < (last_time + time) / 2:
                count += 1
                yield last
            last, last_time = frame, time
        if last is not None:
            count += 1
            yield last
        if self._truncated or decoded < self._declared:
            self.notices.append(
                f"{self.path.name}: damaged or cut short; {decoded} of {self._declared} frames decode and are used"
            )
            if decoded < 2:
                raise InputError(f"{self.path}: damaged or cut short; {decoded} frames decode, at least 2 are needed")


class Images:
    """One image, or a folder of images in natural order of their names, as a `Clip`.

    Raises:
        InputError: missing, no images, too small, images of different sizes.
    """

    def __init__(self, path: str | Path, longest_side: int = 1280, fps: float = IMAGE_FPS):
        path = Path(path)
        files = [path] if path.is_file() else list_images(path)
        if not files:
            raise InputError(f"{path}: no images in it; give a video, a folder of images, or a scene folder")
        self._set(files, longest_side, fps, path.stem)

    @classmethod
    def of_files(cls, files: Sequence[Path], longest_side: int, fps: float, name: str) -> Images:
        """A clip of these image files, in this order."""
        clip = cls.__new__(cls)
        clip._set(files, longest_side, fps, name)
        return clip

    def _set(self, files: Sequence[Path], longest_side: int, fps: float, name: str) -> None:
        self.files, self.fps, self.name = list(files), fps, name
        self.notices: list[str] = []
        self._full_size = read_image(self.files[0]).shape[:2]
        _check_size(self.files[0], self._full_size)
        self.size = limited_size(self._full_size, longest_side)
        self.expected_frames = len(self.files)

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H,W,3], in order."""
        for file in self.files:
            image = read_image(file)
            if image.shape[:2] != self._full_size:
                h, w = self._full_size
                raise InputError(
                    f"{file}: {image.shape[1]}x{image.shape[0]} pixels, the first image has {w}x{h}; make them equal"
                )
            yield resize_rgb(image, self.size)


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, in natural order of their names."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(files, key=lambda p: natural_order(p.name))


def open_clip(path: str | Path, longest_side: int = 1280) -> Clip:
    """A video, an image, or a folder of images. Raises `InputError`."""
    path = Path(path)
    if path.is_dir():
        return Images(path, longest_side)
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and cv2.haveImageReader(str(path)):
        return Images(path, longest_side)
    return Video(path, longest_side)
