"""The generator with the network: anchors, reference and the last block in, a block of frames out (paper, section 3).

source frames -> encode -+                    (before the motion is known)
last prediction ---------+-> context pass -> K/V of every layer
anchor -> encode, mask -> latents -> denoise -> decode -> frames
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inspatio_core import checkpoints
from inspatio_core.codecs import Codec, make_codec
from inspatio_core.errors import InputError
from inspatio_core.generators import GeneratorOptions, GeneratorSpec, check_multiple
from inspatio_core.geometry.anchor import Anchor
from inspatio_core.latents import mask_latent
from inspatio_core.reference import Reference
from inspatio_core.reference.text import PromptEncoder, released_files
from inspatio_core.star.cache import Workspace
from inspatio_core.star.config import CONFIGS, LATENT_CHANNELS, PATCH, PIXELS, StarConfig, from_json, star_config
from inspatio_core.star.dit import StarDiT, TextKV, build_star, randomise
from inspatio_core.star.rollout import Rollout, block_noise

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PROMPTS_KEPT = 16  # whose features stay in memory
TEXT_BYTES = 1 << 30  # of the prompts' keys and values that stay on the device
CONFIG_FILE, WEIGHTS_FILE, CODEC_FILE = "config.json", "star.safetensors", "codec.safetensors"
"""What a folder of a model of its own holds."""
RELEASED, CODECS = "inspatio-world-1.3b", {"wan": "wan2.1-vae", "tae": "taew2_1"}
"""Names of the published weights."""


@dataclass
class StarState:
    """What a slot remembers. Its tensors are values: replaced, never written to, so copies share them.

    Attributes:
        seed: keys the slot's noise. prompt: what its next block follows.
        source, anchor: states of the encoders that the two videos flow through; decoder: of the decoder.
        last: [n, 16, h, w] the last block's prediction, None before the first.
    """

    seed: int
    prompt: str
    source: Any
    anchor: Any
    decoder: Any
    last: Tensor | None = None

    def __deepcopy__(self, memo) -> StarState:
        return dataclasses.replace(self)


@dataclass
class Condition:
    """What was worked out of a block ahead of its motion.

    Attributes:
        latents: [B, n, 16, h, w] of the source frames. encoders: the slots' source encoders after them.
        noise: per step [B, n, 16, h, w]. text: per group of slots.
    """

    latents: Tensor
    encoders: list[Any]
    noise: list[Tensor]
    text: list[TextKV | None]


class StarGenerator:
    """STAR behind the generator protocol; made by `create`, or from parts.

    On the CPU slots run one after the other, so that a slot's bytes do not depend on how many others there are; on CUDA
    they run as one batch.

    Args:
        model: the network, with weights.
        codec: the autoencoder of its latents.
        embed: gives a prompt's features [text_len, text_dim] and their number of rows; None without text.
        prompt: what all slots follow; None for each reference's own caption.
        compatible: pixels rounded as released (towards zero).
        wrap: makes the Rollout that runs from the plain one; None for the plain one itself.
        notices: lines that whoever starts this should show.
    """

    def __init__(
        self,
        model: StarDiT,
        codec: Codec,
        embed: Callable[[str], tuple[Tensor, int]] | None = None,
        *,
        prompt: str | None = None,
        compatible: bool = False,
        wrap: Callable[[Rollout], Rollout] | None = None,
        notices: Sequence[str] = (),
    ):
        self.model, self.codec, self.embed = model, codec, embed
        self.prompt, self.compatible, self.notices = prompt, compatible, tuple(notices)
        self._wrap = wrap
        self._rollouts: dict[tuple[int, int], Rollout] = {}
        self._warm: set[tuple] = set()
        self._workspaces: dict[tuple[int, int, int], dict[int, Workspace]] = {}
        self._texts: OrderedDict[tuple[str, ...], TextKV] = OrderedDict()
        config = model.config
        needs = {"reference", "history"}
        needs |= {"anchor"} if config.in_dim > LATENT_CHANNELS else set()
        needs |= {"text"} if config.text else set()
        needs |= {"fill"} if config.fill else set()
        self.spec = GeneratorSpec(
            name="star",
            latents_per_block=config.latents_per_block,
            dtype=str(model.dtype).removeprefix("torch."),
            look_ahead=codec.look_ahead,
            needs=frozenset(needs),
            generates=True,
            multiple=config.multiple,
        )

    @classmethod
    def create(
        cls,
        *,
        latents_per_block: int | None = None,
        options: GeneratorOptions | None = None,
        device: torch.device | str = "cpu",
        size: tuple[int, int] | None = None,
    ) -> StarGenerator:
        """The generator that `options` ask for, with its weights.

        Args:
            latents_per_block: n, the configuration's own where None.
            size: (height, width) of the frames; given, everything that depends on it is made now.

        Raises:
            InputError: weights that are not here (all of them named), that do not fit, options that cannot be.
        """
        options, device = options or GeneratorOptions(), torch.device(device)
        dtype = _dtype(options.dtype, device)
        if options.fp8 and device.type != "cuda":
            raise InputError(f"fp8: needs a CUDA device of the Hopper generation or newer, not {device}")
        if options.random_weights and (options.checkpoint_path or options.tae_checkpoint_path):
            raise InputError("random_weights: goes without checkpoint_path and tae_checkpoint_path; leave one out")
        files = _Files.find(options)
        config = files.config
        if latents_per_block is not None:
            config = config.replace(latents_per_block=latents_per_block)
        if size is not None:
            check_multiple("star", size, config.multiple)
        files.require(options)
        model = build_star(config, device, dtype)
        notices = []
        if options.random_weights:
            randomise(model)
            notices.append(
                "RANDOM WEIGHTS: the star generator's frames are noise, good for measuring speed and for tests only"
            )
        else:
            model.load_state_dict(
                checkpoints.read_state_dict(files.star, shapes=_shapes(model), dtype=dtype, device=str(device)),
                assign=True,
            )
            model.requires_grad_(False)
        codec_dtype = torch.float16 if config.codec == "tae" and dtype == torch.bfloat16 else dtype
        codec = make_codec(
            config.codec,
            width=config.codec_width,
            path=None if options.random_weights else files.codec,
            random_weights=options.random_weights,
            device=device,
            dtype=codec_dtype,
            compatible=options.compatible,
        )
        embed = None
        if config.text:
            embed = functools.lru_cache(PROMPTS_KEPT)(prompt_encoder(config, options, device).encode)
        generator = cls(
            model,
            codec,
            embed,
            prompt=options.prompt,
            compatible=options.compatible,
            wrap=_fast(options) if device.type == "cuda" or options.compile else None,
            notices=notices,
        )
        if size is not None:
            generator.rollout(size[0] // PIXELS, size[1] // PIXELS)
        return generator

    # -------------------------------------------------------------------------------------------- the protocol

    def new_state(self, reference: Reference, seed: int) -> StarState:
        """A fresh slot. Its prompt is encoded now; InputError where that cannot be."""
        prompt = self.prompt if self.prompt is not None else (getattr(reference, "caption", None) or "")
        encoder = self.codec.encoder_state
        state = StarState(seed, "", encoder(), encoder(), self.codec.decoder_state())
        if self.embed is not None:
            self.set_prompt(state, prompt)
        return state

    def encode_prompt(self, prompt: str) -> None:
        """Have `prompt` ready, which may take minutes with a large text encoder; any thread may call."""
        if self.embed is None:
            raise InputError("prompt: this model was made without text; leave the prompt out")
        self.embed(prompt)

    def set_prompt(self, state: StarState, prompt: str) -> None:
        """Let a slot follow `prompt` from its next block on."""
        self.encode_prompt(prompt)
        state.prompt = prompt

    @torch.no_grad()
    def condition(self, source_rgb: Tensor, states: Sequence[StarState], blocks: Sequence[int]) -> Condition:
        """Encode the source frames, draw the noise, run the context pass."""
        latents, encoders = self.codec.encode(self._to_codec(source_rgb), [s.source for s in states])
        rollout = self.rollout(*latents.shape[-2:])
        drawn = [
            torch.stack(
                [block_noise(s.seed, k, step, rollout.noise_shape) for s, k in zip(states, blocks, strict=True)]
            )
            for step in range(len(rollout.sampler))
        ]
        groups, prompts = self._groups(len(states)), [s.prompt for s in states]
        text = [self._text(prompts[rows], len(groups)) for rows in groups]
        condition = Condition(latents, encoders, [self._upload(n) for n in drawn], text)
        for group, rows in enumerate(groups):
            self._context(condition, group, rows, states)
        return condition

    @torch.no_grad()
    def generate(
        self,
        anchor: Anchor,
        source_rgb: Tensor,
        states: Sequence[StarState],
        blocks: Sequence[int],
        condition: Condition,
        known: Tensor,
    ) -> Tensor:
        """Encode the anchor, denoise, decode."""
        b, fresh, anchored = len(states), states[0].last is None, self.model.config.in_dim > LATENT_CHANNELS
        render, mask, encoders = None, None, [s.anchor for s in states]
        if anchored:
            rgb = anchor.filled_rgb if self.model.config.fill else anchor.rgb
            render, encoders = self.codec.encode(self._to_codec(rgb.unflatten(0, (b, -1))), encoders)
            mask = known.unflatten(0, (b, -1))[:, None].to(self.model.dtype) * 2 - 1
            mask = mask_latent(mask, first=fresh)
        height, width = condition.latents.shape[-2:]
        rollout, parts = self.rollout(height, width), []
        for group, rows in enumerate(self._groups(b)):
            workspace = self._workspace(group, rows.stop - rows.start, height, width)
            if workspace.ticket is not condition:  # another session's block came in between
                self._context(condition, group, rows, states)
            noise = [n[rows] for n in condition.noise]
            given = (mask[rows], render[rows]) if anchored else (None, None)
            parts.append(rollout.denoise(noise, *given, workspace, condition.text[group]))
        latents = torch.cat(parts)
        frames, decoders = self.codec.decode(latents, [s.decoder for s in states])
        for row, state in enumerate(states):
            state.source, state.anchor, state.decoder = condition.encoders[row], encoders[row], decoders[row]
            state.last = latents[row].clone()
        return self._to_pixels(frames).flatten(0, 1)

    # ----------------------------------------------------------------------------------------------- the parts

    def rollout(self, height: int, width: int) -> Rollout:
        """What samples latents of this size."""
        key = (height, width)
        if key not in self._rollouts:
            plain = Rollout(self.model, height, width)
            self._rollouts[key] = plain if self._wrap is None else self._wrap(plain)
        return self._rollouts[key]

    def _groups(self, batch: int) -> list[slice]:
        """Rows that run together."""
        together = self.model.device.type != "cpu"
        return [slice(0, batch)] if together else [slice(row, row + 1) for row in range(batch)]

    def _workspace(self, group: int, batch: int, height: int, width: int) -> Workspace:
        """Room for a group: the first rows of the largest that was needed at this place and size."""
        place = (group, height, width)
        whole = self._workspaces.get(place, {})
        if not whole or max(whole) < batch:
            whole = self._workspaces[place] = {batch: self.rollout(height, width).workspace(batch)}
        if batch not in whole:
            whole[batch] = whole[max(whole)].part(slice(0, batch))
        return whole[batch]

    def _context(self, condition: Condition, group: int, rows: slice, states: Sequence[StarState]) -> None:
        latents, before = condition.latents[rows], [state.last for state in states[rows]]
        height, width = latents.shape[-2:]
        workspace = self._workspace(group, len(before), height, width)
        workspace.ticket = None
        last = None if before[0] is None else torch.stack(before)
        rollout, text = self.rollout(height, width), condition.text[group]
        if self.model.device.type == "cuda":  # first and later blocks are captured together, before the first is shown
            key = (workspace.k.data_ptr(), workspace.k.shape, None if text is None else text.keys.shape[2])
            if key not in self._warm:
                rollout.warm_up(workspace, text)
                self._warm.add(key)
        rollout.context(latents, last, workspace, text)
        workspace.ticket = condition

    def _text(self, prompts: list[str], groups: int) -> TextKV | None:
        """Keys and values of the prompts of one of several groups, worked out once while there is room for them."""
        if self.embed is None:
            return None
        key = tuple(prompts)
        if key not in self._texts:
            rows, lengths = zip(*(self.embed(p) for p in prompts), strict=True)
            self._texts[key] = self.model.text_kv(torch.stack(rows), None if self.compatible else lengths)
            sizes = [text.keys.nbytes + text.values.nbytes for text in self._texts.values()]
            while len(sizes) > groups and sum(sizes) > TEXT_BYTES:
                self._texts.popitem(last=False)
                sizes.pop(0)
        self._texts.move_to_end(key)
        return self._texts[key]

    def _upload(self, x: Tensor) -> Tensor:
        device = self.model.device
        return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x

    def _to_codec(self, rgb: Tensor) -> Tensor:
        """uint8 [B, F, H, W, 3] -> [B, F, 3, H, W] in [-1, 1]."""
        return rgb.to(self.model.device).movedim(-1, 2).float() / 127.5 - 1

    def _to_pixels(self, frames: Tensor) -> Tensor:
        """[B, F, 3, H, W] in [-1, 1] -> uint8 [B, F, H, W, 3]."""
        levels = (frames.float() + 1) * 127.5
        return (levels if self.compatible else levels.round()).clamp(0, 255).to(torch.uint8).movedim(2, -1).contiguous()


# ------------------------------------------------------------------------------------------------ options to parts


@dataclass(frozen=True)
class _Files:
    """What network the weights are of, and where they lie: None for what is not here, in `missing` by name."""

    config: StarConfig
    star: Path | None
    codec: Path | None
    missing: tuple[str, ...] = ()

    @classmethod
    def find(cls, options: GeneratorOptions) -> _Files:
        """What `options` name, or where it belongs. Raises `InputError` for what they name and is not there."""
        if options.random_weights:
            config = star_config("tiny" if options.model == "auto" else options.model)
            return cls(_with_codec(config, options.codec), None, None)
        given = Path(options.checkpoint_path).expanduser() if options.checkpoint_path else None
        if given is not None and not given.exists():
            raise InputError(f"checkpoint_path: {given} does not exist; leave it empty or name a file or folder")
        if given is not None and given.is_dir():
            own, released = given / CONFIG_FILE, given / checkpoints.get(RELEASED).file
            if own.exists():
                return cls._own(given, options)
            if not released.exists():
                raise InputError(f"checkpoint_path: {given} holds neither {CONFIG_FILE} nor {released.name}")
            given = released
        star = given or checkpoints.locate(RELEASED)
        if options.model != "auto":
            config = star_config(options.model)
        else:
            config = _config_of(given) if given is not None else CONFIGS["1.3b"]
        config = _with_codec(config, options.codec)
        return cls(config, star, _codec_file(config, options), () if star else (RELEASED,))

    @classmethod
    def _own(cls, folder: Path, options: GeneratorOptions) -> _Files:
        """A folder of a model of its own; another codec than the folder's comes from elsewhere, at its full width."""
        config = star_config(folder / CONFIG_FILE if options.model == "auto" else options.model)
        elsewhere = options.tae_checkpoint_path or options.codec not in ("auto", config.codec)
        absent = [name for name in (WEIGHTS_FILE, CODEC_FILE) if not (folder / name).is_file()]
        absent = [name for name in absent if name != CODEC_FILE or not elsewhere]
        if absent:
            raise InputError(f"checkpoint_path: {folder} lacks {' and '.join(absent)}")
        if elsewhere:
            config = _with_codec(config, options.codec).replace(codec_width=None)
            return cls(config, folder / WEIGHTS_FILE, _codec_file(config, options))
        return cls(config, folder / WEIGHTS_FILE, folder / CODEC_FILE)

    def require(self, options: GeneratorOptions) -> None:
        """InputError that names every file that is missing; nothing is read before all are here."""
        if options.random_weights:
            return
        missing = list(self.missing)
        if self.codec is None:
            missing.append(CODECS[self.config.codec])
        known = options.prompt is not None and prompt_encoder(self.config, options).cached(options.prompt)
        if self.config.text and not known:
            missing += [name for name in ("umt5-xxl", "umt5-tokenizer") if checkpoints.locate(name) is None]
        if missing:
            checkpoints.require(missing)


