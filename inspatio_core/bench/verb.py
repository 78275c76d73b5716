"""``inspatio bench``: its arguments, and what it prints. What measures is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from inspatio_core.errors import InputError

if TYPE_CHECKING:
    from inspatio_core.bench.star import StarBench

SIZES = ("1.3b", "14b", "tiny", "custom")  # those of star.config, without importing torch
OUTPUT = Path("output", "bench")


def add_parser(verbs) -> None:
    """Add the verb to the sub-parsers of ``inspatio``."""
    parser = verbs.add_parser(
        "bench",
        help="measure how fast the star generator runs here",
        description="Measure how fast the star generator runs here.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    star = actions.add_parser(
        "star",
        help="every stage of a block",
        description="Time every stage of a steady block, from the committed command to frames on the host. Prints a "
        "table and writes JSON.",
    )
    star.set_defaults(run=run_star)
    _add_network(star)
    _add_star(star)
    micro = actions.add_parser(
        "star-micro",
        help="every matrix product and attention of the network by itself",
        description="Time every matrix product and attention of the network by every kernel that is here, and say "
        "which is best. Takes a minute.",
    )
    micro.set_defaults(run=run_micro)
    _add_network(micro)


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("network").add_argument
    add(
        "--size",
        choices=("auto", *SIZES),
        default="auto",
        help="of the network (default: auto, that of the folder of weights, else 1.3b, the released one)",
    )
    add("--config", type=Path, metavar="FILE", help="with --size custom: JSON file of its fields")
    for name, what in (
        ("dim", "width"),
        ("ffn_dim", "width of the feed-forward"),
        ("heads", "attention heads"),
        ("layers", "layers"),
    ):
        text = f"with --size custom: {what} (default: that of --config, or of the 1.3b)"
        add(f"--{name}", type=_whole, metavar="N", help=text)
    add(
        "--latents_per_block",
        "--latents-per-block",
        type=_whole,
        metavar="N",
        help="latent frames a block, 4 N frames (default: the network's; as released 3)",
    )

    add = parser.add_argument_group("run").add_argument
    add("--device", default="auto", metavar="NAME", help="auto, cpu or cuda:N (default: auto)")
    add(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="what it computes in (default: auto, bfloat16 on a GPU, else float32)",
    )
    add(
        "--image_size",
        "--image-size",
        type=_size,
        default=(480, 832),
        metavar="HxW",
        help="height x width of the frames, multiples of 16 (default: 480x832)",
    )
    add("--slots", type=_whole, default=1, metavar="B", help="worlds that run side by side (default: 1)")
    add("-o", "--out", type=Path, metavar="FILE", help=f"JSON file to write (default: {OUTPUT}/ACTION.json)")
    add("-q", "--quiet", action="store_true", help="the table alone")


def _add_star(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("weights").add_argument
    add(
        "--checkpoint_path",
        default="",
        metavar="PATH",
        help="of the network: a file, or a folder with config.json, star.safetensors and codec.safetensors "
        "(default: where `inspatio checkpoints list` says)",
    )
    add("--codec_checkpoint_path", default="", metavar="FILE", help="of the codec (default: likewise)")
    add(
        "--random_weights",
        "--random-weights",
        action="store_true",
        help="draw the weights instead of reading them: times are the same, frames are noise",
    )
    add(
        "--codec",
        choices=("auto", "tae", "wan"),
        default="auto",
        help="the autoencoder: TAEHV, which is fast, or that of Wan 2.1 (default: auto, that of the folder of weights, "
        "else tae)",
    )

    add = parser.add_argument_group("measurement").add_argument
    add(
        "--paths",
        nargs="+",
        default=(),
        metavar="PATH",
        help="ways to run the network, side by side, compared with the first: plain, fast (the generator's own), "
        "kernels (fast without CUDA graphs), compile, fp8 (fast, large products in 8 bits) "
        "(default: plain, and on a GPU fast)",
    )
    add("--blocks", type=_whole, metavar="N", help="blocks that are timed (default: 20 on a GPU, else 5, by layers 2)")
    add("--warm_up", type=_whole, metavar="N", help="steady blocks before those (default: 2)")
    add("--scene", default="courtyard", metavar="SOURCE", help="what is driven through (default: courtyard)")
    add(
        "--whole",
        action="store_true",
        help="run the network whole on a CPU even where that takes more than a minute (default there: one layer, "
        "counted for all)",
    )


def run_star(args: argparse.Namespace) -> int:
    """``inspatio bench star``."""
    from inspatio_core.bench.machine import describe, write
    from inspatio_core.bench.report import table
    from inspatio_core.bench.star import compute_of, star

    options, out = options_of(args), _output(args)
    about = describe(str(compute_of(options.device, options.dtype)[0]))
    report = star(options, about, _teller(args))
    write(report, out)
    print(table(report))
    _say(args, f"written to {out}")
    return 0


def run_micro(args: argparse.Namespace) -> int:
    """``inspatio bench star-micro``."""
    from inspatio_core.bench.machine import describe, write
    from inspatio_core.bench.micro import star_micro
    from inspatio_core.bench.star import compute_of, config_of

    options, out = options_of(args), _output(args)
    config, (device, dtype) = config_of(options), compute_of(options.device, options.dtype)
    about = describe(str(device))
    report = star_micro(config, device, dtype, about, options.image_size, options.slots, tell=_print)
    write(report, out)
    _say(args, f"written to {out}")
    return 0


def options_of(args: argparse.Namespace) -> StarBench:
    """The arguments as what `star` takes."""
    from inspatio_core.bench.star import StarBench

    given = {f.name: getattr(args, f.name) for f in fields(StarBench) if hasattr(args, f.name)}
    return StarBench(**given | {"paths": tuple(getattr(args, "paths", ()))})


def _output(args: argparse.Namespace) -> Path:
    """Where the JSON goes, found out before anything is measured."""
    out = args.out or OUTPUT / ("star.json" if args.run is run_star else "star-micro.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out: {out} cannot be written; name a file in a folder of yours")
    return out


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not all(16 <= int(n) <= 4096 for n in match.groups()):
        raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH (such as 480x832), 16 to 4096 pixels")
    return int(match[1]), int(match[2])


def _teller(args: argparse.Namespace):
    def tell(line: str) -> None:
        if line.startswith("RANDOM WEIGHTS"):  # even where nothing else shall be said
            print(f"inspatio: warning: {line}", file=sys.stderr, flush=True)
        else:
            _say(args, line)

    return tell


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        print(f"inspatio: {line}", file=sys.stderr, flush=True)


def _print(line: str) -> None:
    print(line, flush=True)
