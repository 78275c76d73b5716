"""Distribution matching: its gradient, two passes that are one graph, both tasks, and convergence on a toy."""

import pytest
import torch
from torch import nn

from inspatio_core.star.cache import GrowingCache
from inspatio_core.star.rollout import Sampler
from inspatio_core.star.schedule import add_noise, x0_from_flow
from inspatio_core.training.dmd import (
    Jdmd,
    Score,
    chunkwise_backward,
    critic_losses,
    dmd_gradient,
    dmd_loss,
    guided,
    score_gradient,
    student_step,
    visible,
)
from inspatio_core.training.losses import clean, draw_score_timesteps, flow_errors, normal
from inspatio_core.training.passes import bidirectional_flow, causal_flow
from inspatio_core.training.recipe import Ema
from inspatio_core.training.rehearsal import roll, seeded_noise
from tests.star.plain import deviation, network

from .nets import SIZE, TINY, N, SavedTensors, alike, clip, dice, gradients, told, trainable

WITH_TEXT = TINY.replace(text=True, text_len=24)
SEEDS = (1, 2)
NOISE = seeded_noise(SEEDS, N, *SIZE)


def scores(bidirectional: bool = False, guidance: float = 0.0) -> tuple[Score, Score]:
    """A teacher and a critic that differ."""
    real, fake = (network(TINY, torch.float32, seed) for seed in (7, 8))
    return Score(real, bidirectional, guidance), Score(fake, bidirectional)


# ---------------------------------------------------------------------------------------------------------- gradient


def test_the_gradient_is_normalised_sample_by_sample() -> None:
    x, real, fake = clip(3), clip(3, seed=1), clip(3, seed=2)
    gradient = dmd_gradient(x, real, fake)
    assert gradient.dtype == torch.float64
    for i in range(2):
        distance = (x[i].double() - real[i].double()).abs().mean()
        torch.testing.assert_close(gradient[i], (fake[i].double() - real[i].double()) / distance)
    # Its size is that of the difference beside the distance: in whatever unit.
    torch.testing.assert_close(dmd_gradient(x, x + 3 * (real - x), x + 3 * (fake - x)), gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(dmd_gradient(x, real, real + 2 * (fake - real)), 2 * gradient, rtol=1e-3, atol=1e-5)


def test_where_scores_agree_or_break_nothing_moves() -> None:
    x, real = clip(3), clip(3, seed=1)
    assert not dmd_gradient(x, real, real).any() and not dmd_gradient(x, x, x).any()
    fake = clip(3, seed=2)
    assert not dmd_gradient(x, x, fake).any()  # nothing to normalise by
    fake[0, 0, 0, 0, 0] = torch.nan
    gradient = dmd_gradient(x, real, fake)
    assert gradient.isfinite().all() and gradient[0, 0, 0, 0, 0] == 0 and gradient[0, 0, 0, 0, 1] != 0
    real[1, 0, 0, 0, 0] = torch.inf
    assert dmd_gradient(x, real, fake).isfinite().all()


def test_the_loss_has_the_gradient_it_is_given() -> None:
    x, gradient = clip(3).requires_grad_(), dmd_gradient(clip(3), clip(3, seed=1), clip(3, seed=2))
    loss = dmd_loss(x, gradient)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(float(gradient.square().mean()) / 2)
    loss.backward()
    torch.testing.assert_close(x.grad, (gradient / x.numel()).float())
    half = clip(3)[:, :1].requires_grad_()
    dmd_loss(half, gradient[:, :1], x.numel()).backward()
    torch.testing.assert_close(half.grad, x.grad[:, :1])


def test_guidance_extrapolates() -> None:
    assert guided(torch.tensor(2.0), torch.tensor(1.0), 3.0) == 5
    (real, fake), conditions, x = scores(guidance=2.0), told(2 * N), clip(2 * N)
    t, less = torch.tensor([300.0, 700.0]), conditions.text_only()
    with_all, with_less = (real._replace(guidance=0.0).x0(x, t, c, x) for c in (conditions, less))
    torch.testing.assert_close(real.x0(x, t, conditions, x, None, less), 3 * with_all - 2 * with_less)
    assert torch.equal(real.x0(x, t, conditions, x), with_all)  # nothing to be guided away from
    a, b = (
        score_gradient(x, conditions, s, fake, dice(), unconditional=less) for s in (real, real._replace(guidance=0))
    )
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
def test_scores_are_those_of_the_whole_clip(bidirectional: bool) -> None:
    (real, _), conditions, x, x_t = scores(bidirectional), told(3 * N), clip(3 * N), clip(3 * N, seed=1)
    t, first = torch.tensor([300.0, 700.0]), clip(N, seed=2)
    with torch.no_grad():
        if bidirectional:
            flow = bidirectional_flow(real.model, x_t, t, conditions)
        else:
            before = [first, x[:, :N], x[:, N : 2 * N]]
            flow = torch.cat(
                [
                    causal_flow(real.model, x_t[:, i * N : i * N + N], t, conditions.chunk(i, N), before[i])
                    for i in range(3)
                ],
                1,
            )
    sigma = (t / 1000)[:, None, None, None, None]
    torch.testing.assert_close(real.x0(x_t, t, conditions, x, first), x_t - sigma * flow, rtol=0, atol=1e-5)


def test_scores_share_a_timestep_and_noise() -> None:
    """A critic that is the teacher: no gradient, no step, whatever the optimiser remembers of nothing."""
    student, conditions = trainable(), told(3 * N)
    before = {name: p.clone() for name, p in student.named_parameters()}
    real, fake = scores()
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    step = student_step(student, 3, SIZE, conditions, NOISE, real, real, dice())
    optimizer.step()
    assert step.loss == step.gradient == 0 and not any(x.any() for x in gradients(student).values())
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())
    step = student_step(student, 3, SIZE, conditions, NOISE, real, fake, dice())
    optimizer.step()
    assert step.loss > 0 and not any(torch.equal(p, before[name]) for name, p in student.named_parameters())


