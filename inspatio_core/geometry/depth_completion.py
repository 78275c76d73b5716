"""Depth for what a generator invented, from the depth that geometry knows and the colours that were generated.

A generator gives colours to pixels whose depth nobody knows. :func:`complete_depth` carries known depth to them along
colours that change little; each step is a pure function of one frame:

1. *Distances.* A step between neighbouring pixels costs ``STEP`` plus the squared difference of their colours (of 3x3
   pixels, so that texture and noise cost little and edges much). A known pixel that lies before the background that
   the hole was filled with pays extra to enter it: without colours that speak for it, the foreground stays out.
2. *Ways.* For each hole pixel five known pixels are found: the cheapest straight ways from the left, the right, above
   and below, and the cheapest way with bends (passes along rows and columns). All distances are integers.
3. *Planes.* On a plane inverse depth is affine in pixel coordinates. A plane is fitted to the surface around each known
   pixel beside a hole, flattened as far as the surface is none (bent, broken, too small), and continued: floors and
   walls go on with their slope, at most to ``REACH`` times the inverse depth they had.
4. *Meeting.* The five values and, as if ``FILLED`` away, the filled depth are averaged with weights that fall with the
   sixth power of the distance: the nearest decides, equals are blended.

Confidence is 1 / (1 + (distance / HALF)**2), less where the candidates disagree: at depth edges within a hole. What
paid in full to enter is a third sure at most: there colours speak against geometry. Distances are in pixels, so the
same sight at twice the size is less sure.

What it cannot know: an object within a hole that touches nothing known gets the depth of whatever its colours flow
from; only its outline, a long way to cross, lowers the confidence. A bent surface goes on flat. Ways with more bends
than the passes allow are not found; what is not reached at all is filled, with confidence 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry import _depth_completion_numba
from inspatio_core.geometry._depth_completion_numba import (
    AGREE,
    BENT,
    BITS,
    COLOUR_SHIFT,
    FAR,
    FEW,
    FILLED,
    HALF,
    LIMITS,
    NEARER,
    NEARER_RAMP,
    OFF,
    OFFSET,
    REACH,
    RIDGE,
    ROUNDS,
    SAME,
    STEP,
    STRIDE,
    TAPS,
)
from inspatio_core.geometry.splat import _use_numba


def complete_depth(
    rgb: Tensor, depth: Tensor, known: Tensor, filled_depth: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Depth and confidence of every pixel of generated frames.

    Args:
        rgb: uint8 [N, H, W, 3], the generated frames, at known pixels, too.
        depth: float32 [N, H, W], z in metres, where known.
        known: bool [N, H, W]. What ``depth`` holds elsewhere does not matter. A known pixel whose depth is not finite
            and positive counts as not known.
        filled_depth: float32 [N, H, W], metres, > 0: what geometry alone makes of the holes, from their background
            side (see ``fill``).
        backend: "numba" (CPU), "torch" (any device), or "auto": numba on the CPU, torch elsewhere. Same bytes.

    Returns:
        (depth, confidence), new float32 [N, H, W]. Depth is everywhere finite and > 0; that of known pixels is as it
        was, with confidence 1. Elsewhere confidence lies in [0, 1): near 1 beside known depth of the same colour, 0
        where no known depth reaches (the depth is then the filled one). Frames do not influence each other.

    Raises:
        InputError: shapes or types that do not fit, an unknown backend.
    """
    shape = tuple(known.shape)
    if known.ndim != 3 or rgb.shape != (*shape, 3) or depth.shape != shape or filled_depth.shape != shape:
        raise InputError(
            f"complete_depth: needs rgb [N, H, W, 3], depth, known and filled_depth [N, H, W], got {tuple(rgb.shape)}, "
            f"{tuple(depth.shape)}, {shape}, {tuple(filled_depth.shape)}"
        )
    if rgb.dtype != torch.uint8 or known.dtype != torch.bool:
        raise InputError(f"complete_depth: rgb must be uint8 and known bool, not {rgb.dtype} and {known.dtype}")
    if _use_numba(backend, rgb.device):
        return _depth_completion_numba.complete_depth(rgb, depth, known, filled_depth)
    return _complete_torch(rgb, depth.to(torch.float32), known, filled_depth.to(torch.float32))


