"""umT5: token numbers to features."""

import math

import torch

from inspatio_core.reference.text import TextEncoder

from .harness import Case, parametrize


def encoder_of(case: Case, dtype: torch.dtype) -> TextEncoder:
    weights = {
        name.removeprefix("weights."): case.tensors[name] for name in case.tensors if name.startswith("weights.")
    }
    encoder = TextEncoder(weights, dtype=dtype)
    config = case.meta["config"]
    assert (encoder.vocab, encoder.dim, encoder.layers) == (config["vocab"], config["dim"], config["num_layers"])
    return encoder


def true_rows(case: Case, encoder: TextEncoder) -> torch.Tensor:
    """What prompts get: only true tokens go in, the rest of the rows is zero."""
    ids, lengths = case.tensors["in.ids"], (case.tensors["in.mask"] > 0).sum(1).tolist()
    embeds = torch.zeros(*ids.shape, encoder.dim)
    for row, features in zip(embeds, encoder.encode([i[:n] for i, n in zip(ids, lengths)])):
        row[: len(features)] = features.float()
    return embeds


@parametrize("t5")
def test_t5_float32(case: Case) -> None:
    encoder = encoder_of(case, torch.float32)
    hidden = encoder.encode(list(case.tensors["in.ids"]), list(case.tensors["in.mask"]))
    case.check("out.hidden", torch.stack(hidden))
    case.check("out.prompt_embeds", true_rows(case, encoder))


@parametrize("t5")
def test_t5_bfloat16(case: Case) -> None:
    # No bfloat16 output is stored, only how far the reference is from its own float32 result, and the encoder used
    # here from the reference: the sum bounds how far it may be from the float32 result.
    stated = case.meta.get("bf16")
    bound = sum(stated.values()) if stated else math.inf  # then a number at least
    encoder = encoder_of(case, torch.bfloat16)
    hidden = torch.stack(encoder.encode(list(case.tensors["in.ids"]), list(case.tensors["in.mask"])))
    assert hidden.dtype == torch.bfloat16
    for name, actual in (("out.hidden", hidden.float()), ("out.prompt_embeds", true_rows(case, encoder))):
        expected = case.tensors[name]
        assert (actual - expected).norm() / expected.norm() < bound
