"""A steady block of the STAR network alone (context pass, denoising steps) by every path, side by side.

    PYTHONPATH=. python3 benchmarks/network.py --paths plain kernels graphs fp8 --json network.json
    PYTHONPATH=. python3 benchmarks/network.py --model tiny --size 128x224 --device cpu --paths plain kernels

Needs torch, numpy and inspatio_core/star only, so that a bare machine with a GPU can run it; `benchmarks/star.py`
times whole blocks. Random weights. Prints and writes the median times, how far each path's latents are from the first
one's (relative root mean square), and peak memory. ``--profile PATH`` prints the kernels of one block.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import describe, write

from inspatio_core.star.attention import choose_backend
from inspatio_core.star.config import star_config
from inspatio_core.star.dit import TextKV, build_star, randomise
from inspatio_core.star.fast import FastRollout
from inspatio_core.star.rollout import Rollout

PATHS = {
    "plain": None,
    "kernels": {},
    "graphs": {"graphs": True},
    "compile": {"compile": True, "graphs": True},
    "fp8": {"fp8": True, "graphs": True},
}
PROMPT_ROWS = 100  # the length of a caption


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="1.3b", help="1.3b, 14b, tiny or a JSON file (default: 1.3b)")
    parser.add_argument("--size", default="480x832", help="height x width of the frames (default: 480x832)")
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default=None, help="default: bfloat16 on CUDA, float32 on the CPU")
    parser.add_argument("--backend", default="auto", help="of attention")
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=list(PATHS), metavar="PATH")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--profile", choices=list(PATHS))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Inputs:
    """What a block of `rollout` is made from, drawn once."""

    def __init__(self, rollout: Rollout, slots: int):
        config, device = rollout.model.config, rollout.model.device
        draw = torch.Generator(device).manual_seed(0)

        def normal(channels: int) -> torch.Tensor:
            shape = (slots, config.latents_per_block, channels, rollout.height, rollout.width)
            return torch.randn(shape, generator=draw, device=device)

        self.reference, self.last, self.render, self.mask = normal(16), normal(16), normal(16), normal(4).sign()
        self.noise = [normal(16) for _ in range(len(rollout.sampler))]
        self.text: TextKV | None = None
        if config.text:
            embeds = torch.zeros(slots, config.text_len, config.text_dim, device=device)
            rows = min(PROMPT_ROWS, config.text_len)
            embeds[:, :rows] = torch.randn(slots, rows, config.text_dim, generator=draw, device=device)
            with torch.no_grad():
                self.text = rollout.model.text_kv(embeds, [rows] * slots)


def now(device: torch.device):
    """This moment, on the device's own clock."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def measure(rollout: Rollout, given: Inputs, workspace, blocks: int) -> tuple[dict, torch.Tensor]:
    """Times of a block in ms, and its latents."""
    device, marks, out = rollout.model.device, [], None
    rollout.warm_up(workspace, given.text)
    for _ in range(3 + blocks):
        begin = now(device)
        rollout.context(given.reference, given.last, workspace, given.text)
        middle = now(device)
        out = rollout.denoise(given.noise, given.mask, given.render, workspace, given.text)
        marks.append((begin, middle, now(device)))
    if device.type == "cuda":
        torch.cuda.synchronize()

    def ms(a, b) -> float:
        return a.elapsed_time(b) if device.type == "cuda" else (b - a) * 1e3

    context = [ms(a, b) for a, b, _ in marks[3:]]
    denoise = [ms(b, c) for _, b, c in marks[3:]]
    whole = [ms(a, c) for a, _, c in marks[3:]]
    return {
        "context_ms": statistics.median(context),
        "denoise_ms": statistics.median(denoise),
        "block_ms": statistics.median(whole),
        "best_ms": min(whole),
    }, out


def profiled(rollout: Rollout, given: Inputs, workspace) -> str:
    from torch.profiler import ProfilerActivity, profile

    cuda = rollout.model.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as found:
        rollout.context(given.reference, given.last, workspace, given.text)
        rollout.denoise(given.noise, given.mask, given.render, workspace, given.text)
        if cuda:
            torch.cuda.synchronize()
    return found.key_averages().table(sort_by=f"self_{'cuda' if cuda else 'cpu'}_time_total", row_limit=30)


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype) if args.dtype else torch.bfloat16 if device.type == "cuda" else torch.float32
    model = build_star(star_config(args.model), device, dtype)
    randomise(model)
    model.backend = choose_backend(device, dtype, args.backend)
    height, width = (int(n) // 8 for n in args.size.split("x"))
    plain = Rollout(model, height, width)
    workspace, given, rows, base = plain.workspace(args.slots), Inputs(plain, args.slots), {}, None
    for name in args.paths:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rollout = plain if PATHS[name] is None else FastRollout(plain, **PATHS[name])
        row, out = measure(rollout, given, workspace, args.blocks)
        base = out if base is None else base
        row["off"] = float((out.double() - base.double()).norm() / base.double().norm())
        row["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
        rows[name] = {"path": getattr(rollout, "path", "plain"), **row}
        print(name, {k: round(v, 5) if isinstance(v, float) else v for k, v in rows[name].items()}, flush=True)
        if args.profile == name:
            print(profiled(rollout, given, workspace))
        del rollout
    if args.json:
        asked = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        write({"machine": describe(str(device)), **asked, "rows": rows}, args.json)


if __name__ == "__main__":
    main()
