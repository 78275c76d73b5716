"""``inspatio bench star``: how long each stage of a block takes, and how fast that makes the STAR generator."""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inspatio_core import checkpoints
from inspatio_core.bench.flops import flops_block
from inspatio_core.bench.layers import time_by_layers
from inspatio_core.bench.report import (
    Seconds,
    codec_count,
    compare,
    compare_frames,
    network_counts,
    peak_memory,
    rates,
    reset_peak,
    stage_rows,
    totals,
)
from inspatio_core.bench.stages import CODEC_STAGES, Drive, Inputs, NoNetwork, Pipeline
from inspatio_core.bench.timing import Stopwatch, seconds_per_call
from inspatio_core.codecs import Codec, make_codec
from inspatio_core.errors import InputError
from inspatio_core.generators.star import CODEC_FILE, CONFIG_FILE, DTYPES, WEIGHTS_FILE
from inspatio_core.reference import Reference, open_reference
from inspatio_core.star.attention import attention, choose_backend
from inspatio_core.star.config import PIXELS, StarConfig, star_config
from inspatio_core.star.dit import StarDiT, build_star, randomise
from inspatio_core.star.rollout import Rollout
from inspatio_core.world import choose_device

TIMED = (
    "steady blocks after a warm-up, in one process, the source's frames decoded beforehand; every stage ends with the "
    "device waited for, nothing overlaps. command_to_frames: from the committed command (anchor, its encoding, "
    "denoising, decoding) to uint8 RGB on the host; block: that and what needs no command (encoding the source, noise, "
    "context pass); block_with_map: that, depth completion and map insertion. block_unsynchronised: the block again "
    "with the device waited for at its end alone."
)
PATHS: dict[str, dict[str, bool] | None] = {
    "plain": None,
    "kernels": {"compile": False, "graphs": False, "fp8": False},
    "compile": {"compile": True, "graphs": True, "fp8": False},
    "fast": {"compile": False, "graphs": True, "fp8": False},
    "fp8": {"compile": False, "graphs": True, "fp8": True},
}
"""What can be measured: the plain rollout, and `FastRollout` with these arguments. ``fast`` is the generator's own."""
PROMPT_ROWS = 100  # the length of a caption; what it says does not matter here
PATIENCE = 60.0
"""Seconds; networks that would take longer on a CPU are timed layer by layer."""
CODEC_FLOPS = {"tae": (0.73e12, 1.63e12), "wan": (24.2e12, 40.7e12)}
"""Operations of codecs of full width, encoding and decoding 12 frames of 480 x 832."""
CODEC_PARTS = {"wan": (64, 112), "tae": (240, 416)}
"""The part of the picture that a codec of full width is then timed on."""


@dataclass(frozen=True)
class StarBench:
    """What to measure; the fields are the arguments of ``inspatio bench star``.

    Attributes:
        size: of the network: a name in `CONFIGS`; ``custom`` with `config`, a JSON file of a StarConfig's fields, or
            with `dim`, `ffn_dim`, `heads`, `layers`, where those of the 1.3B are not wanted; ``auto``: what the
            folder of weights says, else 1.3b.
        latents_per_block: n; None for the network's own.
        checkpoint_path: weights of the network, or a folder with config.json, star.safetensors, codec.safetensors.
        codec_checkpoint_path: of the codec. "" for the place where they belong.
        random_weights: draw the weights; no path is then named.
        codec: ``tae``, ``wan``, or ``auto``: that of the folder of weights, else ``tae``.
        device, dtype: ``auto``, or as torch calls them.
        image_size: (height, width) of the frames. scene: what is driven through. slots: worlds at once.
        blocks, warm_up: how many are timed, and run before; None for enough.
        paths: of `PATHS`, the first is what the others are compared with; empty for plain, and on CUDA fast.
        whole: run the whole network on a CPU, too, however long that takes.
    """

    size: str = "auto"
    config: Path | None = None
    dim: int | None = None
    ffn_dim: int | None = None
    heads: int | None = None
    layers: int | None = None
    latents_per_block: int | None = None
    checkpoint_path: str = ""
    codec_checkpoint_path: str = ""
    random_weights: bool = False
    codec: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    image_size: tuple[int, int] = (480, 832)
    scene: str = "courtyard"
    slots: int = 1
    blocks: int | None = None
    warm_up: int | None = None
    paths: tuple[str, ...] = ()
    whole: bool = False


