"""What surrounds the losses: learning rates, parameter groups, more input channels, averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inspatio_core.star.config import LATENT_CHANNELS, MASK_CHANNELS

LEARNING_RATES = {"teacher": 2e-5, "init": 2e-5, "student": 4e-6, "critic": 8e-7}
"""Of the paper's stages (arXiv 2604.07209), at 1.3B; small networks want them larger, in the same proportions."""

PATCH_EMBEDDING = "patch_embedding.weight"


def parameter_groups(model: nn.Module, learning_rate: float, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Groups for an optimiser: weights of linear layers and patches decay; norms, biases and modulations do not."""
    decays, stays = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (stays if p.dim() < 2 or name.endswith("modulation") else decays).append(p)
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": stays, "weight_decay": 0.0}]
    return [{**group, "lr": learning_rate} for group in groups]


def widen(state: Mapping[str, Tensor], in_dim: int = 2 * LATENT_CHANNELS + MASK_CHANNELS) -> dict[str, Tensor]:
    """A state dict whose patch embedding takes `in_dim` channels; the new ones have weight zero.

    So a text-to-video network of 16 channels becomes one of 36 with the same function, whatever mask and render say.
    """
    weight = state[PATCH_EMBEDDING]
    missing = in_dim - weight.shape[1]
    if missing < 0:
        raise ValueError(f"the patch embedding has {weight.shape[1]} channels, more than {in_dim}")
    zeros = weight.new_zeros(weight.shape[0], missing, *weight.shape[2:])
    return {**state, PATCH_EMBEDDING: torch.cat([weight, zeros], 1)}


class Ema:
    """Exponential moving average of a network's weights, in float32.

    Args:
        model: whose weights it begins with.
        decay: what remains of the average at an update.
        start: updates before which it is the weights themselves (200 in Self Forcing's distillation).

    Attributes:
        weights: name to float32 tensor. updates: how many there were.
    """

    def __init__(self, model: nn.Module, decay: float = 0.99, start: int = 0):
        self.decay, self.start, self.updates = decay, start, 0
        self.weights = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights in, after a step of the optimiser."""
        self.updates += 1
        keep = self.decay if self.updates > self.start else 0.0
        for name, p in model.named_parameters():
            self.weights[name].lerp_(p.detach().float(), 1 - keep)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give a network the averaged weights."""
        for name, p in model.named_parameters():
            p.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Any]:
        """For `load_state_dict`."""
        return {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of the same network."""
        if set(state["weights"]) != set(self.weights):
            raise ValueError("the averaged weights are those of another network")
        for name, weight in state["weights"].items():
            self.weights[name].copy_(weight)
        self.updates = int(state["updates"])
