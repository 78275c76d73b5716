"""Floating-point operations of the STAR network, exactly: 2 for each multiply-add of a matrix product.

Norms, activations, rotations and sums are not counted; they are under a percent of the whole. Two counts of the same
pass: as the network is defined and released (text embedded in every pass, the whole context pass), by which programs
are compared; and *executed*, what is left of that here, by which the machine is judged.
"""

from __future__ import annotations

from typing import NamedTuple

from inspatio_core.star.config import LATENT_CHANNELS, PATCH, StarConfig


class Flops(NamedTuple):
    """Of one pass of one slot, by part.

    Attributes:
        projections: q, k, v and output of self attention. cross_projections: q and output of cross attention.
        feed_forward: both products. text: embedding of the prompt, its keys and values.
        self_attention, cross_attention: q k^T and the weighted sum of values.
        ends: patch and time embedding, head.
    """

    projections: int
    cross_projections: int
    feed_forward: int
    text: int
    self_attention: int
    cross_attention: int
    ends: int

    @property
    def attention(self) -> int:
        """All attention kernels."""
        return self.self_attention + self.cross_attention

    @property
    def dense(self) -> int:
        """All matrix products with weights."""
        return self.total - self.attention

    @property
    def total(self) -> int:
        """Everything."""
        return sum(self)


def flops_text(config: StarConfig, rows: int | None = None) -> int:
    """Of embedding a prompt and of its keys and values in all layers; `rows` of it (default: all, with the padding)."""
    if not config.text:
        return 0
    rows = config.text_len if rows is None else rows
    embedding = config.text_dim * config.dim + config.dim**2
    return 2 * rows * (embedding + 2 * config.num_layers * config.dim**2)


def flops_context(config: StarConfig, tokens: int, *, executed: bool = False, text_rows: int | None = None) -> Flops:
    """Of the context pass over `tokens` tokens, all of which attend to each other.

    Args:
        executed: without what nothing needs: text (kept from block to block), the last layer but for its keys and
            values, the head, the time embedding (kept), the input channels that are zero.
        text_rows: rows that cross attention reads (default: all of `config.text_len`).
    """
    d, layers = config.dim, config.num_layers
    whole = layers - 1 if executed else layers
    rows = _rows(config, text_rows)
    kv_of_last = 2 * 2 * d * d * tokens if executed else 0
    channels = LATENT_CHANNELS if executed else config.in_dim
    return Flops(
        projections=whole * 4 * 2 * d * d * tokens + kv_of_last,
        cross_projections=whole * 2 * 2 * d * d * tokens if config.text else 0,
        feed_forward=whole * 2 * 2 * d * config.ffn_dim * tokens,
        text=0 if executed else flops_text(config),
        self_attention=whole * 2 * 2 * d * tokens * tokens,
        cross_attention=whole * 2 * 2 * d * tokens * rows,
        ends=_embedding(config, tokens, channels) + (0 if executed else _time(config) + _head(config, tokens)),
    )


def flops_denoise(
    config: StarConfig, tokens: int, context_tokens: int, *, executed: bool = False, text_rows: int | None = None
) -> Flops:
    """Of one denoising pass over `tokens` tokens, which attend to `context_tokens` and to themselves.

    Args:
        executed: without text and time embedding, which are kept.
        text_rows: as in `flops_context`.
    """
    d, layers = config.dim, config.num_layers
    return Flops(
        projections=layers * 4 * 2 * d * d * tokens,
        cross_projections=layers * 2 * 2 * d * d * tokens if config.text else 0,
        feed_forward=layers * 2 * 2 * d * config.ffn_dim * tokens,
        text=0 if executed else flops_text(config),
        self_attention=layers * 2 * 2 * d * tokens * (context_tokens + tokens),
        cross_attention=layers * 2 * 2 * d * tokens * _rows(config, text_rows),
        ends=_embedding(config, tokens, config.in_dim) + _head(config, tokens) + (0 if executed else _time(config)),
    )


def flops_block(
    config: StarConfig,
    latent_tokens: int,
    *,
    first: bool = False,
    executed: bool = False,
    text_rows: int | None = None,
) -> Flops:
    """Of a block of `config.latents_per_block` latents of `latent_tokens` tokens each: context and every step.

    ``first``: a slot's first block, whose context is the reference alone.
    """
    tokens = config.latents_per_block * latent_tokens
    context_tokens = tokens if first else 2 * tokens
    context = flops_context(config, context_tokens, executed=executed, text_rows=text_rows)
    step = flops_denoise(config, tokens, context_tokens, executed=executed, text_rows=text_rows)
    return Flops(*(c + len(config.steps) * s for c, s in zip(context, step, strict=True)))


def _rows(config: StarConfig, text_rows: int | None) -> int:
    if not config.text:
        return 0
    return config.text_len if text_rows is None else text_rows


def _embedding(config: StarConfig, tokens: int, channels: int) -> int:
    return 2 * tokens * channels * PATCH * PATCH * config.dim


def _head(config: StarConfig, tokens: int) -> int:
    return 2 * tokens * config.dim * PATCH * PATCH * config.out_dim


def _time(config: StarConfig) -> int:
    return 2 * (config.freq_dim * config.dim + config.dim**2 + 6 * config.dim**2)
