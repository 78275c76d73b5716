"""Clips of every kind a user may bring, good and bad; each file is written here, by PyAV or by hand."""

import re
import resource
import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from inspatio_core.errors import InputError
from inspatio_core.reference.video import Images, Video, limited_size, open_clip


def picture(i, size=(48, 64)):
    """A frame that tells its number (brightness) and which way is up (a red block at the upper left)."""
    frame = np.full((*size, 3), 30 + 9 * (i % 24), np.uint8)
    frame[: size[0] // 3, : size[1] // 3] = (220, 30, 30)
    return frame


def number(frame):
    return round((float(frame[-8:, -8:].mean()) - 30) / 9)


def write(path, times, size=(48, 64), codec="libx264", pixels="yuv420p", rate=25, **options):
    """A video whose frame k is picture(k), shown at times[k] seconds."""
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, pixels, 12
        stream.codec_context.time_base = Fraction(1, 1000 * rate)
        stream.bit_rate = 4_000_000
        for k, t in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(k, size), format="rgb24")
            frame.time_base = Fraction(1, 1000 * rate)
            frame.pts = round(t * 1000 * rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def constant(n, rate=25):
    return [k / rate for k in range(n)]


def is_red(pixel):
    return pixel[0] > 150 and pixel[1] < 100


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "mpeg4", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("deep.mkv", "libx265", "yuv420p10le"),
    ],
)
def test_containers(tmp_path, name, codec, pixels):
    video = Video(write(tmp_path / name, constant(10), codec=codec, pixels=pixels))
    frames = list(video.frames())
    assert [number(f) for f in frames] == list(range(10))
    assert video.fps == pytest.approx(25, rel=1e-3) and video.size == (48, 64) and video.expected_frames == 10
    assert is_red(frames[0][4, 4]) and not is_red(frames[0][-4, -4]) and video.notices == []


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), 10, 60])
def test_rates(tmp_path, rate):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for k in range(20):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), format="rgb24")))
        out.mux(stream.encode())
    video = Video(path)
    assert video.fps == pytest.approx(float(rate), rel=1e-9) and len(list(video.frames())) == 20


def test_odd_sizes_and_the_limit(tmp_path):
    odd = Video(write(tmp_path / "odd.mkv", constant(3), size=(51, 77), pixels="yuv444p"))
    assert next(odd.frames()).shape == (51, 77, 3)
    big = Video(write(tmp_path / "big.mp4", constant(3), size=(120, 360)), longest_side=128)
    frame = next(big.frames())
    assert frame.shape == (42, 128, 3) == (*big.size, 3) and is_red(frame[2, 2])
    assert limited_size((900, 1920), 1280) == (600, 1280) and limited_size((51, 77), 1280) == (51, 77)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_flag(tmp_path, turns):
    """The display matrix of the mp4 header is set by hand: a quarter turn clockwise, `turns` times."""
    path = write(tmp_path / "a.mp4", constant(3))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags; times, id, duration; reserved, layer, volume
    a, b, c, d = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[turns]
    one = 0x10000
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    video = Video(path)
    frame = next(video.frames())
    expected = np.rot90(picture(0), -turns)
    assert frame.shape == expected.shape and video.size == expected.shape[:2]
    assert np.abs(frame.astype(int) - expected).mean() < 12


def test_pixels_that_are_not_square(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        out.mux(stream.encode())
    assert next(Video(path).frames()).shape == (48, 128, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_rate_becomes_constant(tmp_path, name):
    times = [0.0, 0.04, 0.08, 0.12, 0.16, 0.40, 0.44, 0.48, 0.51, 0.56]  # a gap of six frames, a jitter
    video = Video(write(tmp_path / name, times))
    frames = list(video.frames())
    assert video.fps == pytest.approx(25, rel=0.02)
    nearest = [int(np.argmin(np.abs(np.array(times) - k / video.fps))) for k in range(15)]
    assert [number(f) for f in frames] == nearest and video.expected_frames == 15
    assert any("variable frame rate" in n for n in video.notices)


def test_long_clips_stream_in_bounded_memory(tmp_path):
    video = Video(write(tmp_path / "long.mp4", constant(3000), size=(240, 320), codec="mpeg4"))
    frames = video.frames()
    for _ in range(50):
        next(frames)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in frames) == 2950
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000  # kB; the frames would take 680 000


def test_a_truncated_file_gives_what_decodes(tmp_path):
    path = write(tmp_path / "a.mp4", constant(60), movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.7)])
    video = Video(path)
    frames = list(video.frames())
    assert 2 <= len(frames) < 60 and [number(f) for f in frames[:12]] == list(range(12))
    assert any(f"{len(frames)} of 60 frames" in n for n in video.notices)


