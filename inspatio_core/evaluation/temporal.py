"""Steadiness: from frame to frame, across blocks, over thousands of frames, and when a place is visited again.

Frames are uint8 [N, H, W, 3] in the order shown. A measure of neighbouring frames gives float64 [N-1]: entry t - 1 is
the step from frame t - 1 to frame t; NaN where no pixel counts. Errors are in grey levels (0..255).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.evaluation.metrics import _ratio, check_frames, check_mask, psnr
from inspatio_core.geometry.camera import invert_pose, project, unproject


def static_flow(depth: Tensor, K: Tensor, world_from_camera: Tensor, tolerance: float = 0.02) -> tuple[Tensor, Tensor]:
    """Exact flow of what stands still, from depth and camera path.

    Args:
        depth: float [N, H, W], z in metres; what is not finite and positive is unknown.
        K: [N, 3, 3]. world_from_camera: [N, 4, 4].
        tolerance: how far, relatively, depth may be off where a pixel was before: beyond it was hidden.

    Returns:
        flow float64 [N-1, H, W, 2]: entry t - 1 leads from a pixel of frame t to where it was in frame t - 1 (dx, dy,
        pixels); valid bool [N-1, H, W]: seen in both. Pixels of moving things have to be excluded by the caller.
    """
    depth, K, poses = depth.double(), K.double(), world_from_camera.double()
    usable = depth.isfinite() & (depth > 0.0)
    z = torch.where(usable, depth, 1.0)
    before_from_now = invert_pose(poses[:-1]) @ poses[1:]
    points = unproject(z[1:], K[1:]) @ before_from_now[:, None, :3, :3].mT + before_from_now[:, None, None, :3, 3]
    uv, z_before = project(points, K[:-1])
    height, width = depth.shape[1:]
    ahead = z_before > 0.0
    uv = torch.where(ahead[..., None], uv, -1e6)
    at = uv.round().long()
    x, y = at[..., 0], at[..., 1]
    inside = ahead & (uv[..., 0] >= 0) & (uv[..., 0] <= width - 1) & (uv[..., 1] >= 0) & (uv[..., 1] <= height - 1)
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)
    seen = z[:-1].flatten(1).gather(1, index).view_as(z_before)
    known = usable[:-1].flatten(1).gather(1, index).view_as(inside)
    valid = usable[1:] & inside & known & ((seen - z_before).abs() <= tolerance * z_before)
    v = torch.arange(height, dtype=uv.dtype, device=uv.device)[:, None].expand(height, width)
    u = torch.arange(width, dtype=uv.dtype, device=uv.device)[None, :].expand(height, width)
    flow = uv - torch.stack([u, v], -1)
    return torch.where(valid[..., None], flow, 0.0), valid


def warping_error(frames: Tensor, flow: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels and channels of |x_t - W(x_{t-1})|, grey levels, float64 [N-1].

    Args:
        frames: uint8 [N, H, W, 3].
        flow: [N-1, H, W, 2], from a pixel of frame t to where it was in frame t - 1 (dx, dy); W samples bilinearly,
            pixel centres at integers.
        valid: bool [N-1, H, W], which pixels of frame t count (not hidden before; known or holes, to split). What lay
            outside frame t - 1 never counts.

    Divide by the same of the true frames: interpolation and shading alone make some.

    Raises:
        InputError: shapes that do not fit.
    """
    check_frames(("frames", frames))
    n, height, width = frames.shape[:3]
    if flow.shape != (n - 1, height, width, 2):
        raise InputError(f"flow: need {[n - 1, height, width, 2]}, got {list(flow.shape)}")
    check_mask("valid", valid, flow)
    v = torch.arange(height, dtype=torch.float64, device=frames.device)[:, None]
    u = torch.arange(width, dtype=torch.float64, device=frames.device)
    errors = []
    for t in range(1, n):
        x, y = u + flow[t - 1, ..., 0], v + flow[t - 1, ..., 1]
        inside = valid[t - 1] & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        grid = torch.stack([2.0 * x / (width - 1) - 1.0, 2.0 * y / (height - 1) - 1.0], -1)
        before = frames[t - 1].double().permute(2, 0, 1)[None]
        warped = F.grid_sample(before, grid[None], padding_mode="border", align_corners=True)[0].permute(1, 2, 0)
        error = ((frames[t].double() - warped).abs().mean(-1) * inside).sum()
        errors.append(_ratio(error, inside.sum().double()))
    return torch.stack(errors) if errors else torch.zeros(0, dtype=torch.float64)


