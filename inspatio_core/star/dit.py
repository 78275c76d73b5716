"""The diffusion transformer: Wan2.1's blocks, run once over the context and a few times over the block.

Section 3.2 of the paper. Keys and shapes of the state dict are those of the released checkpoint without its ``model.``.
Tokens are ordered frame-major, then by row, then by column: S = F T, T = (h / 2)(w / 2).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspatio_core.star.attention import attention, choose_backend
from inspatio_core.star.cache import GrowingCache, InPlace, Workspace
from inspatio_core.star.config import PATCH, StarConfig
from inspatio_core.star.rope import RopeTable, rope_table, rotate

TEXT_ROWS = 64
"""Merged text rows are padded to a multiple of this, so that few prompts need a shape of their own."""
PADDING_ROWS = 4
"""Rows that stand for all padding of a prompt: as many as bfloat16 needs to hold the log of their number."""


class TextKV(NamedTuple):
    """What cross attention needs of a prompt: keys, values [layers, B, rows, N, d] and a bias for the logits.

    bias: [B, 1, 1, rows], None where all rows count once.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None


class Modulation(NamedTuple):
    """Of one timestep: layers float32 [layers, B, 6, D], head float32 [B, 2, D]; B may be 1 for all."""

    layers: Tensor
    head: Tensor


class RMSNorm(nn.Module):
    """Root mean square norm over the full width, all heads together."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D], normed."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Projections and norms that self and cross attention share."""

    def __init__(self, config: StarConfig):
        super().__init__()
        self.heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(config.dim, config.eps) for _ in range(2))

    def queries(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, N, d], normed over all heads."""
        return self.norm_q(self.q(x)).unflatten(-1, (self.heads, -1))

    def keys(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, N, d], normed over all heads."""
        return self.norm_k(self.k(x)).unflatten(-1, (self.heads, -1))

    def values(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, N, d]."""
        return self.v(x).unflatten(-1, (self.heads, -1))


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LN(x) (1 + scale) + shift for x [B, S, D], shift and scale float32 [B or 1, D]."""
    return (F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]).to(x.dtype)


