"""The sampling loop over several blocks with replayed noise, at small sizes and at the full latent size."""

import re

import torch

from inspatio_core.star.rollout import Rollout

from .harness import Case, parametrize
from .star import deviation, drawn, network


def run(case: Case, dtype: torch.dtype = torch.float32, merged: bool = True) -> dict[str, torch.Tensor]:
    """Everything that a rollout yields, by the names of the golden data."""
    model = network(case, dtype)
    height, width = case.meta["latent_hw"]
    rollout = Rollout(model, height, width)
    batch, blocks, n = case.meta["batch"], case.meta["blocks"], model.config.latents_per_block
    steps, lengths = len(rollout.sampler), case.meta.get("prompt_lengths")

    def given(name, shape):
        if f"in.{name}" in case.tensors:
            return case.tensors[f"in.{name}"]
        values = drawn(case, name, shape)
        if name == "mask_latent":
            return torch.where(values > 0, 1.0, -1.0)
        if name == "prompt_embeds" and lengths:
            for row, length in enumerate(lengths):
                values[row, length:] = 0
        return values

    clip = (batch, blocks * n, 16, height, width)
    noise, reference, render = (given(name, clip) for name in ("noise", "ref_latent", "render_latent"))
    mask = given("mask_latent", (batch, blocks * n, 4, height, width))
    embeds = given("prompt_embeds", (batch, model.config.text_len, model.config.text_dim))
    with torch.no_grad():
        text = model.text_kv(embeds, lengths if merged else None)
    workspace, out, latents = rollout.workspace(batch), {}, []
    if "in.denoising_timesteps" in case.tensors:
        assert torch.equal(rollout.sampler.timesteps, case.tensors["in.denoising_timesteps"])
    for block in range(blocks):
        now = slice(block * n, block * n + n)
        drawn_noise = [noise[:, now]]
        for step in range(steps - 1):
            values = given(f"renoise.{block * (steps - 1) + step}", (batch * n, 16, height, width))
            drawn_noise.append(values.unflatten(0, (batch, n)))

        def trace(step, x_t, x0, block=block):
            out[f"block{block}.step{step}.x_t"], out[f"block{block}.step{step}.x0"] = x_t, x0

        rollout.context(reference[:, now], latents[-1] if latents else None, workspace, text)
        latents.append(rollout.denoise(drawn_noise, mask[:, now], render[:, now], workspace, text, trace))
    return {**out, "latents": torch.cat(latents, 1)}


@parametrize("rollout")
def test_rollout(case: Case) -> None:
    ours, compared = run(case), set()
    for name in (n for n in case.tensors if n.startswith("out.")):
        base = name.removeprefix("out.")
        if base in ours:
            value = ours[base]
        elif base.rsplit("_sub", 1)[0] in ours:  # every k-th row and column
            of, every = base.rsplit("_sub", 1)
            value = ours[of][..., :: int(every), :: int(every)]
        else:
            of, statistic = base.rsplit("_", 1)
            value = getattr(ours[of], statistic)((-2, -1))
        case.check(name, value)
        compared.add(base)
    assert any(re.fullmatch(r"latents(_sub\d+)?", base) for base in compared)


@parametrize("rollout")
def test_rollout_in_bfloat16(case: Case) -> None:
    """No further from float32 than the reference in bfloat16; of a case that states no deviation, numbers."""
    ours = run(case, torch.bfloat16)
    assert ours["latents"].isfinite().all()
    for name, of_reference in case.meta.get("bf16_reference_deviation", {}).items():
        assert 0 < deviation(ours[name], case.tensors[f"out.{name}"]) <= of_reference["rel_rms"], name
