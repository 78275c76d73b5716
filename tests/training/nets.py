"""Networks, clips and counters that the tests of training share."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from inspatio_core.star.dit import StarDiT
from inspatio_core.training.passes import Conditions
from tests.star.plain import HEIGHT, SMALL, WIDTH, network, normal

N = 2
SIZE = (HEIGHT, WIDTH)
TOKENS = HEIGHT * WIDTH // 4  # of a latent frame
TINY = SMALL.replace(text=False, num_layers=2, latents_per_block=N, steps=(1000, 500))


def trainable(config=TINY, dtype: torch.dtype = torch.float32, seed: int = 0) -> StarDiT:
    return network(config, dtype, seed).requires_grad_()


def told(frames: int, batch: int = 2, seed: int = 50, text: int = 0) -> Conditions:
    """All conditions of random clips; text: rows of the prompts' features."""
    reference, render = (normal(batch, frames, 16, *SIZE, seed=seed + i, dtype=torch.float32) for i in (0, 1))
    mask = normal(batch, frames, 4, *SIZE, seed=seed + 2, dtype=torch.float32).sign()
    embeds = normal(batch, text, SMALL.text_dim, seed=seed + 3, dtype=torch.float32) if text else None
    return Conditions(reference, mask, render, embeds)


def clip(frames: int, batch: int = 2, seed: int = 80) -> Tensor:
    return normal(batch, frames, 16, *SIZE, seed=seed, dtype=torch.float32)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Taken off the parameters."""
    taken = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return taken


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Cosine between all gradients of two networks."""
    a, b = (torch.cat([x[name].double().flatten() for name in sorted(x)]) for x in (a, b))
    return float(a @ b / (a.norm() * b.norm()))


class SavedTensors:
    """Counts what autograd keeps for backward passes: a context.

    Attributes:
        now, peak: elements kept at this moment, and the most there were.
    """

    def __init__(self):
        self.now = self.peak = 0

    def __enter__(self) -> SavedTensors:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, x: Tensor):
        held = _Held(x)
        self.now += x.numel()
        self.peak = max(self.peak, self.now)
        weakref.finalize(held, self._forget, x.numel())
        return held

    def _forget(self, count: int) -> None:
        self.now -= count


class _Held:
    def __init__(self, tensor: Tensor):
        self.tensor = tensor