def _with_codec(config: StarConfig, codec: str) -> StarConfig:
    if codec in ("auto", config.codec):
        return config
    return config.replace(codec=codec)


def _codec_file(config: StarConfig, options: GeneratorOptions) -> Path | None:
    """The file of the codec that is named, or where it belongs."""
    if not options.tae_checkpoint_path:
        return checkpoints.locate(CODECS[config.codec])
    if config.codec != "tae":
        raise InputError(f"tae_checkpoint_path: the codec is {config.codec}; choose codec tae with it")
    path = Path(options.tae_checkpoint_path).expanduser()
    if not path.is_file():
        raise InputError(f"tae_checkpoint_path: {path} is not a file")
    return path


def prompt_encoder(config: StarConfig, options: GeneratorOptions, device: torch.device | str = "cpu") -> PromptEncoder:
    """What gives prompts their features: umT5, or made-up numbers beside a network of made-up weights."""
    files = None if options.random_weights else released_files
    return PromptEncoder(files, config.text_len, config.text_dim, device=device)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise InputError(f"dtype: '{name}' is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _shapes(model: StarDiT) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _config_of(path: Path) -> StarConfig:
    """The configuration a file of weights was written with, or the named one whose widths it has."""
    metadata = checkpoints.metadata(path)
    if "star_config" in metadata:
        return from_json(metadata["star_config"], f"{path}: star_config")
    first = "patch_embedding.weight"
    found = checkpoints.headers(path).items()
    shapes = [tuple(shape) for key, (shape, _) in found if checkpoints.plain_key(key, {first: ""}) == first]
    for config in CONFIGS.values():
        if (config.dim, config.in_dim, 1, PATCH, PATCH) in shapes:
            return config
    checkpoints.verify(path, "star-1.3b")
    raise InputError(f"{path}: not the weights of {' or '.join(CONFIGS)}; name the JSON file of their model")


def _fast(options: GeneratorOptions) -> Callable[[Rollout], Rollout]:
    from inspatio_core.star.fast import FastRollout

    return lambda rollout: FastRollout(rollout, compile=options.compile, graphs=True, fp8=options.fp8)