def config_of(options: StarBench) -> StarConfig:
    """The network's configuration. Raises InputError."""
    changes = {"dim": options.dim, "ffn_dim": options.ffn_dim, "num_heads": options.heads, "num_layers": options.layers}
    changes = {name: value for name, value in changes.items() if value is not None}
    folder = _folder(options)
    if options.size != "custom" and (changes or options.config):
        raise InputError("--config, --dim, --ffn_dim, --heads and --layers go with --size custom")
    if options.size == "custom" and not (changes or options.config):
        raise InputError("--size custom: give --config FILE.json, or --dim, --ffn_dim, --heads, --layers")
    if folder is not None and options.size != "auto":
        raise InputError(f"--size: {folder} has a {CONFIG_FILE} of its own; leave --size out")
    if folder is not None:
        config = star_config(folder / CONFIG_FILE)
        codec = config.codec
    else:
        named = "1.3b" if options.size in ("auto", "custom") else options.size
        config, codec = star_config(options.config or named), "tae"
    if options.latents_per_block is not None:
        changes["latents_per_block"] = options.latents_per_block
    config = config.replace(**changes, codec=codec if options.codec == "auto" else options.codec)
    if config.in_dim == config.out_dim:
        raise InputError("--config: in_dim is 16, a network without anchor; that of the generator has 36")
    if any(side % config.multiple for side in options.image_size):
        raise InputError(f"--image_size: {_by(options.image_size)} is not in multiples of {config.multiple}")
    return config


def _folder(options: StarBench) -> Path | None:
    path = Path(options.checkpoint_path).expanduser()
    return path if options.checkpoint_path and path.is_dir() else None


