"""The tiny codec against the reference, whole and as a stream."""

import functools

import pytest
import torch

from inspatio_core.codecs import taehv

from .harness import Case, parametrize
from .star import deviation, drawn_weight


@functools.lru_cache(maxsize=1)
def weights(case: Case) -> dict[str, torch.Tensor]:
    stored = {k.removeprefix("weights."): case.tensors[k] for k in case.tensors if k.startswith("weights.")}
    if stored:
        return stored
    drawn = {k: drawn_weight(case, k, shape) for k, shape in taehv.shapes(case.meta["widths"]).items()}
    for key, shift in case.meta["bias_shift"].items():
        drawn[key] += shift
    return drawn


def codec(case: Case, **options) -> taehv.TaeCodec:
    return taehv.TaeCodec(weights(case), width=case.meta["widths"], **options)


def clip(case: Case) -> torch.Tensor:
    return case.tensors["in.video"] * 2 - 1


@parametrize("taehv")
def test_taehv_encode(case: Case) -> None:
    case.check("out.latent", codec(case).encode_clip(clip(case)))


@parametrize("taehv")
def test_taehv_decode(case: Case) -> None:
    case.check("out.decode", (codec(case).decode_clip(case.tensors["in.z"]) + 1) / 2)


@parametrize("taehv")
def test_taehv_streams(case: Case) -> None:
    """One latent at a time: the stated numbers of frames, and the bytes of the whole clip."""
    network, z, frames = codec(case), case.tensors["in.z"], clip(case)
    chunks, states = [], [None]
    for latent in z.split(1, 1):
        chunk, states = network.decode(latent, states)
        chunks.append(chunk)
    assert [chunk.shape[1] for chunk in chunks] == case.meta["streaming_decode_frames_per_latent"]
    assert torch.equal(torch.cat(chunks, 1), network.decode_clip(z))
    # Every latent can be had as soon as the reference emits it.
    emitted = [i + 1 for i, count in enumerate(case.meta["streaming_encode_emits_after_frame"]) if count]
    latents, states, done = [], [None], 0
    for frame in emitted:
        latent, states = network.encode(frames[:, done:frame], states)
        latents.append(latent)
        done = frame
    assert torch.equal(torch.cat(latents, 1), network.encode_clip(frames)[:, : len(emitted)])


@parametrize("taehv")
def test_taehv_float16(case: Case) -> None:
    stated = case.meta.get("fp16_reference_deviation")
    if stated is None:
        pytest.skip("the case states no deviation in float16")
    half = codec(case, dtype=torch.float16)
    assert deviation(half.encode_clip(clip(case)), case.tensors["out.latent"]) <= 2 * stated["latent"]
    decoded = (half.decode_clip(case.tensors["in.z"]) + 1) / 2
    assert deviation(decoded, case.tensors["out.decode"]) <= 2 * stated["decode"]
