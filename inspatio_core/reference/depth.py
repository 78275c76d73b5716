"""Depth for clips that come without: the protocol of the providers, what they share, and the plainest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from inspatio_core.reference.poses import Cameras, Frames
from inspatio_core.reference.reference import resize_depth

Progress = Callable[[str, float], None]
MILLIMETRE_RANGE = 65.0  # what 16 bits hold in steps of 0.001 units


@dataclass(frozen=True)
class DepthMaps:
    """What a provider gives.

    Attributes:
        frames: one float32 [H,W] a frame, in order, in the units of the cameras' translations; finite and > 0.
        far: no value exceeds it. source: for the user. notices: one-line warnings.
        metric: whether the units are metres.
    """

    frames: Iterator[np.ndarray]
    far: float
    source: str
    metric: bool = False
    notices: tuple[str, ...] = ()

    @property
    def unit(self) -> float:
        """A step for 16-bit images that holds `far`: 0.001, or as much coarser as it takes."""
        return 0.001 * max(1.0, self.far / MILLIMETRE_RANGE)


class DepthProvider(Protocol):
    """Makes depth for a clip. Learned ones are added by implementing this."""

    name: str

    def estimate(self, frames: Frames, cameras: Cameras, progress: Progress) -> DepthMaps:
        """Depth of every frame. `progress(what, share)` is told how far it is."""


class TiltedPlane:
    """The same tilted plane for every frame, near at the bottom: a placeholder that moves plausibly, and no more."""

    name = "plane"
    nearest, farthest = 1.5, 6.0

    def estimate(self, frames: Frames, cameras: Cameras, progress: Progress) -> DepthMaps:
        """Inverse depth rises linearly from the upper to the lower edge."""
        height, width = frames.size
        inverse = np.linspace(1 / self.farthest, 1 / self.nearest, height, dtype=np.float32)
        plane = np.repeat(1 / inverse[:, None], width, axis=1)
        notice = "no depth for this clip: a tilted plane is used; run `inspatio checkpoints download fastdepth`"
        return DepthMaps(iter([plane] * len(frames)), self.farthest, "tilted plane", notices=(notice,))


def guided(values: np.ndarray, guide: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Guided filter (He et al.): `values` float32 [h,w] smoothed where the colour `guide`, float32 [h,w,3] in 0..1, is
    smooth, and following its edges. radius: pixels. epsilon: variance of colour that counts as smooth."""
    box = (2 * radius + 1,) * 2

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, box)

    mu, value = mean(guide), mean(values)
    covariance = mean(guide * values[..., None]) - mu * value[..., None]
    sigma = np.empty((*values.shape, 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            sigma[..., i, j] = sigma[..., j, i] = mean(guide[..., i] * guide[..., j]) - mu[..., i] * mu[..., j]
        sigma[..., i, i] += epsilon
    a = np.linalg.solve(sigma, covariance[..., None])[..., 0]
    b = value - (a * mu).sum(-1)
    return (mean(a) * guide).sum(-1) + mean(b)


def crisp(inverse: np.ndarray, radius: int = 2, rounds: int = 2, contrast: float = 1.08) -> np.ndarray:
    """Depth edges without in-between values, which would fly free in a warp.

    Where the surroundings of a pixel span more than `contrast`, it takes their nearest or their farthest value,
    whichever is closer to its own; elsewhere nothing changes.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    for _ in range(rounds):
        low, high = cv2.erode(inverse, kernel), cv2.dilate(inverse, kernel)
        snapped = np.where(2 * inverse > low + high, high, low)
        inverse = np.where(high > contrast * low, snapped, inverse)
    return inverse


def upsample(
    inverse: np.ndarray, image: np.ndarray, reach: tuple[float, ...] = (0.025, 0.01), work_side: int = 640
) -> np.ndarray:
    """Coarse inverse depth brought to the size of `image`, its edges moved onto the image's and made crisp.

    Args:
        inverse: float32 [h,w] > 0. image: uint8 [H,W,3].
        reach: how far edges are moved, one pass each, as shares of the longer side.

    Returns:
        float32 [H,W], within the range of `inverse`.
    """
    height, width = image.shape[:2]
    scale = min(1.0, work_side / max(height, width))
    work = (round(width * scale), round(height * scale))
    guide = cv2.resize(image, work, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    low, high = float(inverse.min()), float(inverse.max())
    fine = cv2.resize(inverse, work, interpolation=cv2.INTER_CUBIC)
    for share in reach:
        fine = guided(fine, guide, max(2, round(share * max(work))), 2e-4)
    fine = crisp(np.clip(fine, low, high).astype(np.float32))
    return 1 / resize_depth(1 / fine, (height, width))
