"""Noise levels, and going between sample, noise and flow."""

import pytest
import torch

from inspatio_core.star.config import CONFIGS, StarConfig
from inspatio_core.star.rollout import Sampler
from inspatio_core.star.schedule import Schedule, add_noise, flow_from_x0, x0_from_flow

from .plain import normal


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_levels_fall_from_one_and_never_reach_zero(shift: float) -> None:
    schedule = Schedule(shift)
    sigmas = schedule.sigmas.double()
    assert sigmas.shape == (1000,) and schedule.sigmas.dtype == schedule.timesteps.dtype == torch.float32
    assert sigmas[0] == 1 and (sigmas.diff() < 0).all() and sigmas[-1] > 0
    for i in (1, 250, 500, 999):
        u = 1 - i / 1000
        assert sigmas[i].item() == pytest.approx(shift * u / (1 + (shift - 1) * u), rel=1e-4)
    torch.testing.assert_close(schedule.timesteps, schedule.sigmas * 1000)


def test_the_released_steps() -> None:
    schedule = Schedule()
    warped = schedule.warped([1000, 750, 500, 250, 0])
    assert warped.dtype == torch.float32
    assert warped.tolist() == pytest.approx([1000, 937.5, 833.3333, 625, 0], rel=1e-5)
    assert schedule.sigma(warped[:4]).tolist() == pytest.approx([1, 0.9375, 5 / 6, 0.625], rel=1e-5)
    sampler = Sampler(CONFIGS["1.3b"])
    assert torch.equal(sampler.timesteps, warped[:4]) and len(sampler) == 4
    assert sampler.sigmas == schedule.sigma(warped[:4]).tolist()


def test_unwarped_steps_are_timesteps_themselves() -> None:
    sampler = Sampler(StarConfig(steps=(1000, 700.25, 0), warp=False))
    assert sampler.timesteps.tolist() == [1000, 700.25, 0]
    assert sampler.sigmas[1] == pytest.approx(0.70025, abs=2e-3)
    assert sampler.sigmas[2] == pytest.approx(0.005 / 1.004, rel=1e-5)  # the last of the table, never 0


def test_the_level_is_that_of_the_nearest_entry_the_first_of_two() -> None:
    schedule = Schedule()
    assert schedule.sigma(0).item() == pytest.approx(0.005 / 1.004, rel=1e-5)
    assert schedule.sigma(5000).item() == 1
    assert torch.equal(schedule.sigma(schedule.timesteps), schedule.sigmas)
    t = torch.tensor([[3.2, 700.0], [999.9, 41.0]])
    nearest = [min(range(1000), key=lambda i: abs(schedule.timesteps[i].item() - one)) for one in t.flatten().tolist()]
    assert torch.equal(schedule.sigma(t).flatten(), schedule.sigmas[nearest])
    flat = Schedule(1.0)
    flat.timesteps = torch.arange(1000, 0, -1.0)
    assert flat.sigma(500.5) == flat.sigmas[499]  # 501 and 500 are as near


def test_training_weights_are_a_bell_of_mean_one() -> None:
    schedule = Schedule()
    weights = schedule.training_weights().double()
    assert weights.mean().item() == pytest.approx(1, abs=1e-5) and weights.min() == 0
    best = schedule.timesteps[weights.argmax()]
    assert abs(best - 500) < 2
    above, below = schedule.sigma(700.0), schedule.sigma(300.0)
    of = dict(zip(schedule.sigmas.tolist(), weights.tolist(), strict=True))
    assert of[above.item()] == pytest.approx(of[below.item()], rel=0.02)


@pytest.mark.parametrize("sigma", [1.0, 0.9375, 0.3, 0.004975])
def test_there_and_back(sigma: float) -> None:
    x0, noise = normal(3, 2, 16, 4, 4, seed=1), normal(3, 2, 16, 4, 4, seed=2)
    x_t = (1 - sigma) * x0 + sigma * noise
    torch.testing.assert_close(add_noise(x0, noise, sigma), x_t, rtol=0, atol=1e-6)
    torch.testing.assert_close(x0_from_flow(noise - x0, x_t, sigma), x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow_from_x0(x0, x_t, sigma), noise - x0, rtol=0, atol=1e-11)
    flow = normal(3, 2, 16, 4, 4, seed=3)
    torch.testing.assert_close(flow_from_x0(x0_from_flow(flow, x_t, sigma), x_t, sigma), flow, rtol=0, atol=1e-9)


def test_a_level_for_each_sample() -> None:
    x0, noise, flow = (normal(3, 2, 16, 4, 4, seed=i, dtype=torch.float32) for i in range(3))
    sigma = torch.tensor([0.2, 1.0, 0.7])
    for function, arguments in ((add_noise, (x0, noise)), (x0_from_flow, (flow, x0)), (flow_from_x0, (x0, noise))):
        together = function(*arguments, sigma)
        for row in range(3):
            alone = function(*(a[row : row + 1] for a in arguments), sigma[row].item())
            assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_are_rounded_once(dtype: torch.dtype) -> None:
    """x_t and the flow nearly cancel: worked out in `dtype`, few digits were left of x0."""
    x0, noise = normal(5000, seed=1), normal(5000, seed=2)
    sigma = 5 / 6
    flow, x_t = ((noise - x0) * 50).to(dtype), ((1 - sigma) * x0 + sigma * noise * 50).to(dtype)
    ours = x0_from_flow(flow, x_t, sigma)
    assert ours.dtype == dtype
    assert torch.equal(ours, (x_t.double() - sigma * flow.double()).to(dtype))
    assert not torch.equal(ours, x_t - sigma * flow)
    noised = add_noise(x0.to(dtype), noise.to(dtype), sigma)
    in_float32 = (1 - torch.tensor(sigma)) * x0.to(dtype).float() + torch.tensor(sigma) * noise.to(dtype).float()
    assert noised.dtype == dtype and torch.equal(noised, in_float32.to(dtype))
    assert flow_from_x0(ours, x_t, sigma).dtype == dtype
