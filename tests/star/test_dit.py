"""The network: against a second implementation, its sizes, its passes, prompts."""

import math
import re
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from inspatio_core.checkpoints import shapes_of
from inspatio_core.star.cache import GrowingCache
from inspatio_core.star.config import CONFIGS, StarConfig
from inspatio_core.star.dit import (
    PADDING_ROWS,
    RMSNorm,
    StarDiT,
    TextKV,
    _row_logits,
    build_star,
    randomise,
)

from .plain import HEIGHT, SMALL, WIDTH, deviation, forward, network, normal

EXACT = 1e-6  # float64 networks; angles and modulations are float32


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> StarDiT:
    return network()


def inputs(n: int, batch: int = 2, seed: int = 1):
    """Reference, last prediction, x_t, mask and render."""
    shapes = [(batch, n, channels, HEIGHT, WIDTH) for channels in (16, 16, 16, 4, 16)]
    return [normal(*shape, seed=seed + i) for i, shape in enumerate(shapes)]


def prompt(lengths, config: StarConfig = SMALL, seed: int = 9) -> torch.Tensor:
    """Features of prompts of these lengths, zero behind them."""
    embeds = normal(len(lengths), config.text_len, config.text_dim, seed=seed)
    for row, length in enumerate(lengths):
        embeds[row, length:] = 0
    return embeds


def with_zeros(latents: torch.Tensor, channels: int = 36) -> torch.Tensor:
    missing = channels - latents.shape[2]
    return torch.cat([latents, latents.new_zeros(*latents.shape[:2], missing, *latents.shape[3:])], 2)


# ------------------------------------------------------------------------------- against the second implementation


