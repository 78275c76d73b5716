"""RealEstate10K and MultiCamVideo folders: poses and intrinsics in our conventions, the right pictures."""

import json

import av
import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import is_rigid, project
from inspatio_core.reference.scene import write_image
from inspatio_core.training.data.folders import (
    multicam_scenes,
    re10k_clips,
    read_multicam,
    read_multicam_cameras,
    read_re10k,
)


def picture(i, size=(36, 64), dot=(18, 32)):
    """Grey of a level that tells the frame, with a white dot."""
    image = np.full((*size, 3), 20 + 10 * i, np.uint8)
    image[dot[0] - 2 : dot[0] + 3, dot[1] - 2 : dot[1] + 3] = 255
    return image


def write_video(path, frames, fps=15):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def level(image):
    return round((float(image[2:6, 2:6].float().mean()) - 20) / 10)


# ---- RealEstate10K


def re10k_file(path, count=5, step=33_367):
    """A camera that walks along its own x axis after a turn of 30 degrees to the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
    R = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])  # world_from_camera
    lines = ["https://example.org/watch?v=x"]
    for i in range(count):
        place = R @ np.array([0.1 * i, 0.0, 0.0]) + [0, 0, 2]
        E = np.concatenate([R.T, (-R.T @ place)[:, None]], 1)
        values = [0.9, 1.6, 0.5, 0.5, 0, 0, *E.flatten()]
        lines.append(f"{1_000_000 + i * step} " + " ".join(f"{v:.9f}" for v in values))
    path.write_text("\n".join(lines) + "\n")
    return R


def test_re10k_frames_by_timestamp(tmp_path):
    R = re10k_file(tmp_path / "test" / "abc.txt")
    for i in range(5):
        (tmp_path / "test" / "abc").mkdir(exist_ok=True)
        write_image(tmp_path / "test" / "abc" / f"{1_000_000 + i * 33_367}.png", picture(i))
    (tmp_path / "test" / "notes.txt").write_text("not a clip\n")
    assert re10k_clips(tmp_path) == [tmp_path / "test" / "abc.txt"]
    clip = read_re10k(tmp_path / "test" / "abc.txt", (36, 64), start=1, frames=2, stride=2)
    assert clip.rgb.shape == (1, 2, 36, 64, 3) and clip.rgb.dtype == torch.uint8
    assert [level(f) for f in clip.rgb[0]] == [1, 3]
    T = clip.world_from_camera[0]
    torch.testing.assert_close(T[0, :3, :3], torch.from_numpy(R), atol=1e-6, rtol=0)
    torch.testing.assert_close(T[1, :3, 3], torch.from_numpy(R @ [0.3, 0, 0] + [0, 0, 2]), atol=1e-6, rtol=0)
    K = clip.K[0, 0]  # in pixels, the middle of 64 pixels at 31.5
    expected = torch.tensor([[0.9 * 64, 0, 31.5], [0, 1.6 * 36, 17.5], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(K, expected)
    assert clip.fps == pytest.approx(1e6 / (2 * 33_367)) and not clip.metric


def test_re10k_crop_keeps_the_projection(tmp_path):
    """A dot at a known pixel is where the new K says: from 36x64 to a square, and half of it."""
    re10k_file(tmp_path / "abc.txt", 1)
    (tmp_path / "abc").mkdir()
    write_image(tmp_path / "abc" / "0.png", picture(0, dot=(10, 40)))
    full = read_re10k(tmp_path / "abc.txt", (36, 64))
    k = full.K[0, 0]
    ray = torch.tensor([(40 - k[0, 2]) / k[0, 0], (10 - k[1, 2]) / k[1, 1], 1.0], dtype=torch.float64)
    for size in ((36, 36), (18, 18), (72, 96)):
        clip = read_re10k(tmp_path / "abc.txt", size)
        uv, _ = project(ray, clip.K[0, 0])
        white = (clip.rgb[0, 0].float().mean(-1) - 20).clamp_min(0)
        rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in size), indexing="ij")
        assert float((white * columns).sum() / white.sum()) == pytest.approx(float(uv[0]), abs=0.1)
        assert float((white * rows).sum() / white.sum()) == pytest.approx(float(uv[1]), abs=0.1)


def test_re10k_videos_cut_or_whole(tmp_path):
    re10k_file(tmp_path / "cut.txt", 5)
    write_video(tmp_path / "cut.mp4", [picture(i, (48, 64)) for i in range(5)])
    clip = read_re10k(tmp_path / "cut.txt", (48, 64))
    assert [level(f) for f in clip.rgb[0]] == [0, 1, 2, 3, 4]
    # A whole video at 10 frames/s; the clip is seconds 1.0, 1.2, 1.4 of it.
    re10k_file(tmp_path / "whole.txt", 3, step=200_000)
    write_video(tmp_path / "whole.mp4", [picture(i, (48, 64)) for i in range(20)], fps=10)
    clip = read_re10k(tmp_path / "whole.txt", (48, 64))
    assert [level(f) for f in clip.rgb[0]] == [10, 12, 14]


def test_re10k_errors_are_one_line(tmp_path):
    bad = tmp_path / "bad.txt"
    (tmp_path / "bad").mkdir()
    bad.write_text("url\n1 2 3\n")
    with pytest.raises(InputError, match="line 2 needs 19 numbers"):
        read_re10k(bad, (8, 8))
    bad.write_text("url\n")
    with pytest.raises(InputError, match="no frames"):
        read_re10k(bad, (8, 8))
    bad.write_text("url\n0 1 1 .5 .5 0 0 " + "2 0 0 0  0 2 0 0  0 0 2 0\n")
    with pytest.raises(InputError, match="no rotation"):
        read_re10k(bad, (8, 8))
    re10k_file(bad, 3)
    with pytest.raises(InputError, match="0 pictures for 3 lines"):
        read_re10k(bad, (8, 8))
    with pytest.raises(InputError, match="3 frames; not enough"):
        read_re10k(bad, (8, 8), frames=4)
    re10k_file(tmp_path / "alone.txt")
    with pytest.raises(InputError, match="beside it"):
        read_re10k(tmp_path / "alone.txt", (8, 8))
    assert re10k_clips(tmp_path) == [bad]


# ---- MultiCamVideo


def unreal_rows(place, yaw=0.0, pitch=0.0):
    """What the files hold: rows forward, right, up (Unreal: X forward, Y right, Z up), then the place in centimetres.

    yaw turns to the right and pitch up, both in degrees, as in Unreal.
    """
    y, p = np.radians(yaw), np.radians(pitch)
    forward = [np.cos(p) * np.cos(y), np.cos(p) * np.sin(y), np.sin(p)]
    right = [-np.sin(y), np.cos(y), 0.0]
    up = [-np.sin(p) * np.cos(y), -np.sin(p) * np.sin(y), np.cos(p)]
    rows = [[*forward, 0], [*right, 0], [*up, 0], [*place, 1]]
    return " ".join("[" + " ".join(f"{v:.8f}" for v in row) + "]" for row in rows) + " "


def multicam_scene(folder, steps, frames=3):
    (folder / "cameras").mkdir(parents=True)
    table = {f"frame{i}": {name: unreal_rows(*where(i)) for name, where in steps.items()} for i in range(frames)}
    (folder / "cameras" / "camera_extrinsics.json").write_text(json.dumps(table))
    for n, name in enumerate(steps):
        write_video(folder / "videos" / f"{name}.mp4", [picture(i + 5 * n, (64, 64)) for i in range(frames)])


def test_multicam_axes(tmp_path):
    scene = tmp_path / "train" / "f24_aperture5" / "scene1"
    steps = {
        "cam01": lambda i: ((100.0, 200.0 + 10 * i, 50.0), 0.0, 0.0),  # slides to the right
        "cam02": lambda i: ((0.0, 0.0, 0.0), 90.0, 0.0),  # looks right
        "cam03": lambda i: ((0.0, 0.0, 0.0), 0.0, 30.0),  # looks up
    }
    multicam_scene(scene, steps, frames=12)
    assert multicam_scenes(tmp_path) == [scene]
    poses = read_multicam_cameras(scene)
    assert list(poses) == ["cam01", "cam02", "cam03"] and all(is_rigid(T, 1e-6).all() for T in poses.values())
    double = torch.float64
    # Ahead is z, right is x, up is -y; metres; frame 10 comes after frame 9.
    torch.testing.assert_close(poses["cam01"][0, :3, :3], torch.eye(3, dtype=double))
    torch.testing.assert_close(poses["cam01"][0, :3, 3], torch.tensor([2.0, -0.5, 1.0], dtype=double))
    torch.testing.assert_close(poses["cam01"][10, :3, 3], torch.tensor([3.0, -0.5, 1.0], dtype=double))
    torch.testing.assert_close(poses["cam02"][0, :3, 2], torch.tensor([1.0, 0, 0], dtype=double), atol=1e-7, rtol=0)
    torch.testing.assert_close(poses["cam02"][0, :3, 1], torch.tensor([0, 1.0, 0], dtype=double), atol=1e-7, rtol=0)
    up = poses["cam03"][0, :3, 2]
    assert float(up[1]) == pytest.approx(-0.5, abs=1e-6) and float(up[2]) == pytest.approx(np.cos(np.pi / 6), abs=1e-6)


def test_multicam_pictures_and_intrinsics(tmp_path):
    scene = tmp_path / "f18_aperture10" / "scene7"
    steps = {f"cam{n:02d}": lambda i, n=n: ((10.0 * n, 0.0, 150.0), 5.0 * n, 0.0) for n in (1, 2, 10)}
    multicam_scene(scene, steps)
    clip = read_multicam(scene, (32, 32), cameras=("cam10", "cam01"), start=0, frames=2, stride=2)
    assert clip.rgb.shape == (2, 2, 32, 32, 3) and clip.world_from_camera.shape == (2, 2, 4, 4)
    assert [[level(f) for f in v] for v in clip.rgb] == [[10, 12], [0, 2]]
    assert float(clip.K[0, 0, 0, 0]) == pytest.approx(18 / 23.76 * 32)
    assert float(clip.K[0, 0, 0, 2]) == pytest.approx(15.5) and clip.metric and clip.fps == pytest.approx(7.5)
    assert float(clip.world_from_camera[0, 0, 2, 3]) == pytest.approx(1.0)
    assert read_multicam(scene, (16, 32)).K[2, 1, 1, 2] == pytest.approx(7.5)  # all cameras, cropped

    with pytest.raises(InputError, match="no camera cam03; it has cam01, cam02, cam10"):
        read_multicam(scene, (8, 8), cameras=("cam03",))
    with pytest.raises(InputError, match="not enough"):
        read_multicam(scene, (8, 8), frames=4)
    (scene / "videos" / "cam02.mp4").unlink()
    with pytest.raises(InputError, match="no such file"):
        read_multicam(scene, (8, 8))
    (scene / "cameras" / "camera_extrinsics.json").write_text('{"frame0": {"cam01": "[1 0]"}}')
    with pytest.raises(InputError, match="cam01"):
        read_multicam(scene, (8, 8))
    other = tmp_path / "other" / "scene1"
    multicam_scene(other, {"cam01": steps["cam01"]})
    with pytest.raises(InputError, match="focal length"):
        read_multicam(other, (8, 8))
