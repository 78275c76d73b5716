"""The network: context pass, K/V contents and denoising passes of a first and a later block."""

import pytest
import torch

from inspatio_core.star.cache import GrowingCache
from inspatio_core.star.schedule import Schedule, x0_from_flow

from .harness import Case, parametrize
from .star import deviation, network


def run(case: Case, dtype: torch.dtype, plain: bool = False, merged: bool = False):
    """Yields (name of a tensor, what we make of it) for everything that a case holds."""
    t = case.tensors
    model = network(case, dtype)
    height, width = case.meta["latent_hw"]
    table = model.rope(height, width)
    embeds = t["in.prompt_embeds"]
    text = model.text_kv(embeds, case.meta.get("prompt_lengths") if merged else None)
    schedule = Schedule()
    cache = GrowingCache() if plain else model.workspace(len(embeds), height, width)
    for block in (0, 1):
        at = f"in.block{block}"
        frames = [t[f"{at}.ref_latent"]] + ([t[f"{at}.last_pred"]] if block else [])
        context = torch.cat(frames, 1).to(dtype)
        zero = model.modulation(torch.zeros(1))
        yield f"out.block{block}.context.flow", model.context(context, zero, table, cache, text, flow=True)
        rows = cache.context
        if not plain:
            model.context(context, zero, table, cache, text)  # as it runs in earnest: no tail, no head
            for i in range(len(model.blocks)):
                yield f"out.block{block}.kv.{i}.k", cache.k[i, :, :rows].clone()
                yield f"out.block{block}.kv.{i}.v", cache.v[i, :, :rows].clone()
        for step, timestep in enumerate(t["in.timesteps"]):
            x_t = t[f"{at}.step{step}.x_t"].to(dtype)
            mask, render = (
                t[name].to(dtype) if name in t else None for name in (f"{at}.mask_latent", f"{at}.render_latent")
            )
            assert case.meta.get("t2v_branch", mask is None) == (mask is None)
            flow = model.denoise(x_t, mask, render, model.modulation(timestep[None]), table, cache, text)
            yield f"out.block{block}.step{step}.flow", flow
            yield f"out.block{block}.step{step}.x0", x0_from_flow(flow, x_t, schedule.sigma(timestep))


@parametrize("dit_tiny")
@pytest.mark.parametrize("plain", [False, True], ids=["workspace", "joined"])
def test_float32(case: Case, plain: bool) -> None:
    with torch.no_grad():
        compared = {name for name, ours in run(case, torch.float32, plain) if not case.check(name, ours)}
    stored = {n for n in case.tensors if n.startswith("out.") and ".probe." not in n and not (plain and ".kv." in n)}
    assert compared == stored


@parametrize("dit_tiny")
def test_padding_of_the_prompt_as_a_few_rows(case: Case) -> None:
    with torch.no_grad():
        for name, ours in run(case, torch.float32, merged=True):
            case.check(name, ours)


@parametrize("dit_tiny")
@pytest.mark.parametrize("merged", [False, True], ids=["all rows", "merged rows"])
def test_bfloat16(case: Case, merged: bool) -> None:
    """No further from float32 than the reference in bfloat16; of a case that states no deviation, numbers."""
    with torch.no_grad():
        outputs = dict(run(case, torch.bfloat16, merged=merged))
    assert all(ours.isfinite().all() for ours in outputs.values())
    for name, of_reference in case.meta.get("bf16_reference_deviation", {}).items():
        ours = deviation(outputs[f"out.{name}"], case.tensors[f"out.{name}"])
        assert 0 < ours <= of_reference["rel_rms"], name
