import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.latents import frame_counts, mask_latent


@pytest.mark.parametrize(("frames", "latents", "used", "blocks", "out"), [(81, 21, 21, 7, 81), (247, 62, 60, 20, 237)])
def test_counts(frames, latents, used, blocks, out):
    counts = frame_counts(frames)
    assert (counts.latents, counts.used_latents, counts.blocks, counts.output_frames) == (latents, used, blocks, out)


def test_clips_without_loss_have_12k_minus_3_frames():
    assert [t for t in range(1, 60) if frame_counts(t).output_frames == t] == [9, 21, 33, 45, 57]
    assert [t for t in range(1, 10) if frame_counts(t, latents_per_block=1).output_frames == t] == [1, 5, 9]


def test_no_frames():
    with pytest.raises(InputError):
        frame_counts(0)


def test_mask_latent_is_half_pixel_bilinear():
    mask = torch.rand(2, 3, 13, 24, 16) * 2 - 1
    out = mask_latent(mask)
    assert out.shape == (2, 4, 4, 3, 2)
    frames = [0, 0, 0, 0, *range(1, 13)]
    for b in range(2):
        low = torch.nn.functional.interpolate(mask[b, :1].transpose(0, 1), scale_factor=1 / 8, mode="bilinear")[:, 0]
        assert torch.allclose(out[b].flatten(0, 1), low[frames], atol=1e-6)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (10, 3)])
def test_mask_latent_count(frames, latents):
    mask = torch.ones(1, 1, frames, 8, 8)
    assert mask_latent(mask).shape[1] == latents == frame_counts(frames).mask_latents
    assert mask_latent(mask.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 3, 0, 8, 8), (1, 3, 1, 9, 8), (3, 1, 8, 8)])
def test_bad_mask(shape):
    with pytest.raises(InputError, match="mask"):
        mask_latent(torch.ones(shape))


def test_a_stream_of_masks_is_the_whole_clip():
    mask = torch.rand(2, 1, 13, 16, 24) * 2 - 1
    parts = [mask_latent(mask[:, :, :5]), mask_latent(mask[:, :, 5:9], first=False)]
    parts.append(mask_latent(mask[:, :, 9:], first=False))
    assert torch.equal(torch.cat(parts, 1), mask_latent(mask))
