"""FastDepth: a small network (NYU Depth v2, indoor) that guesses depth from one image; made steady over a clip.

Its guesses are soft, squarish and follow brightness, so they are averaged over mirror images and even light, leaned on
the ground plane they show (nothing lies below it, save what reaches the picture's edge as background does; what stands
out of it stands upright), kept the same over time wherever the picture is the same, and moved onto the image's edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from inspatio_core import checkpoints
from inspatio_core.errors import InputError
from inspatio_core.reference.depth import DepthMaps, Progress, upsample
from inspatio_core.reference.poses import Cameras, Frames

_SIDE = 224
_NEAREST, _FARTHEST = 0.3, 12.0  # metres, what the network is asked to tell apart
_STILL_SAMPLES = 16
_CHANGED = 14  # difference in colour from which a pixel counts as changed
_EVERY = 2  # a standing camera's changes are guessed at every so many frames
_KEEP = 0.6  # share of the previous guess of changes that the next one keeps
_MOST_GUESSES = 250  # of a moving camera's clip


class FastDepth:
    """Depth by FastDepth, a `DepthProvider`.

    Raises:
        InputError: the weights are not here, or onnxruntime is not installed.
    """

    name = "fastdepth"

    def __init__(self, path: Path | None = None):
        path = path or checkpoints.locate("fastdepth")
        if path is None:
            raise InputError("depth fastdepth: its weights are not here; run `inspatio checkpoints download fastdepth`")
        try:
            import onnxruntime
        except ImportError:
            raise InputError("depth fastdepth: needs onnxruntime; pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # the file names unused initialisers, a warning each
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def infer(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h,w,3] -> log of depth in metres, float32 [224,224]."""
        small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        depth = self._session.run(None, {self._input: small.transpose(2, 0, 1)[None]})[0][0, 0]
        return np.log(np.clip(np.nan_to_num(depth, nan=_FARTHEST), _NEAREST, _FARTHEST))

    def mirrored(self, image: np.ndarray) -> np.ndarray:
        """Mean of `infer` over the image and its mirror image: log of depth in metres, float32 [224,224]."""
        small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        return (self.infer(small) + self.infer(np.ascontiguousarray(small[:, ::-1]))[:, ::-1]) / 2

    def guess(self, image: np.ndarray) -> np.ndarray:
        """What an image looks like, and to a third what it does in even light: log of depth in metres, [224,224]."""
        small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        return (2 * self.mirrored(small) + self.mirrored(even_light(small))) / 3

    def estimate(self, frames: Frames, cameras: Cameras, progress: Progress) -> DepthMaps:
        """Depth of every frame, in the network's metres (a guess), or fitted to the cameras' points where there are."""
        if cameras.still:
            return DepthMaps(self._standing(frames, progress), far=2 * _FARTHEST, source="fastdepth")
        scale = _fit_scale(self, frames, cameras)
        return DepthMaps(self._moving(frames, cameras, scale, progress), far=4 * _FARTHEST * scale, source="fastdepth")

    def _standing(self, frames: Frames, progress: Progress) -> Iterator[np.ndarray]:
        """One depth map for what stays the same in the picture, corrected where and while something is different."""
        count = len(frames)
        samples = np.unique(np.linspace(0, count - 1, _STILL_SAMPLES).round().astype(int))
        guesses, plain, images = [], [], []
        for n, i in enumerate(samples):
            progress("depth", 0.2 * n / len(samples))
            images.append(frames.small(i))
            guesses.append(self.guess(images[-1]))
            plain.append(self.mirrored(images[-1]))
        usual, usual_plain = _typical(guesses), _typical(plain)
        background = np.median(images, axis=0).astype(np.uint8)
        typical = samples[int(np.argmin([cv2.absdiff(image, background).mean() for image in images]))]
        depth = 1 / upsample(on_ground(np.exp(-usual)), frames[typical])

        difference = np.zeros((_SIDE, _SIDE), np.float32)
        for i in range(count):
            progress("depth", 0.2 + 0.8 * i / count)
            image = frames.small(i)
            changed = _changed(image, background)
            if changed is None:
                difference *= _KEEP
                yield depth
                continue
            if i % _EVERY == 0:
                new = self.mirrored(image) - usual_plain
                same = cv2.resize(changed, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) < 0.05
                new -= np.median(new[same]) if same.any() else np.median(new)
                difference = new if i == 0 else _KEEP * difference + (1 - _KEEP) * new
            correction = cv2.resize(difference, changed.shape[::-1], interpolation=cv2.INTER_LINEAR) * changed
            # What comes into a picture comes in front of what is usually there.
            correction = cv2.resize(np.clip(np.exp(correction), 0.5, 1), depth.shape[::-1])
            yield depth * correction

    def _moving(self, frames: Frames, cameras: Cameras, scale: float, progress: Progress) -> Iterator[np.ndarray]:
        """Each frame by itself, level with its neighbours, or fitted to the points that are known in it."""
        count = len(frames)
        step = max(1, int(np.ceil(count / _MOST_GUESSES)))
        guesses = _Interpolated(lambda i: self.guess(frames.small(i)), count, step)
        level = None
        for i in range(count):
            progress("depth", i / count)
            guess = guesses[i]
            if cameras.points:
                guess = fit_to_points(guess + np.log(scale), cameras.points.get(i), frames.size)
            else:
                now = float(np.median(guess))
                level = now if level is None else 0.9 * level + 0.1 * now
                guess = guess - now + level
            yield 1 / upsample(np.exp(-guess), frames[i])


