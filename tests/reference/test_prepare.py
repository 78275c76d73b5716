"""From clips to scene folders: what is chosen, what is said about it, and that it is done once and whole."""

import importlib.util
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from inspatio_core import checkpoints, reference
from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import intrinsics_from_fov
from inspatio_core.reference import open_reference, prepare
from inspatio_core.reference.depth import DepthMaps
from inspatio_core.reference.fastdepth import FastDepth, even_light, on_ground, upright
from inspatio_core.reference.poses import STILL, camera_motion
from inspatio_core.reference.scene import SceneWriter, read_scene

FIXTURES = Path(__file__).parent.parent / "fixtures"
GOLDEN = Path(__file__).parent.parent / "golden" / "depth_formats"
COURTYARD = Path(__file__).parent.parent.parent / "scenes" / "courtyard"
H, W = 96, 160


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache; the weights, if this machine has them, stay where they are."""
    weights = checkpoints.locate("fastdepth")
    monkeypatch.setenv("INSPATIO_CACHE", str(tmp_path / "cache"))
    if weights is not None:
        monkeypatch.setattr(checkpoints, "locate", lambda name: weights)


@pytest.fixture
def without_tools(monkeypatch):
    """A machine without pycolmap and without weights."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "pycolmap" else find_spec(n, *a))
    monkeypatch.setattr(checkpoints, "locate", lambda name: None)


