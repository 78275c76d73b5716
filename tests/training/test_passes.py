"""The passes with gradients: against the network written a second time, and against inference."""

import pytest
import torch

from inspatio_core.star.rollout import Rollout
from inspatio_core.training.passes import Conditions, bidirectional_flow, causal_flow, grouped, modulation
from inspatio_core.training.rehearsal import roll, seeded_noise
from tests.star.plain import deviation, forward, network, normal

from .nets import SIZE, TINY, N, clip, gradients, told, trainable

EXACT = 1e-6  # float64 networks; angles and modulations are float32
WITH_TEXT = TINY.replace(text=True, text_len=24)


def channels(latents: torch.Tensor, conditions: Conditions | None = None, count: int = 36) -> torch.Tensor:
    if conditions is not None and conditions.mask is not None:
        return torch.cat([latents, conditions.mask, conditions.render], 2)
    zeros = latents.new_zeros(*latents.shape[:2], count - latents.shape[2], *latents.shape[3:])
    return torch.cat([latents, zeros], 2)


# ------------------------------------------------------------------------------------------------------------ causal


@pytest.mark.parametrize("history", [True, False], ids=["history", "first"])
@pytest.mark.parametrize("reference", [True, False], ids=["reference", "no reference"])
@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
@torch.no_grad()
def test_a_chunk_sees_what_is_there_where_it_stands(text: bool, reference: bool, history: bool) -> None:
    model = network(WITH_TEXT if text else TINY)
    conditions = told(N, text=24 if text else 0)
    if not reference:
        conditions = conditions._replace(reference=None)
    before = clip(N) if history else None
    x_t, t = clip(N, seed=3), torch.tensor([937.5, 12.25])
    flow = causal_flow(model, x_t, t, conditions, before)

    context = ([channels(conditions.reference)] if reference else []) + ([channels(before)] if history else [])
    positions = [*(range(N) if reference else ()), *(range(N, 2 * N) if history else ()), *range(2 * N, 3 * N)]
    f = len(positions) - N
    expected = forward(
        model,
        torch.cat([*context, channels(x_t, conditions)], 1),
        positions,
        torch.cat([torch.zeros(2, f), t[:, None].expand(2, N)], 1),
        [True] * f + [False] * N,
        conditions.embeds,
    )[:, f:]
    assert deviation(flow, expected) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_rolled_chunk_by_chunk_as_at_inference(dtype: torch.dtype) -> None:
    model, conditions, chunks, seeds = network(WITH_TEXT, dtype), told(4 * N, text=24), 4, (5, 6)
    noise = seeded_noise(seeds, N, *SIZE)
    rolled = roll(model, chunks, SIZE, conditions, noise)

    rollout = Rollout(model, *SIZE)
    workspace, text, last = rollout.workspace(2), model.text_kv(conditions.embeds), None
    for i in range(chunks):
        chunk, inputs = conditions.chunk(i, N), []
        rollout.context(chunk.reference, last, workspace, text)
        last = rollout.denoise(
            [noise(i, step) for step in range(len(TINY.steps))], chunk.mask, chunk.render, workspace, text,
            trace=lambda step, x_t, x0, inputs=inputs: inputs.append(x_t),
        )  # fmt: skip
        exact = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 1e-13}
        torch.testing.assert_close(rolled.x[:, i * N : i * N + N], last, **exact)
        torch.testing.assert_close(rolled.inputs[:, i * N : i * N + N], inputs[-1], **exact)


def test_every_weight_gets_its_gradient() -> None:
    """Along a random direction in weight space: that of the network written a second time."""
    model, conditions, before, x_t = network(TINY), told(N), clip(N), clip(N, seed=3)
    towards, t = normal(2, N, 16, *SIZE, seed=4), torch.tensor([625.0])
    model.requires_grad_()
    (causal_flow(model, x_t, t, conditions, before) * towards).sum().backward()
    slopes = gradients(model)
    assert all(x is not None and x.isfinite().all() and x.any() for x in slopes.values())
    directions = {name: normal(*p.shape, seed=9 + i) for i, (name, p) in enumerate(model.named_parameters())}
    expected, step = 0.0, 1e-5
    frames = torch.cat([channels(conditions.reference), channels(before), channels(x_t, conditions)], 1)
    times = torch.cat([torch.zeros(2, 2 * N), t[:, None].expand(2, N)], 1)
    for sign in (1, -1):
        moved = network(TINY)
        for name, p in moved.named_parameters():
            p += sign * step * directions[name]
        flow = forward(moved, frames, range(3 * N), times, [True] * 2 * N + [False] * N)[:, 2 * N :]
        expected += sign * float((flow * towards).sum()) / (2 * step)
    assert float(sum((slopes[name] * directions[name]).sum() for name in slopes)) == pytest.approx(expected, rel=1e-4)