@pytest.mark.parametrize("kind", ["anchor", "no anchor", "16 channels"])
@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
@pytest.mark.parametrize("with_last", [True, False], ids=["later block", "first block"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_two_passes_are_one_forward_over_all_tokens(n: int, with_last: bool, text: bool, kind: str) -> None:
    config = SMALL.replace(latents_per_block=n, text=text, in_dim=16 if kind == "16 channels" else 36)
    model = network(config)
    reference, last, x_t, mask, render = inputs(n)
    embeds = prompt([5, 192]) if text else None
    t = torch.tensor([937.5, 12.25])  # each slot at its own

    table, cache = model.rope(HEIGHT, WIDTH), model.workspace(2, HEIGHT, WIDTH)
    prompts = model.text_kv(embeds) if text else None
    context = torch.cat([reference, last], 1) if with_last else reference
    of_context = model.context(context, model.modulation(torch.zeros(1)), table, cache, prompts, flow=True)
    condition = (mask, render) if kind == "anchor" else (None, None)
    of_block = model.denoise(x_t, *condition, model.modulation(t), table, cache, prompts)

    block = torch.cat([x_t, mask, render], 2) if kind == "anchor" else with_zeros(x_t, config.in_dim)
    frames = torch.cat([with_zeros(context, config.in_dim), block], 1)
    f = context.shape[1]
    expected = forward(
        model,
        frames,
        positions=[*range(f), *range(2 * n, 3 * n)],
        timesteps=torch.cat([torch.zeros(2, f), t[:, None].expand(2, n)], 1),
        is_context=[True] * f + [False] * n,
        embeds=embeds,
    )
    assert deviation(of_context, expected[:, :f]) < EXACT
    assert deviation(of_block, expected[:, f:]) < EXACT


def test_zero_mask_and_render_are_no_mask_and_render(model: StarDiT) -> None:
    reference, last, x_t, mask, render = inputs(2)
    table, cache = model.rope(HEIGHT, WIDTH), model.workspace(2, HEIGHT, WIDTH)
    zero, step = model.modulation(torch.zeros(1)), model.modulation(torch.full((1,), 625.0))
    model.context(torch.cat([reference, last], 1), zero, table, cache, model.text_kv(prompt([3, 3])))
    flows = [
        model.denoise(x_t, *condition, step, table, cache, model.text_kv(prompt([3, 3])))
        for condition in ((None, None), (mask * 0, render * 0), (mask, render))
    ]
    assert deviation(flows[0], flows[1]) < 1e-12
    assert deviation(flows[0], flows[2]) > 0.1


# ----------------------------------------------------------------------------------------------------------- sizes


def on_meta(config: StarConfig) -> StarDiT:
    with torch.device("meta"):
        return StarDiT(config)


def shapes(model: StarDiT) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def parameters(model: StarDiT) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_released_network_has_the_keys_and_shapes_of_its_file() -> None:
    model = on_meta(CONFIGS["1.3b"])
    assert shapes(model) == shapes_of("star-1.3b")
    assert parameters(model) == 1_419_119_680


def test_without_an_anchor_it_is_the_text_to_video_network() -> None:
    model = on_meta(CONFIGS["1.3b"].replace(in_dim=16))
    assert shapes(model) == shapes_of("wan-t2v-1.3b")
    assert parameters(model) == 1_418_996_800


def test_14b_has_the_shapes_of_wan_14b() -> None:
    config = CONFIGS["14b"]
    model = on_meta(config)
    assert (config.dim, config.num_layers, config.num_heads, config.ffn_dim) == (5120, 40, 40, 13824)
    d, f, layers = 5120, 13824, 40
    layer = 2 * (4 * (d * d + d) + 2 * d) + 2 * d + (d * f + f) + (f * d + d) + 6 * d  # attentions, norm3, ffn, mod.
    outside = (4096 * d + d) + (d * d + d) + (256 * d + d) + (d * d + d) + (d * 6 * d + 6 * d) + (d * 64 + 64) + 2 * d
    assert parameters(model) == layers * layer + outside + 36 * 4 * d + d == 14_288_901_184
    assert parameters(on_meta(config.replace(in_dim=16))) == 14_288_491_584
    of_one_layer = [
        {re.sub(r"blocks\.\d+", "blocks.0", key) for key in keys} for keys in (shapes(model), shapes_of("star-1.3b"))
    ]
    assert of_one_layer[0] == of_one_layer[1]


def rolled_on_meta(config: StarConfig) -> tuple[int, int]:
    """FLOPs of the context pass and of one denoising pass of a later block at 480 x 832; no number is worked out."""
    with torch.device("meta"):
        model = StarDiT(config).to(torch.bfloat16).eval()
        t, embeds = torch.zeros(1), torch.zeros(1, config.text_len, config.text_dim)
        latents, mask = (torch.zeros(1, 3, c, 60, 104, dtype=torch.bfloat16) for c in (16, 4))
    text, table = model.text_kv(embeds), model.rope(60, 104)
    modulation, cache = model.modulation(t), model.workspace(1, 60, 104)
    assert cache.k.is_meta
    with FlopCounterMode(display=False) as context:
        model.context(torch.cat([latents, latents], 1), modulation, table, cache, text)
    with FlopCounterMode(display=False) as denoise:
        flow = model.denoise(latents, mask, latents, modulation, table, cache, text)
    assert flow.is_meta and flow.shape == (1, 3, 16, 60, 104) and flow.dtype == torch.bfloat16
    return context.get_total_flops(), denoise.get_total_flops()


@pytest.mark.parametrize("config", [CONFIGS["1.3b"], CONFIGS["14b"].replace(num_layers=3)], ids=["1.3b", "14b"])
def test_work_of_a_pass_at_full_size(config: StarConfig) -> None:
    """Multiply-adds counted by hand; the last layer of the context pass ends with its keys and values."""
    d, ffn, layers = config.dim, config.ffn_dim, config.num_layers
    s, queries = 4680, 9360

    def passed(q: int, kv: int) -> int:
        """2 x multiply-adds of one layer."""
        return 2 * (q * (4 * d * d + 2 * d * d + 2 * d * ffn) + 2 * q * kv * d + 2 * q * 512 * d)

    context, denoise = rolled_on_meta(config)
    patches = 2 * s * d * (36 * 4 + 64)
    assert denoise == layers * passed(s, 3 * s) + patches
    assert context == (layers - 1) * passed(queries, queries) + 2 * queries * (2 * d * d + 16 * 4 * d)


# ---------------------------------------------------------------------------------------------------- the two passes


def test_the_context_pass_stops_at_the_last_keys_and_values(model: StarDiT) -> None:
    reference, last, *_ = inputs(2)
    context = torch.cat([reference, last], 1)
    table, zero, text = model.rope(HEIGHT, WIDTH), model.modulation(torch.zeros(1)), model.text_kv(prompt([4, 7]))
    calls: Counter[str] = Counter()
    leaves = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.GELU, torch.nn.LayerNorm, RMSNorm))
    }
    hooks = [leaf.register_forward_hook(lambda module, _, __: calls.update([leaves[module]])) for leaf in leaves]
    try:
        short, full = model.workspace(2, HEIGHT, WIDTH), model.workspace(2, HEIGHT, WIDTH)
        assert model.context(context, zero, table, short, text) is None
        ran = Counter(calls)
        calls.clear()
        assert model.context(context, zero, table, full, text, flow=True) is not None
    finally:
        for hook in hooks:
            hook.remove()
    final = f"blocks.{len(model.blocks) - 1}"
    left_out = {name for name in calls if name not in ran}
    stay = {f"{final}.self_attn.{part}" for part in ("k", "v", "norm_k")}
    of_last = {name for name in calls if name.startswith(final)}
    assert left_out == (of_last - stay) | {"head.head"}
    assert stay <= set(ran) and len(left_out) > 8
    assert torch.equal(short.k, full.k) and torch.equal(short.v, full.v) and short.context == full.context > 0


