"""Noise levels, dropped conditions, and the losses of a teacher."""

import pytest
import torch

from inspatio_core.star.rollout import Sampler
from inspatio_core.star.schedule import Schedule, add_noise
from inspatio_core.training.losses import (
    NO_DROPOUT,
    Dropout,
    bidirectional_teacher_loss,
    causal_teacher_loss,
    clean,
    draw_kept,
    draw_score_timesteps,
    draw_sigmas,
    draw_steps,
    drop,
    flow_errors,
    matching_errors,
    noisy_history,
    normal,
    omega,
    x0_errors,
)
from inspatio_core.training.passes import Conditions, causal_flow

from .nets import SIZE, TINY, N, clip, dice, gradients, told, trainable

# ------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_levels_are_uniform_before_the_shift(shift: float) -> None:
    sigma = draw_sigmas(20000, shift, dice()).double()
    assert sigma.min() > 0 and sigma.max() <= 1
    u = sigma / (shift - (shift - 1) * sigma)
    for quantile in (0.1, 0.5, 0.9):
        assert u.quantile(quantile).item() == pytest.approx(quantile, abs=0.02)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_weights_are_those_of_the_table_and_of_mean_one(shift: float) -> None:
    schedule = Schedule(shift)
    torch.testing.assert_close(omega(schedule.sigmas, schedule), schedule.training_weights())
    assert omega(draw_sigmas(50000, shift, dice()), schedule).mean().item() == pytest.approx(1, abs=0.02)


def test_score_timesteps_stay_within_their_range() -> None:
    t = draw_score_timesteps(20000, 5.0, dice())
    assert t.min() == 20 and t.max() == 980  # both ends are met, neither passed
    assert t.median().item() == pytest.approx(5000 * 0.5 / 3, abs=10)
    assert draw_score_timesteps(20000, 1.0, dice()).median().item() == pytest.approx(500, abs=15)


def test_few_steps_are_those_of_the_sampler() -> None:
    sampler = Sampler(TINY.replace(steps=(1000, 750, 500, 250)))
    t, sigma = draw_steps(4000, sampler, dice())
    assert sorted(set(t.tolist()), reverse=True) == pytest.approx([1000, 937.5, 833.3333, 625])
    torch.testing.assert_close(sigma, t / 1000, rtol=1e-5, atol=0)
    assert (t == 625).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_noise_on_the_history_has_a_level_for_each_sample() -> None:
    history = 3 * torch.ones(400, 1, 16, 4, 4)
    assert noisy_history(history, 0.0, dice()) is history
    noisy = noisy_history(history, 0.2, dice())
    level = 1 - noisy.flatten(1).mean(1) / 3
    assert level.min() > -0.05 and 0.15 < level.max() < 0.25 and 0.05 < level.std() < 0.07


# ---------------------------------------------------------------------------------------------------------- dropping


def test_each_condition_is_dropped_as_often_as_told() -> None:
    kept = draw_kept(8000, Dropout(text=0.5, anchor=0.1, reference=0.2, history=0.3, all=0.1), dice())
    rates = [1 - sum(of) / 8000 for of in kept]
    assert rates == pytest.approx([1 - 0.5 * 0.9, 1 - 0.9 * 0.9, 1 - 0.8 * 0.9, 0.3], abs=0.02)
    together = sum(not a and not b for a, b in zip(kept.anchor, kept.reference)) / 8000
    assert together == pytest.approx(0.1 + 0.9 * 0.1 * 0.2, abs=0.02)
    assert all(all(of) for of in draw_kept(50, NO_DROPOUT, dice()))
    nothing = draw_kept(50, Dropout(0, 0, 0, 0, all=1), dice())
    assert not any(nothing.text + nothing.anchor + nothing.reference) and all(nothing.history)


def test_dropped_anchors_are_zero_and_dropped_prompts_the_empty_one() -> None:
    conditions, empty = told(N, batch=4, text=3), torch.full((3, 12), 7.0)
    kept = draw_kept(4, NO_DROPOUT, dice())._replace(anchor=[True, False, True, True], text=[False, True, True, True])
    dropped = drop(conditions, kept, empty)
    for before, after in ((conditions.mask, dropped.mask), (conditions.render, dropped.render)):
        assert not after[1].any() and torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert (dropped.embeds[0] == 7).all() and torch.equal(dropped.embeds[1:], conditions.embeds[1:])
    with pytest.raises(ValueError, match="empty prompt"):
        drop(conditions, kept)


# ------------------------------------------------------------------------------------------------------------ losses


