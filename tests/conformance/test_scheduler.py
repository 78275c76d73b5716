"""The table of noise levels, warped step lists, and the sums between sample, noise and flow."""

import torch

from inspatio_core.star.schedule import Schedule, add_noise, flow_from_x0, x0_from_flow

from .harness import Case, Tolerance, parametrize


@parametrize("scheduler")
def test_scheduler(case: Case) -> None:
    t = case.tensors
    schedule = Schedule(case.meta["shift"])
    case.check("out.sigmas", schedule.sigmas)
    case.check("out.timesteps", schedule.timesteps)
    case.check("out.training_weights", schedule.training_weights())
    lists = [name for name in t if name.startswith("in.step_list.")]
    assert lists
    for name in lists:
        case.check(name.replace("in.step_list", "out.warped"), schedule.warped(t[name]))
    sigma = schedule.sigma(t["in.t"])
    case.check("out.sigma_of_t", sigma)
    case.check("out.x_t", add_noise(t["in.x0"], t["in.noise"], sigma))
    case.check("out.x0_from_flow", x0_from_flow(t["in.flow"], t["out.x_t"], sigma))
    case.check("out.flow_from_x0", flow_from_x0(t["in.x0"], t["out.x_t"], schedule.sigma(t["in.t_inverse"])))


@parametrize("scheduler")
def test_bfloat16_is_rounded_once(case: Case) -> None:
    t, exact = case.tensors, Tolerance(0.0, 0.0)
    x0, noise, flow = (t[name].to(torch.bfloat16) for name in ("in.x0", "in.noise", "in.flow"))
    sigma = Schedule(case.meta["shift"]).sigma(t["in.t"])
    x_t = add_noise(x0, noise, sigma)
    assert x_t.dtype == torch.bfloat16
    case.check("out.x_t_bf16", x_t, tolerance=exact)
    case.check("out.x0_from_flow_bf16", x0_from_flow(flow, x_t, sigma), tolerance=exact)