def compute_of(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Where and in what to compute; ``auto``: CUDA where there is one, and bfloat16 there, else float32."""
    chosen = choose_device(device)
    if dtype == "auto":
        return chosen, torch.bfloat16 if chosen.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"--dtype: '{dtype}' is not one of auto, {', '.join(DTYPES)}")
    return chosen, DTYPES[dtype]


# --------------------------------------------------------------------------------------------------------- the run


@dataclass
class _Measured:
    """What was found out about a path."""

    path: str
    seconds: Seconds
    unsynchronised: list[float]
    codec_flops: dict[str, int]
    known_share: float
    memory: dict
    scaled: dict[str, float] = field(default_factory=dict)
    difference: dict | None = None


class _Bench:
    """One run: what all paths share."""

    def __init__(self, options: StarBench, machine: dict, tell: Callable[[str], None]):
        self.options, self.machine, self.tell = options, machine, tell
        self.config = config_of(options)
        folder = _folder(options)
        self.size = folder.name if folder else "1.3b" if options.size == "auto" else options.size
        self.device, self.dtype = compute_of(options.device, options.dtype)
        self.latents = tuple(side // PIXELS for side in options.image_size)
        self.latent_tokens = math.prod(options.image_size) // self.config.multiple**2
        on_cpu = self.device.type == "cpu"
        self.paths = _paths(options, self.device)
        self.blocks, self.warm_up = options.blocks or (5 if on_cpu else 20), options.warm_up or 2
        self.weights = Weights.find(options, self.config)
        self.by_layers = on_cpu and self._is_long()
        if self.by_layers:
            self.warm_up = options.warm_up or 0
        self.notes: list[str] = []
        if self.weights.random:
            self.notes.append(
                f"RANDOM WEIGHTS in {' and '.join(self.weights.random)}: times hold, what is generated is noise"
            )
            tell(self.notes[0])
        if machine["load_at_start"] > machine["cores"] / 2:
            self.notes.append("the machine was busy when this began: times are worth less")
        self.reference: Reference = open_reference(options.scene, options.image_size)
        self.codec = self.weights.make_codec(self.device, self.dtype)
        self.text_rows = 0

    def drive(self) -> Drive:
        """A drive from its beginning: the same for every path."""
        return Drive(self.reference, self.options.slots, self.codec.look_ahead, self.device)

    def _is_long(self) -> bool:
        """Whether layers stand for the network; says how long the whole would take where that is long."""
        blocks = len(self.paths) * (1 + self.warm_up + self.blocks)
        whole = seconds_whole(self.config, self.options, self.kernels, blocks)
        if whole <= PATIENCE:
            return False
        by_layers = not self.options.whole
        if by_layers and self.paths != ["plain"]:
            raise InputError(
                f"--paths: the whole network takes about {whole:.0f} s, and where layers stand for it it runs plain; "
                "add --whole, or take --size tiny"
            )
        how = "so one layer is timed for all (--whole runs it)" if by_layers else "as asked for"
        self.tell(f"the whole network takes about {whole:.0f} s by the speed of products here, {how}")
        return by_layers

    @property
    def embed(self) -> Callable[[str], tuple[Tensor, int]] | None:
        """Random features for any prompt; None for a network without text."""
        config = self.config
        if not config.text:
            return None
        rows = min(PROMPT_ROWS, config.text_len)
        embeds = torch.randn(rows, config.text_dim, generator=torch.Generator().manual_seed(0))
        return lambda prompt: (embeds, rows)

    def whole(self) -> list[_Measured]:
        """Every path with the whole network."""
        self.tell(f"building the network, {self.size}")
        model = self.weights.make_star(self.config, self.device, self.dtype)
        measured, base = [], None
        for path in self.paths:
            self.tell(f"{path}: {self.warm_up} blocks to warm up, {self.blocks} timed")
            reset_peak(self.device)
            wrap = None if PATHS[path] is None else functools.partial(_fast, **PATHS[path])
            pipeline = Pipeline(model, self.codec, self.drive(), embed=self.embed, wrap=wrap)
            found = self._run(path, pipeline)
            if base is None:
                base = pipeline.inputs
            else:
                found.difference = difference(pipeline, base)
            measured.append(found)
            del pipeline  # before the next path asks for memory
        return measured

    def layer_by_layer(self) -> list[_Measured]:
        """The plain path from one layer, and from a part of the picture for a codec of full width."""
        layers, picture = self.config.num_layers, self.options.image_size
        self.tell(f"one of {layers} layers")
        self.notes.append(f"SCALED: one layer of the network was timed, and counted for {layers}")
        model = self.weights.make_star(self.config.replace(num_layers=1), self.device, self.dtype, one_layer=True)
        text = None
        if self.embed is not None:
            embeds, rows = self.embed("")
            text = model.text_kv(embeds[None], [rows])
        network = time_by_layers(model, self.config, self.latents, text, self.options.blocks)
        self.blocks = len(network["context"])
        for stage, times in network.items():
            network[stage] = [self.options.slots * t for t in times]
        part = CODEC_PARTS[self.codec.name] if self.config.codec_width is None else picture
        part = tuple(min(p, side) for p, side in zip(part, picture, strict=True))
        area = math.prod(picture) / math.prod(part)
        self.tell(f"the other stages, the codec on {_by(part)} of the picture")
        pipeline = Pipeline(model, self.codec, self.drive(), embed=self.embed, wrap=NoNetwork, codec_size=part)
        found = self._run("plain", pipeline)
        del found.seconds["denoise"]
        if area > 1:
            self.notes.append(
                f"SCALED: the codec was timed on {_by(part)} of the picture, and counted {area:.3g} times"
            )
            for stage in CODEC_STAGES:
                found.seconds[stage] = [area * t for t in found.seconds[stage]]
                found.codec_flops[stage] = round(area * found.codec_flops[stage])
                found.scaled[stage] = area
        found.seconds |= network
        found.scaled |= dict.fromkeys(network, layers * self.options.slots)
        return [found]

    def _run(self, path: str, pipeline: Pipeline) -> _Measured:
        """The first block, the warm-up, the timed blocks; on CUDA as many once more, waited for at their ends."""
        watch, seconds, unsynchronised = Stopwatch(self.device), {}, []
        for block in range(1 + self.warm_up + self.blocks):
            pipeline.block(watch, count=block == 1)
            if block > self.warm_up:
                for stage, value in watch.seconds.items():
                    seconds.setdefault(stage, []).append(value)
        if self.device.type == "cuda":
            once = Stopwatch(self.device, fine=False)
            for _ in range(self.blocks):
                pipeline.block(once)
                unsynchronised.append(sum(once.seconds.values()))
        self.text_rows = pipeline.text_rows
        known = statistics.mean(pipeline.drive.known)
        return _Measured(path, seconds, unsynchronised, pipeline.codec_flops, known, peak_memory(self.device))

    @functools.cached_property
    def kernels(self) -> dict:
        """A matrix product, and the attention of a denoising step: what this machine can do."""
        self.tell("a product and an attention, to judge by")
        config, slots, device = self.config, self.options.slots, self.device
        tokens = config.latents_per_block * self.latent_tokens
        side = 8192
        if device.type == "cpu":
            tokens, slots, side = min(tokens, 1024), 1, 1024
        a, b = (torch.randn(side, side, device=device, dtype=self.dtype) for _ in range(2))
        product = 2 * side**3 / seconds_per_call(lambda: a @ b, device)
        heads = config.num_heads, config.head_dim
        q, k, v = (torch.randn(slots, t * tokens, *heads, device=device, dtype=self.dtype) for t in (1, 3, 3))
        backend = choose_backend(device, self.dtype)
        once = seconds_per_call(lambda: attention(q, k, v, backend=backend), device)
        attend = 4 * slots * tokens * 3 * tokens * config.dim / once
        return {
            "product": {"shape": f"{side} x {side} x {side}", "tflop_per_s": product / 1e12},
            "attention": {"backend": backend, "shape": f"{tokens} x {3 * tokens}", "tflop_per_s": attend / 1e12},
        }

    def report(self) -> dict:
        """Measure everything."""
        config, options = self.config, self.options
        measured = self.layer_by_layer() if self.by_layers else self.whole()
        kernels = self.kernels
        counts = network_counts(config, config.latents_per_block * self.latent_tokens, options.slots, self.text_rows)
        frames = 4 * config.latents_per_block
        paths = []
        for found in measured:
            sums = totals(found.seconds, found.unsynchronised)
            first = paths[0]["totals"] if paths else {}
            codec = {stage: codec_count(flops) for stage, flops in found.codec_flops.items()}
            paths.append(
                {
                    "path": found.path,
                    "options": PATHS[found.path],
                    "stages": stage_rows(found.seconds, counts | codec, kernels, found.scaled),
                    "totals": sums,
                    "frames_per_second": rates(sums, frames * options.slots),
                    "known_share": found.known_share,
                    "memory": found.memory,
                    "times_as_fast": {name: row["median_ms"] / sums[name]["median_ms"] for name, row in first.items()},
                    "difference": found.difference,
                }
            )
        executed = flops_block(config, self.latent_tokens, executed=True, text_rows=self.text_rows)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in StarDiT(config).parameters())
        return {
            "what": "stages of a steady block of the STAR generator",
            "timed": TIMED,
            "machine": self.machine,
            "notes": self.notes,
            "scaled": self.by_layers,
            "network": {"size": self.size, "parameters": parameters, **asdict(config)},
            "weights": self.weights.names,
            "codec": {"kind": self.codec.name, "look_ahead": self.codec.look_ahead, "dtype": _name(self.codec.dtype)},
            "device": str(self.device),
            "dtype": _name(self.dtype),
            "image_size": list(options.image_size),
            "scene": options.scene,
            "slots": options.slots,
            "frames_per_block": frames,
            "blocks": self.blocks,
            "warm_up": self.warm_up,
            "tflop_per_block": {
                "as_defined": options.slots * flops_block(config, self.latent_tokens).total / 1e12,
                "executed": options.slots * executed.total / 1e12,
            },
            "kernels": kernels,
            "paths": paths,
        }


def star(options: StarBench, machine: dict, tell: Callable[[str], None] = lambda line: None) -> dict:
    """Measure.

    Args:
        machine: what `machine.describe` says of where this runs.
        tell: called with a line about random weights, and with one whenever something begins that takes time.

    Returns:
        What is written as JSON; `report.table` shows it.

    Raises:
        InputError: weights that are not here, options that cannot be.
    """
    return _Bench(options, machine, tell).report()


def difference(pipeline: Pipeline, inputs: Inputs) -> dict:
    """How far the block of `inputs` comes out from what it was when `pipeline` makes it."""
    latents, frames = pipeline.again(inputs)
    return {"latents": compare(latents, inputs.latents), "frames": compare_frames(frames, inputs.frames)}


def seconds_whole(config: StarConfig, options: StarBench, kernels: dict, blocks: int) -> float:
    """About how long `blocks` blocks of all slots take, at the speed of `kernels`: network and codec of full width."""
    tokens = math.prod(options.image_size) // config.multiple**2
    rows = min(PROMPT_ROWS, config.text_len)
    network = flops_block(config, tokens, executed=True, text_rows=rows)
    encode, decode = CODEC_FLOPS[config.codec] if config.codec_width is None else (0.0, 0.0)
    codec = (2 * encode + decode) * config.latents_per_block / 3 * math.prod(options.image_size) / (480 * 832)
    product, attend = (1e12 * kernels[kernel]["tflop_per_s"] for kernel in ("product", "attention"))
    return options.slots * blocks * ((network.dense + codec) / product + network.attention / attend)


def _paths(options: StarBench, device: torch.device) -> list[str]:
    """What to measure. Raises InputError."""
    if unknown := [path for path in options.paths if path not in PATHS]:
        raise InputError(f"--paths: {', '.join(unknown)} is not one of {', '.join(PATHS)}")
    if not options.paths:
        return ["plain", "fast"] if _has_fast() and device.type == "cuda" else ["plain"]
    paths = list(dict.fromkeys(options.paths))
    if not _has_fast() and paths != ["plain"]:
        raise InputError(f"--paths: {', '.join(paths)}: this version has no optimised rollout; take plain")
    return paths


def _has_fast() -> bool:
    return importlib.util.find_spec("inspatio_core.star.fast") is not None


def _fast(rollout: Rollout, **how: bool) -> Any:
    from inspatio_core.star.fast import FastRollout

    return FastRollout(rollout, **how)


# --------------------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Weights:
    """Where weights come from: files, or None for random ones.

    Attributes:
        config: of the network. star, codec: the files.
    """

    config: StarConfig
    star: Path | None
    codec: Path | None

    @classmethod
    def find(cls, options: StarBench, config: StarConfig) -> Weights:
        """What the options name. InputError where something is missing and no random weights were asked for."""
        given = {"--checkpoint_path": options.checkpoint_path, "--codec_checkpoint_path": options.codec_checkpoint_path}
        if options.random_weights:
            if named := [option for option, path in given.items() if path]:
                raise InputError(f"--random_weights draws what {' and '.join(named)} would give; leave one of them out")
            return cls(config, None, None)
        star, codec = (Path(path).expanduser() if path else None for path in given.values())
        folder = _folder(options)
        if folder is not None:
            star = folder / WEIGHTS_FILE
            if codec is None and options.codec in ("auto", star_config(folder / CONFIG_FILE).codec):
                codec = folder / CODEC_FILE
        for option, path in zip(given, (star, codec), strict=True):
            if path is not None and not path.is_file():
                raise InputError(f"{option}: {path} is not a file")
        if star is None and options.size in ("auto", "1.3b"):
            star = checkpoints.locate("inspatio-world-1.3b")
        if codec is None and config.codec_width is None:
            codec = checkpoints.locate("taew2_1" if config.codec == "tae" else "wan2.1-vae")
        files = {"the network": star, f"the codec {config.codec}": codec}
        missing = [name for name, path in files.items() if path is None]
        if missing:
            raise InputError(
                f"no weights of {' and '.join(missing)} are here; name files with --checkpoint_path and "
                "--codec_checkpoint_path, or measure with --random-weights"
            )
        return cls(config, star, codec)

    @property
    def random(self) -> list[str]:
        """What has random weights."""
        return [part for part, name in self.names.items() if name == "random"]

    @property
    def names(self) -> dict[str, str]:
        """Of the files."""
        return {part: p.name if p else "random" for part, p in (("network", self.star), ("codec", self.codec))}

    def make_star(
        self, config: StarConfig, device: torch.device, dtype: torch.dtype, one_layer: bool = False
    ) -> StarDiT:
        """The network; or with `one_layer`, and a config that says so, its first layer and what has no layers."""
        if self.star is None:
            model = build_star(config, device, dtype)
            randomise(model)
            return model
        with torch.device("meta"):
            shapes = {key: tuple(value.shape) for key, value in StarDiT(self.config).state_dict().items()}
        state = checkpoints.read_state_dict(self.star, shapes=shapes, dtype=dtype, device=str(device))
        model = build_star(config, "meta", dtype)
        model.load_state_dict({key: state[key] for key in model.state_dict()} if one_layer else state, assign=True)
        return model.requires_grad_(False)

    def make_codec(self, device: torch.device, dtype: torch.dtype) -> Codec:
        """The codec, in the type of numbers that the generator has it in."""
        dtype = torch.float16 if self.config.codec == "tae" and dtype == torch.bfloat16 else dtype
        source = {"path": self.codec} if self.codec else {"random_weights": True}
        return make_codec(self.config.codec, width=self.config.codec_width, device=device, dtype=dtype, **source)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