# -------------------------------------------------------------------------------------------- two passes, or one graph


def one_graph(model, conditions, gradient, detach: bool, context_gradient: bool) -> dict[str, torch.Tensor]:
    """All chunks rolled out in one graph, the last step of each with gradient, then one backward pass."""
    table, sampler, text, history, made = model.rope(*SIZE), Sampler(model.config), None, None, []
    if conditions.embeds is not None:
        text = model.text_kv(conditions.embeds)
    for i in range(gradient.shape[1] // N):
        cache, chunk = GrowingCache(), conditions.chunk(i, N)
        frames = chunk.reference if history is None else torch.cat([chunk.reference, history], 1)
        with torch.set_grad_enabled(context_gradient):
            model.context(frames, model.modulation(torch.zeros(1)), table, cache, text)
        x0 = None
        for step, (t, sigma) in enumerate(zip(sampler.timesteps, sampler.sigmas)):
            x = NOISE(i, step) if step == 0 else add_noise(x0, NOISE(i, step), sigma)
            with torch.set_grad_enabled(step == len(sampler) - 1):
                flow = model.denoise(x, chunk.mask, chunk.render, model.modulation(t[None]), table, cache, text)
                x0 = x0_from_flow(flow, x, sigma)
        made.append(x0)
        history = x0.detach() if detach else x0
    (torch.cat(made, 1) * gradient).sum().div(gradient.numel()).backward()
    return gradients(model)


@pytest.mark.parametrize("context_gradient", [True, False], ids=["context", "constant context"])
@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
def test_chunk_by_chunk_is_one_graph_with_constant_histories(text: bool, context_gradient: bool) -> None:
    model, conditions = trainable(WITH_TEXT if text else TINY), told(4 * N, text=24 if text else 0)
    rolled = roll(model, 4, SIZE, conditions, NOISE)
    gradient = dmd_gradient(rolled.x, clip(4 * N, seed=1), clip(4 * N, seed=2))
    assert chunkwise_backward(model, rolled, conditions, gradient, context_gradient=context_gradient) == 0  # same bytes
    actual = gradients(model)
    expected = one_graph(model, conditions, gradient, True, context_gradient)
    assert alike(actual, expected) > 1 - 1e-8
    assert all(deviation(actual[name], expected[name]) < 1e-3 for name in expected if expected[name].norm() > 1e-9)
    if context_gradient:
        assert alike(actual, one_graph(model, conditions, gradient, False, True)) < 0.999  # credit across chunks
        assert alike(actual, one_graph(model, conditions, gradient, True, False)) < 0.999


@pytest.mark.parametrize("steps", [(1000,), (1000, 750, 500, 250)], ids=["one step", "four"])
def test_the_second_pass_is_the_first(steps) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model, conditions = trainable(TINY.replace(steps=steps), dtype), told(2 * N)
        rolled = roll(model, 2, SIZE, conditions, NOISE, first=clip(N))
        assert rolled.x.dtype == dtype
        options = {} if dtype == torch.bfloat16 else {"tolerance": 0.0}  # else the same bytes
        chunkwise_backward(model, rolled, conditions, clip(2 * N, seed=1), first=clip(N), **options)
        with pytest.raises(RuntimeError, match="second pass"):
            chunkwise_backward(model, rolled, conditions, clip(2 * N), tolerance=1e-3)  # without what came first


def test_the_second_pass_under_autocast() -> None:
    model, conditions = trainable(TINY.replace(steps=(1000,))), told(2 * N)
    with torch.autocast("cpu", torch.bfloat16):
        rolled = roll(model, 2, SIZE, conditions, NOISE)
        chunkwise_backward(model, rolled, conditions, clip(2 * N, seed=1))
    assert rolled.x.dtype == torch.bfloat16 and rolled.inputs.dtype == torch.float32
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in gradients(model).values())


