"""Times of a network that is too large to be run whole where it is measured: one layer's, counted for all."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from inspatio_core.bench.timing import Stopwatch
from inspatio_core.star.config import LATENT_CHANNELS, MASK_CHANNELS, StarConfig
from inspatio_core.star.dit import StarDiT, TextKV
from inspatio_core.star.rollout import Rollout

PATIENCE = 30.0  # seconds


@torch.no_grad()
def time_by_layers(
    model: StarDiT, config: StarConfig, size: tuple[int, int], text: TextKV | None, repeats: int | None = None
) -> dict[str, list[float]]:
    """Seconds of ``context`` and of each ``denoise_*`` of one slot, `repeats` times (None: twice, or once where that
    takes long).

    A context pass is embedding and keys and values of the last layer, which is what that of `model` is, and the other
    layers. A denoising step is embedding, one layer and head, which is what that of `model` is, and the other layers.

    Args:
        model: the network with one layer. config: of the whole network.
        size: (h, w) of the latents.
    """
    others = config.num_layers - 1
    for part in _parts(model, (16, 16), text).values():
        part()
    parts, watch = _parts(model, size, text), Stopwatch(model.device)
    seconds: dict[str, list[float]] = {}
    begun = time.perf_counter()
    for repeat in range(repeats or 2):
        if repeats is None and repeat and time.perf_counter() - begun > PATIENCE:
            break
        watch.start()
        for name, part in parts.items():
            part()
            watch.mark(name)
        t = watch.seconds
        seconds.setdefault("context", []).append(t["context"] + others * t["layer of context"])
        for step in range(len(config.steps)):
            seconds.setdefault(f"denoise_{step + 1}", []).append(t["step"] + others * t["layer of step"])
    return seconds


def _parts(model: StarDiT, size: tuple[int, int], text: TextKV | None) -> dict[str, Callable[[], object]]:
    """The passes of a network with one layer, and the layer alone in either."""
    rollout = Rollout(model, *size)
    workspace, layer, table, timestep = rollout.workspace(1), model.blocks[0], rollout.table, rollout.at_step[0]
    of_layer = None if text is None else (text.keys[0], text.values[0], text.bias)
    latents = torch.randn(1, model.config.latents_per_block, LATENT_CHANNELS, *size, dtype=model.dtype)
    mask = torch.ones(1, model.config.latents_per_block, MASK_CHANNELS, *size, dtype=model.dtype)
    tokens = table.cos.shape[0] // 3
    x = torch.randn(1, 2 * tokens, model.config.dim, dtype=model.dtype)

    def of_context() -> None:
        cache = workspace.context_layer(0)
        layer(x, rollout.at_zero.layers[0], table.rows(0, 2 * tokens), cache, of_layer, model.backend)

    def of_step() -> None:
        cache, own = workspace.block_layer(0, tokens), table.rows(2 * tokens, 3 * tokens)
        layer(x[:, :tokens], timestep.layers[0], own, cache, of_layer, model.backend)

    return {
        "context": lambda: rollout.context(latents, latents, workspace, text),
        "layer of context": of_context,
        "step": lambda: model.denoise(latents, mask, latents, timestep, table, workspace, text),
        "layer of step": of_step,
    }
