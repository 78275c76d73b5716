"""Trajectory files, target poses and index helpers, in compatible mode."""

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import invert_pose
from inspatio_core.geometry.frame_plan import bounce, total_angle
from inspatio_core.geometry.trajectory import curves, parse_trajectory, sample, target_poses, without_translation

from .harness import Case, parametrize

BAD_FILES = {"one_keyframe": "0\n0 0\n0 0\n", "empty_line": "0 0\n\n0 0\n"}


@parametrize("trajectory")
def test_trajectory(case: Case) -> None:
    meta, tensors = case.meta, case.tensors
    known = False
    if "out.c2w" in tensors:
        known = True
        check_path(case)
    if "in.extrinsic_w2c_3x4" in tensors:
        known = True
        check_targets(case)
    for row in meta.get("bounce", []):
        known = True
        assert bounce(row["n_source"], row["n_target"]).tolist() == row["indices"]
    for row in meta.get("total_angle", []):
        known = True
        angle = total_angle(parse_trajectory(row["trajectory_text"]))
        assert angle == pytest.approx(row["total_angle"], abs=1e-9)
    for error in meta.get("errors", {}):
        known = True
        if error not in BAD_FILES:
            pytest.fail(f"{case.name}: unknown error case {error}")
        with pytest.raises(InputError):
            parse_trajectory(BAD_FILES[error])
    assert known, f"{case.name}: nothing known to check"


def check_path(case: Case) -> None:
    meta, tensors = case.meta, case.tensors
    trajectory = parse_trajectory(meta["trajectory_text"])
    scales = {"radius_scale": meta.get("radius_scale", 1.0), "zoom_scale": meta.get("zoom_scale", 1.0)}
    n = meta["frames"]
    assert torch.equal(torch.from_numpy(trajectory.pitch), tensors["in.pitch"])
    assert torch.equal(torch.from_numpy(trajectory.yaw), tensors["in.yaw"])

    got = curves(trajectory, n, "compatible", **scales, pin_ends=False)
    case.check("out.pitch_interp", got.pitch, "interp")
    case.check("out.yaw_interp", got.yaw, "interp")
    case.check("out.r_interp_unpinned", got.radius, "interp")
    if "all_pitch_zero" in meta:
        assert not got.pitch.any() == meta["all_pitch_zero"]
    if "all_yaw_zero" in meta:
        assert not got.yaw.any() == meta["all_yaw_zero"]

    poses = sample(trajectory, n, "compatible", **scales)
    case.check("out.c2w", without_translation(poses) if meta.get("is_translation") else poses, "c2w")


def check_targets(case: Case) -> None:
    meta = case.meta
    rows = case.tensors["in.extrinsic_w2c_3x4"]
    w2c = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    w2c[:, :3] = rows
    source = invert_pose(w2c)
    path = sample(parse_trajectory(meta["trajectory_text"]), meta["frames"], "compatible")
    target = target_poses(source, path, meta["relative_to_source"], meta["rotation_only"], compatible=True)
    case.check("out.source_c2w", source)
    case.check("out.target_c2w", target)
    case.check("out.source_w2c", w2c)
    case.check("out.target_w2c", invert_pose(target))
