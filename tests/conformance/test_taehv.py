"""The tiny codec against the reference, whole and as a stream."""

import functools

import torch

from inspatio_core.codecs import taehv

from .harness import Case, parametrize
from .star import deviation, drawn_weight


@functools.lru_cache(maxsize=1)
def weights(case: Case) -> dict[str, torch.Tensor]:
    stored = {k.removeprefix("weights."): case.tensors[k] for k in case.tensors if k.startswith("weights.")}
    if stored:
        return stored
    drawn = {k: drawn_weight(case, k, shape) for k, shape in taehv.shapes(case.meta.get("widths")).items()}
    for key, shift in case.meta.get("bias_shift", {}).items():
        drawn[key] += shift
    return drawn


def codec(case: Case, **options) -> taehv.TaeCodec:
    return taehv.TaeCodec(weights(case), width=case.meta.get("widths"), **options)


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
    chunks, states = [], [None] * len(z)
    for latent in z.split(1, 1):
        chunk, states = network.decode(latent, states)
        chunks.append(chunk)
    emitted = [chunk.shape[1] for chunk in chunks]
    assert emitted == case.meta.get("streaming_decode_frames_per_latent", [1] + [4] * (z.shape[1] - 1))
    assert torch.equal(torch.cat(chunks, 1), network.decode_clip(z))
    # Every latent can be had as soon as the reference emits it.
    fourth = [i % 4 == 3 for i in range(frames.shape[1])]
    emitted = [i + 1 for i, count in enumerate(case.meta.get("streaming_encode_emits_after_frame", fourth)) if count]
    assert len(emitted) == frames.shape[1] // 4
    latents, states, done = [network.encode_clip(frames)[:, :0]], [None] * len(frames), 0
    for frame in emitted:
        latent, states = network.encode(frames[:, done:frame], states)
        latents.append(latent)
        done = frame
    assert torch.equal(torch.cat(latents, 1), network.encode_clip(frames)[:, : len(emitted)])


@parametrize("taehv")
def test_taehv_float16(case: Case) -> None:
    """Within twice the deviation stated; of a case that states none, numbers."""
    stated = case.meta.get("fp16_reference_deviation", {})
    half = codec(case, dtype=torch.float16)
    latents, decoded = half.encode_clip(clip(case)), (half.decode_clip(case.tensors["in.z"]) + 1) / 2
    assert latents.isfinite().all() and decoded.isfinite().all()
    if "latent" in stated:
        assert deviation(latents, case.tensors["out.latent"]) <= 2 * stated["latent"]
    if "decode" in stated:
        assert deviation(decoded, case.tensors["out.decode"]) <= 2 * stated["decode"]