def _complete_torch(rgb, depth, known, filled):
    N, H, W = known.shape
    usable = known & (depth > 0) & (depth < torch.inf)
    q = torch.where(usable, (1 / torch.where(usable, depth, 1.0)).clamp(*LIMITS), 0.0)
    background = torch.where(filled > 0, (1 / filled).clamp(*LIMITS), LIMITS[0])
    colours = _three(_three(rgb.to(torch.int32), 1), 2)
    across, down = (_costs(colours, q, background, dim) for dim in (2, 1))

    start = torch.where(usable, torch.arange(H * W, device=known.device).view(H, W), FAR)
    straight = [_spread(start, across, 2), _spread_back(start, across, 2), _spread(start, down, 1)]
    straight.append(_spread_back(start, down, 1))
    key = torch.stack(straight).amin(0)
    for _ in range(ROUNDS):
        key = torch.minimum(_spread(key, across, 2), _spread_back(key, across, 2))
        key = torch.minimum(_spread(key, down, 1), _spread_back(key, down, 1))

    planes = _planes(q, usable)
    v, u = torch.meshgrid(*(torch.arange(n, device=known.device) for n in (H, W)), indexing="ij")
    distance = (key >> BITS).float()
    best = distance.clamp(max=FILLED)
    values, weights = [], []
    for k in (key, *straight):
        reached = k < FAR
        at = torch.where(reached, k & ((1 << BITS) - 1), 0)
        own, value, right, below = (t.flatten(1).gather(1, at.flatten(1)).view(N, H, W) for t in (q, *planes))
        value = value + right * (u - at % W).float() + below * (v - at // W).float()
        value = torch.minimum(torch.maximum(value, own * (1 / REACH)), own * REACH)
        values.append(torch.where(reached, value, 0.0))
        weights.append(torch.where(reached, _weight(best, (k >> BITS).float()), 0.0))
    values.append(background)
    weights.append(_weight(best, FILLED))

    total, mean = torch.zeros_like(q), torch.zeros_like(q)
    for value, weight in zip(values, weights, strict=True):
        total = total + weight
        mean = mean + weight * value
    mean = mean / total
    spread = torch.zeros_like(q)
    for value, weight in zip(values, weights, strict=True):
        off = value / mean - 1
        spread = spread + weight * (off * off)
    spread = spread / total
    share = distance * (1 / HALF)
    confidence = 1 / ((1 + share * share) * (1 + spread * (1 / AGREE**2)))
    reached = key < FAR
    filled = torch.where((filled > 0) & (filled < torch.inf), filled, 1 / LIMITS[0])
    out = torch.where(reached, 1 / mean.clamp(*LIMITS), filled)
    confidence = torch.where(reached, confidence, 0.0)
    return torch.where(usable, depth, out), torch.where(usable, 1.0, confidence)


def _three(t: Tensor, dim: int) -> Tensor:
    """Sums of three neighbours along ``dim``; beyond the border, the border's value."""
    n = t.shape[dim]
    before = torch.cat((t.narrow(dim, 0, 1), t.narrow(dim, 0, n - 1)), dim)
    after = torch.cat((t.narrow(dim, 1, n - 1), t.narrow(dim, n - 1, 1)), dim)
    return before + t + after


def _costs(colours: Tensor, q: Tensor, background: Tensor, dim: int) -> Tensor:
    """int64 [N, H, W]: cost of the step from the pixel before along ``dim``, 0 at the first."""
    n = q.shape[dim]
    difference = colours.narrow(dim, 1, n - 1) - colours.narrow(dim, 0, n - 1)
    cost = STEP + (difference.square().sum(-1) >> COLOUR_SHIFT)
    low, high = NEARER_RAMP
    for a, b in ((0, 1), (1, 0)):
        known, unknown = q.narrow(dim, a, n - 1), q.narrow(dim, b, n - 1)
        entered = (known > 0) & (unknown == 0)
        behind = 1 - background.narrow(dim, b, n - 1) / torch.where(entered, known, 1.0)
        entry = ((behind - low) * (1 / (high - low))).clamp(0.0, 1.0) * NEARER
        cost = cost + torch.where(entered, entry, 0.0).to(torch.int64)
    return F.pad(cost, (1, 0) if dim == 2 else (0, 0, 1, 0))


def _spread(key: Tensor, cost: Tensor, dim: int) -> Tensor:
    """The least of ``key`` before each pixel along ``dim``, its own included, plus the cost of the way from there."""
    way = cost.cumsum(dim) << BITS
    return (key - way).cummin(dim).values + way


def _spread_back(key: Tensor, cost: Tensor, dim: int) -> Tensor:
    return _spread(key.flip(dim), cost.roll(-1, dim).flip(dim), dim).flip(dim)


def _planes(q: Tensor, usable: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and growth per pixel to the right and down of the planes of known pixels beside holes, 0 elsewhere."""
    N, H, W = q.shape
    hole = F.pad(~usable, (1, 1, 1, 1))
    beside = hole[:, 1:-1, :-2] | hole[:, 1:-1, 2:] | hole[:, :-2, 1:-1] | hole[:, 2:, 1:-1]
    b, y, x = (usable & beside).nonzero(as_tuple=True)
    own = q[b, y, x]

    def fit(slope_x, slope_y, limit):
        n, sx, sy, sv, svv, sxx, sxy, syy, sxv, syv = (torch.zeros_like(own) for _ in range(10))
        for dy in range(-STRIDE * TAPS, STRIDE * TAPS + 1, STRIDE):
            for dx in range(-STRIDE * TAPS, STRIDE * TAPS + 1, STRIDE):
                r, c = y + dy, x + dx
                inside = (r >= 0) & (r < H) & (c >= 0) & (c < W)
                r, c = r.clamp(0, H - 1), c.clamp(0, W - 1)
                v = q[b, r, c] / own - 1
                off = v - slope_x * dx - slope_y * dy
                w = (v.abs() <= SAME[0] + SAME[1] * max(abs(dy), abs(dx))) & (off * off <= limit)
                w = inside & usable[b, r, c] & w
                v, w = torch.where(w, v, 0.0), w.float()
                n, sx, sy, sv, svv = n + w, sx + w * dx, sy + w * dy, sv + v, svv + v * v
                sxx, sxy, syy = sxx + w * (dx * dx), sxy + w * (dx * dy), syy + w * (dy * dy)
                sxv, syv = sxv + v * dx, syv + v * dy
        per = 1 / n
        mx, my, mv = sx * per, sy * per, sv * per
        xx, xy, yy = sxx - sx * mx + RIDGE, sxy - sx * my, syy - sy * my + RIDGE
        xv, yv, vv = sxv - sx * mv, syv - sy * mv, svv - sv * mv
        scale = 1 / (xx * yy - xy * xy)
        gx, gy = (xv * yy - yv * xy) * scale, (yv * xx - xv * xy) * scale
        rest = ((vv - gx * xv - gy * yv) * per).clamp(min=0.0)
        return n, rest, mv - gx * mx - gy * my, gx, gy

    none = torch.zeros_like(own)
    _, rest, _, gx, gy = fit(none, none, none + torch.inf)
    n, rest, offset, gx, gy = fit(gx, gy, rest.clamp(min=OFF**2))
    belief = ((n - FEW[0]) * (1 / (FEW[1] - FEW[0]))).clamp(0.0, 1.0) / (1 + rest * (1 / BENT**2))
    offset = offset.clamp(-OFFSET, OFFSET)
    planes = []
    for value in (own * (1 + belief * offset), own * (belief * gx), own * (belief * gy)):
        planes.append(torch.zeros_like(q).index_put((b, y, x), value))
    return tuple(planes)


def _weight(best: Tensor, distance: Tensor | int) -> Tensor:
    r = best / distance
    r = r * r
    return r * r * r
