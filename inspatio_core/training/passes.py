"""The network's passes with gradients: chunk by chunk as at inference, or all frames of a clip at once.

A *chunk* is what inference calls a block: n latent frames. `causal_flow` is the inference layout: a context pass over
[reference | history] at timestep 0, then a pass over the noisy chunk that attends to it. `bidirectional_flow` is the
layout of the large teacher: [target | reference] on the frame axis, positions running through, one timestep for all.
Latents are [B, F, 16, h, w].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inspatio_core.star.attention import choose_backend
from inspatio_core.star.cache import GrowingCache
from inspatio_core.star.config import PATCH
from inspatio_core.star.dit import Modulation, StarDiT, TextKV
from inspatio_core.star.rope import RopeTable, rope_table


class Conditions(NamedTuple):
    """What a network is told of the frames it makes, besides what it made before; None is absent, not zero.

    Attributes:
        reference: [B, F, 16, h, w] latents of the source video at the same times.
        mask: [B, F, 4, h, w] in [-1, 1], +1 known; render: [B, F, 16, h, w] latents of the anchor. Both or neither.
        embeds: [B, rows, text_dim] features of the prompts, for networks with text.
    """

    reference: Tensor | None = None
    mask: Tensor | None = None
    render: Tensor | None = None
    embeds: Tensor | None = None

    def frames(self, start: int, stop: int) -> Conditions:
        """Those of the latent frames ``start`` to ``stop``."""
        cut = [None if x is None else x[:, start:stop] for x in self[:3]]
        return Conditions(*cut, self.embeds)

    def chunk(self, index: int, n: int) -> Conditions:
        """Those of a chunk of n latent frames."""
        return self.frames(index * n, (index + 1) * n)

    def rows(self, index: Tensor) -> Conditions:
        """Those of some samples."""
        return Conditions(*[None if x is None else x[index] for x in self])

    def text_only(self) -> Conditions:
        """Those of the text-to-video task: no reference, no anchor."""
        return Conditions(embeds=self.embeds)


class Alone:
    """The cache of tokens that attend to each other and to nothing else."""

    def block_layer(self, layer: int, tokens: int) -> Alone:
        """A layer's."""
        return self

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v as they came."""
        return k, v


class Context(NamedTuple):
    """What a context pass leaves for the passes over its chunk."""

    cache: GrowingCache | Alone
    text: TextKV | None
    rope: RopeTable


def modulation(model: StarDiT, t: Tensor) -> Modulation:
    """`StarDiT.modulation`, in float32 also where autocast is on."""
    kind = model.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if autocast else nullcontext():
        return model.modulation(t.to(model.device))


def open_context(
    model: StarDiT,
    conditions: Conditions,
    history: Tensor | None,
    size: tuple[int, int],
    gradient: bool = True,
) -> Context:
    """The context pass of one chunk.

    The reference stands at 0 .. n-1 in time and the history at n .. 2n-1, whichever of them is there. Without either
    there is no pass, and the chunk attends to itself alone.

    Args:
        model: the network.
        conditions: of the chunk, n frames each; mask and render are not looked at.
        history: [B, n, 16, h, w] the chunk before; None in a first one.
        size: height and width of the latents.
        gradient: False makes keys and values of the context constants. Those of the prompt keep their gradient.
    """
    if model.config.text and conditions.embeds is None:
        raise ValueError("a network with text needs the embeds of a prompt, if only of the empty one")
    text = model.text_kv(conditions.embeds) if model.config.text else None
    n, (rows, columns) = model.config.latents_per_block, (size[0] // PATCH, size[1] // PATCH)
    rope = _table(3 * n, rows, columns, model.config.head_dim, model.device)
    given = [x for x in (conditions.reference, history) if x is not None]
    if not given:
        return Context(Alone(), text, rope)
    cache = GrowingCache()
    places = rope if conditions.reference is not None else rope.rows(n * rows * columns, 3 * n * rows * columns)
    with nullcontext() if gradient else torch.no_grad():
        zero = modulation(model, torch.zeros(1))
        model.context(torch.cat(given, 1), zero, places, cache, text)
    return Context(cache, text, rope)


def chunk_flow(model: StarDiT, x_t: Tensor, t: Tensor, conditions: Conditions, context: Context) -> Tensor:
    """The flow of a chunk x_t [B, n, 16, h, w] at timesteps t [B or 1], given the context that was opened for it."""
    at = modulation(model, t)
    return model.denoise(x_t, conditions.mask, conditions.render, at, context.rope, context.cache, context.text)


def causal_flow(
    model: StarDiT,
    x_t: Tensor,
    t: Tensor,
    conditions: Conditions,
    history: Tensor | None = None,
    context_gradient: bool = True,
) -> Tensor:
    """Both passes of one chunk: the flow [B, n, 16, h, w] at x_t. See `open_context` and `chunk_flow`."""
    context = open_context(model, conditions, history, (x_t.shape[-2], x_t.shape[-1]), context_gradient)
    return chunk_flow(model, x_t, t, conditions, context)


def bidirectional_flow(
    model: StarDiT, x_t: Tensor, t: Tensor, conditions: Conditions, checkpointing: bool = False
) -> Tensor:
    """The flow of all frames of a clip at once, every token attending to every other.

    The reference frames follow the noisy ones on the frame axis, without mask and render; frames stand at 0 .. 2F-1 in
    time; all have the timestep of the noisy ones; what comes out for the reference is dropped. Without reference and
    anchor this is Wan 2.1's text-to-video network, also with 16 input channels.

    Args:
        model: the network.
        x_t: [B, F, 16, h, w].
        t: [B or 1] timesteps.
        conditions: of all F frames.
        checkpointing: keep only what enters each layer, and run the layers again for the backward pass.

    Returns:
        [B, F, 16, h, w].
    """
    if model.config.text and conditions.embeds is None:
        raise ValueError("a network with text needs the embeds of a prompt, if only of the empty one")
    text = model.text_kv(conditions.embeds) if model.config.text else None
    anchored = conditions.mask is not None
    x = model.embed(torch.cat([x_t, conditions.mask, conditions.render], 2) if anchored else x_t)
    own, frames = x.shape[1], x_t.shape[1]
    if conditions.reference is not None:
        x = torch.cat([x, model.embed(conditions.reference)], 1)
        frames += conditions.reference.shape[1]
    rows, columns = x_t.shape[-2] // PATCH, x_t.shape[-1] // PATCH
    rope = _table(frames, rows, columns, model.config.head_dim, model.device)
    at, backend = modulation(model, t), choose_backend(x.device, x.dtype, model.backend)
    for i, layer in enumerate(model.blocks):
        of_layer = None if text is None else (text.keys[i], text.values[i], text.bias)
        arguments = (x, at.layers[i], rope, Alone(), of_layer, backend)
        x = checkpoint(layer, *arguments, use_reentrant=False) if checkpointing else layer(*arguments)
    return model.unpatchify(model.head(x[:, :own], at.head), x_t)


def grouped(*given: Sequence[bool]) -> list[tuple[list[bool], Tensor]]:
    """Samples that have the same of several things: (which they have, int64 [rows]), in order of their first row."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for row, has in enumerate(zip(*given, strict=True)):
        groups.setdefault(has, []).append(row)
    return [(list(has), torch.tensor(rows)) for has, rows in groups.items()]


@functools.lru_cache(maxsize=32)
def _table(frames: int, rows: int, columns: int, head_dim: int, device: torch.device) -> RopeTable:
    with torch.inference_mode(False):
        return rope_table(frames, rows, columns, head_dim, device)
