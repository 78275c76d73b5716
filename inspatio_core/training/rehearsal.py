"""A network run chunk by chunk exactly as at inference, to be trained on it: multi-condition causal initialisation.

Keys and values are those of one context pass [reference | history] a chunk; positions never grow; the history is the
truth or the network's own prediction, a constant either way. One chunk's graph exists at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inspatio_core.star.config import LATENT_CHANNELS
from inspatio_core.star.dit import StarDiT
from inspatio_core.star.rollout import Sampler, block_noise
from inspatio_core.star.schedule import add_noise, x0_from_flow
from inspatio_core.training.losses import matching_errors, noisy_history, normal
from inspatio_core.training.passes import Conditions, Context, chunk_flow, open_context

Noise = Callable[[int, int], Tensor]
"""(chunk, step) to [B, n, 16, h, w]: what a chunk starts from (step 0) and is re-noised with before each later step."""


class Rolled(NamedTuple):
    """What a rollout made, and what is needed to make its last steps again.

    Attributes:
        x: [B, F, 16, h, w] the clip, constants.
        inputs: [B, F, 16, h, w] what entered the last step of each chunk.
    """

    x: Tensor
    inputs: Tensor


def seeded_noise(seeds: Sequence[int], n: int, height: int, width: int, device: torch.device | str = "cpu") -> Noise:
    """The noise that inference draws for slots with these seeds."""
    shape = (n, LATENT_CHANNELS, height, width)
    return lambda chunk, step: torch.stack([block_noise(seed, chunk, step, shape) for seed in seeds]).to(device)


@torch.no_grad()
def sample_chunk(
    model: StarDiT, sampler: Sampler, noise: Callable[[int], Tensor], conditions: Conditions, context: Context
) -> tuple[Tensor, Tensor]:
    """All steps of one chunk, as `inspatio_core.star.rollout.Rollout.denoise` does them: (x0, the last step's input).

    noise: of a step, [B, n, 16, h, w].
    """
    x = x0 = noise(0).to(model.device, model.dtype)
    for step, (t, sigma) in enumerate(zip(sampler.timesteps, sampler.sigmas)):
        if step:
            x = add_noise(x0, noise(step).to(x0), sigma)
        x0 = x0_from_flow(chunk_flow(model, x, t[None], conditions, context), x, sigma)
    return x0, x


@torch.no_grad()
def roll(
    model: StarDiT,
    chunks: int,
    size: tuple[int, int],
    conditions: Conditions,
    noise: Noise,
    first: Tensor | None = None,
) -> Rolled:
    """Generate clips of `chunks` chunks, each conditioned on the one before; no gradient.

    Args:
        model: the network; its configuration has the steps.
        chunks: how many; n latent frames each.
        size: height and width of the latents.
        conditions: of all chunks x n frames; without reference and anchor this is the text-to-video task.
        noise: of each chunk and step.
        first: [B, n, 16, h, w] the chunk before the first one; None for clips that begin here.
    """
    n, sampler = model.config.latents_per_block, Sampler(model.config)
    history, made, inputs = first, [], []
    for i in range(chunks):
        told = conditions.chunk(i, n)
        context = open_context(model, told, history, size)
        history, last = sample_chunk(model, sampler, lambda step, i=i: noise(i, step), told, context)
        made.append(history)
        inputs.append(last)
    return Rolled(torch.cat(made, 1), torch.cat(inputs, 1))


def rehearsal_losses(
    model: StarDiT,
    target: Tensor,
    conditions: Conditions,
    generator: torch.Generator,
    *,
    own: float = 0.3,
    history_noise: float = 0.1,
    few_steps: bool = True,
) -> Iterator[Tensor]:
    """The losses of a clip's chunks, one after the other: call ``backward`` on each before asking for the next.

    Their sum is the loss. What is noised and aimed at is the truth always; the chunk before is the truth or, for each
    sample and chunk by chance, what the network itself makes of that chunk by all steps of its sampler, starting from
    the history that it had there. The weights must not change in between.

    Args:
        model: the network.
        target: [B, F, 16, h, w] true clips, whole chunks.
        conditions: of these frames; without reference and anchor this rehearses the text-to-video task.
        generator: of all that is drawn.
        own: chance of the network's own prediction as history.
        history_noise: largest noise level of the history.
        few_steps: the error of the clean prediction at the sampler's steps, or the weighted error of the flow at all
            levels; drawn for each sample and chunk.
    """
    n, size = model.config.latents_per_block, (target.shape[-2], target.shape[-1])
    chunks = target.shape[1] // n
    if chunks * n != target.shape[1]:
        raise ValueError(f"{target.shape[1]} latent frames are not whole chunks of {n}")
    sampler, history = Sampler(model.config), None
    for i in range(chunks):
        told, truth = conditions.chunk(i, n), target[:, i * n : (i + 1) * n]
        if history is not None:
            history = noisy_history(history, history_noise, generator)
        context = open_context(model, told, history, size)
        flow_of = functools.partial(chunk_flow, model, conditions=told, context=context)
        loss = matching_errors(flow_of, model.config, truth, generator, few_steps).mean() / chunks
        if i + 1 < chunks:
            takes_own = torch.rand(len(truth), generator=generator, device=generator.device).cpu() < own
            history = truth
            if takes_own.any():
                made, _ = sample_chunk(model, sampler, lambda _, x=truth: normal(x, generator), told, context)
                history = torch.where(takes_own.to(truth.device)[:, None, None, None, None], made.to(truth), truth)
        del flow_of, context  # what holds the graph, so that it ends with the caller's backward pass
        yield loss
        del loss