@pytest.mark.parametrize("name, codec", [("a.mkv", "libx264"), ("a.mkv", "libvpx-vp9"), ("a.webm", "libvpx-vp9")])
def test_truncated_matroska(tmp_path, name, codec):
    """Its head says how long it was."""
    path = write(tmp_path / name, constant(60), codec=codec)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    video = Video(path)
    frames = list(video.frames())
    assert 2 <= len(frames) < 60 and [number(f) for f in frames[:12]] == list(range(12))
    assert len(video.notices) == 1
    found = re.search(r"damaged or cut short; (\d+) of (\d+) frames decode", video.notices[0])
    assert int(found[1]) <= len(frames) and abs(int(found[2]) - 60) <= 2


def test_sound_longer_than_the_picture(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream, sound = out.add_stream("libx264", rate=25), out.add_stream("pcm_s16le", rate=8000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for k in range(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), format="rgb24")))
        for k in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts = 8000, 800 * k
            out.mux(sound.encode(samples))
        out.mux(stream.encode())
        out.mux(sound.encode())
    video = Video(path)
    assert len(list(video.frames())) == 10 and video.notices == []


def test_damage_in_the_middle_is_survived(tmp_path):
    path = write(tmp_path / "a.mkv", constant(60))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    assert len(list(Video(path).frames())) >= 2


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "not a video"),
        (b"this is no video, only words" * 100, "not a video"),
        (b"\x00\x00\x00 ftypisom\x00\x00\x02\x00isomiso2avc1mp41", "not a video|no video"),
    ],
)
def test_not_a_video(tmp_path, content, match):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=match) as error:
        open_clip(path)
    assert "clip.mp4" in str(error.value) and "\n" not in str(error.value)


def test_header_cut_off(tmp_path):
    path = write(tmp_path / "a.mp4", constant(30))  # its index lies at the end
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match="a.mp4"):
        open_clip(path)


def test_zero_frames(tmp_path):
    path = tmp_path / "empty.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        out.mux(stream.encode())
    with pytest.raises(InputError, match="empty.mkv"):
        open_clip(path)


def test_sound_only(tmp_path):
    path = tmp_path / "sound.wav"
    header = b"RIFF" + struct.pack("<I", 836) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    path.write_bytes(header + b"data" + struct.pack("<I", 800) + bytes(800))
    with pytest.raises(InputError, match="no video in it"):
        open_clip(path)


def test_missing_and_tiny(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_clip(tmp_path / "gone.mp4")
    with pytest.raises(InputError, match="2x2 pixels; at least 16x16"):
        open_clip(write(tmp_path / "tiny.mkv", constant(3), size=(2, 2), codec="ffv1", pixels="yuv444p"))
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(InputError, match="1x1 pixels; at least 16x16"):
        open_clip(tmp_path / "dot.png")


def test_one_frame_is_a_clip(tmp_path):
    video = Video(write(tmp_path / "one.mp4", [0.0]))
    assert len(list(video.frames())) == 1 and video.fps > 0 and video.notices == []


def test_images(tmp_path):
    for k in (10, 2, 1):
        cv2.imwrite(str(tmp_path / f"frame_{k}.png"), picture(k)[..., ::-1])
    (tmp_path / "notes.txt").write_text("not an image")
    clip = open_clip(tmp_path)
    assert isinstance(clip, Images) and [number(f) for f in clip.frames()] == [1, 2, 10]
    assert is_red(next(clip.frames())[4, 4])
    single = open_clip(tmp_path / "frame_2.png")
    assert [number(f) for f in single.frames()] == [2]


def test_bad_image_folders(tmp_path):
    with pytest.raises(InputError, match="no images"):
        open_clip(tmp_path)
    cv2.imwrite(str(tmp_path / "0.png"), picture(0))
    cv2.imwrite(str(tmp_path / "1.png"), picture(1, (50, 64)))
    with pytest.raises(InputError, match="1.png: 64x50 pixels, the first image has 64x48"):
        list(open_clip(tmp_path).frames())
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1.png: not an image"):
        list(open_clip(tmp_path).frames())
