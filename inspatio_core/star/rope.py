"""Rotary position embedding over time, rows and columns; pairs are interleaved."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RopeTable(NamedTuple):
    """cos and sin, float32 [S, head_dim / 2], of S tokens in frame-major, then row-major order."""

    cos: Tensor
    sin: Tensor

    def rows(self, start: int, stop: int) -> RopeTable:
        """The tokens ``start`` to ``stop``."""
        return RopeTable(self.cos[start:stop], self.sin[start:stop])


def rope_table(
    frames: int, rows: int, columns: int, head_dim: int, device: torch.device | str = "cpu", first: int = 0
) -> RopeTable:
    """Angles of frames x rows x columns tokens; frames stand at ``first``, ``first + 1``, ... in time.

    Of the c = head_dim / 2 pairs, c - 2 (c // 3) turn with time, then c // 3 with the row, then c // 3 with the column.
    An axis with m pairs has frequencies 10000^(-j / m). Worked out in float64: rounded once.
    """
    pairs = head_dim // 2
    spatial = pairs // 3
    axes = ((pairs - 2 * spatial, frames, first), (spatial, rows, 0), (spatial, columns, 0))
    angles = []
    for count, length, start in axes:
        frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / max(count, 1))
        angles.append(torch.outer(torch.arange(start, start + length, dtype=torch.float64), frequency))
    shape = (frames, rows, columns)
    t, h, w = (
        a.reshape([n if i == axis else 1 for i, n in enumerate(shape)] + [a.shape[1]]).expand(*shape, a.shape[1])
        for axis, a in enumerate(angles)
    )
    all_angles = torch.cat([t, h, w], -1).flatten(0, 2)
    return RopeTable(
        all_angles.cos().to(device, torch.float32).contiguous(), all_angles.sin().to(device, torch.float32).contiguous()
    )


def rotate(x: Tensor, table: RopeTable) -> Tensor:
    """x [B, S, N, head_dim] with each pair (2j, 2j + 1) turned by its angle, in float32, rounded once to x's dtype."""
    cos, sin = table.cos[:, None], table.sin[:, None]
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)
