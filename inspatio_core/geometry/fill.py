"""Closing holes from the background side.

A hole opens where a nearer surface moved aside, so what belongs into it is the *farther* of its two banks. :func:`fill`
does it in three steps, each a pure function of one frame:

1. *Banks.* Along every row and every column, the known pixels within ``BANK`` pixels of a hole become sources. A run of
   hole pixels has two ends; a source weighs 1 if it is about as far as the farther end, and nothing if it is nearer
   than ``RAMP`` allows. Where the run ends at the image border, the one end it has counts.
2. *Push.* Sources are averaged into a pyramid of halved images, each cell by a 4x4 tent. Weights add up; what many
   sources are worth together is kept below 1 by a smooth curve.
3. *Pull.* From the top down, what a cell's own sources leave open comes from the level above, bilinearly.

Tents and the smooth curve keep the filling steady: it changes gradually when a hole moves across the cells.

Interiors of surfaces are no sources: an object cannot leak over its silhouette, and a crack inside an object is
closed with the object although the room behind it is farther. Depth goes the same way, so a filled depth lies between
the depths of the bank it came from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inspatio_core.errors import InputError
from inspatio_core.geometry import _fill_numba
from inspatio_core.geometry._fill_numba import ASIDE, BANK, GREY, LEAST, RAMP, RAMP_ASIDE, TENT
from inspatio_core.geometry.splat import _use_numba


def fill(
    rgb: torch.Tensor,
    depth: torch.Tensor,
    known: torch.Tensor,
    default_depth: torch.Tensor,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Complete frames from their own known pixels, background first.

    Args:
        rgb: uint8 [B,H,W,3].  depth: float32 [B,H,W], finite and positive where known.
        known: bool [B,H,W]. What ``rgb`` and ``depth`` hold elsewhere does not matter.
        default_depth: float64 [B]: the depth of a frame of which nothing is known (it becomes mid grey).
        backend: "numba" (CPU), "torch" (any device), or "auto": numba on the CPU, torch elsewhere. Same bytes.

    Returns:
        (rgb, depth), new tensors, complete; known pixels as they were. Each row depends on its own inputs alone.
    """
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or depth.shape != rgb.shape[:3] or known.shape != rgb.shape[:3]:
        raise InputError(
            f"fill: needs rgb [B,H,W,3], depth and known [B,H,W], got {tuple(rgb.shape)}, {tuple(depth.shape)}, "
            f"{tuple(known.shape)}"
        )
    default_depth = torch.as_tensor(default_depth, dtype=torch.float64, device=rgb.device).reshape(-1).expand(len(rgb))
    if _use_numba(backend, rgb.device):
        return _fill_numba.fill(rgb, depth, known, default_depth)
    return _fill_torch(rgb, depth, known, default_depth)


