"""Scene folders: what is written is what another tool reads by nerfstudio's conventions, and comes back the same."""

import json
import os
import threading

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from inspatio_core.errors import InputError
from inspatio_core.reference import open_reference
from inspatio_core.reference.scene import SceneWriter, is_scene, open_scene, read_depth, read_scene

H, W, N = 48, 64, 3


def camera(i):
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("yx", [0.2 * i, 0.1 * i]).as_matrix()
    T[:3, 3] = [0.3 * i, -0.1 * i, 0.2 * i]
    return T


K = np.array([[50.0, 0, 30.0], [0, 52.0, 25.0], [0, 0, 1]])
POSES = np.stack([camera(i) for i in range(N)])


def frame(i):
    v, u = np.mgrid[:H, :W]
    return np.stack([u * 3, v * 4, np.full_like(u, 40 * i)], -1).astype(np.uint8)


def depth(i):
    v, u = np.mgrid[:H, :W]
    return (2 + 0.01 * u + 0.02 * v + 0.5 * i).astype(np.float32)


def write(path, unit=0.001, K=K, poses=POSES, masks=True, **entries):
    with SceneWriter(path) as writer:
        for i in range(len(poses)):
            writer.image(i, frame(i))
            writer.depth(i, depth(i), unit)
            if masks:
                moving = np.zeros((H, W), bool)
                moving[10:20, 5 * i : 5 * i + 9] = True
                writer.mask(i, moving)
                writer.true_moving(i, ~moving)
        defaults = {"fps": 25.0, "metric": True, "depth_unit_scale_factor": unit}
        writer.finish(K, poses, size=(H, W), **(defaults | entries))
    return path


def test_a_stranger_reads_the_cameras(tmp_path):
    """nerfstudio: x right, y up, z backward; u = cx - fl_x x / z, with u = 0.5 at the centre of the first pixel."""
    write(tmp_path / "scene")
    data = json.loads((tmp_path / "scene/transforms.json").read_text())
    assert (data["w"], data["h"], data["fps"], data["camera_model"]) == (W, H, 25.0, "OPENCV")
    point = np.array([0.4, -0.3, 5.0])  # in the world of POSES
    for i, entry in enumerate(data["frames"]):
        c2w = np.array(entry["transform_matrix"])
        x, y, z = c2w[:3, :3].T @ (point - c2w[:3, 3])
        u, v = data["cx"] - data["fl_x"] * x / z, data["cy"] + data["fl_y"] * y / z
        ours = K @ (np.linalg.inv(POSES[i]) @ [*point, 1])[:3]
        np.testing.assert_allclose([u - 0.5, v - 0.5], ours[:2] / ours[2], atol=1e-9)
        np.testing.assert_allclose(c2w[:3, 3], POSES[i][:3, 3])  # both have the same centre


