"""What the conformance tests of the network share: a network from a case, and the recipe of inputs not stored."""

import zlib

import numpy as np
import torch

from inspatio_core.star.config import StarConfig, from_mapping
from inspatio_core.star.dit import StarDiT, build_star

from .harness import Case


def config_of(case: Case, **changes) -> StarConfig:
    """The configuration that a case states."""
    stated = {k: v for k, v in case.meta["config"].items() if k != "model_type"}
    options = case.meta.get("options") or {}
    return from_mapping({**stated, **{k: v for k, v in options.items() if k in ("steps", "warp", "shift")}, **changes})


def drawn(case: Case, name: str, shape, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """float32 normal numbers of the golden data's recipe."""
    state = np.random.RandomState((zlib.crc32(name.encode()) ^ case.meta["seed"]) % 2**32)
    return torch.from_numpy((state.standard_normal(size=tuple(shape)) * scale + shift).astype(np.float32))


def network(case: Case, dtype: torch.dtype = torch.float32, **changes) -> StarDiT:
    """The case's network with its weights, loaded strictly; drawn by the recipe where they are not stored."""
    model = build_star(config_of(case, **changes), dtype=dtype)
    stored = {k.removeprefix("weights."): case.tensors[k] for k in case.tensors if k.startswith("weights.")}
    model.load_state_dict(stored or {k: drawn_weight(case, k, v.shape) for k, v in model.state_dict().items()})
    return model


def drawn_weight(case: Case, key: str, shape) -> torch.Tensor:
    """A weight of the recipe."""
    last = key.rsplit(".", 1)[-1]
    if last == "modulation":
        return drawn(case, key, shape, 0.3)
    if last == "bias":
        return drawn(case, key, shape, 0.1)
    if last == "gamma" or (last == "weight" and len(shape) == 1):
        return drawn(case, key, shape, 0.1, 1.0)
    return drawn(case, key, shape, case.meta.get("recipe_gain", 1.0) / np.sqrt(np.prod(shape[1:])))


def deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of the expected."""
    difference = actual.double() - expected.double()
    return float(difference.square().mean().sqrt() / expected.double().square().mean().sqrt())
