"""Likeness of generated frames to the truth, over regions of pixels.

Frames are uint8 [N, H, W, 3], masks bool [N, H, W]. A function of frames gives float64 [N], NaN where its mask holds no
pixel that counts; :func:`compare` measures a whole scene. Nothing here has weights; any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from inspatio_core.errors import InputError

PSNR_MAX = 100.0
"""Decibels that equal pixels count as: what 8 bits can tell apart at frame sizes in use lies below, so means stay
finite."""

BAND = 3
"""Pixels on either side of a hole's outline that belong to its boundary."""

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5
PYRAMID_LEVELS = 5

FLAT = 2.0
"""Mean squared Laplacian (grey levels squared) up to which the truth counts as flat: little more than what rounding to
8 bits makes alone (20 / 12)."""

_CHUNK = 2  # frames worked on at once: bounds memory, changes no value


def check_frames(*named: tuple[str, Tensor]) -> None:
    """Raise InputError unless all are uint8 [N, H, W, 3] of one shape; `named` are pairs of name and frames."""
    for name, frames in named:
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
            raise InputError(f"{name}: need uint8 frames [N, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        if frames.shape != named[0][1].shape:
            raise InputError(f"{name}: {list(frames.shape)} does not fit {named[0][0]} {list(named[0][1].shape)}")


def check_mask(name: str, mask: Tensor, like: Tensor) -> None:
    """Raise InputError unless `mask` is bool [N, H, W] of the frames `like` [N, H, W, ...]."""
    if mask.dtype != torch.bool or mask.shape != like.shape[:3]:
        raise InputError(f"{name}: need a bool mask {list(like.shape[:3])}, got {mask.dtype} {list(mask.shape)}")


def summary(values: Tensor) -> dict[str, float | int | None]:
    """{"mean", "count", "missing"} of float64 [N] with NaN for what is missing; the mean of nothing is None."""
    there = values[~values.isnan()]
    mean = float(there.mean()) if len(there) else None
    return {"mean": mean, "count": len(there), "missing": len(values) - len(there)}


# --- regions


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """Masks [N, H, W] grown by `pixels` to all sides, diagonals included (a square of 2 * pixels + 1)."""
    for dim in (1, 2):
        grown = mask.clone()
        for k in range(1, min(pixels, mask.shape[dim] - 1) + 1):
            length = mask.shape[dim] - k
            grown.narrow(dim, k, length).logical_or_(mask.narrow(dim, 0, length))
            grown.narrow(dim, 0, length).logical_or_(mask.narrow(dim, k, length))
        mask = grown
    return mask


def erode(mask: Tensor, pixels: int) -> Tensor:
    """Masks [N, H, W] shrunk by `pixels` from all sides; the frame's border shrinks nothing."""
    return ~dilate(~mask, pixels)


def boundary_band(hole: Tensor, pixels: int = BAND) -> Tensor:
    """Pixels of [N, H, W] at most `pixels` (diagonals count as one) from the hole's outline, on both of its sides.

    The frame's border is no outline.
    """
    return dilate(hole, pixels) & dilate(~hole, pixels)


def regions(known: Tensor, hole: Tensor, dynamic: Tensor | None = None) -> dict[str, Tensor]:
    """The regions that every report tells apart, as masks [N, H, W].

    Args:
        known: what the anchor knows (from the depth that the generator was given).
        hole: true disocclusion, from exact depth: what the source camera does not see at that time. Not the
            complement of `known`, which also lacks what estimated depth lost.
        dynamic: pixels of moving things, if the scene tells.

    Returns:
        "all", "known", "hole", "boundary" (see :func:`boundary_band`), and "dynamic" where given.

    Raises:
        InputError: masks that do not fit each other.
    """
    check_mask("hole", hole, known)
    found = {"all": torch.ones_like(known), "known": known, "hole": hole, "boundary": boundary_band(hole)}
    if dynamic is not None:
        check_mask("dynamic", dynamic, known)
        found["dynamic"] = dynamic
    return found


# --- one metric, frame by frame


def _mask(mask: Tensor | None, frames: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(frames.shape[:3], dtype=torch.bool, device=frames.device)
    check_mask("mask", mask, frames)
    return mask


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(t.split(_CHUNK) for t in tensors))


def _ratio(sums: Tensor, counts: Tensor) -> Tensor:
    """sums / counts, NaN where there is nothing to count."""
    return torch.where(counts > 0, sums / counts.clamp(min=1e-300), math.nan)


def _decibels(mean_square: Tensor) -> Tensor:
    return (10.0 * torch.log10(255.0**2 / mean_square)).clamp(max=PSNR_MAX)


def _squared_error(generated: Tensor, truth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the mask [N] of the squared differences of all channels, and how many they are."""
    sums = [
        ((a.int() - b.int()).square().sum(-1) * m).sum((1, 2)).double() for a, b, m in _chunks(generated, truth, mask)
    ]
    return torch.cat(sums), 3.0 * mask.sum((1, 2)).double()


def psnr(generated: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64 [N]: 10 log10(255^2 / mean squared error over channels and mask).

    At most :data:`PSNR_MAX`, which equal pixels get. NaN where the mask is empty.
    """
    check_frames(("generated", generated), ("truth", truth))
    return _decibels(_ratio(*_squared_error(generated, truth, _mask(mask, truth))))


def _filter(x: Tensor, window: list[float]) -> Tensor:
    """[.., H, W] under a symmetric window, given as its middle and one half, in both directions and without padding.

    Sums of shifted copies: convolutions in float64 are many times slower on the CPU.
    """
    radius = len(window) - 1
    for dim in (-1, -2):
        length = x.shape[dim] - 2 * radius
        total = x.narrow(dim, radius, length) * window[0]
        for k in range(1, radius + 1):
            both = x.narrow(dim, radius - k, length) + x.narrow(dim, radius + k, length)
            total.add_(both, alpha=window[k])
        x = total
    return x


def _gauss(x: Tensor) -> Tensor:
    """[.., H, W] under the SSIM window, without padding: [.., H - 10, W - 10]."""
    half = [math.exp(-(k**2) / (2.0 * SSIM_SIGMA**2)) for k in range(SSIM_RADIUS + 1)]
    total = half[0] + 2.0 * sum(half[1:])
    return _filter(x, [w / total for w in half])


def ssim_map(generated: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity around each pixel, float64 [N, H - 10, W - 10]: pixel (0, 0) of it is (5, 5) of the frames.

    Wang et al. 2004: Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, range 255, population
    covariance; the mean of the three channels. As scikit-image's ``structural_similarity(gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1)``, which leaves out the same 5 pixels at
    the border.

    Raises:
        InputError: frames that do not fit, or smaller than 11 x 11.
    """
    check_frames(("generated", generated), ("truth", truth))
    height, width = truth.shape[1:3]
    if min(height, width) <= 2 * SSIM_RADIUS:
        raise InputError(f"SSIM needs frames of at least 11 x 11 pixels, got {height} x {width}")
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    found = []
    for a, b in _chunks(generated, truth):
        x, y = (t.permute(0, 3, 1, 2).double().contiguous() for t in (a, b))
        mx, my = _gauss(x), _gauss(y)
        vx, vy, vxy = _gauss(x * x) - mx * mx, _gauss(y * y) - my * my, _gauss(x * y) - mx * my
        similar = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        found.append(similar.mean(1))
    return torch.cat(found)


def _inner(mask: Tensor) -> Tensor:
    return mask[:, SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS]


def ssim(generated: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity, float64 [N]: the mean of :func:`ssim_map` over the mask (windows reach beyond it).

    NaN where the mask holds nothing but the 5 pixels at the frame's border.
    """
    similar, inside = ssim_map(generated, truth), _inner(_mask(mask, truth))
    return _ratio((similar * inside).sum((1, 2)), inside.sum((1, 2)).double())


def _blur(x: Tensor) -> Tensor:
    """[N, C, H, W] under the 5 x 5 binomial window, mirrored at the border."""
    return _filter(F.pad(x, (2, 2, 2, 2), mode="reflect"), [6 / 16, 4 / 16, 1 / 16])


def _pyramid_sum(difference: Tensor) -> Tensor:
    """Sum over levels j and channels of 4^j |L^j| of [N, C, H, W]: [N].

    4^j stands for the pixels of the frame per pixel of the level: a little less where sizes were rounded up.
    """
    values = difference[0].numel()
    total = difference.new_zeros(len(difference))
    for _ in range(PYRAMID_LEVELS - 1):
        small = _blur(difference)[..., ::2, ::2]
        raised = torch.zeros_like(difference)
        raised[..., ::2, ::2] = small
        total += values * (difference - 4.0 * _blur(raised)).abs().mean((1, 2, 3))
        difference = small
    return total + values * difference.abs().mean((1, 2, 3))


def laplacian_l1(generated: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Laplacian-pyramid L1 distance, float64 [N], lower is better; white against black is 1.

    The Lap1 of Bojanowski et al. 2018 (sum over levels j of 4^j |L^j(x) - L^j(y)|_1; five levels, the last one the
    remaining low-pass image, binomial 5 x 5 windows) per channel and pixel of the mask, of grey levels / 255. Outside
    the mask the truth is pasted into x, so nothing there counts. NaN where the mask is empty.

    Raises:
        InputError: frames that do not fit, or smaller than 32 x 32.
    """
    check_frames(("generated", generated), ("truth", truth))
    height, width = truth.shape[1:3]
    if min(height, width) < 32:
        raise InputError(f"Laplacian pyramids need frames of at least 32 x 32 pixels, got {height} x {width}")
    mask = _mask(mask, truth)
    sums = []
    for a, b, m in _chunks(generated, truth, mask):
        difference = (a.double() - b.double()) / 255.0 * m[..., None]
        sums.append(_pyramid_sum(difference.permute(0, 3, 1, 2).contiguous()))
    return _ratio(torch.cat(sums), 3.0 * mask.sum((1, 2)).double())


def _edges(frames: Tensor) -> Tensor:
    """Squared 4-neighbour Laplacian of the luma (BT.601), float64 [N, H - 2, W - 2], of all pixels off the border."""
    r, g, b = frames.double().unbind(-1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
    return (around - 4.0 * y[:, 1:-1, 1:-1]).square()


def _edge_mask(mask: Tensor) -> Tensor:
    """Which of the pixels of :func:`_edges` have their eight neighbours in the mask: seams are not sharpness."""
    return erode(mask, 1)[:, 1:-1, 1:-1]


def _sharpness(generated: Tensor, truth: Tensor, pixels: Tensor) -> Tensor:
    """Ratio of energies, NaN where the truth is flat or there is no pixel."""
    return torch.where(truth > FLAT * pixels, generated / truth.clamp(min=1e-300), math.nan)


def sharpness_ratio(generated: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Laplacian energy of generated pixels / that of the true ones, float64 [N]: below 1 is blurred, above 1 harsh.

    Energy is the sum of the squared 4-neighbour Laplacian of the luma, over pixels whose eight neighbours lie in the
    mask, too. NaN where there is none, or where the truth is flat (see :data:`FLAT`): nothing to be sharp about.
    """
    check_frames(("generated", generated), ("truth", truth))
    inside = _edge_mask(_mask(mask, truth))
    sums = [
        torch.stack([(_edges(a) * m).sum((1, 2)), (_edges(b) * m).sum((1, 2))])
        for a, b, m in _chunks(generated, truth, inside)
    ]
    return _sharpness(*torch.cat(sums, 1), inside.sum((1, 2)).double())


# --- a scene


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)


def compare(generated: Tensor, truth: Tensor, regions: dict[str, Tensor]) -> dict[str, dict[str, float | int | None]]:
    """All metrics of a scene (the unit that intervals are drawn over), by region.

    Args:
        generated, truth: uint8 [N, H, W, 3], at least 32 x 32.
        regions: masks bool [N, H, W] by name, see :func:`regions`.

    Returns:
        For each region, each pooled over all of its pixels in the scene, so that frames with few of them do not rule:
        "psnr" (of the scene's mean squared error), "ssim", "laplacian_l1", "sharpness" (ratio of the sums); beside them
        "psnr_frames", the mean over frames of :func:`psnr` as papers report it; "pixels", how many the region has;
        "frames" and "missing", how many frames have some and none. None where nothing can be measured.

    Raises:
        InputError: frames or masks that do not fit, frames that are too small.
    """
    check_frames(("generated", generated), ("truth", truth))
    for name, mask in regions.items():
        check_mask(name, mask, truth)
    parts: dict[str, list[Tensor]] = {name: [] for name in regions}
    for a, b, *masks in _chunks(generated, truth, *regions.values()):
        similar, edges, true_edges = ssim_map(a, b), _edges(a), _edges(b)
        for name, mask in zip(regions, masks):
            error, values = _squared_error(a, b, mask)
            inside, sharp = _inner(mask), _edge_mask(mask)
            sums = [(similar * inside), inside, (edges * sharp), (true_edges * sharp), sharp]
            levels = (laplacian_l1(a, b, mask) * values).nan_to_num(0.0)
            parts[name].append(torch.stack([error, values, levels, *(x.sum((1, 2)).double() for x in sums)]))
    report = {}
    for name, found in parts.items():
        per_frame = torch.cat(found, 1)
        error, values, levels, similar, inside, energy, true_energy, sharp = per_frame.sum(1)
        there = per_frame[1] > 0
        report[name] = {
            "psnr": _number(_decibels(_ratio(error, values))),
            "psnr_frames": summary(_decibels(_ratio(per_frame[0], per_frame[1])))["mean"],
            "ssim": _number(_ratio(similar, inside)),
            "laplacian_l1": _number(_ratio(levels, values)),
            "sharpness": _number(_sharpness(energy, true_energy, sharp)),
            "pixels": int(values) // 3,
            "frames": int(there.sum()),
            "missing": int((~there).sum()),
        }
    return report
