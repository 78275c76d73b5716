"""What a block leaves in its slot's point map: what its last frame showed of the reference, and what was generated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inspatio_core.geometry.point_map import GENERATED, OBSERVED, PointMap
from inspatio_core.reference import Reference

CONFIDENT = 0.5
"""Generated pixels whose depth is less certain than this (0..1) never enter the map."""


@dataclass(frozen=True)
class Generated:
    """The frame a generator made, as the map takes it.

    rgb uint8 [H, W, 3]; depth float32 [H, W] metres; confidence float32 [H, W], 0 where the frame is not generated;
    K float64 [3, 3]; world_from_camera float64 [4, 4].
    """

    rgb: Tensor
    depth: Tensor
    confidence: Tensor
    K: Tensor
    world_from_camera: Tensor

    @classmethod
    def of(
        cls, rgb: Tensor, depth: Tensor, confidence: Tensor, known: Tensor, K: Tensor, world_from_camera: Tensor
    ) -> Generated:
        """From a frame whose ``known`` bool [H, W] pixels come from the reference or the map itself. All is copied."""
        confidence = torch.where(known, 0.0, confidence)
        return cls(rgb.clone(), depth.clone(), confidence, K.clone(), world_from_camera.clone())


@dataclass(frozen=True)
class Sight:
    """A block's last frame: which source frame it shows, when (seconds of sim time), and what was generated of it."""

    index: int
    stamp: float
    generated: Generated | None = None


def insert(point_map: PointMap, reference: Reference, sight: Sight, observed: bool) -> None:
    """Take a sight into the map: its source frame first (if ``observed``), so that it wins, then what was generated."""
    if observed:
        index, depth = sight.index, reference.depth(sight.index)
        point_map.insert(
            reference.rgb(index),
            depth,
            depth > 0,
            reference.K[index],
            reference.world_from_camera[index],
            OBSERVED,
            stamp=sight.stamp,
            moving=reference.moving(index),
        )
    g = sight.generated
    if g is not None:
        sure = g.confidence >= CONFIDENT
        if bool(sure.any()):
            point_map.insert(
                g.rgb, g.depth, sure, g.K, g.world_from_camera, GENERATED, confidence=g.confidence, stamp=sight.stamp
            )
