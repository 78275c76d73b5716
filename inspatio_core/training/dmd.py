"""Distribution matching distillation on two tasks with one set of weights, and its backward pass chunk by chunk.

DMD moves what the student makes from where its own distribution is dense to where the data's is: along the difference
of two denoised versions of it, by a frozen teacher (*real*) and by a *critic* that follows the student (*fake*). JDMD
(arXiv 2604.07209) does so on the controllable task and on the text-to-video task in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from inspatio_core.star.dit import StarDiT
from inspatio_core.star.rollout import Sampler
from inspatio_core.star.schedule import TRAIN_STEPS, add_noise, x0_from_flow
from inspatio_core.training.losses import clean, draw_score_timesteps, flow_errors, normal
from inspatio_core.training.passes import Conditions, bidirectional_flow, causal_flow, chunk_flow, open_context
from inspatio_core.training.rehearsal import Noise, Rolled, roll

Task = Literal["ctrl", "vis"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""How far any latent of the second pass may be from the first: of their root mean square, or absolutely below 1."""


@dataclass(frozen=True)
class Jdmd:
    """The numbers of the distillation.

    Attributes:
        ratio: updates of the critic for one of the student.
        vis_every: of so many updates of either, one is of the text-to-video task; 0 for none (ctrl only).
        lambda_ctrl: weight of the controllable task. The paper does not tell it.
        paired: weight of the L1 distance from the true clip where the anchor is known; only the controllable task.
    """

    ratio: int = 5
    vis_every: int = 2
    lambda_ctrl: float = 1.0
    paired: float = 0.0

    def updates_student(self, step: int) -> bool:
        """Whether the student is updated at a step, besides the critic."""
        return step % self.ratio == 0

    def critic_task(self, step: int) -> Task:
        """The critic's task at a step."""
        return self._turn(step)

    def student_task(self, step: int) -> Task:
        """The student's: its own updates take turns, whatever the ratio, so that an even one skips neither task."""
        return self._turn(step // self.ratio)

    def weight(self, task: Task) -> float:
        """Of a task's loss."""
        return self.lambda_ctrl if task == "ctrl" else 1.0

    def _turn(self, count: int) -> Task:
        return "vis" if self.vis_every and count % self.vis_every == self.vis_every - 1 else "ctrl"


# ------------------------------------------------------------------------------------------------------------ scores


class Score(NamedTuple):
    """A network that tells flows of whole noisy clips.

    Attributes:
        model: the network.
        bidirectional: all frames at once, or each chunk given the clean one before it, as the student makes them.
        guidance: g in x_c + g (x_c - x_u); x_u is what it makes of less conditions.
        checkpointing: of a bidirectional one, for its backward pass.
    """

    model: StarDiT
    bidirectional: bool = False
    guidance: float = 0.0
    checkpointing: bool = False

    def flows(
        self, x_t: Tensor, t: Tensor, conditions: Conditions, history: Tensor, first: Tensor | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """The flow of some frames after the other: (which frames, [B, frames, 16, h, w]).

        Args:
            x_t: [B, F, 16, h, w] noisy clips. t: [B] their timesteps.
            conditions: of all frames.
            history: [B, F, 16, h, w] the clean clips; only causal scores look at them.
            first: the chunk before them, None for none.
        """
        if self.bidirectional:
            yield slice(0, x_t.shape[1]), bidirectional_flow(self.model, x_t, t, conditions, self.checkpointing)
            return
        for frames, before in _chunks(history, self.model.config.latents_per_block, first):
            told = conditions.frames(frames.start, frames.stop)
            yield frames, causal_flow(self.model, x_t[:, frames], t, told, before)

    @torch.no_grad()
    def x0(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions,
        history: Tensor,
        first: Tensor | None = None,
        unconditional: Conditions | None = None,
    ) -> Tensor:
        """The clean clips [B, F, 16, h, w] behind noisy ones, float32, guided away from `unconditional`'s."""
        x_c = self._x0(x_t, t, conditions, history, first)
        if not self.guidance or unconditional is None:
            return x_c
        return guided(x_c, self._x0(x_t, t, unconditional, history, first), self.guidance)

    def _x0(self, x_t, t, conditions, history, first) -> Tensor:
        parts = [
            clean(flow, x_t[:, frames], t / TRAIN_STEPS)
            for frames, flow in self.flows(x_t, t, conditions, history, first)
        ]
        return torch.cat(parts, 1)


def guided(x_c: Tensor, x_u: Tensor, guidance: float) -> Tensor:
    """x_c + g (x_c - x_u): ordinary classifier-free guidance of scale 1 + g."""
    return x_c + guidance * (x_c - x_u)


def dmd_gradient(x: Tensor, x_real: Tensor, x_fake: Tensor) -> Tensor:
    """(x_fake - x_real) / mean |x - x_real|, the mean of each sample by itself; float64, 0 where it is not finite."""
    x, x_real, x_fake = x.double(), x_real.double(), x_fake.double()
    distance = (x - x_real).abs().flatten(1).mean(1)
    gradient = (x_fake - x_real) / distance.reshape(-1, *[1] * (x.dim() - 1))
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def dmd_loss(x: Tensor, gradient: Tensor, numel: int | None = None) -> Tensor:
    """The scalar whose gradient in x is gradient / numel: 1/2 sum (x - stopgrad(x - gradient))^2 / numel, in float64.

    numel: of the whole clip where x is a part of it; None for x's own.
    """
    towards = (x.double() - gradient.double()).detach()
    return (x.double() - towards).square().sum() / (2 * (numel or x.numel()))


def score_gradient(
    x: Tensor,
    conditions: Conditions,
    real: Score,
    fake: Score,
    generator: torch.Generator,
    *,
    first: Tensor | None = None,
    unconditional: Conditions | None = None,
) -> Tensor:
    """The DMD gradient [B, F, 16, h, w] of clips x, float64: one timestep a clip, the same noise for both scores.

    Args:
        x: [B, F, 16, h, w] what the student made.
        conditions: of its frames, for both scores.
        real: the teacher, guided; fake: the critic, which should not be.
        generator: of timesteps and noise.
        first: the chunk before the first one.
        unconditional: what the teacher is guided away from.
    """
    t, x_t, _ = _noised(x, real.model.config.shift, generator)
    x_real = real.x0(x_t, t, conditions, x, first, unconditional)
    return dmd_gradient(x, x_real, fake.x0(x_t, t, conditions, x, first))


def critic_losses(
    x: Tensor, conditions: Conditions, fake: Score, generator: torch.Generator, *, first: Tensor | None = None
) -> Iterator[Tensor]:
    """The critic's flow-matching loss on what the student made, part by part: call ``backward`` on each.

    Their sum is the mean of |flow - (noise - x)|^2 over the clips. A causal critic gives one part a chunk, so that one
    chunk's graph exists at a time; a bidirectional one gives all at once. See `score_gradient` for the arguments.
    """
    x = x.detach().float()
    t, x_t, noise = _noised(x, fake.model.config.shift, generator)
    for frames, flow in fake.flows(x_t, t, conditions, x, first):
        loss = flow_errors(flow, x[:, frames], noise[:, frames]).mean() * (flow.shape[1] / x.shape[1])
        del flow
        yield loss
        del loss


# ----------------------------------------------------------------------------------------- the student's backward pass


def visible(mask: Tensor) -> Tensor:
    """Latent pixels that the anchor knows in all four frames: bool [B, F, 1, h, w] of a mask [B, F, 4, h, w]."""
    return (mask > 0).all(2, keepdim=True)


def chunkwise_backward(
    model: StarDiT,
    rolled: Rolled,
    conditions: Conditions,
    gradient: Tensor,
    *,
    first: Tensor | None = None,
    weight: float = 1.0,
    target: Tensor | None = None,
    paired: float = 0.0,
    context_gradient: bool = True,
    tolerance: float | None = None,
) -> float:
    """Accumulate the gradients of weight (dmd_loss + paired L1) of a clip in the weights: the second of two passes.

    The first was `roll`. Each chunk's context pass and last step are run again, with gradient, from what they were run
    from; then backward, and the graph is gone: memory does not depend on the length of the clip. History, reference
    and the input of the last step are constants, so no credit flows from one chunk into another.

    Args:
        model: the student, with the weights that rolled.
        rolled: what it made.
        conditions: those it was made with.
        gradient: [B, F, 16, h, w] of `score_gradient`.
        first: the chunk before the first one.
        weight: of the loss.
        target: [B, F, 16, h, w] true clips; paired: weight of the L1 distance from them where the mask says known.
        context_gradient: whether gradient flows through the keys and values of the context.
        tolerance: see `TOLERANCE`, which says it for each dtype.

    Returns:
        The largest deviation of the second pass from the first.

    Raises:
        RuntimeError: it is not within the tolerance: the gradients are another rollout's and must not be used.
    """
    x, inputs = rolled
    n, sampler = model.config.latents_per_block, Sampler(model.config)
    t, sigma = sampler.timesteps[-1:], sampler.sigmas[-1]
    known = None if target is None or not paired else visible(conditions.mask).expand_as(x)
    deviations = []
    for frames, history in _chunks(x, n, first):
        told = conditions.frames(frames.start, frames.stop)
        context = open_context(model, told, history, (x.shape[-2], x.shape[-1]), context_gradient)
        again = x0_from_flow(chunk_flow(model, inputs[:, frames], t, told, context), inputs[:, frames], sigma)
        deviations.append((again.detach().double() - x[:, frames].double()).abs().max())
        loss = dmd_loss(again, gradient[:, frames], x.numel())
        if known is not None:
            far = (again.double() - target[:, frames].double()).abs() * known[:, frames]
            loss = loss + paired * far.sum() / known.sum().clamp(min=1)
        (weight * loss).backward()
        del context, again, loss  # the graph, before the next chunk's is made
    deviation = float(torch.stack(deviations).max())  # looked at once: the device is not waited for in between
    allowed = (TOLERANCE[x.dtype] if tolerance is None else tolerance) * max(
        1.0, float(x.double().square().mean().sqrt())
    )
    if not deviation <= allowed:
        raise RuntimeError(f"the second pass is {deviation:g} from the first, more than {allowed:g}")
    return deviation


class StudentStep(NamedTuple):
    """What an update of the student was like: `dmd_loss`, mean |gradient|, deviation of the second pass, the clip."""

    loss: float
    gradient: float
    deviation: float
    x: Tensor


def student_step(
    student: StarDiT,
    chunks: int,
    size: tuple[int, int],
    conditions: Conditions,
    noise: Noise,
    real: Score,
    fake: Score,
    generator: torch.Generator,
    *,
    first: Tensor | None = None,
    unconditional: Conditions | None = None,
    weight: float = 1.0,
    target: Tensor | None = None,
    paired: float = 0.0,
    context_gradient: bool = True,
) -> StudentStep:
    """Roll out, compare the scores, and accumulate the student's gradients; the optimiser is the caller's.

    For the text-to-video task give ``conditions.text_only()`` and that task's teacher. See `roll`, `score_gradient` and
    `chunkwise_backward` for the arguments.
    """
    rolled = roll(student, chunks, size, conditions, noise, first)
    gradient = score_gradient(rolled.x, conditions, real, fake, generator, first=first, unconditional=unconditional)
    deviation = chunkwise_backward(
        student, rolled, conditions, gradient, first=first, weight=weight, target=target, paired=paired,
        context_gradient=context_gradient,
    )  # fmt: skip
    return StudentStep(float(gradient.square().mean()) / 2, float(gradient.abs().mean()), deviation, rolled.x)


def _noised(x: Tensor, shift: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(t [B], x_t, noise) of clips at timesteps for scores."""
    t = draw_score_timesteps(len(x), shift, generator).to(x.device)
    noise = normal(x, generator)
    return t, add_noise(x.float(), noise, t / TRAIN_STEPS), noise


def _chunks(x: Tensor, n: int, first: Tensor | None) -> Iterator[tuple[slice, Tensor | None]]:
    """Of each chunk of a clip: its frames, and the chunk before it."""
    for start in range(0, x.shape[1], n):
        yield slice(start, start + n), x[:, start - n : start] if start else first