def flicker(frames: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean |x_t - x_{t-1}| over channels and mask, grey levels, float64 [N-1].

    For frames of frozen time under a resting camera: whatever is not 0 is flicker. mask: bool [N-1, H, W] or None.
    """
    check_frames(("frames", frames))
    steps = (frames[1:].int() - frames[:-1].int()).abs().double().mean(-1)
    if mask is None:
        return steps.mean((1, 2))
    check_mask("mask", mask, steps)
    return _ratio((steps * mask).sum((1, 2)), mask.sum((1, 2)).double())


def boundary_jump_ratio(errors: Tensor, first: int, steady: int) -> float | None:
    """Mean error of steps into a new block / mean error of steps within blocks: 1 where blocks do not show.

    Args:
        errors: [N-1], of neighbouring frames (:func:`warping_error`, :func:`flicker`), NaN left out.
        first, steady: frames of the first block and of every later one.

    Returns None where one of the two kinds is missing or the error within blocks is 0.
    """
    if first < 1 or steady < 1:
        raise InputError(f"blocks need at least one frame, got {first} and {steady}")
    t = torch.arange(1, len(errors) + 1, device=errors.device)
    enters = (t >= first) & ((t - first) % steady == 0)
    there = ~errors.isnan()
    at, within = errors[there & enters], errors[there & ~enters]
    if not len(at) or not len(within) or float(within.mean()) == 0.0:
        return None
    return float(at.mean() / within.mean())


@dataclass(frozen=True)
class Drift:
    """How a value changes over a long run.

    slope: per 1000 frames, by least squares; low, high: its interval of the given level. change: mean of the last
    200 frames - mean of the first 200 (of a third each, if the run is shorter than 600). count: frames with a value;
    missing: frames without.
    """

    slope: float | None
    low: float | None
    high: float | None
    change: float | None
    level: float
    count: int
    missing: int

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self)


def drift(values: Tensor, batches: int = 20, level: float = 0.95) -> Drift:
    """Slope of values over frames, with an interval that holds though neighbouring frames are alike.

    Args:
        values: [N], one a frame (PSNR, mean of a channel, sharpness, pose error), NaN where missing.
        batches: the run is cut into this many spans of equal length; a line is fitted to their means and the interval
            is Student's t of that fit (the method of batch means). Spans should be longer than frames are alike: at
            least one turn of a path that repeats. A span without values is left out; with fewer than 3 spans, or
            frames than spans, the slope is None.

    Raises:
        InputError: fewer than 3 batches.
    """
    if batches < 3:
        raise InputError(f"drift: need at least 3 batches, got {batches}")
    values = values.double().cpu()
    n, there = len(values), ~values.isnan()
    count = int(there.sum())
    end = min(200, n // 3)
    first, last = values[:end].nanmean(), values[n - end :].nanmean()
    change = float(last - first) if end and not (last - first).isnan() else None
    spans = [(torch.arange(n)[part], values[part]) for part in torch.arange(n).tensor_split(batches)]
    means = [(float(at[~y.isnan()].double().mean()), float(y.nanmean())) for at, y in spans if not y.isnan().all()]
    if n < batches or len(means) < 3:
        return Drift(None, None, None, change, level, count, n - count)
    fit = stats.linregress([1e-3 * at for at, _ in means], [mean for _, mean in means])
    reach = float(stats.t.ppf((1.0 + level) / 2.0, len(means) - 2) * fit.stderr)
    slope = float(fit.slope)
    return Drift(slope, slope - reach, slope + reach, change, level, count, n - count)


def find_revisits(
    world_from_camera: Tensor, source_index: Tensor, gap: int, degrees: float = 0.1, metres: float = 0.01
) -> list[tuple[int, int]]:
    """Pairs (first, again) of frames with the same source frame and pose, at least `gap` frames apart.

    Each frame is paired with the earliest such frame. world_from_camera: [N, 4, 4]; source_index: [N]; degrees, metres:
    how far poses may differ.
    """
    poses = world_from_camera.double().cpu()
    source_index = source_index.cpu()
    pairs = []
    for again in range(gap, len(poses)):
        before = poses[: again - gap + 1]
        turn = (before[:, :3, :3] - poses[again, :3, :3]).square().sum((1, 2)).sqrt() / (2.0 * math.sqrt(2.0))
        near = 2.0 * torch.asin(turn.clamp(max=1.0)) <= math.radians(degrees)
        near &= (before[:, :3, 3] - poses[again, :3, 3]).norm(dim=1) <= metres
        near &= source_index[: again - gap + 1] == source_index[again]
        if near.any():
            pairs.append((int(near.nonzero()[0]), again))
    return pairs


def revisit_psnr(frames: Tensor, pairs: list[tuple[int, int]], unseen: Tensor | None = None) -> Tensor:
    """PSNR in dB between two visits, float64 [P]: does the world remember what it made up?

    Args:
        frames: uint8 [N, H, W, 3]. pairs: frames (first, again), see :func:`find_revisits`.
        unseen: bool [N, H, W], pixels never seen in the reference; of a pair those count that both frames have so
            marked. None: all pixels.
    """
    check_frames(("frames", frames))
    first, again = (torch.tensor([pair[i] for pair in pairs], dtype=torch.long) for i in (0, 1))
    if unseen is not None:
        check_mask("unseen", unseen, frames)
        unseen = unseen[first] & unseen[again]
    return psnr(frames[again], frames[first], unseen)
