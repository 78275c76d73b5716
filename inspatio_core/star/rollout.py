"""Sampling one block: the context pass, then a few denoising steps. What comes out conditions the next block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from inspatio_core.star.cache import GrowingCache, Workspace
from inspatio_core.star.config import LATENT_CHANNELS, MASK_CHANNELS, StarConfig
from inspatio_core.star.dit import Modulation, StarDiT, TextKV
from inspatio_core.star.rope import RopeTable
from inspatio_core.star.schedule import Schedule, add_noise, x0_from_flow


def block_noise(seed: int, block: int, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 of `shape` on the CPU, a function of (seed, block, step) alone on every machine.

    A counter-based generator (NumPy's Philox), keyed by the slot's seed modulo 2^64: a block's noise needs nothing of
    the blocks before it.
    """
    key = np.array([int(seed) & 0xFFFFFFFFFFFFFFFF, 0x5354_4152], np.uint64)
    counter = np.array([0, 0, step, block], np.uint64)
    draw = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return torch.from_numpy(draw.standard_normal(tuple(shape), np.float32))


class Sampler:
    """The fixed noise levels of a configuration, and what the network makes of them.

    Attributes:
        timesteps: float32 [steps]; sigmas: Python numbers, one a step.
    """

    def __init__(self, config: StarConfig):
        self.schedule = Schedule(config.shift)
        steps = torch.tensor(config.steps, dtype=torch.float32)
        self.timesteps = self.schedule.warped(steps) if config.warp else steps
        self.sigmas = [float(s) for s in self.schedule.sigma(self.timesteps)]

    def __len__(self) -> int:
        return len(self.sigmas)


class Rollout:
    """Runs a network on latents of one size. Holds what is the same for every block; the context is in the cache.

    ``context`` and ``denoise`` wait for nothing on the device and allocate nothing that depends on values, so that they
    can be captured.

    Args:
        model: the network, with weights.
        height, width: of the latents; even.
    """

    def __init__(self, model: StarDiT, height: int, width: int):
        self.model, self.height, self.width = model, height, width
        self.sampler = Sampler(model.config)
        self.table: RopeTable = model.rope(height, width)
        with torch.no_grad():
            self.at_zero: Modulation = model.modulation(torch.zeros(1, device=model.device))
            self.at_step = [model.modulation(t[None].to(model.device)) for t in self.sampler.timesteps]

    def workspace(self, batch: int) -> Workspace:
        """Room for `batch` slots."""
        return self.model.workspace(batch, self.height, self.width)

    @property
    def noise_shape(self) -> tuple[int, int, int, int]:
        """Of one slot's noise in one step: [n, 16, h, w]."""
        return (self.model.config.latents_per_block, LATENT_CHANNELS, self.height, self.width)

    @torch.no_grad()
    def context(
        self,
        reference: Tensor,
        last: Tensor | None,
        cache: Workspace | GrowingCache,
        text: TextKV | None = None,
    ) -> None:
        """The context pass: needs neither motion nor noise.

        Args:
            reference: [B, n, 16, h, w] latents of the reference frames that the block shows.
            last: [B, n, 16, h, w] the last block's prediction; None in a slot's first block.
            cache: its context is written.
            text: of the prompts.
        """
        frames = reference if last is None else torch.cat([reference, last], 1)
        self._context(frames.to(self.model.dtype), cache, text)

    @torch.no_grad()
    def denoise(
        self,
        noise: Sequence[Tensor],
        mask: Tensor | None,
        render: Tensor | None,
        cache: Workspace | GrowingCache,
        text: TextKV | None = None,
        trace: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Latents of the block.

        Args:
            noise: [B, n, 16, h, w] for each step: what the first starts from, then what each later one is re-noised
                with.
            mask: [B, n, 4, h, w] in [-1, 1]; render: [B, n, 16, h, w] latents of the anchor; None for neither.
            cache: with the context in it.
            text: of the prompts.
            trace: called with (step, x_t, x0) of every step.

        Returns:
            [B, n, 16, h, w] the clean prediction, in the network's dtype.
        """
        dtype, sigmas = self.model.dtype, self.sampler.sigmas
        x = x0 = noise[0].to(dtype)
        mask, render = (None if y is None else y.to(dtype) for y in (mask, render))
        for step, sigma in enumerate(sigmas):
            if step:
                x = add_noise(x0, noise[step].to(dtype), sigma)
            x0 = x0_from_flow(self._flow(step, x, mask, render, cache, text), x, sigma)
            if trace is not None:
                trace(step, x, x0)
        return x0

    def warm_up(self, cache: Workspace, text: TextKV | None = None) -> None:
        """Run the passes of a first and of a later block once, so that nothing is prepared when they are needed.

        Draws no noise. What is in `cache` is lost.
        """
        n, *_, height, width = self.noise_shape
        shape = (cache.k.shape[1], n, LATENT_CHANNELS, height, width)
        latents = torch.zeros(shape, device=self.model.device, dtype=self.model.dtype)
        anchored = self.model.config.in_dim > LATENT_CHANNELS
        mask, render = (latents[:, :, :MASK_CHANNELS], latents) if anchored else (None, None)
        for last in (None, latents):
            self.context(latents, last, cache, text)
            self.denoise([latents] * len(self.sampler), mask, render, cache, text)
        cache.ticket = None

    def _context(self, frames: Tensor, cache: Workspace | GrowingCache, text: TextKV | None) -> None:
        self.model.context(frames, self.at_zero, self.table, cache, text)

    def _flow(self, step: int, x_t, mask, render, cache: Workspace | GrowingCache, text: TextKV | None) -> Tensor:
        return self.model.denoise(x_t, mask, render, self.at_step[step], self.table, cache, text)