def test_other_weights_in_the_second_pass_are_noticed() -> None:
    model, conditions = trainable(), told(2 * N)
    rolled = roll(model, 2, SIZE, conditions, NOISE)
    with torch.no_grad():
        model.head.head.bias += 0.1
    with pytest.raises(RuntimeError, match="second pass"):
        chunkwise_backward(model, rolled, conditions, clip(2 * N))
    rolled.x[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="second pass"):
        chunkwise_backward(model, rolled, conditions, clip(2 * N), tolerance=1e9)


def test_what_is_kept_does_not_depend_on_the_length_of_the_clip() -> None:
    student, (real, fake), peaks = trainable(), scores(), []
    fake.model.requires_grad_()
    for chunks in (2, 8):
        with SavedTensors() as saved:
            conditions = told(chunks * N)
            step = student_step(student, chunks, SIZE, conditions, NOISE, real, fake, dice())
            student_peak, saved.peak = saved.peak, 0
            assert saved.now == 0
            for loss in critic_losses(step.x, conditions, fake, dice()):
                loss.backward()
            assert saved.now == 0
        peaks.append((student_peak, saved.peak))
    assert peaks[0] == peaks[1] and min(peaks[0]) > 0


# ---------------------------------------------------------------------------------------------------- true clips beside


def test_the_paired_distance_counts_where_the_anchor_is_known() -> None:
    mask = torch.tensor([1.0, 1, 1, 0.5, 1, 1, 1, -0.5]).reshape(1, 2, 4, 1, 1)
    assert visible(mask).flatten().tolist() == [True, False]

    model, conditions, target = trainable(), told(2 * N), clip(2 * N, seed=4)
    conditions = conditions._replace(mask=conditions.mask[:, :, :1].expand(-1, -1, 4, -1, -1))
    rolled = roll(model, 2, SIZE, conditions, NOISE)
    nothing = torch.zeros_like(rolled.x)
    chunkwise_backward(model, rolled, conditions, nothing, target=target, paired=0.5, weight=2.0)
    actual = gradients(model)
    known = (conditions.mask[:, :, :1] > 0).expand_as(target)
    towards = (rolled.x - target).sign() * known * 0.5 / known.sum()
    expected = one_graph(model, conditions, towards * 2.0 * towards.numel(), True, True)
    assert alike(actual, expected) > 1 - 1e-6
    name = "head.head.weight"
    assert deviation(actual[name], expected[name]) < 1e-3


# ------------------------------------------------------------------------------------------------------------ critic


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
def test_the_critics_parts_are_one_loss(bidirectional: bool) -> None:
    fake = Score(trainable(), bidirectional)
    x, conditions = clip(3 * N).requires_grad_(), told(3 * N)
    parts = list(critic_losses(x, conditions, fake, dice(5)))
    assert len(parts) == (1 if bidirectional else 3)
    loss = sum(parts)
    loss.backward()
    assert x.grad is None  # the critic follows; it does not pull
    rng = dice(5)
    t = draw_score_timesteps(2, TINY.shift, rng)
    noise, sigma = normal(x, rng), (t / 1000)[:, None, None, None, None]
    x_t = (1 - sigma) * x.detach() + sigma * noise
    with torch.no_grad():
        flow = (x_t - fake.x0(x_t, t, conditions, x.detach())) / sigma
    assert loss.item() == pytest.approx((flow - (noise - x)).square().mean().item(), rel=1e-3)