def _banks(depth: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Weight of each pixel as a source for the runs of holes of its row, 2 where it is none. All [B,m,n]."""
    n = depth.shape[-1]
    at = torch.arange(n, device=depth.device).expand(depth.shape)
    zero = depth.new_zeros(())

    def shifted(t, k, value):
        """t[j + k] at j, ``value`` outside."""
        if abs(k) >= n:
            return torch.full_like(t, value)
        return F.pad(t[..., max(k, 0) : n + min(k, 0)], (max(-k, 0), max(k, 0)), value=value)

    def reach(side):
        """Largest depth of up to three known pixels in a row, going away from the hole."""
        best, joined = torch.where(known, depth, zero), known
        for k in (1, 2):
            joined = joined & shifted(known, side * k, False)
            best = torch.where(joined, torch.maximum(best, shifted(depth, side * k, 0.0)), best)
        return best

    before = torch.where(known, at, -1).cummax(-1).values
    after = torch.where(known, at, n).flip(-1).cummin(-1).values.flip(-1)
    left = torch.where(before >= 0, reach(-1).gather(-1, before.clamp(min=0)), zero)
    right = torch.where(after < n, reach(1).gather(-1, after.clamp(max=n - 1)), zero)
    far = torch.where(known, zero, torch.maximum(left, right))  # of the run that a hole pixel lies in
    aside = F.max_pool2d(far[:, None], (2 * ASIDE + 1, 1), 1, (ASIDE, 0))[:, 0]

    weight = torch.full_like(depth, 2.0)
    for side in (1, -1):  # the hole lies to the right, to the left
        joined = known
        for k in range(1, BANK + 1):
            bounded = joined & (at + side * k >= 0) & (at + side * k < n) & ~shifted(known, side * k, True)
            own = torch.minimum(
                _ramp(depth / torch.where(bounded, shifted(far, side * k, 1.0), 1.0), RAMP),
                _ramp(depth / torch.where(bounded, shifted(aside, side * k, 1.0), 1.0), RAMP_ASIDE),
            )
            weight = torch.where(bounded, torch.minimum(weight, own), weight)
            joined = joined & shifted(known, side * k, False)
    return weight


def _ramp(ratio, ramp):
    low, high = ramp
    return ((ratio - low) * (1 / (high - low))).clamp(LEAST, 1.0)


def _fill_torch(rgb, depth, known, default_depth):
    B, H, W = known.shape
    depth = torch.where(known, depth, 0.0)
    weight = torch.minimum(_banks(depth, known), _banks(depth.mT, known.mT).mT)
    weight = torch.where(weight <= 1, weight, 0.0)
    values = torch.cat((rgb.float(), depth[..., None]), -1)

    levels = []
    v, w = values, weight
    while v.shape[1] > 1 or v.shape[2] > 1:
        v, w = _halve(v, w)
        levels.append((v, w))

    for v, w in reversed(levels):
        if (v.shape[1], v.shape[2]) == (1, 1):
            field = v
            continue
        field = v * w[..., None] + _double(field, v.shape[1], v.shape[2]) * (1 - w)[..., None]
    field = _double(field, H, W) if levels else values

    out_rgb = torch.where(known[..., None], rgb, torch.floor(field[..., :3] + 0.5).to(torch.uint8))
    out_depth = torch.where(known, depth, field[..., 3])
    nothing = ~known.flatten(1).any(1).view(B, 1, 1)
    default_depth = default_depth.to(torch.float32).view(B, 1, 1)
    out_rgb = torch.where(nothing[..., None], GREY, out_rgb).to(torch.uint8)
    return out_rgb, torch.where(nothing, default_depth, out_depth)


def _halve(values: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean of 4x4 pixels for every second row and column, and what those weights are worth together."""
    h, w = (values.shape[1] + 1) // 2, (values.shape[2] + 1) // 2
    border = (1, 2 * w + 1 - values.shape[2], 1, 2 * h + 1 - values.shape[1])
    values, weight = F.pad(values, (0, 0, *border)), F.pad(weight, border)
    mean = total = 0.0
    for i, tap_y in enumerate(TENT):
        for j, tap_x in enumerate(TENT):
            part = weight[:, i : i + 2 * h : 2, j : j + 2 * w : 2] * (tap_y * tap_x)
            total = total + part
            mean = mean + values[:, i : i + 2 * h : 2, j : j + 2 * w : 2] * part[..., None]
    inverse = torch.where(total > 0, 1 / torch.where(total > 0, total, 1.0), 0.0)
    worth = total + total * total * 0.5
    return mean * inverse[..., None], worth / (1 + worth)


def _double(field: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear enlargement by two to (height, width): 9/16 of the own cell, 3/16, 3/16, 1/16 of the others."""
    y = torch.arange(height, device=field.device)
    x = torch.arange(width, device=field.device)
    y0, x0 = y >> 1, x >> 1
    y1 = (y0 + (y & 1) * 2 - 1).clamp(0, field.shape[1] - 1)
    x1 = (x0 + (x & 1) * 2 - 1).clamp(0, field.shape[2] - 1)
    a, b = field[:, y0], field[:, y1]
    return ((a[:, :, x0] * 0.5625 + a[:, :, x1] * 0.1875) + b[:, :, x0] * 0.1875) + b[:, :, x1] * 0.0625