def test_a_stranger_reads_the_files(tmp_path):
    write(tmp_path / "scene", unit=0.002)
    data = json.loads((tmp_path / "scene/transforms.json").read_text())
    for i, entry in enumerate(data["frames"]):
        counts = cv2.imread(str(tmp_path / "scene" / entry["depth_file_path"]), cv2.IMREAD_UNCHANGED)
        assert counts.dtype == np.uint16
        np.testing.assert_allclose(counts * data["depth_unit_scale_factor"], depth(i), atol=0.00101)
        image = cv2.imread(str(tmp_path / "scene" / entry["file_path"]))[..., ::-1]
        assert np.abs(image.astype(int) - frame(i)).mean() < 3
        mask = cv2.imread(str(tmp_path / "scene" / entry["mask_path"]), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (H, W) and mask[12, 5 * i + 1] == 0 and mask[40, 40] == 255


def test_round_trip(tmp_path):
    ref = open_reference(write(tmp_path / "scene", caption="a wall", notices=["look out"]))
    assert (ref.frame_count, ref.size, ref.fps, ref.metric, ref.metres_per_unit) == (N, (H, W), 25.0, True, 1.0)
    assert ref.caption == "a wall" and ref.notices == ("look out",) and ref.name == "scene"
    torch.testing.assert_close(ref.K, torch.as_tensor(K).expand(N, 3, 3))
    torch.testing.assert_close(ref.world_from_camera, torch.as_tensor(POSES), atol=1e-12, rtol=0)
    for i in range(N):
        assert float((ref.depth(i) - torch.tensor(depth(i))).abs().max()) <= 0.00051
        assert bool(ref.moving(i)[12, 5 * i + 1]) and not bool(ref.moving(i)[40, 40])
    true = open_scene(tmp_path / "scene", moving="true")
    assert torch.equal(true.moving(1), ~ref.moving(1))
    assert open_scene(tmp_path / "scene", moving="none").moving(1) is None


def test_scale_of_scenes_without_one(tmp_path):
    path = write(tmp_path / "scene", metric=False)
    free = open_scene(path)
    assert free.median_depth == pytest.approx(3.0) and not free.metric
    assert float(free.world_from_camera[1, 0, 3]) == pytest.approx(0.3 * free.metres_per_unit)
    assert open_scene(path, metres_per_unit=2.0).median_depth == pytest.approx(2 * 3.0 / free.metres_per_unit, rel=1e-3)
    with pytest.raises(InputError, match="metres_per_unit must be positive"):
        open_scene(path, metres_per_unit=0.0)
    stored = open_scene(write(tmp_path / "two", metric=False, metres_per_unit=0.5))
    assert stored.metres_per_unit == 0.5


def test_unknown_depth_is_filled(tmp_path):
    path = write(tmp_path / "scene")
    file = path / "depth/000001.png"
    counts = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    counts[20:30, 20:30] = 0
    cv2.imwrite(str(file), counts)
    out = open_scene(path).depth(1)
    assert bool((out > 1).all()) and float((out - torch.tensor(depth(1))).abs().max()) < 0.3


def test_depth_formats(tmp_path):
    d = depth(0)
    d[0, 0] = np.nan
    np.save(tmp_path / "d.npy", d)
    np.testing.assert_array_equal(read_depth(tmp_path / "d.npy", 1.0), d)
    rgba = np.ascontiguousarray(d[..., None]).view(np.uint8)
    cv2.imwrite(str(tmp_path / "d.png"), np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]))
    np.testing.assert_array_equal(read_depth(tmp_path / "d.png"), d)
    (tmp_path / "bad.png").write_bytes(b"no")
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((4, 4), np.uint8))
    for name in ("bad.png", "grey.png", "gone.png", "gone.npy"):
        with pytest.raises(InputError, match=name):
            read_depth(tmp_path / name)


def test_foreign_folders(tmp_path):
    """Frames out of order, intrinsics per frame, a focal length for both axes, nothing of our own."""
    path = write(tmp_path / "scene", masks=False)
    data = json.loads((path / "transforms.json").read_text())
    frames = [f | {"fl_x": 50.0 + i, "cx": 32.0, "cy": 24.0} for i, f in enumerate(data["frames"])]
    foreign = {"w": W, "h": H, "k1": 0.1, "frames": frames[::-1]}
    (path / "transforms.json").write_text(json.dumps(foreign))
    ref = open_scene(path, metres_per_unit=1.0)
    torch.testing.assert_close(ref.world_from_camera, torch.as_tensor(POSES), atol=1e-12, rtol=0)
    assert ref.K[:, 0, 0].tolist() == [50, 51, 52] and ref.K[2, 1, 1] == 52 and ref.K[0, 0, 2] == 31.5
    assert not ref.metric and any("distortion" in n for n in ref.notices)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"frames": []}, "no frames"),
        ({"frames": None}, "not a scene description"),
        ({"w": None}, "no w"),
        ({"frames": [{"file_path": "images/000000.jpg"}]}, "transform_matrix"),
        ({"frames": [{"file_path": "images/9.jpg", "transform_matrix": np.eye(4).tolist()}]}, "images/9.jpg"),
        ({"frames": [{"file_path": "images/000000.jpg", "transform_matrix": [[1, 2], [3, 4]]}]}, "frame 0"),
    ],
)
def test_broken_descriptions(tmp_path, change, match):
    path = write(tmp_path / "scene")
    file = path / "transforms.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=match) as error:
        open_reference(path)
    assert "\n" not in str(error.value)


