"""Folders of the released scripts: depth, poses and intrinsics as their own loader gives them."""

import re
from pathlib import Path

import cv2
import numpy as np
import torch

from inspatio_core.geometry.camera import unproject
from inspatio_core.geometry.trajectory import relative_to_first, smooth_poses
from inspatio_core.reference import released
from inspatio_core.reference.reference import resize_rgb
from inspatio_core.reference.scene import read_image

from .harness import Case, Tolerance, parametrize

EXACT = Tolerance(0, 0)


def path_of(case: Case, name: str) -> Path | None:
    """``da3`` or ``pi3`` beside the JSON, or in a folder of the JSON's name; None for a case without."""
    paths = [case.path.with_suffix("") / name, case.path.parent / name]
    return next((p for p in paths if p.is_dir()), None)


def folder_of(case: Case, name: str, told_by: str) -> released.ReleasedFolder | None:
    """The folder; None for a case without it, which has no tensor `told_by` either, for that is made from it."""
    path = path_of(case, name)
    assert path or told_by not in case.tensors, f"{case.name}: no folder {name}"
    return path and released.read(path)


def check(case: Case, name: str, actual, **options) -> None:
    """Compare what a case states; not every case states all."""
    if name in case.tensors:
        case.check(name, actual, **options)


def depth_of(folder: released.ReleasedFolder) -> np.ndarray:
    return np.stack([folder.depth(i) for i in range(folder.count)])


def check_source_poses(case: Case, folder: released.ReleasedFolder) -> None:
    """The loader inverts poses in float32, the product in float64: they differ by the rounding of what is stored."""
    atol, rtol, _ = case.tolerance()
    rounding = 4 * np.finfo(np.float32).eps * np.abs(folder.world_from_camera).max()
    check(case, "source_c2w", folder.world_from_camera, tolerance=Tolerance(max(atol, rounding), rtol))


def inverse(w2c):
    bottom = torch.eye(4, dtype=torch.float64)[3:].expand(len(w2c), 1, 4)
    return torch.linalg.inv(torch.cat([w2c.double(), bottom], 1))


@parametrize("depth_formats")
def test_da3_folder(case: Case) -> None:
    folder = folder_of(case, "da3", "depth_float32")
    if folder is None:
        return
    depth = depth_of(folder)
    check(case, "depth_float32", depth, tolerance=EXACT)
    clipped = released.clip_depth_compatible(depth)
    check(case, "loaded_depth_clipped", clipped[:, None], tolerance=EXACT)
    half = (folder.size[0] // 2, folder.size[1] // 2)
    resized = np.stack([released.resize_depth_compatible(d, half) for d in clipped])
    check(case, "loaded_depth_half_nearest", resized[:, None], tolerance=EXACT)
    check(case, "intrinsic_first", folder.K[0])
    check_source_poses(case, folder)
    check(case, "extrinsic_w2c", np.linalg.inv(folder.world_from_camera)[:, :3])


@parametrize("depth_formats")
def test_da3_frames(case: Case) -> None:
    folder = folder_of(case, "da3", "loaded_rgb")
    if folder is None:
        return
    height, width = folder.size
    for name, size in (("loaded_rgb", (height, width)), ("loaded_rgb_half", (height // 2, width // 2))):
        rgb = np.stack([resize_rgb(read_image(p), size) for p in folder.images])
        check(case, name, rgb.transpose(0, 3, 1, 2) / 127.5 - 1, tolerance=Tolerance(0.02, 0))  # JPEG decoders differ


@parametrize("depth_formats")
def test_pi3_folder(case: Case) -> None:
    folder = folder_of(case, "pi3", "depth_uint16")
    if folder is None:
        return
    stored = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted((path_of(case, "pi3") / "depth").glob("*.png"))]
    check(case, "depth_uint16", np.stack(stored).astype(np.int32), tolerance=EXACT)
    check(case, "depth_from_uint16", depth_of(folder))
    check_source_poses(case, folder)
    check(case, "intrinsic_first", folder.K[0])
    assert folder.images == ()


@parametrize("depth_formats")
def test_intrinsics_compatible(case: Case) -> None:
    names = {"scaled_intrinsic": "intrinsic_first", "offcentre_scaled": "offcentre_intrinsic"}
    found = [re.fullmatch(r"(\w+)_(\d+)x(\d+)", name) for name in case.tensors]
    for match in (match for match in found if match and match[1] in names):
        size = (int(match[3]), int(match[2]))
        case.check(match[0], released.rescale_intrinsics_compatible(case.tensors[names[match[1]]], size))


@parametrize("depth_formats")
def test_back_projection(case: Case) -> None:
    found = [re.fullmatch(r"local_points_frame(\d+)", name) for name in case.tensors]
    for match in (match for match in found if match):
        folder = folder_of(case, "da3", match[0])
        depth = torch.tensor(folder.depth(int(match[1])), dtype=torch.float64)
        points = unproject(depth, torch.as_tensor(folder.K[0]))  # the first frame's camera serves all
        case.check(match[0], points.reshape(-1, 3))


@parametrize("depth_formats")
def test_smoothed_poses(case: Case) -> None:
    if "smooth.in_w2c" in case.tensors:
        poses = relative_to_first(inverse(case.tensors["smooth.in_w2c"]))
        check(case, "smooth.c2w_first_frame", poses)
        check(case, "smooth.out_c2w_sigma2", smooth_poses(poses, 2.0))
    if "smooth.turn_in_c2w" in case.tensors:
        turn = case.tensors["smooth.turn_in_c2w"]
        case.check("smooth.turn_out_c2w_sigma2", smooth_poses(turn, 2.0, compatible=True))
