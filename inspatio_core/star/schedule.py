"""The shifted flow-matching schedule: x_t = (1 - sigma) x0 + sigma noise, flow = noise - x0.

Clean samples are worked out in float64: x_t and the flow nearly cancel. Every sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TRAIN_STEPS = 1000


class Schedule:
    """The table of noise levels.

    Attributes:
        sigmas: float32 [1000], falling from 1: 1 - i / 1000 shifted by s u / (1 + (s - 1) u).
        timesteps: float32 [1000], 1000 sigma. They are fractional, and stay so.
    """

    def __init__(self, shift: float = 5.0):
        self.shift = shift
        u = torch.linspace(1.0, 0.0, TRAIN_STEPS + 1)[:-1]
        self.sigmas = shift * u / (1 + (shift - 1) * u)
        self.timesteps = self.sigmas * TRAIN_STEPS

    def warped(self, steps: Sequence[float] | Tensor) -> Tensor:
        """Requested steps as timesteps, float32: v stands for the entry 1000 - v of the table, 0 for 0."""
        table = torch.cat([self.timesteps, torch.zeros(1)])
        places = TRAIN_STEPS - torch.as_tensor(steps).to(torch.float32).round().to(torch.int64)
        return table[places]

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise level of timesteps, float32: that of the nearest entry of the table, the first of two as near."""
        t = torch.as_tensor(t, dtype=torch.float32)
        place = (self.timesteps.to(t.device) - t[..., None]).abs().argmin(-1)
        return self.sigmas.to(t.device)[place]

    def training_weights(self) -> Tensor:
        """Weight of each timestep in the flow loss, float32 [1000]: a bell around 500, less its minimum, of mean 1."""
        y = torch.exp(-2 * ((self.timesteps - TRAIN_STEPS / 2) / TRAIN_STEPS) ** 2)
        y = y - y.min()
        return y * (TRAIN_STEPS / y.sum())


def _levels(sigma: Tensor | float, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`sigma`, one number or one a sample of x, ready to be multiplied with it."""
    sigma = torch.as_tensor(sigma, dtype=dtype)
    return sigma.to(x.device).reshape(-1, *[1] * (x.dim() - 1)) if sigma.dim() else sigma


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """x_t at noise level sigma (a number, or one a sample: [x0.shape[0]]), summed in float32, in x0's dtype."""
    s = _levels(sigma, x0, torch.float32)
    return ((1 - s) * x0.float() + s * noise.float()).to(x0.dtype)


def x0_from_flow(flow: Tensor, x_t: Tensor, sigma: Tensor | float) -> Tensor:
    """The clean sample that the flow at x_t points to, in flow's dtype."""
    return (x_t.double() - _levels(sigma, x_t, torch.float64) * flow.double()).to(flow.dtype)


def flow_from_x0(x0: Tensor, x_t: Tensor, sigma: Tensor | float) -> Tensor:
    """The flow that leads from x_t to x0, in x0's dtype. sigma must not be 0."""
    return ((x_t.double() - x0.double()) / _levels(sigma, x_t, torch.float64)).to(x0.dtype)