class _Interpolated:
    """make(i) at every `step`-th index and at the last, linear in between; one interval in memory."""

    def __init__(self, make, count: int, step: int):
        self._make, self._count, self._step = make, count, step
        self._known: dict[int, np.ndarray] = {}

    def _at(self, index: int) -> np.ndarray:
        if index not in self._known:
            self._known = {k: v for k, v in self._known.items() if abs(k - index) <= self._step}
            self._known[index] = self._make(index)
        return self._known[index]

    def __getitem__(self, index: int) -> np.ndarray:
        before = index // self._step * self._step
        after = min(before + self._step, self._count - 1)
        t = (index - before) / (after - before) if after > before else 0.0
        return self._at(before) if t == 0 else (1 - t) * self._at(before) + t * self._at(after)


def _typical(guesses: list[np.ndarray]) -> np.ndarray:
    """Median of maps of log depth [h,w] that are first brought to one level."""
    levels = [np.median(guess) for guess in guesses]
    return np.median([g - level for g, level in zip(guesses, levels)], axis=0) + np.median(levels)


def even_light(image: np.ndarray, share: float = 0.5, reach: float = 0.03) -> np.ndarray:
    """uint8 [h,w,3] with differences in brightness evened out but for the rest of `share`.

    reach: over what distance brightness is compared, as a share of the width.
    """
    bright = image.astype(np.float32) + 8
    level = cv2.GaussianBlur(np.log(cv2.cvtColor(bright, cv2.COLOR_RGB2GRAY)), (0, 0), reach * image.shape[1])
    return np.clip(bright * np.exp(share * (np.log(110) - level))[..., None], 0, 255).astype(np.uint8)


