"""The tiny codec: its memory, its growth in time, and files made for more growth."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from inspatio_core.codecs import make_codec, taehv
from inspatio_core.errors import InputError
from tests.codecs.test_codecs import latents, video


def whole(weights, x, part):
    """The whole clip at once, layer by layer over all frames: another order of evaluation than a stream's.

    x: [T,C,H,W].
    """

    def conv(name, x, **options):
        padding = weights[f"{name}.weight"].shape[-1] // 2
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=padding, **options)

    def memory_block(name, x):
        y = torch.cat([x, F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]], 1)
        for layer in (0, 2):
            y = F.relu(conv(f"{name}.conv.{layer}", y))
        return F.relu(conv(f"{name}.conv.4", y) + x)

    if part == "encoder":
        x = F.relu(conv("encoder.0", x))
        for number, stride in ((2, 2), (7, 2), (12, 1)):
            x = conv(f"encoder.{number}.conv", x.reshape(-1, stride * x.shape[1], *x.shape[2:]))
            x = conv(f"encoder.{number + 1}", x, stride=2)
            for block in range(3):
                x = memory_block(f"encoder.{number + 2 + block}", x)
        return conv("encoder.17", x)
    x = F.relu(conv("decoder.1", 3 * torch.tanh(x / 3)))
    for number, stride in ((3, 1), (9, 2), (15, 2)):
        for block in range(3):
            x = memory_block(f"decoder.{number + block}", x)
        x = conv(f"decoder.{number + 4}.conv", F.interpolate(x, scale_factor=2))
        x = conv(f"decoder.{number + 5}", x.reshape(-1, x.shape[1] // stride, *x.shape[2:]))
    return conv("decoder.22", F.relu(x))[3:].clamp(0, 1)


@pytest.mark.parametrize("width", [4, (5, (12, 6, 7, 3))])
def test_a_stream_equals_the_whole_clip_at_once(width):
    weights = taehv.random_weights(width, 1)
    codec = taehv.TaeCodec(weights, width=width)
    clip, z = video(12), latents(5)
    torch.testing.assert_close(
        codec.encode_clip(clip)[0], whole(weights, (clip[0] + 1) / 2, "encoder"), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        (codec.decode_clip(z)[0] + 1) / 2, whole(weights, z[0], "decoder"), rtol=1e-4, atol=1e-5
    )  # fmt: skip


def test_only_the_last_rows_of_a_growth_layer_count(tmp_path):
    """Files made for more growth in time have more of them."""
    weights = taehv.random_weights(4, 1)
    expected = taehv.TaeCodec(weights, width=4).decode_clip(latents(3))
    for number in (7, 13, 19):
        kept = weights[f"decoder.{number}.conv.weight"]
        weights[f"decoder.{number}.conv.weight"] = torch.cat([torch.full_like(kept, 9.0), kept])
    file = tmp_path / "taew.safetensors"
    save_file(weights, file)
    assert torch.equal(make_codec("tae", width=4, path=file).decode_clip(latents(3)), expected)


def test_latents_are_squashed_before_decoding():
    codec = make_codec("tae", width=4, random_weights=True)
    z = latents(2).sign()
    assert torch.equal(codec.decode_clip(50 * z), codec.decode_clip(1000 * z))
    assert not torch.equal(codec.decode_clip(z), codec.decode_clip(2 * z))


def test_widths():
    assert taehv.widths(None) == (64, (256, 128, 64, 64))
    assert taehv.widths(64) == taehv.FULL
    assert taehv.widths([8, [16, 12, 8, 8]]) == (8, (16, 12, 8, 8))
    for wrong in (0, (8, (16, 12, 8)), (8, (16, 12, 8, 0))):
        with pytest.raises(InputError, match="four decoder widths"):
            taehv.widths(wrong)