def test_a_perfect_network_has_no_loss() -> None:
    x0, sigma = clip(N), torch.tensor([0.9, 0.2])
    noise = normal(x0, dice())
    x_t = add_noise(x0, noise, sigma)
    assert flow_errors(noise - x0, x0, noise).max() == 0
    assert x0_errors(noise - x0, x_t, sigma, x0).max() < 1e-12
    torch.testing.assert_close(clean(noise - x0, x_t, sigma), x0, rtol=0, atol=1e-6)
    off = noise - x0 + 2.0
    torch.testing.assert_close(flow_errors(off, x0, noise), torch.full((2,), 4.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(x0_errors(off, x_t, sigma, x0), 4 * sigma**2, rtol=1e-4, atol=0)


def test_the_level_of_a_sample_goes_with_its_noise_and_weight() -> None:
    target, seen = torch.full((3000, 1), 4.0), {}

    def predict(x_t, t):
        seen["x"], seen["t"] = x_t, t
        return torch.zeros_like(x_t)

    errors = matching_errors(predict, TINY, target, dice())
    sigma = seen["t"] / 1000
    noise = (seen["x"][:, 0] - (1 - sigma) * 4) / sigma
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.06
    weight = omega(sigma, Schedule(TINY.shift))
    torch.testing.assert_close(errors, weight * (noise - 4) ** 2, rtol=1e-3, atol=1e-3)
    errors = matching_errors(predict, TINY, target, dice(), few_steps=True)
    assert set(seen["t"].tolist()) == set(Sampler(TINY).timesteps.tolist())
    torch.testing.assert_close(errors, (seen["x"][:, 0] - 4) ** 2)


@pytest.mark.parametrize("few_steps", [True, False], ids=["few steps", "all levels"])
def test_the_causal_teacher_sees_its_conditions(few_steps: bool) -> None:
    model, target, history = trainable(), clip(N, batch=3), clip(N, batch=3, seed=9)
    conditions = told(N, batch=3)

    def loss(conditions=conditions, history=history, seed=1, **options) -> float:
        options["few_steps"] = few_steps
        return causal_teacher_loss(model, target, conditions, history, dice(seed), **options).item()

    plain = loss()
    assert loss() == plain and loss(seed=2) != plain
    for change in (
        {"conditions": conditions._replace(reference=conditions.reference + 1)},
        {"conditions": conditions._replace(mask=-conditions.mask)},
        {"conditions": conditions._replace(render=conditions.render + 1)},
        {"history": history + 1},
        {"history": None},
        {"history_noise": 0.5},
        {"dropout": Dropout(0, 0, 1, 0, 0)},
    ):
        assert abs(loss(**change) - plain) > 1e-4


def test_samples_with_different_frames_absent_share_a_batch() -> None:
    """Each gets the loss it would have by itself."""
    model, target, history, conditions = trainable(), clip(N, batch=5), clip(N, batch=5, seed=9), told(N, batch=5)
    has_history, has_reference = [True, False, True, False, True], [True, True, False, True, True]
    dropout = Dropout(0, 0, 0.5, 0, 0)
    seed = next(s for s in range(500) if draw_kept(5, dropout, dice(s)).reference == has_reference)
    history[1] = history[3] = torch.nan  # not looked at
    loss = causal_teacher_loss(
        model, target, conditions, history, dice(seed), has_history=has_history, dropout=dropout
    )  # fmt: skip
    loss.backward()
    assert loss.isfinite() and all(x.isfinite().all() for x in gradients(model).values())

    rng = dice(seed)
    draw_kept(5, dropout, rng)
    seen = {}

    def one_by_one(x_t, t):
        flows = []
        for i in range(5):
            row = torch.tensor([i])
            alone = conditions.rows(row)
            if not has_reference[i]:
                alone = alone._replace(reference=None)
            flows.append(causal_flow(model, x_t[row], t[row], alone, history[row] if has_history[i] else None))
        seen["flows"] = torch.cat(flows)
        return seen["flows"]

    expected = matching_errors(one_by_one, TINY, target, rng).mean()
    torch.testing.assert_close(loss, expected)


def test_the_bidirectional_teacher_sees_its_conditions() -> None:
    model, target, conditions = trainable(), clip(5, batch=3), told(5, batch=3)

    def loss(conditions=conditions, **options) -> float:
        return bidirectional_teacher_loss(model, target, conditions, dice(1), **options).item()

    plain = loss()
    assert loss() == plain == loss(checkpointing=True)
    moved = conditions.reference.clone()
    moved[:, -1] += 1  # the last frame of the reference reaches the first of the target, and all
    for change in (
        {"conditions": conditions._replace(reference=moved)},
        {"conditions": conditions._replace(render=conditions.render + 1)},
        {"dropout": Dropout(0, 1, 0, 0, 0)},
        {"dropout": Dropout(0, 0, 1, 0, 0)},
    ):
        assert abs(loss(**change) - plain) > 1e-4
    assert loss(dropout=Dropout(0, 0, 0, 0, 1)) == pytest.approx(loss(conditions=Conditions()), rel=1e-5)


def test_a_teacher_learns() -> None:
    """Target = what the anchor shows: the loss falls well below that of a network that knows nothing."""
    model = trainable(TINY.replace(latents_per_block=1))
    target = 0.5 * clip(1, batch=8)
    conditions = Conditions(target.clone(), torch.ones(8, 1, 4, *SIZE), target.clone())
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for step in range(60):
        loss = causal_teacher_loss(model, target, conditions, None, dice(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