def _changed(image: np.ndarray, background: np.ndarray) -> np.ndarray | None:
    """Weight float32 [h,w] in 0..1 of pixels that differ from the background; None when there are hardly any."""
    differs = (cv2.absdiff(image, background).max(-1) > _CHANGED).astype(np.uint8)
    differs = cv2.morphologyEx(differs, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    if differs.mean() < 2e-4:
        return None
    differs = cv2.morphologyEx(differs, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    return cv2.GaussianBlur(differs.astype(np.float32), (0, 0), 1.5) * differs


def fit_ground(inverse: np.ndarray, tolerance: float = 0.08) -> tuple[np.ndarray | None, float]:
    """The plane that most of the lower picture lies on, as inverse depth [h,w], and the share of it that does.

    Planes are linear in inverse depth; only such that come nearer downwards and lean little sideways count.
    """
    height, width = inverse.shape
    v, u = np.mgrid[:height, :width]
    rows = np.stack([np.ones(inverse.size), u.ravel() / width - 0.5, v.ravel() / height - 0.5], -1)
    low = np.flatnonzero(rows[:, 2] > -0.3)
    some, rng = low[:: max(1, len(low) // 5000)], np.random.default_rng(0)
    values, best, share = inverse.ravel(), None, 0.0
    for _ in range(400):
        three = rng.choice(low, 3, replace=False)
        try:
            plane = np.linalg.solve(rows[three], values[three])
        except np.linalg.LinAlgError:
            continue
        if plane[2] < 0.2 * abs(plane[0]) or abs(plane[1]) > 0.35 * plane[2]:
            continue
        here = rows[some] @ plane
        on = float((np.abs(values[some] - here) < tolerance * np.maximum(here, 1e-3)).mean())
        if on > share:
            best, share = plane, on
    return (None if best is None else (rows @ best).reshape(inverse.shape)), share


def on_ground(inverse: np.ndarray) -> np.ndarray:
    """Inverse depth [h,w] leaned on the ground plane that it shows, unchanged where it shows none.

    Dips below the plane with ground on both sides of them are lifted to it but for a quarter (the network takes shadows
    for holes); what lies beyond the last of the ground in its row is background. What bulges over a wide part of the
    picture is flattened, what stands out in a small one is brought out and stands upright (`upright`).
    """
    plane, share = fit_ground(inverse)
    if plane is None or share < 0.4:
        return inverse.astype(np.float32)
    height = inverse.shape[0]
    plane = np.maximum(plane, 0.8 * inverse.min())
    above = np.log(inverse / plane)
    ground = np.cumsum(np.abs(above) < 0.1, axis=1)
    enough = 0.04 * above.shape[1]
    dip = (above < 0) & (ground > enough) & (ground[:, -1:] - ground > enough)
    above = cv2.GaussianBlur(np.where(dip, 0.25 * above, above).astype(np.float32), (0, 0), height / 150)
    near_ground = np.clip(above, -0.12, 0.25)
    smooth = cv2.GaussianBlur(near_ground, (0, 0), height / 10)
    above += 0.8 * (near_ground - smooth) - 0.8 * smooth
    bulge = cv2.GaussianBlur(np.clip(above, -0.12, 0.25), (0, 0), height / 7)
    return upright((plane * np.exp(above)).astype(np.float32), above - bulge > 0.06)


def upright(inverse: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Inverse depth [h,w] in which the patches of `out`, bool [h,w], reach down to the ground as upright boards.

    Below something solid there is nothing farther away than itself, down to where it stands. Patches count that are
    small and do not touch the picture's edge, where they may be background.
    """
    height, width = inverse.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats(out.astype(np.uint8))
    left, top, right, bottom, area = (*stats.T[:2], *(stats.T[:2] + stats.T[2:4]), stats.T[4])
    thing = (left > 1) & (top > 1) & (right < width - 1) & (bottom < height - 1)
    thing &= (area > 0.002 * out.size) & (area < 0.1 * out.size)
    thing[0] = False
    board = np.maximum.accumulate(np.where(thing[labels], inverse, 0), axis=0)
    return cv2.GaussianBlur(np.maximum(inverse, board).astype(np.float32), (0, 0), height / 150)


def fit_to_points(guess: np.ndarray, points: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """Log depth [h,w] corrected by a smooth field so that it meets known points (u, v, depth; pixels at `size`)."""
    if points is None or len(points) < 8:
        return guess
    height, width = guess.shape
    u = np.clip(((points[:, 0] + 0.5) * width / size[1]).astype(int), 0, width - 1)
    v = np.clip(((points[:, 1] + 0.5) * height / size[0]).astype(int), 0, height - 1)
    error = np.log(points[:, 2]) - guess[v, u]
    overall = np.median(error)
    error = np.clip(error - overall, -1, 1)
    total, weight = np.zeros_like(guess), np.full_like(guess, 1e-9)
    np.add.at(total, (v, u), error.astype(guess.dtype))
    np.add.at(weight, (v, u), 1)
    field = np.zeros_like(guess)
    for sigma in (width / 5, width / 12):  # coarse, then what is left of it finer
        smooth = cv2.GaussianBlur(weight, (0, 0), sigma)
        correction = cv2.GaussianBlur(total - field * (weight - 1e-9), (0, 0), sigma) / (smooth + 0.15 * smooth.mean())
        field = field + correction
    return guess + overall + field


def _fit_scale(network: FastDepth, frames: Frames, cameras: Cameras) -> float:
    """Units of the cameras per metre of the network: the median over the points of a few frames; 1 without points."""
    known = [i for i in sorted(cameras.points) if len(cameras.points[i]) >= 8]
    ratios = []
    for i in known[:: max(1, len(known) // 8)]:
        guess, points = network.guess(frames.small(i)), cameras.points[i]
        u = np.clip(((points[:, 0] + 0.5) * _SIDE / frames.size[1]).astype(int), 0, _SIDE - 1)
        v = np.clip(((points[:, 1] + 0.5) * _SIDE / frames.size[0]).astype(int), 0, _SIDE - 1)
        ratios.append(np.median(np.log(points[:, 2]) - guess[v, u]))
    return float(np.exp(np.median(ratios))) if ratios else 1.0
