"""Rollouts and rehearsals: what each chunk sees, on the truth and on own predictions, in constant memory."""

import pytest
import torch

from inspatio_core.star import dit
from inspatio_core.training import losses, rehearsal
from inspatio_core.training.losses import draw_steps, normal
from inspatio_core.training.passes import Conditions
from inspatio_core.training.rehearsal import rehearsal_losses, roll, seeded_noise
from tests.star.plain import forward, network

from .nets import SIZE, TINY, TOKENS, N, SavedTensors, clip, dice, gradients, told, trainable


def all_losses(model, target, conditions, seed: int = 0, **options) -> list[float]:
    with torch.no_grad():
        return [loss.item() for loss in rehearsal_losses(model, target, conditions, dice(seed), **options)]


@pytest.fixture
def histories(monkeypatch) -> list:
    """The history of every context pass of a rehearsal."""
    seen, plain = [], rehearsal.open_context

    def spy(model, conditions, history, size):
        seen.append(history)
        return plain(model, conditions, history, size)

    monkeypatch.setattr(rehearsal, "open_context", spy)
    return seen


# ----------------------------------------------------------------------------------------------------------- rollout


def test_attended_keys_stay_as_many_over_a_hundred_chunks(monkeypatch) -> None:
    model, lengths, plain = network(TINY, torch.float32), [], dit.attention

    def spy(q, k, v, *args, **options):
        lengths.append(k.shape[1] // TOKENS)
        return plain(q, k, v, *args, **options)

    monkeypatch.setattr(dit, "attention", spy)
    chunks = 100
    rolled = roll(model, chunks, SIZE, told(chunks * N, batch=1), seeded_noise([3], N, *SIZE))
    # The context pass needs no attention in the last layer; two steps in both layers each.
    first, later = [N] + 4 * [2 * N], [2 * N] + 4 * [3 * N]
    assert lengths == first + (chunks - 1) * later
    assert rolled.x.shape == (1, chunks * N, 16, *SIZE) and rolled.x.isfinite().all()


def test_samples_of_a_rollout_know_nothing_of_each_other() -> None:
    model, conditions = network(TINY, torch.float32), told(2 * N, batch=3)
    rolled = roll(model, 2, SIZE, conditions, seeded_noise([1, 2, 3], N, *SIZE))
    alone = roll(model, 2, SIZE, conditions.rows(torch.tensor([1])), seeded_noise([2], N, *SIZE))
    torch.testing.assert_close(rolled.x[1:2], alone.x, rtol=0, atol=1e-5)


def test_without_a_reference_only_the_history_conditions() -> None:
    model, noise = network(TINY, torch.float32), seeded_noise([1], N, *SIZE)
    rolled = roll(model, 3, SIZE, Conditions(), noise)
    for first in (rolled.x[:, :N], rolled.x[:, :N] + 1):
        later = roll(model, 2, SIZE, Conditions(), lambda chunk, step: noise(chunk + 1, step), first)
        assert torch.equal(later.x, rolled.x[:, N:]) == torch.equal(first, rolled.x[:, :N])


# ---------------------------------------------------------------------------------------------------- on the truth


def test_chunks_of_a_rehearsal_are_those_of_inference() -> None:
    """Against the network written a second time."""
    model, target, conditions = network(TINY, torch.float64), clip(3 * N), told(3 * N)
    actual = all_losses(model, target, conditions, seed=4, own=0, history_noise=0)

    rng, expected, sampler = dice(4), [], rehearsal.Sampler(TINY)
    zeros = torch.zeros(2, N, 20, *SIZE)
    for i in range(3):
        chunk, frames = conditions.chunk(i, N), slice(i * N, i * N + N)
        t, sigma = draw_steps(2, sampler, rng)
        level = sigma[:, None, None, None, None].double()
        x_t = (1 - level) * target[:, frames] + level * normal(target[:, frames], rng)
        context = [torch.cat([chunk.reference, zeros], 2)]
        if i:
            context.append(torch.cat([target[:, frames.start - N : frames.start], zeros], 2))
        f = N * len(context)
        flow = forward(
            model,
            torch.cat([*context, torch.cat([x_t, chunk.mask, chunk.render], 2)], 1),
            [*range(f), *range(2 * N, 3 * N)],
            torch.cat([torch.zeros(2, f), t[:, None].expand(2, N)], 1),
            [True] * f + [False] * N,
        )[:, f:]
        expected.append(float((x_t - level * flow - target[:, frames]).square().mean()) / 3)
        torch.rand(2, generator=rng)  # whose history is the next chunk's?
    assert actual == pytest.approx(expected, rel=1e-4)


def test_a_chunk_sees_the_frames_before_but_not_their_anchor() -> None:
    model, target, conditions = network(TINY, torch.float32), clip(4 * N), told(4 * N)
    options = {"own": 0, "history_noise": 0}
    plain = all_losses(model, target, conditions, **options)

    def changed(target=target, conditions=conditions) -> list[bool]:
        return [a != b for a, b in zip(all_losses(model, target, conditions, **options), plain)]

    assert changed() == [False] * 4
    mask, render, reference, moved = (x.clone() for x in (conditions.mask, conditions.render, conditions[0], target))
    for x in (mask, render, reference, moved):
        x[:, N : 2 * N] += 1
    assert changed(conditions=conditions._replace(mask=mask)) == [False, True, False, False]
    assert changed(conditions=conditions._replace(render=render)) == [False, True, False, False]
    assert changed(conditions=conditions._replace(reference=reference)) == [False, True, False, False]
    assert changed(target=moved) == [False, True, True, False]


def test_position_does_not_grow(monkeypatch) -> None:
    """Chunk 3 and chunk 100 are the same for the same inputs, to the bit."""
    model, count = network(TINY, torch.float32), 100
    target, conditions = clip(N).repeat(1, count, 1, 1, 1), told(N)
    conditions = Conditions(*[x.repeat(1, count, 1, 1, 1) for x in conditions[:3]])
    same = normal(target[:, :N], dice(3))
    monkeypatch.setattr(losses, "normal", lambda like, generator: same)
    monkeypatch.setattr(
        losses, "draw_steps", lambda count, *_: (torch.full((count,), 625.0), torch.full((count,), 0.625))
    )
    first, *later = all_losses(model, target, conditions, own=0, history_noise=0)
    assert len(later) == count - 1 and len(set(later)) == 1 and first not in later


# -------------------------------------------------------------------------------------------------- on its own output


def test_own_histories_are_a_rollout(monkeypatch, histories) -> None:
    model, target, conditions, noises = trainable(), clip(4 * N), told(4 * N), []
    monkeypatch.setattr(rehearsal, "normal", lambda like, rng: noises.append(normal(like, rng)) or noises[-1])
    for loss in rehearsal_losses(model, target, conditions, dice(), own=1, history_noise=0):
        loss.backward()
    own, steps = list(histories), len(TINY.steps)
    assert own[0] is None and len(noises) == 3 * steps and not any(x.requires_grad for x in own[1:])
    rolled = roll(model, 3, SIZE, conditions, lambda chunk, step: noises[chunk * steps + step])
    for i in range(3):
        assert torch.equal(own[i + 1], rolled.x[:, i * N : i * N + N])


def test_own_and_true_histories_are_mixed_by_sample(histories) -> None:
    model, target, chunks = network(TINY, torch.float32), clip(20 * N, batch=6), 20
    all_losses(model, target, told(20 * N, batch=6), own=0.3, history_noise=0)
    truths = target.unflatten(1, (chunks, N)).unbind(1)
    true = torch.stack([(a == b).flatten(1).all(1) for a, b in zip(histories[1:], truths)])
    assert true.double().mean().item() == pytest.approx(0.7, abs=0.12)
    assert (true.any(1) & ~true.all(1)).any()
    histories.clear()
    all_losses(model, target, told(20 * N, batch=6), own=0, history_noise=0.2)
    noisy = [(a - b).std() for a, b in zip(histories[1:], truths)]
    assert 0.05 < min(noisy) and max(noisy) < 0.3


@pytest.mark.parametrize("few_steps", [True, False], ids=["few steps", "all levels"])
def test_seeds_reproduce_losses(few_steps: bool) -> None:
    model, target, conditions = network(TINY, torch.float32), clip(3 * N), told(3 * N)
    one, again, other = (all_losses(model, target, conditions, seed, few_steps=few_steps) for seed in (1, 1, 2))
    assert one == again and one != other and all(x > 0 for x in one)


def test_text_to_video_is_rehearsed_without_reference_and_anchor() -> None:
    model, target, conditions = trainable(), clip(2 * N), told(2 * N)
    for loss in rehearsal_losses(model, target, conditions.text_only(), dice()):
        loss.backward()
    slopes = gradients(model)["patch_embedding.weight"]
    assert slopes[:, :16].any() and not slopes[:, 16:].any()


# ------------------------------------------------------------------------------------------------------------ memory


def test_what_is_kept_does_not_depend_on_the_length_of_the_clip() -> None:
    model, peaks = trainable(), []
    for chunks in (2, 8):
        with SavedTensors() as saved:
            for loss in rehearsal_losses(model, clip(chunks * N), told(chunks * N), dice(), own=0.5):
                loss.backward()
            assert saved.now == 0
        peaks.append(saved.peak)
    assert peaks[0] == peaks[1] > 0
    with SavedTensors() as saved:
        sum(rehearsal_losses(model, clip(8 * N), told(8 * N), dice(), own=0.5)).backward()
    assert saved.peak > 6 * peaks[0]  # the counter counts


def test_clips_are_whole_chunks() -> None:
    with pytest.raises(ValueError, match="5 latent frames"):
        next(rehearsal_losses(network(TINY, torch.float32), clip(5), told(5), dice()))
