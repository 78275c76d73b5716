"""A block of the STAR generator, stage by stage, from the parts that the generator is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from inspatio_core import memory
from inspatio_core.bench.timing import Stopwatch, synchronise
from inspatio_core.block import Frames
from inspatio_core.codecs import Codec
from inspatio_core.geometry.anchor import build_anchor
from inspatio_core.geometry.depth_completion import complete_depth
from inspatio_core.geometry.motion import se3_exp
from inspatio_core.geometry.playhead import Playhead, PlayheadCommand
from inspatio_core.geometry.point_map import PointMap
from inspatio_core.latents import mask_latent
from inspatio_core.reference import Reference
from inspatio_core.star.config import PIXELS, StarConfig
from inspatio_core.star.dit import TextKV
from inspatio_core.star.rollout import Rollout, block_noise

FPS = 24.0
AHEAD = ("encode_source", "noise", "context")
"""Stages that need no command, in their order."""
AFTER = ("depth_completion", "map_insertion")
"""Stages that may overlap the next block."""
CODEC_STAGES = ("encode_source", "encode_anchor", "decode")

SWAY = (0.3, 0.1, 0.2, 0.06, 0.25, 0.02)  # metres and radians that the camera strays from the source's
SWAY_FRAMES = 97  # until it is back
MAP_STRIDE = 9  # every so many source frames are in a map when a drive begins


class Drive:
    """Slots whose cameras sway about their source camera's path, with a map each: what a Session does with a block.

    Args:
        reference: what all slots are anchored to, each at its own place in it.
        look_ahead: frames committed before they are shown.
        device: of what `source_rgb` and `anchor` give.
    """

    def __init__(self, reference: Reference, slots: int, look_ahead: int, device: torch.device):
        self.reference, self.slots, self.look_ahead, self.device = reference, slots, look_ahead, device
        count = reference.frame_count
        self.playhead = Playhead([count] * slots, [reference.fps / FPS] * slots, "bounce")
        self.starts = [PlayheadCommand(jump=slot * count // slots) for slot in range(slots)]
        self.frame = 0
        self.maps = [PointMap() for _ in range(slots)]
        self.inserted = [set(range(0, count, MAP_STRIDE)) for _ in range(slots)]
        for point_map in self.maps:
            for index in range(0, count, MAP_STRIDE):
                memory.insert(point_map, reference, memory.Sight(index, -1.0), True)
        self.waiting: Frames | None = None
        self.known: list[float] = []

    def commit(self, count: int) -> None:
        """Settle the next `count` frames a slot, and have them decoded, as a Session has while a block is on show."""
        commands = self.starts if self.frame == 0 else None
        self.indices = self.playhead.advance(count, commands)
        phase = 2 * math.pi / SWAY_FRAMES * (self.frame + np.arange(count) + 31 * np.arange(self.slots)[:, None])
        sway = torch.from_numpy(np.sin(phase)[..., None] * np.array(SWAY))
        self.source = self.reference.world_from_camera[self.indices]
        self.poses = self.source @ se3_exp(sway)
        self.frame += count
        for index in set(self.indices.flatten().tolist()):
            self.reference.rgb(index), self.reference.depth(index), self.reference.moving(index)

    def source_rgb(self) -> Tensor:
        """The committed frames of the source, uint8 [B * C, H, W, 3]."""
        return torch.stack([self.reference.rgb(i) for i in self.indices.flatten().tolist()]).to(self.device)

    def anchor(self, source_rgb: Tensor) -> tuple[Frames, Frames]:
        """The committed frames with their anchors, and those to show now."""
        reference, indices = self.reference, self.indices.flatten().tolist()
        anchor = build_anchor(
            source_rgb,
            torch.stack([reference.depth(i) for i in indices]).to(self.device),
            reference.K[indices],
            self.source.flatten(0, 1),
            reference.K[:1].expand(len(indices), 3, 3),
            self.poses.flatten(0, 1),
            reference.size,
            torch.full((len(indices),), reference.median_depth, dtype=torch.float64),
            [m for m in self.maps for _ in range(self.indices.shape[1])],
        )
        committed = Frames.of(self.indices, self.poses, torch.zeros(*self.indices.shape, 6), anchor)
        if not self.look_ahead:
            return committed, committed
        queue = committed if self.waiting is None else self.waiting.then(committed)
        self.waiting = queue.part(slice(-self.look_ahead, None))
        return committed, queue.part(slice(-self.look_ahead))

    def complete(self, rgb: Tensor, shown: Frames) -> tuple[Tensor, Tensor]:
        """Depth and confidence [B, F, H, W] of generated frames uint8 [B, F, H, W, 3]."""
        views = shown.views
        found = complete_depth(rgb.flatten(0, 1), views.depth, views.known, views.filled_depth)
        self.known.append(views.known.float().mean().item())
        return tuple(t.unflatten(0, rgb.shape[:2]) for t in found)

    def remember(self, rgb: Tensor, depth: Tensor, confidence: Tensor, shown: Frames) -> None:
        """Take the last frame of each slot into its map."""
        K = self.reference.K[0]
        for slot, index in enumerate(shown.source_index[:, -1].tolist()):
            frames = (rgb, depth, confidence, shown.anchor.known)
            made = memory.Generated.of(*(t[slot, -1].cpu() for t in frames), K, shown.world_from_camera[slot, -1])
            sight = memory.Sight(index, self.frame / FPS, made)
            memory.insert(self.maps[slot], self.reference, sight, index not in self.inserted[slot])
            self.inserted[slot].add(index)


class Inputs(NamedTuple):
    """What a block's frames are made from, and the latents that were made: to make them again another way.

    source, last, render, latents: [B, n, 16, h, w]; mask: [B, n, 4, h, w]; noise: per step [B, n, 16, h, w]; decoder:
    states of the decoder before the block.
    """

    source: Tensor
    last: Tensor
    render: Tensor
    mask: Tensor
    noise: list[Tensor]
    decoder: list[Any]
    latents: Tensor


class Pipeline:
    """Runs blocks, marking each stage: as the STAR generator does between a Session's calls.

    On the CPU slots run one after the other in the network, on CUDA as one batch.

    Args:
        rollout: what samples; None to leave the network out (the noise is then what is decoded).
        text: one a group of slots that run together, see `groups`.
        drive: gives frames and anchors.
        codec_size: (height, width) of a part of the picture; the codec works on it alone. Only without `rollout`.
    """

    def __init__(
        self,
        config: StarConfig,
        codec: Codec,
        rollout: Any,
        text: Sequence[TextKV | None],
        drive: Drive,
        *,
        codec_size: tuple[int, int] | None = None,
    ):
        self.config, self.codec, self.rollout, self.text, self.drive = config, codec, rollout, text, drive
        self.by_step = isinstance(rollout, Rollout)  # others may not tell of steps
        self.device = drive.device
        self.size = codec_size or drive.reference.size
        batch = drive.slots
        self.groups = groups(batch, self.device)
        self.workspaces = [rollout.workspace(len(rows)) for rows in self.groups] if rollout else []
        self._source, self._render = ([codec.encoder_state()] * batch for _ in range(2))
        self._decoder = [codec.decoder_state()] * batch
        self._last: Tensor | None = None
        self.blocks = 0
        self.counting = False
        self.codec_flops: dict[str, int] = {}
        self.inputs: Inputs | None = None

    def block(self, watch: Stopwatch) -> Tensor:
        """The next block of every slot, uint8 [B, F, H, W, 3] on the host."""
        first, config, drive = self._last is None, self.config, self.drive
        drive.commit(4 * config.latents_per_block - (3 - drive.look_ahead if first else 0))
        watch.start()
        rgb = drive.source_rgb()
        with self._counted("encode_source"):
            source, self._source = self.codec.encode(self._to_codec(rgb), self._source)
        watch.mark("encode_source")
        noise = self._noise()
        watch.mark("noise")
        if self.rollout is not None:
            self._context(source, self._last)
            watch.mark("context")
        committed, shown = drive.anchor(rgb)
        watch.mark("anchor")
        views = committed.views
        with self._counted("encode_anchor"):
            frames = self._to_codec(views.filled_rgb if config.fill else views.rgb)
            render, self._render = self.codec.encode(frames, self._render)
        mask = mask_latent(shown.anchor.known[:, None].float() * 2 - 1, first=first)
        watch.mark("encode_anchor")
        latents = noise[0] if self.rollout is None else self._denoise(noise, mask, render, watch)
        before = self._decoder
        with self._counted("decode"):
            frames, self._decoder = self.codec.decode(latents.to(self.codec.dtype), before)
        watch.mark("decode")
        on_device = to_pixels(frames)
        pixels = self._to_host(on_device)
        watch.mark("copy_out", wait=True)
        self._finish(on_device, shown, watch)
        if not first:
            self.inputs = Inputs(source, self._last, render, mask, noise, before, latents)
        self._last = latents.clone()
        self.blocks += 1
        return pixels

    def again(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Latents and frames uint8 [B, F, H, W, 3] of a block that was made before, perhaps by another rollout."""
        self._context(inputs.source, inputs.last)
        latents = self._denoise(inputs.noise, inputs.mask, inputs.render, None)
        frames, _ = self.codec.decode(latents.to(self.codec.dtype), inputs.decoder)
        return latents.clone(), to_pixels(frames)

    def _noise(self) -> list[Tensor]:
        n, (height, width) = self.config.latents_per_block, self.size
        shape = (n, self.codec.latent_channels, height // PIXELS, width // PIXELS)
        steps = range(len(self.config.steps))
        slots = range(self.drive.slots)
        drawn = [torch.stack([block_noise(slot, self.blocks, step, shape) for slot in slots]) for step in steps]
        if self.device.type == "cuda":
            drawn = [noise.pin_memory().to(self.device, non_blocking=True) for noise in drawn]
        return drawn

    def _context(self, source: Tensor, last: Tensor | None) -> None:
        for rows, workspace, text in zip(self.groups, self.workspaces, self.text, strict=True):
            self.rollout.context(source[rows], None if last is None else last[rows], workspace, text)

    def _denoise(self, noise: list[Tensor], mask: Tensor, render: Tensor, watch: Stopwatch | None) -> Tensor:
        parts = []
        for rows, workspace, text in zip(self.groups, self.workspaces, self.text, strict=True):
            told = {"trace": lambda step, *_: watch.mark(f"denoise_{step + 1}")} if watch and self.by_step else {}
            args = [level[rows] for level in noise], mask[rows], render[rows], workspace, text
            parts.append(self.rollout.denoise(*args, **told))
            if watch and not told:
                watch.mark("denoise")
        return torch.cat(parts)

    def _finish(self, rgb: Tensor, shown: Frames, watch: Stopwatch) -> None:
        if self.size != self.drive.reference.size:  # a part of the picture fits no depth map
            rgb = shown.anchor.filled_rgb
        depth, confidence = self.drive.complete(rgb, shown)
        watch.mark("depth_completion")
        self.drive.remember(rgb, depth, confidence, shown)
        watch.mark("map_insertion")

    def _to_codec(self, rgb: Tensor) -> Tensor:
        """uint8 [B * F, H, W, 3] -> [B, F, 3, H, W] in [-1, 1]."""
        height, width = self.size
        rgb = rgb[:, :height, :width].unflatten(0, (self.drive.slots, -1))
        return rgb.movedim(-1, 2).to(self.codec.dtype) / 127.5 - 1

    def _to_host(self, frames: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return frames
        host = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(frames, non_blocking=True)
        synchronise(self.device)
        return host

    def _counted(self, stage: str):
        return _Counter(self.codec_flops, stage) if self.counting else nullcontext()


class _Counter(FlopCounterMode):
    """Notes a stage's operations where it ends."""

    def __init__(self, into: dict[str, int], stage: str):
        super().__init__(display=False)
        self.into, self.stage = into, stage

    def __exit__(self, *error):
        super().__exit__(*error)
        self.into[self.stage] = self.get_total_flops()


def groups(batch: int, device: torch.device) -> list[list[int]]:
    """Slots that run together in the network."""
    return [list(range(batch))] if device.type != "cpu" else [[slot] for slot in range(batch)]


def to_pixels(frames: Tensor) -> Tensor:
    """[B, F, 3, H, W] in [-1, 1] -> uint8 [B, F, H, W, 3]."""
    levels = ((frames.float() + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(2, -1).contiguous()
