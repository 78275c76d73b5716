"""The Wan codec against the original decoder, and with the compatible option against the released one."""

import functools

import torch

from inspatio_core.codecs import wan_vae

from .harness import Case, parametrize
from .star import deviation, drawn_weight


@functools.lru_cache(maxsize=1)
def weights(case: Case) -> dict[str, torch.Tensor]:
    stored = {k.removeprefix("weights."): case.tensors[k] for k in case.tensors if k.startswith("weights.")}
    return stored or {k: drawn_weight(case, k, shape) for k, shape in wan_vae.shapes(width(case)).items()}


def width(case: Case) -> int:
    return case.meta["config"]["dim"]


def codec(case: Case, **options) -> wan_vae.WanCodec:
    return wan_vae.WanCodec(weights(case), width=width(case), **options)


@functools.lru_cache(maxsize=1)
def whole(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the case's video and frames of its latents, each in one call."""
    network = codec(case)
    return network.encode_clip(clip(case)), network.decode_clip(case.tensors["in.z"])


def clip(case: Case) -> torch.Tensor:
    return case.tensors["in.video"].transpose(1, 2)


def unclamped(codec: wan_vae.WanCodec, z: torch.Tensor) -> torch.Tensor:
    frames, state = [], None
    with torch.no_grad():
        for latent in z.split(1, 1):
            out, state = codec.decode_step(latent, state)
            frames.append(out)
    return torch.cat(frames, 1)


@parametrize("vae")
def test_vae_encode(case: Case) -> None:
    case.check("out.latent", whole(case)[0])


@parametrize("vae")
def test_vae_decode(case: Case) -> None:
    released = unclamped(codec(case, compatible=True), case.tensors["in.z"])
    decoded = {"out.decode_official_wan": whole(case)[1], "out.decode": released.clamp(-1, 1)}
    stated = [name for name in decoded if name in case.tensors]
    assert stated
    for name in stated:
        case.check(name, decoded[name])
    if "out.decode_unclamped" in case.tensors:
        stored = case.tensors["out.decode_unclamped"].shape[1]
        case.check("out.decode_unclamped", released if stored == released.shape[1] else released[:, ::3])


@parametrize("vae")
def test_vae_streams(case: Case) -> None:
    """In blocks of three latents and one by one: the stated numbers of frames, and the bytes of the whole clip."""
    z, network = case.tensors["in.z"], codec(case)
    encoded, decoded = whole(case)
    for size, counts in ((3, "chunk_sizes_of_3_latents_with_cache"), (1, "per_latent_chunk_frames")):
        chunks, states = [], [None] * len(z)
        for latents in z.split(size, 1):
            chunk, states = network.decode(latents, states)
            chunks.append(chunk)
        emitted = [chunk.shape[1] for chunk in chunks]
        assert emitted == case.meta.get(counts, emitted) and sum(emitted) == 4 * z.shape[1] - 3
        assert torch.equal(torch.cat(chunks, 1), decoded)
    frames = clip(case)
    last = (frames.shape[1] - 1) // 4 * 4
    latents, states = network.encode(frames[:, :1], [None] * len(frames))
    if last:
        rest, _ = network.encode(frames[:, 1 : last + 1], states)
        latents = torch.cat([latents, rest], 1)
    assert torch.equal(latents, encoded)


@parametrize("vae")
def test_vae_bfloat16(case: Case) -> None:
    """Within twice the deviation stated; of a case that states none, numbers."""
    stated = case.meta.get("bf16_reference_deviation", {})
    half = codec(case, compatible=True, dtype=torch.bfloat16)
    latents, frames = half.encode_clip(clip(case)), half.decode_clip(case.tensors["in.z"])
    assert latents.isfinite().all() and frames.isfinite().all()
    if "latent" in stated:
        assert deviation(latents, case.tensors["out.latent"]) <= 2 * stated["latent"]
    if "decode" in stated:
        assert deviation(frames, case.tensors["out.decode"]) <= 2 * stated["decode"]
