import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import invert_pose, is_rigid
from inspatio_core.geometry.motion import se3_exp
from inspatio_core.geometry.trajectory import (
    curves,
    load_poses,
    load_trajectory,
    parse_trajectory,
    relative_to_first,
    sample,
    smooth_poses,
    target_poses,
    without_translation,
)

TRAJ = Path(__file__).resolve().parents[2] / "traj"
ZOOM = "0 0 0 0\n0 0 0 0\n0 -0.25 -0.5 -0.75 -1 -0.75 -0.5 -0.25 0 0 0.25 0.5 0.75 1 0.75 0.5 0.25 0\n"
EYE = torch.eye(4, dtype=torch.float64)


def poses(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return se3_exp(torch.randn(n, 6, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("keys", [2, 3, 4, 5, 19, 45])
def test_exact_curves_hit_their_keyframes_and_do_not_overshoot(keys):
    rng = np.random.default_rng(keys)
    values = rng.integers(-3, 4, keys) * 10.0
    line = " ".join(str(v) for v in values)
    got = curves(parse_trajectory(f"{line}\n{line}\n{line}"), 7 * (keys - 1) + 1)
    for curve in got:
        assert np.abs(curve[::7] - values).max() < 1e-12
        assert curve[0] == values[0] and curve[-1] == values[-1]
        low = np.minimum(values[1:], values[:-1]).repeat(7)
        high = np.maximum(values[1:], values[:-1]).repeat(7)
        assert (curve[:-1] >= low - 1e-12).all() and (curve[:-1] <= high + 1e-12).all()


def test_exact_reaches_what_compatible_misses():
    trajectory = parse_trajectory(ZOOM)
    exact, compatible = sample(trajectory, 69), sample(trajectory, 69, "compatible")
    assert exact[:, 2, 3].min() == -1 and exact[:, 2, 3].max() == 1
    assert compatible[:, 2, 3].abs().max() < 0.8
    assert torch.equal(exact[0], EYE) and torch.equal(exact[-1], EYE)


def test_a_rest_is_a_rest():
    path = sample(parse_trajectory("0 0 0 30 0 0 0\n0 0\n1 1\n"), 61)
    assert torch.equal(path[:20], EYE.expand(20, 4, 4))


@pytest.mark.parametrize("mode", ["exact", "compatible"])
def test_orbit_looks_at_its_centre(mode):
    path = sample(parse_trajectory("0 20 -10\n0 -30 40\n2 2\n"), 30, mode)
    assert is_rigid(path, 1e-6).all()
    centre = invert_pose(path)[:, :3] @ torch.tensor([0, 0, 2.0, 1], dtype=torch.float64)
    assert torch.allclose(centre, torch.tensor([0, 0, 2.0], dtype=torch.float64).expand(30, 3), atol=1e-6)


def test_signs():
    up = sample(parse_trajectory("0 20\n0 0\n1 1\n"), 2)[-1]
    left = sample(parse_trajectory("0 0\n0 20\n1 1\n"), 2)[-1]
    forward = sample(parse_trajectory("0 0\n0 0\n0 1\n"), 2)[-1]
    assert up[1, 3] < 0 and left[0, 3] < 0 and forward[2, 3] == 1


def test_scales():
    trajectory = parse_trajectory("0 20\n0 0\n1 1\n")  # yaw zero throughout: the zoom scale applies
    assert torch.allclose(
        sample(trajectory, 5, radius_scale=7.0, zoom_scale=3.0)[:, :3, 3], 3 * sample(trajectory, 5)[:, :3, 3]
    )
    trajectory = parse_trajectory("0 20\n0 10\n1 1\n")
    assert torch.allclose(
        sample(trajectory, 5, radius_scale=7.0, zoom_scale=3.0)[:, :3, 3], 7 * sample(trajectory, 5)[:, :3, 3]
    )


def test_without_translation():
    turning = without_translation(sample(parse_trajectory("0 20\n0 10\n1 1\n"), 5))
    assert not turning[:, :3, 3].any() and (turning[1:, :3, :3] != EYE[:3, :3]).any()
    zoom = sample(parse_trajectory("0 0\n0 0\n0 1\n"), 5)
    assert torch.equal(without_translation(zoom), zoom)


def test_few_frames_of_an_orbit_are_no_zoom():
    orbit = parse_trajectory("0 20 5 0\n0 10 0\n1 2\n")
    assert torch.equal(sample(orbit, 1)[0], EYE)
    assert torch.equal(sample(orbit, 2), EYE.expand(2, 4, 4))
    with pytest.raises(InputError, match="at least 1 frame"):
        sample(parse_trajectory("0 0\n0 0\n0 0\n"), 0)


@pytest.mark.parametrize("name", sorted(p.name for p in TRAJ.glob("*.txt")))
def test_shipped_trajectories_start_and_end_at_home(name):
    path = sample(load_trajectory(TRAJ / name), 121)
    assert is_rigid(path, 1e-12).all()
    assert torch.allclose(path[[0, -1]], EYE.expand(2, 4, 4), atol=1e-15)
    assert (path - EYE).abs().max() > 0.1


def test_there_are_five_shipped_trajectories():
    assert sorted(p.stem for p in TRAJ.glob("*.txt")) == [
        "drive_sweep",
        "pan",
        "tilt",
        "x_y_circle_cycle",
        "zoom_out_in",
    ]


BAD_FILES = {
    "0 1\n0 1": r"line 3 \(displacement\) is missing",
    "": r"line 1 \(pitch\) is missing",
    "0 1\n\n0 1\n": r"line 2 \(yaw\) is empty",
    "0 1\n0 1\n1": r"line 3 \(displacement\) has a single keyframe",
    "0 1\nleft right\n1 1": r"line 2 \(yaw\): 'left' is not a number",
    "0 nan\n0 1\n1 1": r"line 1 \(pitch\) contains NaN",
    "0 1\n0 1\n1 inf": r"line 3 \(displacement\) contains NaN or infinity",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_trajectory_files(tmp_path, text):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=BAD_FILES[text]) as error:
        load_trajectory(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_unreadable_trajectory_files(tmp_path):
    with pytest.raises(InputError, match="no such trajectory file"):
        load_trajectory(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot read"):
        load_trajectory(tmp_path)
    (tmp_path / "video.txt").write_bytes(b"\x00\xff\xfe\x80" * 9)
    with pytest.raises(InputError, match="not a text file"):
        load_trajectory(tmp_path / "video.txt")


def test_further_lines_and_a_byte_order_mark_are_ignored(tmp_path):
    (tmp_path / "t.txt").write_text("\ufeff0 1\r\n0 2\r\n0 3\r\nmade by hand\r\n", encoding="utf-8")
    assert load_trajectory(tmp_path / "t.txt").displacement.tolist() == [0.0, 3.0]


def test_targets_from_an_identity_are_the_same_in_both_modes():
    source, path = relative_to_first(poses(9)), sample(parse_trajectory("0 20\n0 10\n1 1\n"), 9)
    for relative in (False, True):
        for rotation_only in (False, True):
            got = target_poses(source, path, relative, rotation_only)
            assert torch.allclose(got, target_poses(source, path, relative, rotation_only, compatible=True), atol=1e-14)
    assert torch.equal(target_poses(source, path), path)
    assert torch.allclose(target_poses(source, path, True), source @ path, atol=1e-14)


def test_exact_targets_do_not_depend_on_the_world_frame():
    source, path = poses(9), sample(parse_trajectory("0 20\n0 10\n1 1\n"), 9)
    moved = poses(1, seed=5) @ source
    for relative in (False, True):
        assert torch.allclose(target_poses(source, path, relative), target_poses(moved, path, relative), atol=1e-13)
    assert not torch.allclose(
        target_poses(source, path, True, compatible=True), target_poses(moved, path, True, compatible=True), atol=1e-2
    )


def test_relative_targets_need_as_many_source_poses():
    with pytest.raises(InputError, match="8 source poses for 9"):
        target_poses(poses(8), poses(9), relative_to_source=True)


def test_smoothing_follows_a_camera_that_turns_round():
    angles = torch.linspace(0, 4 * math.pi, 240, dtype=torch.float64)
    turning = se3_exp(torch.stack([*[torch.zeros_like(angles)] * 4, angles, torch.zeros_like(angles)], -1))

    def worst(smoothed: torch.Tensor) -> float:
        step = smoothed[:-1, :3, :3].transpose(1, 2) @ smoothed[1:, :3, :3]
        return float(torch.arccos(((torch.einsum("nii->n", step) - 1) / 2).clamp(-1, 1)).max())

    assert worst(smooth_poses(turning)) < 0.06
    assert worst(smooth_poses(turning, compatible=True)) > 0.8
    middle = slice(20, -20)
    assert torch.allclose(smooth_poses(turning)[middle], turning[middle], atol=1e-6)


def test_smoothing_takes_out_shake():
    shaken = se3_exp(0.01 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    smoothed = smooth_poses(shaken)
    assert is_rigid(smoothed, 1e-12).all()
    assert (smoothed - EYE).abs().mean() < 0.5 * (shaken - EYE).abs().mean()


def test_pose_logs(tmp_path):
    T = poses(6)
    np.savetxt(tmp_path / "kitti.txt", T[:, :3].reshape(6, 12).numpy())
    np.savetxt(tmp_path / "full.txt", T.reshape(6, 16).numpy(), header="world_from_camera", delimiter=",")
    np.save(tmp_path / "a.npy", T.numpy())
    np.save(tmp_path / "b.npy", T[:, :3].numpy())
    from scipy.spatial.transform import Rotation

    q = Rotation.from_matrix(T[:, :3, :3].numpy()).as_quat()
    np.savetxt(tmp_path / "tum.txt", np.hstack([np.arange(6)[:, None] / 24, T[:, :3, 3].numpy(), q]))
    opengl = T.numpy() * np.array([1, -1, -1, 1])
    frames = [{"file_path": f"{i}.png", "transform_matrix": m.tolist()} for i, m in enumerate(opengl)]
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    for name in ("kitti.txt", "full.txt", "a.npy", "b.npy", "tum.txt", "transforms.json"):
        got = load_poses(tmp_path / name)
        assert got.dtype == torch.float64 and torch.allclose(got, T, atol=1e-12), name


def test_pose_logs_with_few_digits_are_made_rigid(tmp_path):
    np.savetxt(tmp_path / "kitti.txt", poses(6)[:, :3].reshape(6, 12).numpy(), fmt="%.5f")
    assert is_rigid(load_poses(tmp_path / "kitti.txt"), 1e-14).all()


def row(**changes: float) -> str:
    values = dict(enumerate([1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]))
    values.update({int(k[1:]): v for k, v in changes.items()})
    return " ".join(str(v) for v in values.values()) + "\n"


BAD_LOGS = {
    "twice.txt": (row() + row(_0=2.0), "line 2 is not rigid"),
    "mirror.txt": ("# poses\n\n" + row(_0=-1.0), "line 3 is not rigid"),
    "nan.txt": (row() * 2 + row(_3=float("nan")), "line 3 contains NaN"),
    "words.txt": (row() + "one two three\n", "line 2 is not a row of numbers"),
    "ragged.txt": (row() + "1 2 3\n", "line 2 has 3 numbers, need 12"),
    "width.txt": ("1 2 3\n", "line 1 has 3 numbers"),
    "empty.txt": ("# nothing\n", "no poses"),
    "tum.txt": ("0 0 0 0 0 0 0 0\n", "line 1 has a quaternion of length 0"),
    "tum_nan.txt": ("0 0 0 0 nan 0 0 1\n", "line 1 contains NaN"),
    "list.json": ("[1, 2]", "not a transforms.json"),
    "broken.json": ("{", "not a transforms.json"),
    "shape.json": ('{"frames": [{"transform_matrix": [[1, 0], [0, 1]]}]}', "frame 0 has a transform_matrix of shape"),
    "none.json": ('{"frames": []}', "no poses"),
    "text.npy": ("not numpy", "not a .npy file"),
}


@pytest.mark.parametrize("name", BAD_LOGS)
def test_bad_pose_logs(tmp_path, name):
    text, message = BAD_LOGS[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_poses(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_missing_pose_logs(tmp_path):
    for name in ("none.txt", "none.json", "none.npy"):
        with pytest.raises(InputError, match="no such pose file"):
            load_poses(tmp_path / name)
    np.save(tmp_path / "flat.npy", np.zeros((3, 12)))
    with pytest.raises(InputError, match="expected numbers of shape"):
        load_poses(tmp_path / "flat.npy")
