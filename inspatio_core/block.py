"""What a session commits (Frames) and what it shows (Block)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inspatio_core.geometry.anchor import Anchor


@dataclass
class Block:
    """What one generator call yields: F frames for each of B slots.

    Attributes:
        rgb: uint8 [B, F, H, W, 3].
        depth: float32 [B, F, H, W], z in metres, completed: everywhere > 0.
        known: bool [B, F, H, W], where the reference or the memory covers the pixel; elsewhere it is invented.
        world_from_camera: float64 [B, F, 4, 4], OpenCV axes, metres, world = first source camera.
        K: float64 [B, F, 3, 3], pixels, pixel centres at integer coordinates.
        source_index: int64 [B, F], the source frame each output frame shows.
        stamp: float64 [B, F], seconds of the slot's sim time: frames shown before it / fps.
        twist: float64 [B, F, 6], body twist (vx, vy, vz, wx, wy, wz) in camera axes, m/s and rad/s, that led from
            the frame before to this one; zero for a slot's first frame and for teleports.
        index: int64 [B], the slot's block number, 0 for its first.
        anchor: the anchor of all B * F views (slot-major), if the world was made with ``keep_anchor=True``.
    """

    rgb: Tensor
    depth: Tensor
    known: Tensor
    world_from_camera: Tensor
    K: Tensor
    source_index: Tensor
    stamp: Tensor
    twist: Tensor
    index: Tensor
    anchor: Anchor | None = None

    @property
    def frames(self) -> int:
        """F, the number of frames."""
        return self.rgb.shape[1]

    def last(self) -> Block:
        """The last frame alone, as a Block of F = 1 without the anchor."""
        values = {name: value for name, value in vars(self).items() if name not in ("index", "anchor")}
        return Block(**{name: value[:, -1:] for name, value in values.items()}, index=self.index)


@dataclass(eq=False)
class Frames:
    """n committed frames of each of b slots. Never written into once made.

    Attributes:
        source_index: int64 [b, n].
        world_from_camera: float64 [b, n, 4, 4].
        twist: float64 [b, n, 6], see ``Block``.
        anchor: an Anchor whose tensors are [b, n, h, w, ...].
    """

    source_index: Tensor
    world_from_camera: Tensor
    twist: Tensor
    anchor: Anchor

    @classmethod
    def of(cls, source_index: Tensor, world_from_camera: Tensor, twist: Tensor, anchor: Anchor) -> Frames:
        """From an anchor of b * n views, slot-major."""
        return cls(source_index, world_from_camera, twist, _each(lambda t: t.unflatten(0, source_index.shape), anchor))

    @classmethod
    def stacked(cls, slots: Sequence[Frames]) -> Frames:
        """Several slots as one batch."""
        return _joined(slots, 0)

    @property
    def views(self) -> Anchor:
        """The anchor of all b * n views, slot-major."""
        return _each(lambda t: t.flatten(0, 1), self.anchor)

    def then(self, later: Frames) -> Frames:
        """These frames, followed by ``later`` ones of the same slots."""
        return _joined([self, later], 1)

    def part(self, frames: slice) -> Frames:
        """Some of the frames of every slot, not copied."""
        return self._map(lambda t: t[:, frames])

    def slot(self, row: int) -> Frames:
        """A copy of one slot's frames, b = 1, which keeps nothing else alive."""
        return self._map(lambda t: t[row : row + 1].clone())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Frames:
        anchor = _each(change, self.anchor)
        return Frames(change(self.source_index), change(self.world_from_camera), change(self.twist), anchor)


def _each(change: Callable[..., Tensor], *anchors: Anchor) -> Anchor:
    return Anchor(**{name: change(*(getattr(a, name) for a in anchors)) for name in vars(anchors[0])})


def _joined(parts: Sequence[Frames], axis: int) -> Frames:
    def join(*tensors: Tensor) -> Tensor:
        return torch.cat(tensors, axis)

    return Frames(
        join(*(p.source_index for p in parts)),
        join(*(p.world_from_camera for p in parts)),
        join(*(p.twist for p in parts)),
        _each(join, *(p.anchor for p in parts)),
    )