def test_the_context_can_be_a_constant() -> None:
    model, conditions, x_t = trainable(WITH_TEXT), told(N, text=24), clip(N, seed=3)
    t, before = torch.tensor([625.0]), clip(N).requires_grad_()
    flow = causal_flow(model, x_t, t, conditions, before)
    flow.square().mean().backward()
    assert before.grad.any()
    with_context = gradients(model)
    before.grad = None
    constant = causal_flow(model, x_t, t, conditions, before, context_gradient=False)
    assert torch.equal(flow, constant)
    constant.square().mean().backward()
    assert before.grad is None
    without = gradients(model)
    for name in ("blocks.0.self_attn.k.weight", "blocks.1.self_attn.v.weight", "text_embedding.0.weight"):
        assert without[name].any() and not torch.equal(with_context[name], without[name])


def test_prompts_are_asked_for() -> None:
    model = network(WITH_TEXT, torch.float32)
    for flow in (causal_flow, bidirectional_flow):
        with pytest.raises(ValueError, match="prompt"):
            flow(model, clip(N), torch.tensor([500.0]), told(N))


def test_under_autocast_timesteps_keep_their_precision() -> None:
    model, conditions, t = network(TINY, torch.float32), told(N), torch.tensor([937.5])
    arguments = (model, clip(N), t, conditions, clip(N, seed=1))
    plain, flow = modulation(model, t), causal_flow(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(modulation(model, t), plain))
        fast = causal_flow(*arguments)
    assert fast.dtype == torch.bfloat16 and 1e-4 < deviation(fast, flow) < 0.03


# ----------------------------------------------------------------------------------------------------- bidirectional


@pytest.mark.parametrize("kind", ["v2v", "no reference", "no anchor", "t2v of 16 channels"])
@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "kept"])
def test_all_frames_at_once(kind: str, text: bool, checkpointing: bool) -> None:
    in_dim = 16 if "16" in kind else 36
    model, frames = network((WITH_TEXT if text else TINY).replace(in_dim=in_dim)), 5
    conditions = told(frames, text=24 if text else 0)
    if kind in ("no anchor", "t2v of 16 channels"):
        conditions = conditions._replace(mask=None, render=None)
    if kind in ("no reference", "t2v of 16 channels"):
        conditions = conditions._replace(reference=None)
    x_t, t = clip(frames, seed=3), torch.tensor([937.5, 12.25])
    flow = bidirectional_flow(model, x_t, t, conditions, checkpointing)
    inputs = channels(x_t, conditions, in_dim)
    if conditions.reference is not None:
        inputs = torch.cat([inputs, channels(conditions.reference, None, in_dim)], 1)
    total = inputs.shape[1]
    assert total == (frames if conditions.reference is None else 2 * frames)
    expected = forward(
        model, inputs, range(total), t[:, None].expand(2, total), [False] * total, conditions.embeds
    )[:, :frames]  # fmt: skip
    assert deviation(flow, expected) < EXACT


def test_checkpointing_gives_the_same_gradients() -> None:
    model = trainable()
    for checkpointing in (False, True):
        flow = bidirectional_flow(model, clip(3), torch.tensor([300.0]), told(3), checkpointing)
        flow.square().mean().backward()
        if checkpointing:
            again = gradients(model)
        else:
            first = gradients(model)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_released_size_starts() -> None:
    """Twelve latents at 480 x 832 beside their reference, on a device that only knows shapes."""
    from inspatio_core.star.config import CONFIGS
    from inspatio_core.star.dit import StarDiT

    with torch.device("meta"):
        model = StarDiT(CONFIGS["1.3b"])
        x, mask = torch.empty(1, 12, 16, 60, 104), torch.empty(1, 12, 4, 60, 104)
        conditions, t = Conditions(x, mask, x, torch.empty(1, 512, 4096)), torch.empty(1)
        assert bidirectional_flow(model, x, t, conditions).shape == x.shape
        chunk = conditions.chunk(1, 3)
        assert causal_flow(model, x[:, 3:6], t, chunk, x[:, :3]).shape == (1, 3, 16, 60, 104)


# ------------------------------------------------------------------------------------------------------------- parts


def test_chunks_of_conditions() -> None:
    conditions = told(3 * N, text=4)
    chunk = conditions.chunk(1, N)
    for part, whole in zip(chunk[:3], conditions[:3]):
        assert torch.equal(part, whole[:, N : 2 * N])
    assert torch.equal(chunk.embeds, conditions.embeds)
    row = conditions.rows(torch.tensor([1]))
    assert all(torch.equal(part, whole[1:]) for part, whole in zip(row, conditions))
    only = conditions.text_only()
    assert only.reference is only.mask is only.render is None and only.embeds is conditions.embeds
    assert Conditions().chunk(3, N) == Conditions()


def test_samples_that_lack_the_same_go_together() -> None:
    groups = grouped([True, False, True, False], [True, True, True, False])
    assert [(has, rows.tolist()) for has, rows in groups] == [
        ([True, True], [0, 2]),
        ([False, True], [1]),
        ([False, False], [3]),
    ]
