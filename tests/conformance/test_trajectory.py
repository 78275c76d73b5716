"""Trajectory files, target poses and index helpers, in compatible mode."""

import warnings

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import invert_pose
from inspatio_core.geometry.frame_plan import bounce, total_angle
from inspatio_core.geometry.trajectory import curves, parse_trajectory, sample, target_poses, without_translation

from .harness import Case, parametrize

BAD_FILES = {
    "one_keyframe": "0\n0 0\n0 0\n",
    "single_value": "0 0\n0 0\n1\n",
    "empty_line": "0 0\n\n0 0\n",
    "blank_line": "0 0\n   \n0 0\n",
    "empty_file": "",
    "no_lines": "",
    "one_line": "0 10\n",
    "two_lines": "0 10\n0 20\n",
    "missing_line": "0 10\n0 20\n",
    "too_few_lines": "0 10\n0 20\n",
    "words": "0 ten\n0 20\n1 2\n",
    "not_a_number": "0 ten\n0 20\n1 2\n",
    "non_numeric": "0 ten\n0 20\n1 2\n",
    "comma": "0,10\n0,20\n1,2\n",
    "nan": "0 nan\n0 20\n1 2\n",
    "inf": "0 10\n0 inf\n1 2\n",
}
"""What a case may call a malformed file, and such a file."""


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
    unknown = []
    for error, entry in meta.get("errors", {}).items():
        text = bad_file(error, entry)
        if text is None:
            unknown.append(error)
            continue
        known = True
        with pytest.raises(InputError):
            parse_trajectory(text)
    if unknown:
        message = f"{case.name}: malformed files of unknown kinds were not checked: {', '.join(unknown)}"
        if not known:
            pytest.skip(message)
        warnings.warn(message, stacklevel=1)
    assert known, f"{case.name}: nothing known to check"


def bad_file(name: str, entry: object) -> str | None:
    """The malformed file of an entry of the error table: its own text where it brings one, else by its name."""
    if isinstance(entry, dict) and "trajectory_text" in entry:
        return entry["trajectory_text"]
    return BAD_FILES.get(name)


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