WRONG_NUMBERS = ["x", float("nan"), float("inf"), [1], {}, True, -5, 0, 1e30]
WRONG = (
    [(key, value) for key in ("w", "h", "fl_x", "depth_unit_scale_factor", "fps") for value in WRONG_NUMBERS]
    + [("w", 1e9), ("w", W + 1), ("h", H - 1), ("w", None), ("fl_x", None)]
    + [(key, value) for key in ("cx", "cy", "k1", "p2") for value in ("x", float("nan"), [1], 1e30)]
    + [("fl_y", "x"), ("fl_y", 0), ("metres_per_unit", "x"), ("metres_per_unit", 0), ("metres_per_unit", -1)]
    + [("metric", "false"), ("metric", 1), ("notices", 5), ("notices", "words"), ("notices", [5])]
    + [(key, 5) for key in ("name", "caption", "depth_source", "pose_source")]
    + [("frames." + key, 5) for key in ("file_path", "depth_file_path", "mask_path", "true_moving_path")]
    + [("frames.depth_file_path", ["a"]), ("frames.depth_file_path", "/elsewhere/0.png"), ("frames.w", "x")]
    + [("frames.transform_matrix", value) for value in (5, "x", None, [[1, 2], [3, 4]], [[1, 2], [3]], {}, [["x"] * 4])]
    + [("frames.fl_x", "x"), ("frames.fl_x", float("nan")), ("frames.cx", "x"), ("frames", 5), ("frames", [5])]
)


@pytest.mark.parametrize("key, value", WRONG, ids=[f"{key}={value}" for key, value in WRONG])
def test_wrong_entries(tmp_path, key, value):
    path = write(tmp_path / "scene")
    file = path / "transforms.json"
    data = json.loads(file.read_text())
    place = data["frames"][0] if key.startswith("frames.") else data
    place[key.split(".")[-1]] = value
    file.write_text(json.dumps(data))
    with pytest.raises(InputError) as error:
        open_reference(path)
    message = str(error.value)
    assert message.startswith(str(file)) and "\n" not in message
    assert key.split(".")[-1] in message or "not a scene description" in message or "/elsewhere/0.png" in message


def test_entries_may_be_null(tmp_path):
    path = write(tmp_path / "scene", metric=False)
    file = path / "transforms.json"
    empty = dict.fromkeys(
        ["fps", "depth_unit_scale_factor", "metres_per_unit", "notices", "name", "caption", "cx", "k1"]
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | empty))
    ref = open_reference(path)
    assert ref.fps == 24 and ref.name == "scene" and ref.notices == () and float(ref.K[0, 0, 2]) == W / 2 - 0.5


def test_words_instead_of_json(tmp_path):
    (tmp_path / "transforms.json").write_text("words")
    with pytest.raises(InputError, match="not a scene description"):
        open_reference(tmp_path)
    with pytest.raises(InputError, match="no transforms.json"):
        read_scene(tmp_path / "elsewhere")


def test_poses_that_are_not_rigid(tmp_path):
    for bad, name in ((2.0, "stretched"), (np.nan, "nan")):
        poses = POSES.copy()
        poses[1, 0, 0] = bad
        with pytest.raises(InputError, match="frame 1 is not a rigid"):
            open_reference(write(tmp_path / name, poses=poses))


def test_nothing_remains_of_what_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), SceneWriter(tmp_path / "scene") as writer:
        writer.image(0, frame(0))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_writers_refuse_and_replace(tmp_path):
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.txt").write_text("mine")
    for out in (other, other / "a.txt", other / "a.txt" / "scene"):
        with pytest.raises(InputError, match="photos"):
            SceneWriter(out)
    assert (other / "a.txt").read_text() == "mine" and os.listdir(other) == ["a.txt"]
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "scene"):
        write(out)
        write(out, caption="again")
        assert open_reference(out).caption == "again"
    assert sorted(os.listdir(tmp_path)) == ["empty", "photos", "scene"]


def test_errors_of_writing_are_raised(tmp_path):
    with pytest.raises(OSError), SceneWriter(tmp_path / "scene") as writer:
        writer.file("images", 0)
        os.rmdir(writer.path / "images")
        (writer.path / "images").write_text("in the way")
        writer._submit(lambda: (_ for _ in ()).throw(OSError("disk full")))
        writer.finish(K, POSES, size=(H, W), fps=24.0)
    assert os.listdir(tmp_path) == []


def test_threads_read_the_same(tmp_path):
    ref = open_reference(write(tmp_path / "scene"))
    results = []
    threads = [threading.Thread(target=lambda: results.append(ref.rgb(1).clone())) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 8 and all(torch.equal(r, results[0]) for r in results) and is_scene(ref.path)
