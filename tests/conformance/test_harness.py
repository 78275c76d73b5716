"""The harness must find every case, and must be able to say no."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from . import test_depth_formats, test_trajectory
from .harness import Case, Tolerance, find_cases


@pytest.fixture
def folder(tmp_path):
    def add(name: str, tensors: dict | None = None, **meta) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(meta))
        if tensors:
            save_file(tensors, path.with_suffix(".safetensors"))

    add("trajectory/spiral.json", {"out.a": torch.ones(4)}, suggested_tolerance={"interp": 1e-7, "c2w": 2e-6})
    add("trajectory_spiral.json", suggested_tolerance=1e-5)
    add("warp_sky.json", suggested_tolerance={"float32": {"atol": 1e-3, "rtol": 0.1, "where": "stable"}})
    add("depth_formats/arrays.json")
    add("depth_formats_b/arrays.json")
    add("frame_plan_3.json")
    add("rollout_long.json")
    add("novel.json", case="golden/mask_latent_2")
    add("stranger.json")
    return tmp_path


def by_name(folder) -> dict[str, Case]:
    return {c.name: c for c in find_cases(folder)}


def test_kinds(folder):
    assert {name: case.kind for name, case in by_name(folder).items()} == {
        "trajectory/spiral": "trajectory",
        "trajectory_spiral": "trajectory",
        "warp_sky": "warp",
        "depth_formats/arrays": "depth_formats",
        "depth_formats_b/arrays": "depth_formats",
        "frame_plan_3": "frame_plan",
        "rollout_long": "rollout",
        "novel": "mask_latent",
        "stranger": "unknown",
    }


def test_tolerances(folder):
    found = by_name(folder)
    assert found["trajectory_spiral"].tolerance() == Tolerance(1e-5, 1e-5)
    assert found["trajectory/spiral"].tolerance("c2w") == Tolerance(2e-6, 2e-6)
    assert found["warp_sky"].tolerance() == Tolerance(1e-3, 0.1, "stable")
    assert found["stranger"].tolerance(default=0.5) == Tolerance(0.5, 0.5)
    with pytest.raises(KeyError, match="no tolerance"):
        found["stranger"].tolerance()


def test_check_says_no(folder):
    case = by_name(folder)["trajectory/spiral"]
    case.check("out.a", torch.ones(4), "c2w")
    case.check("out.a", torch.ones(4) + 1e-6, "c2w")
    off = torch.tensor([1.0, 1.0, 1.0, 2.0])
    for wrong in (torch.ones(4) + 1e-5, off, torch.full((4,), float("nan"))):
        with pytest.raises(pytest.fail.Exception, match="out.a"):
            case.check("out.a", wrong, "c2w")
    case.check("out.a", off, "c2w", where=torch.tensor([1, 1, 1, 0]))
    case.check("out.a", off, "c2w", outliers=0.25)
    with pytest.raises(AssertionError, match=r"\(3,\)"):
        case.check("out.a", torch.ones(3), "c2w")
    with pytest.raises(AssertionError, match="nothing to compare"):
        case.check("out.a", off, "c2w", where=torch.zeros(4))
    with pytest.raises(KeyError, match="no tensor 'out.b'"):
        case.check("out.b", off, "c2w")


def test_check_nan(folder):
    """A NaN is right where one is expected, and only there."""
    nan = float("nan")
    save_file({"out.a": torch.tensor([1.0, nan])}, folder / "trajectory/spiral.safetensors")
    case = by_name(folder)["trajectory/spiral"]
    case.check("out.a", torch.tensor([1.0, nan]), "c2w")
    for wrong in ([1.0, 1.0], [nan, nan], [nan, 1.0]):
        with pytest.raises(pytest.fail.Exception, match="out.a"):
            case.check("out.a", torch.tensor(wrong), "c2w")


def write_depth_case(folder, frames: int, size: tuple[int, int]) -> None:
    """A DA3 folder as the released programs write it, and what its reader must give; one depth is NaN, one infinite."""
    height, width = size
    rng = np.random.default_rng(3)
    depth = rng.uniform(1, 9, (frames, height, width)).astype(np.float32)
    depth[-1, 0, 0], depth[0, -1, -1] = np.nan, np.inf
    K = np.array([[30.0, 0, width / 2], [0, 31.0, height / 2], [0, 0, 1]])
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, 2, 3] = np.arange(frames)
    (folder / "da3/depth").mkdir(parents=True)
    for i, d in enumerate(depth):
        cv2.imwrite(str(folder / f"da3/depth/{i:04d}.png"), d.view(np.uint8).reshape(*size, 4)[..., [2, 1, 0, 3]])
    np.savetxt(folder / "da3/extrinsic.txt", w2c[:, :3].reshape(-1, 4))
    np.savetxt(folder / "da3/intrinsic.txt", np.tile(K, (frames, 1, 1)).reshape(-1, 3))
    clipped = np.clip(depth, 1e-4, 1e4)
    rows, columns = [[i * n // (n // 2) for i in range(n // 2)] for n in size]
    last = frames - 1
    y, x = np.indices(size)
    points = np.stack([(x - width / 2) / 30 * depth[last], (y - height / 2) / 31 * depth[last], depth[last]], -1)
    tensors = {
        "depth_float32": depth,
        "loaded_depth_clipped": clipped[:, None],
        "loaded_depth_half_nearest": clipped[:, rows][:, :, columns][:, None],
        "intrinsic_first": K,
        "source_c2w": np.linalg.inv(w2c).astype(np.float32),
        "extrinsic_w2c": w2c[:, :3],
        f"local_points_frame{last}": points.reshape(-1, 3),
    }
    save_file(
        {name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()}, folder / "arrays.safetensors"
    )
    (folder / "arrays.json").write_text(json.dumps({"suggested_tolerance": 1e-6}))


@pytest.mark.parametrize(("frames", "size"), [(1, (13, 21)), (2, (25, 17))], ids=str)
def test_depth_case_of_any_shape(tmp_path, frames, size):
    """Odd sizes, one frame, NaN and infinity, in a nested folder."""
    write_depth_case(tmp_path / "depth_formats/odd", frames, size)
    (case,) = find_cases(tmp_path)
    assert case.kind == "depth_formats"
    test_depth_formats.test_da3_folder(case)
    test_depth_formats.test_back_projection(case)
    test_depth_formats.test_pi3_folder(case)  # there is none, and no tensor of it
    shutil.rmtree(tmp_path / "depth_formats/odd/da3")
    with pytest.raises(AssertionError, match="no folder da3"):
        test_depth_formats.test_da3_folder(case)


def test_unknown_error_case(tmp_path):
    """A malformed file of a name that nobody knows is skipped by name; the others are checked."""

    def case(errors: dict) -> Case:
        (tmp_path / "trajectory.json").write_text(json.dumps({"errors": errors}))
        find_cases.cache_clear()
        return find_cases(tmp_path)[0]

    test_trajectory.test_trajectory(case({name: "ValueError" for name in test_trajectory.BAD_FILES}))
    with pytest.warns(UserWarning, match="upside_down"):
        test_trajectory.test_trajectory(case({"upside_down": "ValueError", "nan": "ValueError"}))
    with pytest.raises(pytest.skip.Exception, match="upside_down"):
        test_trajectory.test_trajectory(case({"upside_down": "ValueError"}))
    fine = {"trajectory_text": "0 1\n0 1\n0 1\n"}
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_trajectory.test_trajectory(case({"fine": fine}))
