"""Flow matching on what the network is told: noise levels, dropped conditions, the losses of a teacher.

x_t = (1 - sigma) x0 + sigma noise, t = 1000 sigma; the network's target is the flow, noise - x0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inspatio_core.star.config import StarConfig
from inspatio_core.star.dit import StarDiT
from inspatio_core.star.rollout import Sampler
from inspatio_core.star.schedule import TRAIN_STEPS, Schedule, add_noise
from inspatio_core.training.passes import Conditions, bidirectional_flow, causal_flow, grouped

SCORE_RANGE = (20.0, 980.0)
"""Timesteps that scores are asked at (DMD2, Self Forcing)."""

# ------------------------------------------------------------------------------------------------------------- draws


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal float32 of the shape and on the device of `like`, drawn where the generator is."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)


def shifted(u: Tensor, shift: float) -> Tensor:
    """Noise levels u in [0, 1] moved towards noise: s u / (1 + (s - 1) u)."""
    return shift * u / (1 + (shift - 1) * u)


def draw_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1], float32 [count]: uniform, then shifted."""
    u = 1 - torch.rand(count, generator=generator, device=generator.device)
    return shifted(u, shift)


def draw_steps(count: int, sampler: Sampler, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of each sample one of the sampler's steps: timesteps and noise levels, float32 [count] each."""
    steps = torch.randint(len(sampler), (count,), generator=generator, device=generator.device).cpu()
    return sampler.timesteps[steps], torch.tensor(sampler.sigmas)[steps]


def draw_score_timesteps(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Timesteps for scores, float32 [count]: whole ones below 1000, shifted, kept within `SCORE_RANGE`."""
    t = torch.randint(TRAIN_STEPS, (count,), generator=generator, device=generator.device)
    return (TRAIN_STEPS * shifted(t / TRAIN_STEPS, shift)).clamp(*SCORE_RANGE)


def omega(sigma: Tensor, schedule: Schedule) -> Tensor:
    """Weight of the flow loss at noise levels, of mean 1 over `draw_sigmas`: `Schedule.training_weights`."""
    u = sigma / (schedule.shift - (schedule.shift - 1) * sigma)  # the place in the table, before the shift
    places = (TRAIN_STEPS * (1 - u)).round().long().clamp(0, TRAIN_STEPS - 1)
    return schedule.training_weights().to(sigma.device)[places]


def noisy_history(history: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """The history with noise of a level drawn from [0, largest] for each sample: the network learns to mend it."""
    if not largest:
        return history
    level = largest * torch.rand(history.shape[0], generator=generator, device=generator.device)
    return add_noise(history, normal(history, generator), level)


# -------------------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Dropout:
    """How likely it is that a sample goes without a condition; each is drawn by itself.

    Attributes:
        text: the prompt becomes the empty one.
        anchor: mask and render become zero.
        reference: its frames are absent.
        history: absent, as in a first chunk.
        all: prompt, anchor and reference at once: what guidance extrapolates from, and the text-to-video task. 1 trains
            an unconditional network.
    """

    text: float = 0.1
    anchor: float = 0.1
    reference: float = 0.1
    history: float = 0.0
    all: float = 0.1


NO_DROPOUT = Dropout(0, 0, 0, 0, 0)


class Kept(NamedTuple):
    """Of each sample, whether it keeps a condition."""

    text: list[bool]
    anchor: list[bool]
    reference: list[bool]
    history: list[bool]


def draw_kept(count: int, dropout: Dropout, generator: torch.Generator) -> Kept:
    """What `count` samples keep."""
    u = torch.rand(5, count, generator=generator, device=generator.device).cpu()
    text, anchor, reference, history, everything = (
        u[i] >= p for i, p in enumerate((dropout.text, dropout.anchor, dropout.reference, dropout.history, dropout.all))
    )
    kept = (text & everything, anchor & everything, reference & everything, history)
    return Kept(*(x.tolist() for x in kept))


def drop(conditions: Conditions, kept: Kept, empty: Tensor | None = None) -> Conditions:
    """The conditions without the prompts and anchors that are not kept; `grouped` deals with absent frames.

    Args:
        conditions: of the samples.
        kept: what they keep.
        empty: [rows, text_dim] features of the empty prompt; only networks with text need it.
    """
    mask, render, embeds = conditions.mask, conditions.render, conditions.embeds
    if mask is not None:
        keep = torch.tensor(kept.anchor, device=mask.device)[:, None, None, None, None]
        mask, render = mask * keep, render * keep
    if embeds is not None and not all(kept.text):
        if empty is None:
            raise ValueError("prompts can only be dropped for the features of the empty prompt")
        keep = torch.tensor(kept.text, device=embeds.device)[:, None, None]
        embeds = torch.where(keep, embeds, empty.to(embeds))
    return Conditions(conditions.reference, mask, render, embeds)


# ------------------------------------------------------------------------------------------------------------ losses


def flow_errors(flow: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Mean square deviation of each sample's flow from noise - x0, float32 [B]."""
    return (flow.float() - (noise.float() - x0.float())).square().flatten(1).mean(1)


def clean(flow: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
    """The clean samples [B, ...] that flows at x_t point to, sigma [B]; float32, differentiable, rounded once."""
    sigma = sigma.to(flow.device, torch.float64).reshape(-1, *[1] * (flow.dim() - 1))
    return (x_t.double() - sigma * flow.double()).float()


def x0_errors(flow: Tensor, x_t: Tensor, sigma: Tensor, x0: Tensor) -> Tensor:
    """Mean square deviation of each sample's clean prediction from x0, float32 [B]."""
    return (clean(flow, x_t, sigma) - x0.float()).square().flatten(1).mean(1)


def matching_errors(
    predict: Callable[[Tensor, Tensor], Tensor],
    config: StarConfig,
    target: Tensor,
    generator: torch.Generator,
    few_steps: bool = False,
) -> Tensor:
    """The loss of each sample at a noise level drawn for it, float32 [B].

    Args:
        predict: the flow at (x_t [B, ...], t [B]).
        config: has the shift and the sampler's steps.
        target: [B, ...] clean samples.
        generator: of levels and noise.
        few_steps: the error of the clean prediction at one of the sampler's steps; else the error of the flow at any
            level, weighted by `omega`.
    """
    if few_steps:
        t, sigma = draw_steps(len(target), Sampler(config), generator)
    else:
        sigma = draw_sigmas(len(target), config.shift, generator)
        t = TRAIN_STEPS * sigma
    t, sigma, noise = t.to(target.device), sigma.to(target.device), normal(target, generator)
    x_t = add_noise(target.float(), noise, sigma)
    flow = predict(x_t, t)
    if few_steps:
        return x0_errors(flow, x_t, sigma, target)
    return omega(sigma, Schedule(config.shift)) * flow_errors(flow, target, noise)


def causal_teacher_loss(
    model: StarDiT,
    target: Tensor,
    conditions: Conditions,
    history: Tensor | None,
    generator: torch.Generator,
    *,
    has_history: list[bool] | None = None,
    dropout: Dropout = NO_DROPOUT,
    empty: Tensor | None = None,
    history_noise: float = 0.0,
    few_steps: bool = False,
) -> Tensor:
    """Flow matching of single chunks in the inference layout, each with the true chunk before it.

    Samples that lack different context frames go through the network apart, as frames are absent rather than zero.

    Args:
        model: the network.
        target: [B, n, 16, h, w] true chunks.
        conditions: of these chunks.
        history: [B, n, 16, h, w] the true chunks before them; None if all are first ones.
        generator: of all that is drawn: levels, noise, what is dropped.
        has_history: of each sample; None for all. What the others have in `history` is not looked at.
        dropout: of conditions. empty: features of the empty prompt.
        history_noise: largest noise level of the history.
        few_steps: the error of the clean prediction at the sampler's own steps, instead of the weighted error of the
            flow at all levels.

    Returns:
        The mean over the samples, a scalar with its graph.
    """
    count = target.shape[0]
    kept = draw_kept(count, dropout, generator)
    conditions = drop(conditions, kept, empty)
    if history is not None:
        history = noisy_history(history, history_noise, generator)
    given = [history is not None] * count if has_history is None else has_history
    given = [a and b for a, b in zip(given, kept.history)]

    def flow_of(x_t: Tensor, t: Tensor, told: Conditions, before: Tensor | None) -> Tensor:
        return causal_flow(model, x_t, t, told, before)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return _apart(flow_of, x_t, t, conditions, history, kept.reference, given)

    return matching_errors(predict, model.config, target, generator, few_steps).mean()


def bidirectional_teacher_loss(
    model: StarDiT,
    target: Tensor,
    conditions: Conditions,
    generator: torch.Generator,
    *,
    dropout: Dropout = NO_DROPOUT,
    empty: Tensor | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Flow matching of whole clips, all frames at one level: target [B, F, 16, h, w], F as long as memory allows.

    See `causal_teacher_loss` and `bidirectional_flow` for the other arguments; history is not dropped, for there is
    none.
    """
    kept = draw_kept(target.shape[0], dropout, generator)
    conditions = drop(conditions, kept, empty)

    def flow_of(x_t: Tensor, t: Tensor, told: Conditions, _: None) -> Tensor:
        return bidirectional_flow(model, x_t, t, told, checkpointing)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return _apart(flow_of, x_t, t, conditions, None, kept.reference, [False] * len(t))

    return matching_errors(predict, model.config, target, generator).mean()


def _apart(
    flow_of: Callable[[Tensor, Tensor, Conditions, Tensor | None], Tensor],
    x_t: Tensor,
    t: Tensor,
    conditions: Conditions,
    history: Tensor | None,
    has_reference: list[bool],
    has_history: list[bool],
) -> Tensor:
    """The flow of every sample: those with the same frames absent go through the network together."""
    has_reference = [conditions.reference is not None and has for has in has_reference]
    flows, order = [], []
    for (reference, before), rows in grouped(has_reference, has_history):
        order.append(rows)
        rows = rows.to(x_t.device)
        told = conditions.rows(rows)
        if not reference:
            told = told._replace(reference=None)
        flows.append(flow_of(x_t[rows], t[rows], told, history[rows] if before else None))
    return torch.cat(flows)[torch.cat(order).argsort().to(x_t.device)]
