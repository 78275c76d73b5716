"""The network a second time, written to be read: every token in one forward, explicit attention, float64 throughout.

Nothing of `inspatio_core.star` is used here but the configuration's numbers, so that a mistake there is not made twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inspatio_core.star.config import StarConfig
from inspatio_core.star.dit import StarDiT, build_star, randomise

HEIGHT, WIDTH = 6, 8  # of latents: rows and columns differ
SMALL = StarConfig(
    dim=40, ffn_dim=56, num_heads=2, num_layers=3, freq_dim=16, text_dim=12, text_len=192, latents_per_block=2
)
"""Twenty numbers a head: four pairs turn with time, three with the row, three with the column."""


def network(config: StarConfig = SMALL, dtype: torch.dtype = torch.float64, seed: int = 0) -> StarDiT:
    model = build_star(config, dtype=dtype)
    randomise(model, seed)
    return model


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def forward(
    model: StarDiT,
    frames: Tensor,
    positions: Sequence[int],
    timesteps: Tensor,
    is_context: Sequence[bool],
    embeds: Tensor | None = None,
) -> Tensor:
    """The flow of every frame.

    Args:
        model: whose weights and configuration count.
        frames: [B, F, in_dim, h, w], all channels.
        positions: in time, of the F frames.
        timesteps: [B, F].
        is_context: of the F frames. A context frame sees the context frames, the others see all.
        embeds: [B, text_len, text_dim].
    """
    c = model.config
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    frames, timesteps = frames.double(), timesteps.double()
    batch, count, _, height, width = frames.shape
    rows, columns = height // 2, width // 2

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.einsum("...i,oi->...o", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + c.eps)

    def root_mean_square(x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + c.eps) * w[f"{name}.weight"]

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def softmax_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (x.reshape(batch, -1, c.num_heads, c.head_dim) for x in (q, k, v))
        logits = torch.einsum("bsnd,blnd->bnsl", q, k) / math.sqrt(c.head_dim)
        weights = torch.where(seen, logits, -math.inf).softmax(-1)
        return torch.einsum("bnsl,blnd->bsnd", weights, v).flatten(2)

    # Tokens, by a convolution; where each stands; its timestep; what it sees.
    x = torch.nn.functional.conv3d(
        frames.movedim(2, 1), w["patch_embedding.weight"], w["patch_embedding.bias"], stride=(1, 2, 2)
    )
    x = x.permute(0, 2, 3, 4, 1).flatten(1, 3)
    places = [(f, i, j) for f in range(count) for i in range(rows) for j in range(columns)]
    t = timesteps[:, [f for f, _, _ in places]]
    context = torch.tensor([is_context[f] for f, _, _ in places])
    seen = ~context[:, None] | context[None, :]

    pairs = c.head_dim // 2
    spatial = pairs // 3
    temporal = pairs - 2 * spatial
    turns = torch.zeros(len(places), pairs, dtype=torch.float64)
    for s, (f, i, j) in enumerate(places):
        for p in range(temporal):
            turns[s, p] = positions[f] * 10000 ** (-p / temporal)
        for p in range(spatial):
            turns[s, temporal + p] = i * 10000 ** (-p / spatial)
            turns[s, temporal + spatial + p] = j * 10000 ** (-p / spatial)
    turns = torch.polar(torch.ones_like(turns), turns)

    def turned(x: Tensor) -> Tensor:
        heads = torch.view_as_complex(x.reshape(batch, len(places), c.num_heads, pairs, 2))
        return torch.view_as_real(heads * turns[:, None]).flatten(2)

    # One modulation a token.
    half = c.freq_dim // 2
    angles = t[..., None] * torch.tensor([10000 ** (-k / half) for k in range(half)], dtype=torch.float64)
    e = linear(
        silu(linear(torch.cat([angles.cos(), angles.sin()], -1), "time_embedding.0")),
        "time_embedding.2",
    )
    e6 = linear(silu(e), "time_projection.1").unflatten(-1, (6, -1))

    if embeds is not None:
        prompt = linear(gelu(linear(embeds.double(), "text_embedding.0")), "text_embedding.2")
        all_seen = torch.ones(len(places), prompt.shape[1], dtype=torch.bool)
    for i in range(c.num_layers):
        name = f"blocks.{i}"
        shift, scale, gate, shift2, scale2, gate2 = (w[f"{name}.modulation"][:, None] + e6).unbind(2)
        y = standard(x) * (1 + scale) + shift
        q, k = (root_mean_square(linear(y, f"{name}.self_attn.{n}"), f"{name}.self_attn.norm_{n}") for n in "qk")
        y = softmax_attention(turned(q), turned(k), linear(y, f"{name}.self_attn.v"), seen)
        x = x + gate * linear(y, f"{name}.self_attn.o")
        if embeds is not None:
            y = standard(x) * w[f"{name}.norm3.weight"] + w[f"{name}.norm3.bias"]
            q = root_mean_square(linear(y, f"{name}.cross_attn.q"), f"{name}.cross_attn.norm_q")
            k = root_mean_square(linear(prompt, f"{name}.cross_attn.k"), f"{name}.cross_attn.norm_k")
            y = softmax_attention(q, k, linear(prompt, f"{name}.cross_attn.v"), all_seen)
            x = x + linear(y, f"{name}.cross_attn.o")
        y = standard(x) * (1 + scale2) + shift2
        x = x + gate2 * linear(gelu(linear(y, f"{name}.ffn.0")), f"{name}.ffn.2")

    shift, scale = (w["head.modulation"][:, None] + e[:, :, None]).unbind(2)
    y = linear(standard(x) * (1 + scale) + shift, "head.head")
    out = torch.empty(batch, count, c.out_dim, height, width, dtype=torch.float64)
    for s, (f, i, j) in enumerate(places):
        patch = y[:, s].reshape(batch, 2, 2, c.out_dim)
        for a in (0, 1):
            for b in (0, 1):
                out[:, f, :, 2 * i + a, 2 * j + b] = patch[:, a, b]
    return out
