"""From measured seconds to what is written and printed."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from inspatio_core.bench.flops import Flops, flops_context, flops_denoise
from inspatio_core.bench.stages import AFTER, AHEAD
from inspatio_core.bench.timing import spread
from inspatio_core.star.config import StarConfig

FPS = 24  # what robots' cameras and the released videos have
ORDER = (*AHEAD, "anchor", "encode_anchor", "denoise", "decode", "copy_out", *AFTER)

Seconds = dict[str, list[float]]


def network_counts(config: StarConfig, tokens: int, slots: int, text_rows: int) -> dict[str, tuple[Flops, Flops]]:
    """Operations of the network's stages, all slots: as defined, and executed.

    Args:
        tokens: of a block. text_rows: that cross attention reads.
    """

    def both(count: Callable[..., Flops], *sizes: int, times: int = slots) -> tuple[Flops, Flops]:
        pair = count(config, *sizes), count(config, *sizes, executed=True, text_rows=text_rows)
        defined, executed = (Flops(*(times * part for part in flops)) for flops in pair)
        return defined, executed

    steps = len(config.steps)
    found = {"context": both(flops_context, 2 * tokens)}
    found |= {f"denoise_{k + 1}": both(flops_denoise, tokens, 2 * tokens) for k in range(steps)}
    return found | {"denoise": both(flops_denoise, tokens, 2 * tokens, times=slots * steps)}


def codec_count(flops: int) -> tuple[Flops, Flops]:
    """A codec's operations, all of them products with weights, of which there is one count."""
    count = Flops(flops, 0, 0, 0, 0, 0, 0)
    return count, count


def stage_rows(
    seconds: Seconds, counts: dict[str, tuple[Flops, Flops]], kernels: dict, scaled: dict[str, float]
) -> dict[str, dict]:
    """What is said of each stage, in the order of a block.

    Args:
        counts: operations of stages that have some.
        kernels: ``product`` and ``attention`` with their ``tflop_per_s``.
        scaled: how many times what was timed is counted, for stages of which a part was timed.
    """
    dense, attend = (kernels[kernel]["tflop_per_s"] for kernel in ("product", "attention"))
    rows = {}
    for stage in sorted(seconds, key=lambda s: (ORDER.index("denoise" if s.startswith("denoise") else s), s)):
        row = rows[stage] = spread(seconds[stage]) | {"scaled_by": scaled.get(stage, 1)}
        if stage in counts:
            defined, executed = (flops for flops in counts[stage])
            row["tflop"], row["tflop_executed"] = defined.total / 1e12, executed.total / 1e12
            row["tflop_per_s"] = row["tflop_executed"] / row["median_ms"] * 1e3
            floor_ms = (executed.dense / dense + executed.attention / attend) / 1e9
            row["share_of_kernels"] = floor_ms / row["median_ms"]
    return rows


def totals(seconds: Seconds, unsynchronised: list[float]) -> dict[str, dict]:
    """Sums of stages, block by block; and of whole blocks what they took as such."""

    def sums(which: Callable[[str], bool]) -> list[float]:
        return [sum(row) for row in zip(*(v for s, v in seconds.items() if which(s)), strict=True)]

    found = {
        "before_the_command": sums(lambda s: s in AHEAD),
        "command_to_frames": sums(lambda s: s not in (*AHEAD, *AFTER)),
        "block": sums(lambda s: s not in AFTER),
        "block_with_map": sums(lambda s: True),
    }
    if unsynchronised:
        found["block_unsynchronised"] = unsynchronised
    return {name: spread(values) for name, values in found.items()}


def rates(sums: dict[str, dict], frames: int) -> dict[str, float]:
    """Frames a second for each way to count a block of `frames`."""
    return {name: 1e3 * frames / row["median_ms"] for name, row in sums.items() if name.startswith("block")}


# --------------------------------------------------------------------------------------------------------- memory


def reset_peak(device: torch.device) -> None:
    """Begin to watch the device's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Bytes at the most: of the device since `reset_peak` (None without one), of the process since it began."""
    cuda = device.type == "cuda"
    return {
        "host_peak_bytes": _host_peak(),
        "device_peak_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "device_reserved_bytes": torch.cuda.max_memory_reserved(device) if cuda else None,
    }


def _host_peak() -> int:
    status = Path("/proc/self/status")  # getrusage may count the process that started this one
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# ----------------------------------------------------------------------------------------------------- differences


def compare(actual: Tensor, expected: Tensor) -> dict[str, float]:
    """Largest difference, and root mean square of the difference over that of `expected`."""
    difference = actual.double() - expected.double()
    rms = difference.square().mean().sqrt() / expected.double().square().mean().sqrt()
    return {"max_abs": difference.abs().max().item(), "relative_rms": rms.item()}


