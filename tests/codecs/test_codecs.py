"""Both codecs as streams: the same bytes however a clip is cut up, whoever streams beside it, and after a snapshot."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import save_file

from inspatio_core import checkpoints
from inspatio_core.codecs import StreamDecoder, StreamEncoder, make_codec, taehv, wan_vae
from inspatio_core.errors import InputError

KINDS = {"wan": (wan_vae, 4), "tae": (taehv, 4)}  # kind -> (its module, a width)
SIZE = (16, 24)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def codec_of(kind, **options):
    return make_codec(kind, width=KINDS[kind][1], random_weights=True, seed=3, **options)


@pytest.fixture(scope="module", params=KINDS)
def codec(request):
    return codec_of(request.param)


def video(count, batch=1, seed=0):
    """Smooth noise [batch,count,3,H,W] in [-1,1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch * count, 3, 4, 6, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear").unflatten(0, (batch, count))


def latents(count, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, 16, SIZE[0] // 8, SIZE[1] // 8, generator=generator)


def push_all(stream, x, counts):
    return torch.cat([stream.push(chunk) for chunk in x.split(counts, 1)], 1)


def equal_states(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def test_a_clip_gives_the_counts_of_the_codec(codec):
    assert codec.look_ahead == {"wan": 0, "tae": 3}[codec.name]
    z = codec.encode_clip(video(22))
    assert z.shape == (1, {"wan": 6, "tae": 6}[codec.name], 16, 2, 3) and z.dtype == torch.float32
    frames = codec.decode_clip(z)
    assert frames.shape == (1, 21, 3, *SIZE) and frames.dtype == torch.float32
    assert frames.min() >= -1 and frames.max() <= 1
    assert codec.encode_clip(video(1)).shape[1] == 1 and codec.decode_clip(z[:, :1]).shape[1] == 1


def test_the_end_of_a_clip_is_dropped_by_wan_and_repeated_by_tae(codec):
    clip = video(10)
    whole = clip[:, :9] if codec.name == "wan" else torch.cat([clip, clip[:, -1:], clip[:, -1:]], 1)
    assert torch.equal(codec.encode_clip(clip), codec.encode_clip(whole))


def test_random_weights_give_moderate_output_that_depends_on_the_input_and_the_seed(codec):
    z, mirrored = codec.encode_clip(video(9)), codec.encode_clip(video(9).flip(-1))
    frames = codec.decode_clip(latents(3))
    assert frames.std() > 0.05 and (frames.abs() == 1).float().mean() < 0.5
    assert (frames[:, 1:] - frames[:, :-1]).abs().mean() > 0.01
    assert (z - mirrored).std() > 0.02 and z.std() < 5
    other = make_codec(codec.name, width=KINDS[codec.name][1], random_weights=True, seed=4)
    assert not torch.equal(codec.decode_clip(latents(3)), other.decode_clip(latents(3)))


def test_making_a_codec_leaves_the_global_generator_alone(codec):
    before = torch.get_rng_state()
    again = codec_of(codec.name)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.decode_clip(latents(1)), codec.decode_clip(latents(1)))


@pytest.mark.parametrize("blocks", [(3, 3), (1, 1, 1, 1, 1, 1), (1, 5)])
def test_a_stream_equals_the_whole_clip(codec, blocks):
    """In blocks of n latents: 9 then 12 frames of wan where tae takes 12 and 12, or 1 then 4 where it takes 4 and 4."""
    first = codec.first_frames
    counts = [4 * n for n in blocks]
    counts[0] += first - 4
    clip, z = video(sum(counts)), latents(sum(blocks))
    assert torch.equal(push_all(StreamEncoder(codec), clip, counts), codec.encode_clip(clip))
    decoder = StreamDecoder(codec)
    chunks = [decoder.push(chunk) for chunk in z.split(blocks, 1)]
    assert [chunk.shape[1] for chunk in chunks] == [4 * blocks[0] - 3] + [4 * n for n in blocks[1:]]
    assert torch.equal(torch.cat(chunks, 1), codec.decode_clip(z))


def test_what_comes_later_changes_nothing_before(codec):
    clip, first = video(codec.first_frames + 8), codec.first_frames + 4
    assert torch.equal(codec.encode_clip(clip[:, :first]), codec.encode_clip(clip)[:, :2])
    z = latents(4)
    assert torch.equal(codec.decode_clip(z[:, :2]), codec.decode_clip(z)[:, :5])
    changed = z.clone()
    changed[:, 2] += 1
    differs = (codec.decode_clip(changed) != codec.decode_clip(z)).flatten(2).any(2)[0]
    assert differs.tolist() == [False] * 5 + [True] * 8


def test_a_batch_is_its_singles(codec):
    count = codec.first_frames + 4
    clips, z = video(count, 4), latents(3, 4)
    assert torch.equal(codec.encode_clip(clips), torch.cat([codec.encode_clip(c[None]) for c in clips]))
    assert torch.equal(codec.decode_clip(z), torch.cat([codec.decode_clip(c[None]) for c in z]))


def test_encoding_and_decoding_do_not_disturb_each_other(codec):
    counts = [codec.first_frames, 4, 4]
    clip, z = video(sum(counts)), latents(3)
    encoder, decoder = StreamEncoder(codec), StreamDecoder(codec)
    encoded, decoded = [], []
    for i, frames in enumerate(clip.split(counts, 1)):
        encoded.append(encoder.push(frames))
        decoded.append(decoder.push(z[:, i : i + 1]))
        codec.encode_clip(video(codec.first_frames, seed=9))
    assert torch.equal(torch.cat(encoded, 1), codec.encode_clip(clip))
    assert torch.equal(torch.cat(decoded, 1), codec.decode_clip(z))


def test_slots_are_independent(codec):
    first = codec.first_frames
    clips, z = video(first + 8, 3), latents(3, 3)
    encoder, decoder = StreamEncoder(codec, 3), StreamDecoder(codec, 3)
    encoder.push(clips[:, :first])
    decoder.push(z[:, :1])
    before = encoder.state(1), decoder.state(1)
    # Slots 0 and 2 go on, in another order; then slot 0 starts anew.
    encoded = encoder.push(clips[[2, 0], first : first + 4], slots=[2, 0])
    decoded = decoder.push(z[[2, 0], 1:2], slots=[2, 0])
    encoder.reset(0)
    decoder.reset([0])
    assert encoder.state(0) is None and decoder.state(0) is None
    assert encoder.state(1) is before[0] and decoder.state(1) is before[1]
    assert torch.equal(encoder.push(clips[1:2, first:], slots=1), codec.encode_clip(clips[1:2])[:, 1:])
    assert torch.equal(decoder.push(z[1:2, 1:], slots=1), codec.decode_clip(z[1:2])[:, 1:])
    assert torch.equal(encoded, codec.encode_clip(clips[[2, 0]])[:, 1:2])
    assert torch.equal(decoded, codec.decode_clip(z[[2, 0]])[:, 1:5])
    assert torch.equal(encoder.push(clips[:1], slots=0), codec.encode_clip(clips[:1]))
    assert torch.equal(decoder.push(z[:1], slots=0), codec.decode_clip(z[:1]))


def torch_saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kept", [lambda s: s, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), torch_saved])
def test_states_are_values(codec, kept):
    clip, z = video(codec.first_frames + 12), latents(4)
    encoder, decoder = StreamEncoder(codec), StreamDecoder(codec)
    frames, rest = clip.split([codec.first_frames + 4, 8], 1)
    encoder.push(frames)
    decoder.push(z[:, :2])
    states = encoder.state(0), decoder.state(0)
    copies = kept(states[0]), kept(states[1])
    originals = copy.deepcopy(states)
    expected = encoder.push(rest), decoder.push(z[:, 2:])
    assert equal_states(states[0], originals[0]) and equal_states(states[1], originals[1])
    again = StreamEncoder(codec, 2), StreamDecoder(codec, 2)
    again[0].load_state(1, copies[0])
    again[1].load_state(1, copies[1])
    assert torch.equal(again[0].push(rest, slots=1), expected[0])
    assert torch.equal(again[1].push(z[:, 2:], slots=1), expected[1])


def test_a_state_holds_no_more_memory_than_its_numbers(codec, monkeypatch):
    for one_by_one in (True, False):
        monkeypatch.setattr(type(codec), "one_by_one", one_by_one)
        encoder, decoder = StreamEncoder(codec, 2), StreamDecoder(codec, 2)
        encoder.push(video(codec.first_frames + 4, 2))
        decoder.push(latents(2, 2))
        for tensor in encoder.state(1) + decoder.state(1):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_states_have_the_shapes_that_the_codec_tells(codec):
    _, encoded = codec.encode(video(codec.first_frames), [codec.encoder_state()])
    _, decoded = codec.decode(latents(1), [codec.decoder_state()])
    assert [tuple(t.shape[1:]) for t in encoded[0]] == codec.encoder_shapes(*SIZE)
    assert [tuple(t.shape[1:]) for t in decoded[0]] == codec.decoder_shapes(*SIZE)


def streamed(codec, device="cpu"):
    """Two slots through both streams in one batch, slot 0 starting over midway; all that comes out."""
    encoder, decoder = StreamEncoder(codec, 2), StreamDecoder(codec, 2)
    clips, z = video(codec.first_frames + 8, 2).to(device), latents(4, 2).to(device)
    first = codec.first_frames
    out = [encoder.push(clips[:, :first]), encoder.push(clips[:, first:]), decoder.push(z[:, :2]), decoder.push(z)]
    encoder.reset(0)
    if codec.name == "tae":  # fresh and running streams take the same number of frames
        out.append(encoder.push(clips[:, :4]))
    else:
        out.append(encoder.push(clips[:1, :first], slots=0))
        out.append(encoder.push(clips[:, first:]))
    decoder.reset(0)
    return out + [decoder.push(z[:1], slots=0), decoder.push(z)]


def test_all_slots_in_one_batch_give_the_same_up_to_rounding(codec, monkeypatch):
    expected = streamed(codec)
    monkeypatch.setattr(type(codec), "one_by_one", False)
    for a, b in zip(streamed(codec), expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_cuda
def test_cuda_gives_what_the_cpu_gives(codec):
    on_gpu = codec_of(codec.name, device="cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        for a, b in zip(streamed(on_gpu, "cuda"), streamed(codec)):
            assert a.device.type == "cuda"
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_and_streams_exactly(codec, dtype):
    half = codec_of(codec.name, dtype=dtype)
    assert half.dtype == dtype
    clip, z = video(codec.first_frames + 4), latents(2)
    for method, x, counts, stream in (
        ("encode_clip", clip, [codec.first_frames, 4], StreamEncoder(half)),
        ("decode_clip", z, [1, 1], StreamDecoder(half)),
    ):
        exact, near = getattr(codec, method)(x), getattr(half, method)(x)
        assert near.dtype == torch.float32
        assert 0 < (near - exact).square().mean() < (0.05 * exact.std()) ** 2
        assert torch.equal(push_all(stream, x, counts), near)
        assert stream.state(0)[0].dtype == dtype


def test_gradients_go_through_the_steps_and_not_through_the_streams(codec):
    frames = video(codec.first_frames).requires_grad_()
    z, _ = codec.encode_step(frames, None)
    decoded, state = codec.decode_step(z, None)
    decoded, _ = codec.decode_step(z, state)
    decoded.square().mean().backward()
    assert frames.grad.isfinite().all() and frames.grad.abs().sum() > 0
    out, states = codec.encode(frames, [None])
    assert not out.requires_grad and not any(t.requires_grad for t in states[0])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_from_a_file(kind, tmp_path):
    module, width = KINDS[kind]
    weights = module.random_weights(width, 3)
    file = tmp_path / "weights.safetensors"
    save_file({f"model.{key}": value for key, value in weights.items()}, file)
    loaded = make_codec(kind, width=width, path=file)
    assert torch.equal(loaded.decode_clip(latents(2)), codec_of(kind).decode_clip(latents(2)))
    del weights["encoder.0.weight" if kind == "tae" else "conv1.weight"]
    save_file(weights, file)
    with pytest.raises(InputError, match="missing"):
        make_codec(kind, width=width, path=file)


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_width_has_the_keys_of_the_released_file(kind):
    module = KINDS[kind][0]
    assert module.shapes(None) == checkpoints.shapes_of(module.KIND)


@pytest.mark.parametrize("kind", KINDS)
def test_make_codec_says_what_is_wrong(kind):
    with pytest.raises(InputError, match="vae.*tae, wan"):
        make_codec("vae", random_weights=True)
    for options in ({}, {"path": "file", "random_weights": True}):
        with pytest.raises(InputError, match="either a file of weights or"):
            make_codec(kind, **options)
    with pytest.raises(InputError, match="no such file"):
        make_codec(kind, path="/nowhere/weights.pth")
    for width in (-1, 0):
        with pytest.raises(InputError, match="width"):
            make_codec(kind, width=width, random_weights=True)


def test_bad_input_is_refused_in_one_line_and_changes_nothing(codec):
    first = codec.first_frames
    encoder, decoder = StreamEncoder(codec, 2), StreamDecoder(codec, 2)
    encoder.push(video(first), slots=0)
    decoder.push(latents(1), slots=0)
    before = encoder.state(0), decoder.state(0)
    bad = [
        (lambda: encoder.push(video(first + 3), slots=1), "fresh stream takes"),
        (lambda: encoder.push(video(5), slots=0), "running stream takes 4m"),
        (lambda: encoder.push(video(4)[0], slots=0), r"frames \[B,F,3,H,W\]"),
        (lambda: encoder.push(video(4)[:, :, :2], slots=0), r"frames \[B,F,3,H,W\]"),
        (lambda: encoder.push(video(4).byte(), slots=0), "floating-point"),
        (lambda: encoder.push(video(4)[..., :-4], slots=0), "multiples of 8"),
        (lambda: encoder.push(video(4)[..., :-8], slots=0), "must be reset"),
        (lambda: encoder.push(video(4), slots=[0, 1]), "2 states for a batch of 1"),
        (lambda: encoder.push(video(4, 2), slots=[0, 0]), "different ones of 0 .. 1"),
        (lambda: encoder.push(video(4), slots=2), "different ones of 0 .. 1"),
        (lambda: encoder.reset(-1), "different ones of 0 .. 1"),
        (lambda: encoder.push(video(4)[:0], slots=[]), "floating-point"),
        (lambda: encoder.load_state(1, decoder.state(0)) or encoder.push(video(4), slots=1), "must be reset"),
        (lambda: decoder.push(latents(1, 2)), "fresh and running"),
        (lambda: decoder.push(latents(1)[:, :, :8], slots=0), r"latents \[B,f,16,h,w\]"),
        (lambda: decoder.push(latents(1)[..., :-1], slots=0), "must be reset"),
        (lambda: codec.encode_clip(video(0)), "frames"),
        (lambda: codec.decode_clip(latents(0)), "latents"),
        (lambda: StreamEncoder(codec, 0), "at least 1 slot"),
    ]
    for action, message in bad:
        with pytest.raises(InputError, match=message) as error:
            action()
        assert "\n" not in str(error.value)
    assert encoder.state(0) is before[0] and decoder.state(0) is before[1] and decoder.state(1) is None
    fresh = StreamEncoder(codec, 2)
    fresh.push(video(first), slots=0)
    if codec.name == "wan":
        with pytest.raises(InputError, match="fresh and running"):
            fresh.push(video(4, 2))
    else:  # fresh or not, the tiny encoder takes four frames a latent
        clip = video(4, 2, seed=5)
        mixed = fresh.push(clip)
        assert torch.equal(mixed[1:], codec.encode_clip(clip[1:]))
        assert torch.equal(mixed[:1], codec.encode_clip(torch.cat([video(4), clip[:1]], 1))[:, 1:])
