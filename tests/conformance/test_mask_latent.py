"""Mask video to mask latents."""

import torch

from inspatio_core.latents import mask_latent

from .harness import Case, parametrize


@parametrize("mask_latent")
def test_mask_latent(case: Case) -> None:
    numbers = [name.removeprefix("in.mask.") for name in case.tensors if name.startswith("in.mask.")]
    assert numbers
    for number in numbers:
        mask = case.tensors[f"in.mask.{number}"]
        case.check(f"out.mask_latent.{number}", mask_latent(mask))
        if f"out.mask_latent_bf16.{number}" in case.tensors:
            half = mask_latent(mask.to(torch.bfloat16))
            assert half.dtype == torch.bfloat16
            case.check(f"out.mask_latent_bf16.{number}", half)