def test_the_context_sees_neither_the_block_nor_the_block_before(model: StarDiT) -> None:
    reference, last, x_t, mask, render = inputs(2)
    table, cache, text = model.rope(HEIGHT, WIDTH), model.workspace(2, HEIGHT, WIDTH), model.text_kv(prompt([4, 7]))
    zero, step = model.modulation(torch.zeros(1)), model.modulation(torch.full((1,), 1000.0))

    def block(x):
        model.context(torch.cat([reference, last], 1), zero, table, cache, text)
        return model.denoise(x, mask, render, step, table, cache, text)

    first = block(x_t)
    rows = cache.context
    keys = cache.k[:, :, :rows].clone()
    block(x_t.flip(1) * 7)
    assert torch.equal(block(x_t), first)
    assert torch.equal(cache.k[:, :, :rows], keys)


# ------------------------------------------------------------------------------------------------------- modulation


def test_modulations_of_many_timesteps_are_those_of_each(model: StarDiT) -> None:
    t = torch.tensor([0.0, 625.0, 833.333, 937.5, 1000.0])
    together = model.modulation(t)
    assert together.layers.shape == (3, 5, 6, 40) and together.head.shape == (5, 2, 40)
    assert together.layers.dtype == together.head.dtype == torch.float32
    for row, one in enumerate(t):
        alone = model.modulation(one[None])
        torch.testing.assert_close(alone.layers[:, 0], together.layers[:, row])
        torch.testing.assert_close(alone.head[0], together.head[row])
    assert deviation(together.layers[:, 2], model.modulation(torch.tensor([833.0])).layers[:, 0]) > 1e-4


def test_modulation_is_worked_out_in_float32_whatever_the_weights_are_in(model: StarDiT) -> None:
    half = network(dtype=torch.bfloat16)
    same = network(dtype=torch.bfloat16).float()
    t = torch.tensor([833.3333])
    assert torch.equal(half.modulation(t).layers, same.modulation(t).layers)
    assert half.modulation(t).layers.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- prompts


