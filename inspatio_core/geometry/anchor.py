"""The anchor: what geometry knows of a target view before any generator is asked.

Reference frame -> splat -> memory (the slot's point map, where the splat knows nothing or where something remembered
stands in front of it, unless the frame sees through it) -> fill.
One call serves any number of views; views do not influence each other, so a block at a time gives the same
bytes as a whole clip at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inspatio_core.geometry.camera import invert_pose
from inspatio_core.geometry.compiled import threads
from inspatio_core.geometry.fill import fill
from inspatio_core.geometry.point_map import PointMap
from inspatio_core.geometry.splat import Splat, splat
from inspatio_core.geometry.visibility import MARGIN, seen_through

NEARER = MARGIN + 0.01
"""Memory hides the warped frame where it is nearer by more than this share; more than ``MARGIN``, so that at the source
camera itself, which sees through all such points, the frame comes back exactly."""


@dataclass
class Anchor:
    """The explicit spatial constraint for N target views of size (h, w).

    Attributes:
        rgb: uint8 [N, h, w, 3], warped reference plus memory; 0 where unknown.
        depth: float32 [N, h, w], z in metres; 0 where unknown.
        known: bool [N, h, w], true where the reference or the memory covers the pixel.
        memory: bool [N, h, w], true where memory is shown (a subset of ``known``).
        filled_rgb: uint8 [N, h, w, 3], ``rgb`` with every hole closed from its background side.
        filled_depth: float32 [N, h, w], ``depth`` closed likewise; everywhere > 0.
    """

    rgb: Tensor
    depth: Tensor
    known: Tensor
    memory: Tensor
    filled_rgb: Tensor
    filled_depth: Tensor


def build_anchor(
    rgb: Tensor,
    depth: Tensor,
    K_source: Tensor,
    source_pose: Tensor,
    K_target: Tensor,
    target_pose: Tensor,
    size: tuple[int, int],
    default_depth: Tensor,
    maps: Sequence[PointMap | None] | None = None,
) -> Anchor:
    """Warp N reference frames to N target cameras, complete them from memory, then fill.

    Args:
        rgb: uint8 [N, H, W, 3] reference frames.
        depth: float32 [N, H, W], z in metres, > 0.
        K_source: float64 [N, 3, 3] intrinsics of the reference frames, pixels.
        source_pose: float64 [N, 4, 4] ``world_from_camera`` of the reference frames.
        K_target: float64 [N, 3, 3] intrinsics of the target views.
        target_pose: float64 [N, 4, 4] ``world_from_camera`` of the target views.
        size: (h, w) of the target views.
        default_depth: float64 [N], metres, for a view of which nothing at all is known.
        maps: the point map that serves each view, or None for no memory.

    Returns:
        An ``Anchor`` on the device of ``rgb``.
    """
    warped = splat(rgb, depth, K_source, K_target, invert_pose(target_pose) @ source_pose, size)
    out_rgb, out_depth, known = warped
    memory = torch.from_numpy(np.zeros(known.shape, np.bool_)).to(known.device)  # no torch threads woken

    def recall(views: slice) -> None:
        for view in range(*views.indices(len(rgb))):
            if maps[view] is None or len(maps[view]) == 0:
                continue
            seen = Splat(*(t.to(rgb.device) for t in maps[view].render(K_target[view], target_pose[view], size)))
            nearer = seen.depth < out_depth[view] * (1.0 - NEARER)
            new = seen.known & (nearer | ~known[view])
            new &= ~seen_through(seen.depth, new, K_target[view], K_source[view], source_from_target[view], depth[view])
            memory[view] = new
            known[view] |= new
            _overlay(out_rgb[view], seen.rgb, new[..., None])
            _overlay(out_depth[view], seen.depth, new)

    if maps is not None:
        source_from_target = invert_pose(source_pose) @ target_pose
        threads.over_rows(len(rgb), len(rgb) * size[0] * size[1], recall)
    filled_rgb, filled_depth = fill(out_rgb, out_depth, known, default_depth)
    return Anchor(out_rgb, out_depth, known, memory, filled_rgb, filled_depth)


def _overlay(target: Tensor, values: Tensor, where: Tensor) -> None:
    """Put ``values`` into ``target`` where ``where``; on the CPU without waking torch's threads for so little."""
    if target.device.type == "cpu":
        np.copyto(target.numpy(), values.numpy(), where=where.numpy())
    else:
        target.copy_(torch.where(where, values.to(target.device), target))
