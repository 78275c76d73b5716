"""The Wan codec: the compatible decoder, and that diffusers' own whole-clip calls give the same."""

import subprocess
import sys

import pytest
import torch

from inspatio_core.codecs import make_codec, wan_vae
from tests.codecs.test_codecs import latents, video


@pytest.fixture(scope="module")
def pair():
    """The same weights with and without the compatible option."""
    return [make_codec("wan", width=4, random_weights=True, seed=3, compatible=c) for c in (False, True)]


def test_the_compatible_decoder_differs_from_frame_9_on(pair):
    z = latents(5)
    plain, compatible = (codec.decode_clip(z) for codec in pair)
    differs = (plain != compatible).flatten(2).any(2)[0]
    assert differs.tolist() == [False] * 9 + [True] * 8


def test_the_compatible_decoder_streams_as_well(pair):
    z = latents(5)
    codec = pair[1]
    states, frames = [None], []
    for count in (1, 2, 2):
        out, states = codec.decode(z[:, sum(f.shape[1] + 3 for f in frames) // 4 :][:, :count], states)
        frames.append(out)
    assert torch.equal(torch.cat(frames, 1), codec.decode_clip(z))


def test_the_compatible_history_repeats_the_last_frame_but_keeps_zeros(pair):
    codec = pair[1]
    shapes = codec.decoder_shapes(16, 24)
    # The first doubling in time is the only layer at the latents' size whose history the option changes.
    plain, history = pair[0], codec._first_doubling
    assert shapes[history] == (16, 2, 2, 3)
    z = latents(3)
    _, (state,) = codec.decode(z[:, :2], [None])
    assert not state[history][:, :, 0].any() and state[history][:, :, 1].all()
    zeroed = list(state)
    zeroed[history] = state[history].clone()
    zeroed[history][:, 3, 1] = 0  # the last frame, exactly 0 in one channel
    _, (after,) = codec.decode(z[:, 2:], [tuple(zeroed)])
    before_last, last = after[history].unbind(2)
    assert not before_last[:, 3].any() and last[:, 3].all()
    others = [c for c in range(16) if c != 3]
    assert torch.equal(before_last[:, others], last[:, others])
    _, (after,) = plain.decode(z[:, 2:], [tuple(zeroed)])
    assert torch.equal(after[history][:, :, 0], zeroed[history][:, :, 1])


def test_encoding_is_the_same_with_the_compatible_option(pair):
    assert torch.equal(*(codec.encode_clip(video(9)) for codec in pair))


def test_whole_clips_by_diffusers_are_the_same(pair):
    """Its own loop over the clip, with the marks it leaves in its caches where we put zeros."""
    codec = pair[0]
    clip, z = video(13), latents(4)
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (wan_vae.MEAN, wan_vae.STD))
    theirs = (codec.module.encode(clip.transpose(1, 2)).latent_dist.mode() - mean) / std
    torch.testing.assert_close(codec.encode_clip(clip), theirs.transpose(1, 2), rtol=1e-4, atol=2e-5)
    theirs = codec.module.decode(z.transpose(1, 2) * std + mean).sample
    torch.testing.assert_close(codec.decode_clip(z), theirs.transpose(1, 2), rtol=1e-4, atol=2e-5)


def test_the_normalisation_is_that_of_diffusers(pair):
    assert list(wan_vae.MEAN) == pair[0].module.config.latents_mean
    assert list(wan_vae.STD) == pair[0].module.config.latents_std


def test_diffusers_is_imported_only_for_a_wan_codec():
    program = (
        "import sys; from inspatio_core.codecs import make_codec, wan_vae; make_codec('tae', width=4, "
        "random_weights=True); sys.exit(any(m in sys.modules for m in ('diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
