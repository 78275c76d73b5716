"""Which points of memory the current source frame contradicts, because it sees through them.

A point that something stood at a moment ago, or that was mapped a little wrong, lies in what the source camera now
sees as free space. The map carves such points when the frame is inserted, two blocks later; this is the same test at
the moment of looking, so that memory never covers what the frame itself shows.
"""

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

MARGIN = 0.05
"""A point is seen through where the source's depth is farther than the point's by more than this share of it."""


def seen_through(
    depth: Tensor,
    candidates: Tensor,
    K_target: Tensor,
    K_source: Tensor,
    source_from_target: Tensor,
    source_depth: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Whether the point at each candidate pixel of a target view lies in free space of the source view.

    Args:
        depth: float32 [h, w], z of the points in the target camera, metres.
        candidates: bool [h, w], the pixels asked about.
        K_target: float64 [3, 3], pixels; K_source likewise.
        K_source: float64 [3, 3].
        source_from_target: float64 [4, 4].
        source_depth: float32 [H, W], z in metres.
        backend: ``auto`` (compiled on the CPU, plain elsewhere), ``numba`` or ``torch``.

    Returns:
        bool [h, w]: true where a candidate projects into the source image and is nearer than ``source_depth`` there
        by more than ``MARGIN``. False for points outside the source image or behind its camera.
    """
    A = K_source.cpu() @ source_from_target[:3, :3].cpu() @ torch.linalg.inv(K_target.cpu())
    b = K_source.cpu() @ source_from_target[:3, 3].cpu()
    if backend == "numba" or (backend == "auto" and depth.device.type == "cpu"):
        out = torch.empty_like(candidates)
        arrays = (t.contiguous().numpy() for t in (depth, candidates, A, b, source_depth))
        _seen_through(*arrays, out.numpy())
        return out
    return _seen_through_plain(depth, candidates, A.to(depth.device), b.to(depth.device), source_depth)


def _seen_through_plain(depth: Tensor, candidates: Tensor, A: Tensor, b: Tensor, source_depth: Tensor) -> Tensor:
    (h, w), (H, W) = depth.shape, source_depth.shape
    v, u = torch.meshgrid(*(torch.arange(n, dtype=torch.float64, device=depth.device) for n in (h, w)), indexing="ij")
    z = depth.to(torch.float64)
    x, y, d = (z * (A[r, 0] * u + A[r, 1] * v + A[r, 2]) + b[r] for r in range(3))
    front = candidates & (d > 1e-6)
    d = torch.where(front, d, 1.0)
    column, row = torch.floor(x / d + 0.5), torch.floor(y / d + 0.5)
    inside = front & (column >= 0) & (column < W) & (row >= 0) & (row < H)
    at = torch.where(inside, row * W + column, 0.0).to(torch.int64)
    return inside & (source_depth.flatten()[at].to(torch.float64) * (1.0 - MARGIN) > d)


@njit(cache=True, nogil=True)
def _seen_through(depth, candidates, A, b, source_depth, out):
    h, w = depth.shape
    H, W = source_depth.shape
    for v in range(h):
        for u in range(w):
            out[v, u] = False
            if not candidates[v, u]:
                continue
            z = float(depth[v, u])
            d = z * (A[2, 0] * u + A[2, 1] * v + A[2, 2]) + b[2]
            if not d > 1e-6:
                continue
            x = (z * (A[0, 0] * u + A[0, 1] * v + A[0, 2]) + b[0]) / d + 0.5
            y = (z * (A[1, 0] * u + A[1, 1] * v + A[1, 2]) + b[1]) / d + 0.5
            if 0 <= x < W and 0 <= y < H:
                out[v, u] = float(source_depth[int(y), int(x)]) * (1.0 - MARGIN) > d