def compare_frames(actual: Tensor, expected: Tensor) -> dict:
    """Of uint8 [..., H, W, 3]: PSNR in dB (None where they are equal), the largest difference in levels, LPIPS."""
    difference = actual.double() - expected.double()
    mse = difference.square().mean().item()
    return {
        "psnr_db": 10 * math.log10(255**2 / mse) if mse else None,
        "max_levels": int(difference.abs().max()),
        "lpips": _lpips(actual, expected),
    }


def _lpips(actual: Tensor, expected: Tensor) -> float | str:
    """LPIPS (AlexNet) where package and weights are here already; otherwise why there is none."""
    try:
        import lpips
    except ImportError:
        return "not available: package lpips is not installed"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not any(folder.glob("alexnet*")):
        return "not available: no weights of AlexNet in torch's cache"
    network = lpips.LPIPS(net="alex", verbose=False).to(actual.device)
    pair = (t.flatten(0, -4).movedim(-1, 1).float() / 127.5 - 1 for t in (actual, expected))
    with torch.no_grad():
        return network(*pair).mean().item()


# ----------------------------------------------------------------------------------------------------------- print


def table(report: dict) -> str:
    """The report of `star` for people."""
    about, network = report["machine"], report["network"]
    place = f"{about['gpu']}, driver {about['driver']}" if "gpu" in about else about["cpu"]
    product, attend = report["kernels"]["product"], report["kernels"]["attention"]
    tflop = report["tflop_per_block"]
    lines = [
        f"STAR {network['size']} ({network['parameters'] / 1e6:.4g} M parameters), {report['dtype']}, "
        f"{'x'.join(map(str, report['image_size']))}, {report['frames_per_block']} frames a block, "
        f"slots: {report['slots']}, codec {report['codec']['kind']}",
        f"{place}, torch {about['torch']}, {about['threads']} threads on {about['cores']} cores, "
        f"load {about['load_at_start']} before",
        f"weights: network {report['weights']['network']}, codec {report['weights']['codec']}",
        f"{tflop['as_defined']:.4g} TFLOP a block as defined, {tflop['executed']:.4g} executed; here a product runs at "
        f"{product['tflop_per_s']:.4g} TFLOP/s, attention ({attend['backend']}) at {attend['tflop_per_s']:.4g}",
        *(f"note: {note}" for note in report["notes"]),
    ]
    for path in report["paths"]:
        lines += ["", f"{path['path']:26}{'median':>10}{'best':>10}{'worst':>10} ms{'TFLOP':>9}{'per s':>9} of kernels"]
        for stage, row in path["stages"].items():
            text = _row("  " + stage, row)
            if "tflop" in row:
                text += f"   {row['tflop_executed']:9.3g}{row['tflop_per_s']:9.3g}{row['share_of_kernels']:11.0%}"
            lines.append(text + (f"   counted x{row['scaled_by']:.3g}" if row["scaled_by"] != 1 else ""))
        for total, row in path["totals"].items():
            rate = path["frames_per_second"].get(total)
            lines.append(_row(total, row) + (f"   {rate:.4g} frames/s, {rate / FPS:.3g} x {FPS}" if rate else ""))
        lines += _about_path(path)
    return "\n".join(lines)


def _row(name: str, row: dict) -> str:
    times = "".join(f"{row[key]:10.{2 if row[key] < 1e5 else 0}f}" for key in ("median_ms", "best_ms", "worst_ms"))
    return f"{name.replace('_', ' '):26}{times}"


def _about_path(path: dict) -> list[str]:
    memory, difference = path["memory"], path["difference"]
    peaks = [f"{key.split('_')[0]} {memory[key] / 1e9:.3g} GB" for key in memory if "peak" in key and memory[key]]
    lines = [f"peak memory: {', '.join(peaks)}; of the pixels {path['known_share']:.0%} were known"]
    if path["times_as_fast"]:
        lines.append(", ".join(f"{t.replace('_', ' ')}: {r:.3g} times" for t, r in path["times_as_fast"].items()))
        lines[-1] += " as fast as the first path"
    if difference:
        latents, frames = difference["latents"], difference["frames"]
        psnr = "frames equal" if frames["psnr_db"] is None else f"PSNR of frames {frames['psnr_db']:.4g} dB"
        lpips = frames["lpips"] if isinstance(frames["lpips"], str) else format(frames["lpips"], ".3g")
        lines.append(
            f"from the first path: latents {latents['relative_rms']:.2g} (relative, rms), at most "
            f"{latents['max_abs']:.2g}; {psnr}, at most {frames['max_levels']} levels; LPIPS {lpips}"
        )
    return lines