def texture(height=3 * H, width=3 * W, seed=0):
    """Detail of all sizes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for size in (4, 8, 16, 32):
        noise = rng.random((height // size + 2, width // size + 2, 3), np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image / 4 * 255, 0, 255).astype(np.uint8)


def clip(folder, count=10, pan=0.0, moving=True):
    """A folder of images: a wall seen by a camera that pans by `pan` pixels a frame, with a square that moves."""
    folder.mkdir()
    wall = texture()
    for i in range(count):
        left = 40 + round(pan * i)
        image = wall[60 : 60 + H, left : left + W].copy()
        if moving:
            image[30:60, 20 + 6 * i : 50 + 6 * i] = texture(seed=9)[:30, :30]
        cv2.imwrite(str(folder / f"{i:03d}.png"), image[..., ::-1])
    return folder


class Listed:
    """`Frames` over arrays."""

    def __init__(self, images):
        self.images, self.size, self.files = images, images[0].shape[:2], []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]

    small = __getitem__


def moved(kind):
    """Twelve noisy frames of a wall; what moves, and how, is `kind`."""
    wall, images, rng = texture(), [], np.random.default_rng(1)
    slow = kind.endswith("slowly")
    pan = kind.startswith("pan") * (1 / 3 if slow else 2)
    for i in range(12):
        dx, dy = int(pan * i), i if kind == "tilt" else 0
        image = wall[60 + dy : 60 + dy + H, 40 + dx : 40 + dx + W].astype(float)
        if "hood" in kind:  # a lower part of the picture goes with the camera
            rows = round(H * (0.33 if "third" in kind else 0.4))
            image[-rows:] = texture(seed=5)[:rows, :W]
        if "beside" in kind:
            image[:, : int(0.4 * W)] = texture(seed=5)[:H, : int(0.4 * W)]
        if kind.startswith("object"):  # 30 % of the picture moves
            width, left = int(0.3 * W), 5 + i * (1 if slow else 6)
            image[:, left : left + width] = texture(seed=3)[100 : 100 + H, :width]
        if kind == "crowd":  # more than half of the picture moves, every which way
            for k, (v, u) in enumerate([(1, 2), (-2, 1), (2, -2), (0, 3), (-1, -3), (3, 0)]):
                top, left = np.random.default_rng(k).integers(0, [H - 44, W - 44])
                top, left = int(np.clip(top + v * i, 0, H - 44)), int(np.clip(left + u * i, 0, W - 44))
                image[top : top + 44, left : left + 44] = texture(seed=20 + k)[:44, :44]
        image = cv2.resize(image, (2 * W, 2 * H), interpolation=cv2.INTER_CUBIC)
        images.append(np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8))
    return Listed(images)


@pytest.mark.parametrize("kind", ["still", "still, hood", "crowd", "object", "object, slowly"])
def test_a_camera_that_stands(kind):
    assert camera_motion(moved(kind)) <= STILL


@pytest.mark.parametrize(
    "kind", ["pan", "pan, slowly", "tilt", "pan, a third hood", "pan, 40 % hood", "pan, hood, slowly", "pan, beside"]
)
def test_a_camera_that_moves(kind):
    assert camera_motion(moved(kind)) > STILL


def test_a_camera_that_goes_forward_over_a_hood():
    """Parallax: no two parts of the courtyard move alike, and the lower 40 % of the picture stand."""
    true = open_reference(COURTYARD).resized((240, 416))
    images = [true.rgb(i).numpy().copy() for i in range(0, 72, 6)]
    for image in images:
        image[144:] = images[0][144:]
    assert camera_motion(Listed(images)) > STILL


def test_cameras_of_which_nobody_can_tell(tmp_path, without_tools):
    assert camera_motion(Listed([texture()[:H, :W]])) == 0.0
    assert camera_motion(Listed([np.full((H, W, 3), 90, np.uint8)] * 5)) is None
    assert camera_motion(Listed([texture(seed=i)[:H, :W] for i in range(6)])) is None
    (tmp_path / "fog").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "fog" / f"{i}.png"), np.full((H, W, 3), 90, np.uint8))
    ref = open_reference(tmp_path / "fog")
    assert ref.pose_source == "static camera"
    assert any("fog: cannot tell whether the camera moves" in n for n in ref.notices)
    assert not any("cannot tell" in n for n in open_reference(tmp_path / "fog", poses="static").notices)


def test_a_still_clip(tmp_path, without_tools):
    out = prepare(clip(tmp_path / "clip"), tmp_path / "scene")
    ref = open_reference(out)
    assert ref.frame_count == 10 and ref.size == (H, W) and ref.pose_source == "static camera" and not ref.metric
    assert ref.median_depth == pytest.approx(3.0, rel=0.01)
    assert torch.equal(ref.world_from_camera, torch.eye(4, dtype=torch.float64).expand(10, 4, 4))
    assert len(ref.notices) == 1 and "tilted plane" in ref.notices[0] and "checkpoints download" in ref.notices[0]
    expected = intrinsics_from_fov((H, W), 60.0)
    torch.testing.assert_close(ref.K[3], expected)
    data = read_scene(out).data
    assert data["focal_source"] == "assumed" and data["metres_per_unit"] == ref.metres_per_unit
    masks = torch.stack([ref.moving(i) for i in range(10)])
    assert all(float(masks[i, 30:60, 20 + 6 * i : 50 + 6 * i].float().mean()) > 0.5 for i in (3, 5, 7))
    assert not bool(masks[:, 85:].any()) and float(masks.float().mean()) < 0.4
    depth = ref.depth(0)
    assert bool((depth[:-1] >= depth[1:]).all()) and float(depth[0, 0] / depth[-1, 0]) == pytest.approx(4, rel=0.02)


def test_moving_cameras_without_poses_are_named(tmp_path, without_tools):
    source = clip(tmp_path / "clip", pan=3.0, moving=False)
    ref = open_reference(source)
    assert any(n.startswith("moving camera but no poses") and "inspatio[sfm]" in n for n in ref.notices)
    assert ref.moving(0) is None
    with pytest.raises(InputError, match="pycolmap is not installed"):
        open_reference(source, poses="sfm")
    chosen = open_reference(source, poses="static")
    assert not any("moving camera" in n for n in chosen.notices) and chosen.pose_source == "static camera"


def test_prepared_once(tmp_path, without_tools, monkeypatch):
    source = clip(tmp_path / "clip")
    first = open_reference(source, "auto")
    assert first.size == (480, 832) and str(first.path).startswith(str(tmp_path / "cache" / "scenes"))

    def fail(*args, **kwargs):
        raise AssertionError("prepared again")

    monkeypatch.setattr(reference, "prepare", fail)
    again = open_reference(source, (H, W))
    assert again.path == first.path and torch.equal(again.depth(2), open_reference(first.path).depth(2))
    with pytest.raises(AssertionError, match="prepared again"):
        open_reference(source, poses="static")
    cv2.imwrite(str(source / "005.png"), texture()[:H, :W])
    with pytest.raises(AssertionError, match="prepared again"):
        open_reference(source)


def test_one_image(tmp_path, without_tools):
    cv2.imwrite(str(tmp_path / "one.png"), texture()[:H, :W])
    ref = open_reference(tmp_path / "one.png", "auto")
    assert ref.frame_count == 1 and ref.rgb(0).shape == (480, 832, 3) and ref.moving(0) is None
    upright = np.ascontiguousarray(texture()[:W, :H])
    cv2.imwrite(str(tmp_path / "upright.png"), upright)
    assert open_reference(tmp_path / "upright.png", "auto").size == (832, 480)


def test_options(tmp_path, without_tools):
    source = clip(tmp_path / "clip", count=2)
    ref = open_reference(source, fov=90.0)
    assert float(ref.K[0, 0, 0]) == pytest.approx(W / 2)
    prepare(source, tmp_path / "small", longest_side=80, caption="a wall")
    small = open_reference(tmp_path / "small")
    assert small.size == (48, 80) and small.caption == "a wall"
    for match, options in {
        "fov": {"fov": 200.0},
        "depth magic": {"depth": "magic"},
        "poses magic": {"poses": "magic"},
        "weights are not here": {"depth": "fastdepth"},
        "depth sweep": {"depth": "sweep"},
    }.items():
        with pytest.raises(InputError, match=match):
            open_reference(source, **options)
    with pytest.raises(InputError, match="size"):
        open_reference(source, "480x832")
    with pytest.raises(InputError, match="no such file"):
        open_reference(tmp_path / "gone.mp4")
    for empty in ("", "  "):
        with pytest.raises(InputError, match="name is empty"):
            open_reference(empty)
        with pytest.raises(InputError, match="empty"):
            prepare(empty, tmp_path / "out")
        with pytest.raises(InputError, match="empty"):
            prepare(source, empty)
    with pytest.raises(InputError, match="small: fov is given, but this scene has its own intrinsics"):
        open_reference(tmp_path / "small", fov=70.0)
    for known in (tmp_path / "small", GOLDEN / "da3"):
        with pytest.raises(InputError, match="fov is given, but intrinsics are known"):
            prepare(known, tmp_path / "out", fov=70.0)
    with pytest.raises(InputError, match="longest_side"):
        prepare(source, tmp_path / "out", longest_side=3)


class GivesUp:
    """A provider that fails in the middle."""

    name = "gives up"

    def estimate(self, frames, cameras, progress):
        return DepthMaps((np.full(frames.size, 1 / (2 - i), np.float32) for i in range(len(frames))), 1.0, "half")


def test_interrupted_or_failed_leaves_nothing(tmp_path, without_tools):
    source = clip(tmp_path / "clip", count=4)
    before = sorted(os.listdir(tmp_path))
    for stage in ("frames", "depth", "masks"):

        def stop(now, share, stage=stage):
            if now == stage and share > 0.3:
                raise KeyboardInterrupt

        if stage == "depth":
            with pytest.raises(ZeroDivisionError):
                prepare(source, tmp_path / "scene", depth=GivesUp())
        else:
            with pytest.raises(KeyboardInterrupt):
                prepare(source, tmp_path / "scene", progress=stop)
        assert sorted(os.listdir(tmp_path)) == before


def test_other_folders_are_not_overwritten(tmp_path, without_tools):
    source = clip(tmp_path / "clip", count=2)
    with pytest.raises(InputError, match="not a scene folder"):
        prepare(source, source)
    assert len(os.listdir(source)) == 2


def test_da3_folder():
    ref = open_reference(GOLDEN / "da3")
    assert ref.frame_count == 3 and ref.size == (24, 40) and ref.metric and ref.depth_source == "DA3"
    assert float(ref.K[1, 0, 0]) == pytest.approx(36.36, abs=1e-3) and float(ref.K[0, 0, 2]) == pytest.approx(20.0)
    w2c = np.loadtxt(GOLDEN / "da3/extrinsic.txt").reshape(-1, 3, 4)
    poses = [np.linalg.inv(np.vstack([m, [0, 0, 0, 1]])) for m in w2c]
    np.testing.assert_allclose(ref.world_from_camera[2], np.linalg.inv(poses[0]) @ poses[2], atol=1e-6)
    assert bool((ref.depth(0) > 0).all())


def test_pi3_depth_for_given_frames():
    with pytest.raises(InputError, match="without its frames"):
        open_reference(GOLDEN / "pi3")
    ref = open_reference(GOLDEN / "da3" / "frames", depth=GOLDEN / "pi3")
    da3 = open_reference(GOLDEN / "da3")
    assert ref.depth_source == "Pi3" and ref.metric
    torch.testing.assert_close(ref.world_from_camera, da3.world_from_camera, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="they must be of the same clip"):
        open_reference(GOLDEN / "da3" / "frames" / "0000.jpg", depth=GOLDEN / "pi3")


def broken_da3(tmp_path, depth=None, extrinsic=None):
    folder = tmp_path / "da3"
    shutil.copytree(GOLDEN / "da3", folder)
    folder.chmod(0o755)
    if depth is not None:
        rgba = np.ascontiguousarray(np.full((24, 40, 1), depth, "<f4")).view(np.uint8)
        (folder / "depth/0001.png").unlink()
        cv2.imwrite(str(folder / "depth/0001.png"), np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]))
    if extrinsic is not None:
        (folder / "extrinsic.txt").unlink()
        (folder / "extrinsic.txt").write_text(extrinsic)
    return folder


ROW = "1 0 0 0\n0 1 0 0\n0 0 1 0\n"


@pytest.mark.parametrize(
    "change, match",
    [
        ({"depth": np.nan}, "depth of frame 1: no pixel has a finite, positive depth"),
        ({"depth": -1.0}, "depth of frame 1"),
        ({"extrinsic": ROW + ROW.replace("1", "2") + ROW}, "the pose of frame 1 is not a rigid"),
        ({"extrinsic": ROW + ROW.replace("1 0 0 0", "nan 0 0 0") + ROW}, "the pose of frame 1"),
        ({"extrinsic": ROW}, "3 depth maps, 1 poses"),
        ({"extrinsic": "words"}, "extrinsic.txt: 0 numbers"),
    ],
)
def test_broken_da3_folders(tmp_path, change, match):
    with pytest.raises(InputError, match=match) as error:
        open_reference(broken_da3(tmp_path, **change))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("transforms.json"))


def test_poses_of_a_file(tmp_path, without_tools):
    source = clip(tmp_path / "clip", count=3, pan=3)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0, 0.1, 0.2]
    np.save(tmp_path / "poses.npy", poses)
    ref = open_reference(source, poses=tmp_path / "poses.npy", depth="plane", metres_per_unit=1.0)
    torch.testing.assert_close(ref.world_from_camera, torch.as_tensor(poses))
    assert ref.pose_source == "poses.npy" and not any("moving camera" in n for n in ref.notices)
    np.save(tmp_path / "poses.npy", poses[:2])
    with pytest.raises(InputError, match="clip"):
        open_reference(clip(tmp_path / "short", count=1), poses=tmp_path / "poses.npy")


def courtyard(folder, indices, size):
    """Some frames of the sample scene, smaller and without depth; their exact depth and cameras."""
    true = open_reference(COURTYARD).resized(size)
    with SceneWriter(folder) as writer:
        for n, i in enumerate(indices):
            writer.image(n, true.rgb(i).numpy())
        poses = true.world_from_camera[list(indices)].numpy()
        writer.finish(true.K[0].numpy(), poses, size=size, fps=24.0, metric=True)
    return folder, torch.stack([true.depth(i) for i in indices]), poses


def test_plane_sweep(tmp_path, without_tools):
    folder, true, _ = courtyard(tmp_path / "scene", range(0, 60, 10), (160, 276))
    ref = open_reference(folder)
    assert ref.depth_source == "plane sweep" and ref.metric
    error = torch.stack([(ref.depth(i) / true[i]).log().abs() for i in range(6)])
    assert float(error.median()) < 0.15
    assert float((error < 0.22).float().mean()) > 0.55


@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="pycolmap (extra sfm) is not installed")
def test_structure_from_motion(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "locate", lambda name: None)
    folder, _, true = courtyard(tmp_path / "scene", range(0, 70, 7), (240, 416))
    ref = open_reference(folder / "images")
    assert ref.pose_source.startswith("structure from motion") and not ref.metric
    true = np.linalg.inv(true[0]) @ true
    found = ref.world_from_camera.numpy()
    scale = (true[:, :3, 3] * found[:, :3, 3]).sum() / (found[:, :3, 3] ** 2).sum()
    path = np.linalg.norm(true[-1, :3, 3])
    assert np.linalg.norm(true[:, :3, 3] - scale * found[:, :3, 3], axis=-1).max() < 0.15 * path
    turned = np.einsum("nij,nkj->nik", true[:, :3, :3], found[:, :3, :3])
    assert np.degrees(np.arccos(np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1))).max() < 2.5


needs_weights = pytest.mark.skipif(checkpoints.locate("fastdepth") is None, reason="fastdepth is not downloaded")


@needs_weights
def test_fastdepth_orders_the_cup_before_the_background():
    ref = open_reference(FIXTURES / "coffee.mp4")
    assert ref.depth_source == "fastdepth" and ref.pose_source == "static camera" and ref.notices == ()
    height, width = ref.size

    def depth_at(i, v0, v1, u0, u1):
        part = ref.depth(i)[int(v0 * height) : int(v1 * height), int(u0 * width) : int(u1 * width)]
        return float(part.median())

    for i in range(ref.frame_count):
        cup = depth_at(i, 0.18, 0.40, 0.33, 0.44)
        dark_beside = depth_at(i, 0.05, 0.45, 0.92, 1.0)
        table_behind = depth_at(i, 0.0, 0.06, 0.30, 0.60)
        table_in_front = depth_at(i, 0.85, 1.0, 0.60, 0.90)
        shadow_in_front = depth_at(i, 0.85, 1.0, 0.33, 0.44)
        table_at_its_left = depth_at(i, 0.18, 0.40, 0.25, 0.30)
        table_at_its_right = depth_at(i, 0.18, 0.40, 0.485, 0.51)
        assert cup < 0.95 * min(table_at_its_left, table_at_its_right)
        assert cup < 0.9 * table_behind
        assert cup < 0.9 * dark_beside
        assert table_in_front < cup and shadow_in_front < cup


@needs_weights
def test_fastdepth_of_the_courtyard():
    """Exact depth to compare with: no worse than it is, scale apart."""
    true, network, errors = open_reference(COURTYARD).resized((240, 416)), FastDepth(), []
    for i in (0, 24, 48, 72):
        inverse = on_ground(np.exp(-network.guess(true.rgb(i).numpy())))
        depth, exact = 1 / cv2.resize(inverse, (416, 240)), true.depth(i).numpy()
        errors.append(np.abs(depth * np.median(exact) / np.median(depth) / exact - 1).mean())
    assert np.mean(errors) < 0.42


def ground(height=224, width=224):
    """Inverse depth of a table that comes nearer downwards."""
    return np.repeat(np.linspace(0.3, 1.0, height, dtype=np.float32)[:, None], width, axis=1)


def test_what_stands_out_of_the_ground_stands_upright():
    table = ground()
    seen = table.copy()
    seen[60:80, 90:120] *= 1.3  # the upper part of a cup, which is as much as a network may see
    seen[150:200, 30:60] *= 0.7  # a shadow
    out = on_ground(seen)
    rim = float(out[70, 105])
    assert rim > 1.15 * table[70, 105]
    column = out[64:216, 105]
    assert (column >= 0.97 * np.maximum.accumulate(column)).all()  # nothing behind it below it
    np.testing.assert_allclose(out[190:215, 105], table[190:215, 105], rtol=0.03)  # where it stands it ends
    np.testing.assert_allclose(out[175, 45], table[175, 45], rtol=0.15)
    np.testing.assert_allclose(out[60:160, 160:215], table[60:160, 160:215], rtol=0.04)


def test_patches_at_the_edge_are_not_stood_up():
    table = ground()
    for part in ((slice(0, 40), slice(80, 120)), (slice(60, 100), slice(0, 40)), (slice(20, 200), slice(20, 200))):
        patch = np.zeros(table.shape, bool)
        patch[part] = True
        seen = np.where(patch, 1.3 * table, table)
        smooth = cv2.GaussianBlur(seen, (0, 0), 224 / 150)
        np.testing.assert_array_equal(upright(seen, patch), smooth)
    patch = np.zeros(table.shape, bool)
    patch[60:100, 80:120] = True
    out = upright(np.where(patch, 1.3 * table, table), patch)
    assert float(out[110, 100]) > 1.2 * table[110, 100] and float(out[110, 60]) == pytest.approx(
        table[110, 60], rel=1e-3
    )


def test_even_light():
    """A shadow's edge fades, the texture stays."""
    image = texture()[:224, :224] // 2 + 60
    shaded = image.copy()
    shaded[:, 112:] //= 3
    even = even_light(shaded).astype(float)
    assert even[:, 120:].mean() / even[:, :104].mean() > 1.5 * shaded[:, 120:].mean() / shaded[:, :104].mean()
    assert np.corrcoef(even[:, :80].ravel(), image[:, :80].ravel())[0, 1] > 0.8


@needs_weights
def test_fastdepth_is_steady_and_crisp(tmp_path):
    source = clip(tmp_path / "clip", count=8)
    ref = open_reference(source)
    depth = torch.stack([ref.depth(i) for i in range(8)])
    assert torch.equal(depth[:, 80:], depth[:1, 80:].expand(8, -1, -1))  # nothing ever moves down there
    assert bool(torch.isfinite(depth).all() and (depth > 0).all())


@needs_weights
def test_fastdepth_of_a_moving_camera_is_level(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "pycolmap" else find_spec(n, *a))
    ref = open_reference(clip(tmp_path / "clip", count=6, pan=3, moving=False))
    medians = torch.stack([ref.depth(i).median() for i in range(6)])
    assert ref.depth_source == "fastdepth" and float(medians.max() / medians.min()) < 1.25