# ------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("ratio", [1, 2, 5])
def test_tasks_take_turns_whatever_the_ratio(ratio: int) -> None:
    plan = Jdmd(ratio=ratio)
    updates = [step for step in range(40 * ratio) if plan.updates_student(step)]
    assert len(updates) == 40
    assert [plan.student_task(step) for step in updates] == ["ctrl", "vis"] * 20
    assert [plan.critic_task(step) for step in range(8)] == ["ctrl", "vis"] * 4
    rare = Jdmd(ratio=ratio, vis_every=4)
    assert [rare.student_task(step) for step in updates].count("vis") == 10
    alone = Jdmd(ratio=ratio, vis_every=0)
    assert {alone.student_task(s) for s in updates} == {alone.critic_task(s) for s in range(40)} == {"ctrl"}
    assert Jdmd(lambda_ctrl=0.25).weight("ctrl") == 0.25 and Jdmd(lambda_ctrl=0.25).weight("vis") == 1


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
def test_text_to_video_leaves_the_anchors_weights_alone(bidirectional: bool) -> None:
    student, (real, fake), conditions = trainable(), scores(bidirectional), told(3 * N)
    if bidirectional:  # the untouched text-to-video network
        real = Score(network(TINY.replace(in_dim=16), torch.float32, 7), True)
    fake.model.requires_grad_()
    for task in ("ctrl", "vis"):
        given = conditions if task == "ctrl" else conditions.text_only()
        teacher = scores(bidirectional)[0] if task == "ctrl" else real
        step = student_step(student, 3, SIZE, given, NOISE, teacher, fake, dice())
        for loss in critic_losses(step.x, given, fake, dice()):
            loss.backward()
        for model in (student, fake.model):
            slopes = gradients(model)["patch_embedding.weight"]
            assert slopes[:, :16].any() and bool(slopes[:, 16:].any()) == (task == "ctrl")


def test_a_tasks_weight_scales_its_gradient() -> None:
    student, (real, fake), conditions = trainable(), scores(), told(2 * N)
    slopes = []
    for weight in (1.0, 0.25):
        student_step(student, 2, SIZE, conditions, NOISE, real, fake, dice(), weight=weight)
        slopes.append(gradients(student)["head.head.weight"])
    torch.testing.assert_close(slopes[1], slopes[0] / 4)


# --------------------------------------------------------------------------------------------------------------- toy


class Gaussian(nn.Module):
    """Points of a plane, N(mean, root root^T), as a generator and as the best denoiser of itself."""

    def __init__(self, mean, root):
        super().__init__()
        self.mean, self.root = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(root))

    def covariance(self) -> torch.Tensor:
        return self.root @ self.root.T + 1e-3 * torch.eye(2)

    def sample(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.root.T + self.mean

    def x0(self, x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The mean of x given x_t [B, points, 2], sigma [B]."""
        s, c = sigma[:, None, None], self.covariance()
        gain = (1 - s) * torch.linalg.solve((1 - s) ** 2 * c + s**2 * torch.eye(2), c).mT
        return self.mean + (x_t - (1 - s[:, :, 0:1]) * self.mean) @ gain.mT

    def flow(self, x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (x_t - self.x0(x_t, sigma)) / sigma[:, None, None]


def distance(a: Gaussian, b: Gaussian) -> float:
    return float(((a.mean - b.mean).norm() + (a.covariance() - b.covariance()).norm()).detach())


def distil(updates: int, frozen: bool) -> tuple[float, float]:
    """The distance from the teacher before and after."""
    torch.manual_seed(0)
    teacher = Gaussian([1.5, -1.0], [[0.8, 0.0], [0.5, 0.4]]).requires_grad_(False)
    student = Gaussian([-0.5, 0.5], [[0.5, 0.0], [0.0, 1.2]])
    critic = Gaussian([-0.5, 0.5], [[0.5, 0.0], [0.0, 1.2]])
    plan, rng, average = Jdmd(), dice(), Ema(student, 0.97)
    before = distance(student, teacher)
    follow = torch.optim.Adam(critic.parameters(), 0.03, betas=(0.0, 0.99))
    lead = torch.optim.Adam(student.parameters(), 0.03, betas=(0.0, 0.99))
    for step in range(updates * plan.ratio):
        t = draw_score_timesteps(16, 1.0, rng)
        sigma = t / 1000
        x = student.sample(torch.randn(16, 64, 2, generator=rng))
        noise = normal(x, rng)
        x_t = add_noise(x.detach(), noise, sigma)
        if plan.updates_student(step):
            with torch.no_grad():
                x_real, x_fake = (clean(of.flow(x_t, sigma), x_t, sigma) for of in (teacher, critic))
            lead.zero_grad()
            dmd_loss(x, dmd_gradient(x, x_real, x_fake)).backward()
            lead.step()
            average.update(student)
        if not frozen:
            follow.zero_grad()
            flow_errors(critic.flow(x_t, sigma), x.detach(), noise).mean().backward()
            follow.step()
    average.copy_to(student)
    return before, distance(student, teacher)


def test_a_gaussian_student_becomes_its_teacher() -> None:
    before, after = distil(250, frozen=False)
    assert before > 2 and after < 0.15


def test_with_a_frozen_critic_it_runs_away() -> None:
    before, after = distil(250, frozen=True)
    assert after > 2 * before