def add_gated(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate y for x, y [B, S, D], gate float32 [B or 1, D]."""
    return (x + gate[:, None] * y).to(x.dtype)


class Layer(nn.Module):
    """Self attention, cross attention to the prompt (not gated), feed-forward."""

    def __init__(self, config: StarConfig):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = Attention(config)
        if config.text:
            self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
            self.cross_attn = Attention(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: RopeTable,
        cache: InPlace,
        text: tuple[Tensor, Tensor, Tensor | None] | None,
        backend: str,
        keys_only: bool = False,
    ) -> Tensor:
        """x [B, S, D] one layer on.

        Args:
            modulation: float32 [B or 1, 6, D]: (shift, scale, gate) of self attention, then of the feed-forward.
            cache: what the keys and values go to, and come from with the context's before them.
            text: keys, values [B, rows, N, d] and bias of the prompt; None without text.
            backend: of self attention.
            keys_only: stop once keys and values are written; x comes back as it was.
        """
        shift, scale, gate, shift2, scale2, gate2 = modulation.unbind(1)
        y = modulate(x, shift, scale, self.eps)
        attn = self.self_attn
        keys, values = cache.extend(rotate(attn.keys(y), rope), attn.values(y))
        if keys_only:
            return x
        y = attention(rotate(attn.queries(y), rope), keys, values, backend=backend)
        x = add_gated(x, gate, attn.o(y.flatten(-2)))
        if text is not None:
            cross = self.cross_attn
            y = attention(cross.queries(self.norm3(x)), *text, backend=backend)
            x = x + cross.o(y.flatten(-2))
        return add_gated(x, gate2, self.ffn(modulate(x, shift2, scale2, self.eps)))


class Head(nn.Module):
    """The last norm, modulated by the unprojected time embedding, and the projection to patches."""

    def __init__(self, config: StarConfig):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = nn.Linear(config.dim, PATCH * PATCH * config.out_dim)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [B, S, D], modulation float32 [B or 1, 2, D] (shift, scale) -> [B, S, 2 x 2 x channels]."""
        return self.head(modulate(x, modulation[:, 0], modulation[:, 1], self.eps))


class StarDiT(nn.Module):
    """The network. One class for every size: 1.3B, 14B and small ones differ in their `StarConfig` alone.

    Attributes:
        config: its StarConfig.
        backend: of self attention, see `inspatio_core.star.attention`; ``auto`` for the best.
    """

    def __init__(self, config: StarConfig, backend: str = "auto"):
        super().__init__()
        self.config, self.backend = config, backend
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, (1, PATCH, PATCH), (1, PATCH, PATCH))
        if config.text:
            self.text_embedding = nn.Sequential(
                nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
            )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.head = Head(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return self.patch_embedding.weight.dtype

    # ------------------------------------------------------------------------- what does not depend on the block

    def modulation(self, t: Tensor) -> Modulation:
        """Shifts, scales and gates of timesteps t [B] (0 to 1000, fractional), in float32 whatever the weights are in.

        Timesteps of a sampler are few and fixed: this is called once for each, and its result kept.
        """
        half = self.config.freq_dim // 2
        frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64, device=t.device) / half)
        angle = torch.outer(t.double(), frequency)
        e = torch.cat([angle.cos(), angle.sin()], 1).float()
        first, second, project = self.time_embedding[0], self.time_embedding[2], self.time_projection[1]
        e = _linear32(F.silu(_linear32(e, first)), second)
        e6 = _linear32(F.silu(e), project).unflatten(1, (6, -1))
        layers = torch.stack([layer.modulation.float() + e6 for layer in self.blocks])
        return Modulation(layers, self.head.modulation.float() + e[:, None])

    def text_kv(self, embeds: Tensor, lengths: Sequence[int] | None = None) -> TextKV | None:
        """Keys and values of prompts; None for a network without text.

        Args:
            embeds: [B, text_len, text_dim] prompt features. Rows past a prompt's length are zero and are attended.
            lengths: of the prompts. The rows past it are all alike; given their number they become a few rows whose
                logits are raised by the log of how many they stand for, which leaves the function as it is. None keeps
                every row.
        """
        if not self.config.text:
            return None
        embeds = embeds.to(self.device, self.dtype)
        missing = self.config.text_len - embeds.shape[1]
        embeds = F.pad(embeds, (0, 0, 0, missing))
        bias = None
        if lengths is not None:
            rows = -(-(max(lengths) + PADDING_ROWS) // TEXT_ROWS) * TEXT_ROWS
            if rows < self.config.text_len:
                bias = torch.stack([_row_logits(n, rows, self.config.text_len, self.dtype) for n in lengths])
                embeds, bias = embeds[:, :rows], bias[:, None, None].to(self.device)
        c = self.text_embedding(embeds)
        keys = torch.stack([layer.cross_attn.keys(c) for layer in self.blocks])
        values = torch.stack([layer.cross_attn.values(c) for layer in self.blocks])
        return TextKV(keys, values, bias)

    def workspace(self, batch: int, height: int, width: int) -> Workspace:
        """Room for the keys and values of `batch` slots of latents [height, width]."""
        c = self.config
        tokens = 3 * c.latents_per_block * (height // PATCH) * (width // PATCH)
        return Workspace(c.num_layers, batch, tokens, c.num_heads, c.head_dim, self.device, self.dtype)

    def rope(self, height: int, width: int) -> RopeTable:
        """Angles of the 3n latent frames (reference, last prediction, block) of latents [height, width]."""
        frames = 3 * self.config.latents_per_block
        return rope_table(frames, height // PATCH, width // PATCH, self.config.head_dim, self.device)

    # ------------------------------------------------------------------------------------------------ the passes

    def context(
        self,
        latents: Tensor,
        modulation: Modulation,
        rope: RopeTable,
        cache: Workspace | GrowingCache,
        text: TextKV | None = None,
        flow: bool = False,
    ) -> Tensor | None:
        """Write keys and values of the context: reference latents, behind them those of the last prediction.

        Mask and render channels are zero here. What keys and values do not need is left out: the rest of the last
        layer and the head, unless ``flow``.

        Args:
            latents: [B, F, 16, h, w], F = n or 2n.
            modulation: of timestep 0.
            rope: of all 3n frames.
            cache: written.
            text: of the prompts.
            flow: also return the network's output [B, F, 16, h, w]; nothing needs it but tests and training.
        """
        x = self.embed(latents)
        cache.begin_context(x.shape[1])
        layers = [cache.context_layer(i) for i in range(len(self.blocks))]
        x = self._through(x, modulation, rope.rows(0, x.shape[1]), layers, text, keys_only=not flow)
        return self.unpatchify(self.head(x, modulation.head), latents) if flow else None

    def denoise(
        self,
        x_t: Tensor,
        mask: Tensor | None,
        render: Tensor | None,
        modulation: Modulation,
        rope: RopeTable,
        cache: Workspace | GrowingCache,
        text: TextKV | None = None,
    ) -> Tensor:
        """The flow at x_t.

        Args:
            x_t: [B, n, 16, h, w] noisy latents of the block.
            mask: [B, n, 4, h, w] in [-1, 1]; render: [B, n, 16, h, w] latents of the anchor. None for zeros (T2V).
            modulation: of the timestep.
            rope: of all 3n frames.
            cache: with the context in it.
            text: of the prompts.

        Returns:
            [B, n, 16, h, w].
        """
        x = self.embed(x_t if mask is None else torch.cat([x_t, mask, render], 2))
        layers = [cache.block_layer(i, x.shape[1]) for i in range(len(self.blocks))]
        own = rope.rows(rope.cos.shape[0] - x.shape[1], rope.cos.shape[0])
        x = self._through(x, modulation, own, layers, text)
        return self.unpatchify(self.head(x, modulation.head), x_t)

    def embed(self, latents: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] as tokens [B, S, D]; channels that are not given count as zero."""
        b, f, c, h, w = latents.shape
        patches = latents.reshape(b, f, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 1, 3, 5, 2, 4, 6)
        weight = self.patch_embedding.weight[:, :c].flatten(1)
        return F.linear(patches.reshape(b, -1, c * PATCH * PATCH).to(self.dtype), weight, self.patch_embedding.bias)

    def _through(self, x, modulation, rope, layers, text, keys_only=False) -> Tensor:
        backend, last = choose_backend(x.device, x.dtype, self.backend), len(self.blocks) - 1
        for i, layer in enumerate(self.blocks):
            of_layer = None if text is None else (text.keys[i], text.values[i], text.bias)
            x = layer(x, modulation.layers[i], rope, layers[i], of_layer, backend, keys_only and i == last)
        return x

    def unpatchify(self, patches: Tensor, like: Tensor) -> Tensor:
        """What the head makes of the tokens of latents `like`, as latents [B, F, channels, h, w]."""
        b, f, _, h, w = like.shape
        patches = patches.reshape(b, f, h // PATCH, w // PATCH, PATCH, PATCH, self.config.out_dim)
        return patches.permute(0, 1, 6, 2, 4, 3, 5).reshape(b, f, self.config.out_dim, h, w)


def _row_logits(length: int, rows: int, text_len: int, dtype: torch.dtype) -> Tensor:
    """Bias [rows] that makes the rows from `length` on count as `text_len - length` rows, exactly for all that `dtype`
    can tell: the sum of their exponentials is that number."""
    bias = torch.zeros(rows, dtype=dtype)
    bias[length:] = -math.inf
    left = float(text_len - length)
    for row in range(length, length + PADDING_ROWS):
        if left <= 0:
            break
        nearest = torch.tensor(math.log(left), dtype=torch.float64).to(dtype)
        if math.exp(nearest) > left:  # round down: what is left must not be negative
            nearest = torch.nextafter(nearest, torch.tensor(-math.inf, dtype=dtype))
        bias[row] = nearest
        left -= math.exp(nearest)
    return bias


def _linear32(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())


def build_star(config: StarConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> StarDiT:
    """The network without weights: its parameters are memory as it was found. For loading into."""
    with torch.device("meta"):
        model = StarDiT(config)
    return model.to(dtype).to_empty(device=device).requires_grad_(False).eval()


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Fill every parameter with numbers drawn from (seed, its name): for benchmarks and tests, never for pictures."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.Generator(p.device).manual_seed((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
            values = torch.empty_like(p, dtype=torch.float32).normal_(generator=draw)
            if p.dim() == 1 and name.endswith("weight"):
                values = 1 + 0.1 * values
            elif name.endswith("bias"):
                values *= 0.1
            elif name.endswith("modulation"):
                values *= 0.3
            else:
                values /= math.sqrt(math.prod(p.shape[1:]))
            p.copy_(values)
