"""A block of the STAR generator, stage by stage: its own calls, marked where they come to its parts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from inspatio_core import memory
from inspatio_core.bench.timing import Stopwatch, synchronise
from inspatio_core.block import Frames
from inspatio_core.codecs import Codec
from inspatio_core.generators.star import StarGenerator, StarState
from inspatio_core.geometry.anchor import Anchor, build_anchor
from inspatio_core.geometry.depth_completion import complete_depth
from inspatio_core.geometry.motion import se3_exp
from inspatio_core.geometry.playhead import Playhead, PlayheadCommand
from inspatio_core.geometry.point_map import PointMap
from inspatio_core.reference import Reference
from inspatio_core.star.dit import StarDiT
from inspatio_core.star.rollout import Rollout

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
    """A block: what the generator was given, and what it made of it; to make it again another way.

    rgb: uint8 [B, C, H, W, 3] frames of the source; views: of the anchor; known: bool [B * F, H, W]; states: of the
    slots before the block; numbers: of the slots' blocks; latents: [B, n, 16, h, w]; frames: uint8 [B, F, H, W, 3].
    """

    rgb: Tensor
    views: Anchor
    known: Tensor
    states: list[StarState]
    numbers: list[int]
    latents: Tensor
    frames: Tensor


class Pipeline:
    """Runs blocks of a STAR generator as a Session does, marking each stage.

    Its two calls are the generator's own; they are marked where they come to the codec and to the rollout.

    Args:
        model, codec: of the generator.
        drive: gives frames and anchors.
        embed: features of prompts, as the generator takes them.
        wrap: makes the rollout that runs from the plain one; None for the plain one itself, `NoNetwork` to leave it
            out.
        codec_size: (height, width) of a part of the picture; the generator works on it alone.
    """

    def __init__(
        self,
        model: StarDiT,
        codec: Codec,
        drive: Drive,
        *,
        embed: Callable[[str], tuple[Tensor, int]] | None = None,
        wrap: Callable[[Rollout], Any] | None = None,
        codec_size: tuple[int, int] | None = None,
    ):
        self.drive, self.device = drive, drive.device
        self.size = codec_size or drive.reference.size

        def marked(rollout: Rollout) -> _MarkedRollout:
            return _MarkedRollout(rollout if wrap is None else wrap(rollout), self.mark)

        self._codec = _MarkedCodec(codec, self.mark)
        self.generator = StarGenerator(model, self._codec, embed, prompt="", wrap=marked)
        self.states = [self.generator.new_state(drive.reference, slot) for slot in range(drive.slots)]
        self.blocks = 0
        self.inputs: Inputs | None = None
        self._watch: Stopwatch | None = None

    @property
    def codec_flops(self) -> dict[str, int]:
        """Operations of the codec by stage, of the last block that was run with ``count``."""
        return self._codec.flops

    @property
    def text_rows(self) -> int:
        """Of the prompt, that cross attention reads; 0 without text."""
        text = next(iter(self.generator._texts.values()), None)
        return 0 if text is None else text.keys.shape[2]

    def mark(self, stage: str) -> None:
        """`stage` ends here."""
        if self._watch is not None:
            self._watch.mark(stage)

    def block(self, watch: Stopwatch, count: bool = False) -> Tensor:
        """The next block of every slot, uint8 [B, F, H, W, 3] on the host; `count` the codec's operations."""
        generator, drive, slots = self.generator, self.drive, self.drive.slots
        before, numbers = copy.deepcopy(self.states), [self.blocks] * slots
        drive.commit(4 * generator.spec.latents_per_block - (0 if self.blocks else 3 - drive.look_ahead))
        self._watch, self._codec.count = watch, count
        watch.start()
        source = drive.source_rgb()
        rgb = self._part(source)
        batch = rgb.unflatten(0, (slots, -1))
        self._codec.encoding = "encode_source"
        condition = generator.condition(batch, self.states, numbers)
        committed, shown = drive.anchor(source)
        watch.mark("anchor")
        views = Anchor(**{name: self._part(frames) for name, frames in vars(committed.views).items()})
        known = self._part(shown.anchor.known.flatten(0, 1))
        self._codec.encoding = "encode_anchor"
        frames = generator.generate(views, rgb, self.states, numbers, condition, known).unflatten(0, (slots, -1))
        pixels = self._to_host(frames)
        watch.mark("copy_out", wait=True)
        self._watch = None
        self._finish(frames, shown, watch)
        if self.blocks:
            self.inputs = Inputs(batch, views, known, before, numbers, _latents(self.states), frames)
        self.blocks += 1
        return pixels

    def again(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Latents and frames uint8 [B, F, H, W, 3] of a block that was made before, perhaps by another rollout."""
        states, numbers = copy.deepcopy(inputs.states), inputs.numbers
        condition = self.generator.condition(inputs.rgb, states, numbers)
        rgb = inputs.rgb.flatten(0, 1)
        frames = self.generator.generate(inputs.views, rgb, states, numbers, condition, inputs.known)
        return _latents(states), frames.unflatten(0, (len(states), -1))

    def _part(self, frames: Tensor) -> Tensor:
        """[N, H, W, ...] -> the part of the picture."""
        return frames[:, : self.size[0], : self.size[1]]

    def _finish(self, rgb: Tensor, shown: Frames, watch: Stopwatch) -> None:
        if self.size != self.drive.reference.size:  # a part of the picture fits no depth map
            rgb = shown.anchor.filled_rgb
        depth, confidence = self.drive.complete(rgb, shown)
        watch.mark("depth_completion")
        self.drive.remember(rgb, depth, confidence, shown)
        watch.mark("map_insertion")

    def _to_host(self, frames: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return frames
        host = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(frames, non_blocking=True)
        synchronise(self.device)
        return host


class _MarkedCodec:
    """A codec whose calls are marked where they end, and counted if asked to."""

    def __init__(self, codec: Codec, mark: Callable[[str], None]):
        self._codec, self._mark = codec, mark
        self.encoding = ""  # the stage that an encoding is of
        self.count = False
        self.flops: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, frames: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        return self._run(self.encoding, self._codec.encode, frames, states)

    def decode(self, latents: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        return self._run("decode", self._codec.decode, latents, states)

    def _run(self, stage: str, call: Callable, *args: Any) -> Any:
        if self.count:
            with FlopCounterMode(display=False) as counter:
                found = call(*args)
            self.flops[stage] = counter.get_total_flops()
        else:
            found = call(*args)
        self._mark(stage)
        return found


class _MarkedRollout:
    """A rollout whose passes are marked: what comes before the first is the noise's time, or the anchor's encoding's.

    Single steps of denoising are marked where the pass can tell of them without becoming another one: not in graphs.
    """

    def __init__(self, rollout: Any, mark: Callable[[str], None]):
        self._rollout, self._mark = rollout, mark
        self._by_step = isinstance(rollout, Rollout) and not getattr(rollout, "graphs", False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rollout, name)

    def context(self, *args: Any) -> None:
        self._mark("noise")
        self._rollout.context(*args)
        self._mark("context")

    def denoise(self, *args: Any) -> Tensor:
        self._mark("encode_anchor")
        if self._by_step:
            return self._rollout.denoise(*args, trace=lambda step, *_: self._mark(f"denoise_{step + 1}"))
        latents = self._rollout.denoise(*args)
        self._mark("denoise")
        return latents


class NoNetwork:
    """In place of a rollout, what does nothing: the noise is the prediction."""

    def __init__(self, rollout: Rollout):
        self._rollout = rollout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rollout, name)

    def context(self, *args: Any) -> None:
        """No pass."""

    def denoise(self, noise: Sequence[Tensor], *args: Any) -> Tensor:
        """The first noise, [B, n, 16, h, w]."""
        return noise[0].to(self._rollout.model.dtype)


def _latents(states: list[StarState]) -> Tensor:
    return torch.stack([state.last for state in states])