def flow_with(model: StarDiT, text: TextKV | None) -> torch.Tensor:
    reference, last, x_t, mask, render = (x.to(model.dtype) for x in inputs(2))
    table, cache = model.rope(HEIGHT, WIDTH), GrowingCache()
    model.context(torch.cat([reference, last], 1), model.modulation(torch.zeros(1)), table, cache, text)
    return model.denoise(x_t, mask, render, model.modulation(torch.full((1,), 833.3)), table, cache, text)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ((0, 0), 64),
        ((1, 1), 64),
        ((60, 2), 64),
        ((61, 0), 128),
        ((124, 30), 128),
        ((125, 1), 192),
        ((191, 191), 192),
        ((192, 192), 192),
        ((192, 0), 192),
    ],
)
def test_few_rows_stand_for_the_padding_of_a_prompt(model: StarDiT, lengths, rows: int) -> None:
    embeds = prompt(lengths)
    merged, full = model.text_kv(embeds, lengths), model.text_kv(embeds)
    assert full.bias is None and full.keys.shape == full.values.shape == (3, 2, 192, 2, 20)
    assert merged.keys.shape == merged.values.shape == (3, 2, rows, 2, 20)
    assert (merged.bias is None) == (rows == 192)
    assert deviation(flow_with(model, merged), flow_with(model, full)) < 1e-12


def test_padding_is_attended_and_shorter_features_are_padded(model: StarDiT) -> None:
    embeds = prompt([5, 9])
    full = flow_with(model, model.text_kv(embeds))
    assert torch.equal(flow_with(model, model.text_kv(embeds[:, :9])), full)
    masked = model.text_kv(embeds)
    bias = torch.zeros(2, 1, 1, 192, dtype=torch.float64)
    bias[..., 9:] = -math.inf
    assert deviation(flow_with(model, masked._replace(bias=bias)), full) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text_len", [512, 150, 77])
def test_logits_of_the_rows_add_up_to_the_padding(dtype: torch.dtype, text_len: int) -> None:
    """Closer than `dtype` could say the number itself."""
    closest = torch.finfo(dtype).eps / 100 if dtype.itemsize == 2 else 8 * torch.finfo(dtype).eps
    for length in range(0, text_len - PADDING_ROWS, 3):
        rows = length + PADDING_ROWS + 3
        bias = _row_logits(length, rows, text_len, dtype)
        assert bias.dtype == dtype and not bias[:length].any()
        stands_for = bias[length:].double().exp()
        assert (stands_for[PADDING_ROWS:] == 0).all()
        assert stands_for.sum().item() == pytest.approx(text_len - length, rel=closest)


def test_bfloat16_with_few_rows_is_as_close_as_with_all() -> None:
    model, exact = network(dtype=torch.bfloat16), network(dtype=torch.bfloat16).double()
    embeds = prompt([7, 31]).bfloat16()
    expected = flow_with(exact, exact.text_kv(embeds))
    full, merged = (deviation(flow_with(model, model.text_kv(embeds, n)), expected) for n in (None, (7, 31)))
    assert merged < 1.3 * full < 0.05


def test_without_text_there_are_no_keys_of_a_prompt() -> None:
    model = network(SMALL.replace(text=False))
    assert model.text_kv(prompt([3, 4])) is None
    assert not [k for k in model.state_dict() if "cross_attn" in k or "text" in k or "norm3" in k]


# ---------------------------------------------------------------------------------------------------------- weights


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    first, again, other = (network(dtype=torch.float32, seed=seed).state_dict() for seed in (3, 3, -4))
    larger = network(SMALL.replace(num_layers=4), torch.float32, seed=3).state_dict()
    for key, value in first.items():
        assert torch.equal(value, again[key]) and torch.equal(value, larger[key]) and value.isfinite().all()
        assert not torch.equal(value, other[key])
    assert not torch.equal(first["blocks.0.ffn.0.weight"], first["blocks.1.ffn.0.weight"])


def test_a_built_network_waits_for_weights_and_needs_no_gradient() -> None:
    model = build_star(SMALL, dtype=torch.bfloat16)
    assert not model.training and model.dtype == torch.bfloat16 and model.device.type == "cpu"
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    randomise(model)
    assert all(p.isfinite().all() for p in model.parameters())
