"""Folders of the released scripts: depth, poses and intrinsics as their own loader gives them."""

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


def inverse(w2c):
    bottom = torch.eye(4, dtype=torch.float64)[3:].expand(len(w2c), 1, 4)
    return torch.linalg.inv(torch.cat([w2c.double(), bottom], 1))


@parametrize("depth_formats")
def test_da3_folder(case: Case) -> None:
    folder = released.read(case.path.parent / "da3")
    depth = np.stack([folder.depth(i) for i in range(folder.count)])
    case.check("depth_float32", depth, tolerance=EXACT)
    clipped = released.clip_depth_compatible(depth)[:, None]
    case.check("loaded_depth_clipped", clipped, tolerance=EXACT)
    case.check("loaded_depth_half_nearest", clipped[..., ::2, ::2], tolerance=EXACT)
    case.check("intrinsic_first", folder.K[0])
    case.check("source_c2w", folder.world_from_camera)
    w2c = np.linalg.inv(folder.world_from_camera)[:, :3]
    case.check("extrinsic_w2c", w2c)


@parametrize("depth_formats")
def test_da3_frames(case: Case) -> None:
    folder = released.read(case.path.parent / "da3")
    height, width = folder.size
    for name, size in (("loaded_rgb", (height, width)), ("loaded_rgb_half", (height // 2, width // 2))):
        rgb = np.stack([resize_rgb(read_image(p), size) for p in folder.images])
        case.check(name, rgb.transpose(0, 3, 1, 2) / 127.5 - 1, tolerance=Tolerance(0.02, 0))


@parametrize("depth_formats")
def test_pi3_folder(case: Case) -> None:
    folder = released.read(case.path.parent / "pi3")
    stored = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted((case.path.parent / "pi3/depth").glob("*.png"))]
    case.check("depth_uint16", np.stack(stored).astype(np.int32), tolerance=EXACT)
    depth = np.stack([folder.depth(i) for i in range(folder.count)])
    case.check("depth_from_uint16", depth, tolerance=Tolerance(1e-5, 1e-6))  # kept as float32
    case.check("source_c2w", folder.world_from_camera)
    case.check("intrinsic_first", folder.K[0])
    assert folder.images == ()


@parametrize("depth_formats")
def test_intrinsics_compatible(case: Case) -> None:
    for given, scaled in (
        ("intrinsic_first", "scaled_intrinsic_832x480"),
        ("offcentre_intrinsic", "offcentre_scaled_832x480"),
    ):
        case.check(scaled, released.rescale_intrinsics_compatible(case.tensors[given], (480, 832)))


@parametrize("depth_formats")
def test_back_projection(case: Case) -> None:
    folder = released.read(case.path.parent / "da3")
    points = unproject(torch.tensor(folder.depth(1), dtype=torch.float64), torch.as_tensor(folder.K[0]))
    case.check("local_points_frame1", points.reshape(-1, 3), tolerance=Tolerance(1e-4, 1e-6))


@parametrize("depth_formats")
def test_smoothed_poses(case: Case) -> None:
    poses = relative_to_first(inverse(case.tensors["smooth.in_w2c"]))
    case.check("smooth.c2w_first_frame", poses)
    case.check("smooth.out_c2w_sigma2", smooth_poses(poses, 2.0))
    turn = case.tensors["smooth.turn_in_c2w"]
    case.check("smooth.turn_out_c2w_sigma2", smooth_poses(turn, 2.0, compatible=True))
