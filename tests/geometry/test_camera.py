import math

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import (
    intrinsics_from_fov,
    invert_pose,
    is_rigid,
    nearest_rigid,
    project,
    scale_intrinsics,
    unproject,
)
from inspatio_core.geometry.motion import se3_exp


def random_poses(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return se3_exp(torch.randn(n, 6, generator=generator, dtype=torch.float64))


def test_scaled_intrinsics_see_the_same_picture():
    K = torch.tensor([[500.0, 0.7, 311.3], [0.0, 480.0, 250.1], [0.0, 0.0, 1.0]], dtype=torch.float64)
    xyz = torch.tensor([[0.3, -0.2, 2.0], [0.0, 0.0, 1.0], [-1.0, 0.5, 4.0]], dtype=torch.float64)
    small = scale_intrinsics(K, (480, 640), (120, 320))
    uv, _ = project(xyz, K)
    uv_small, _ = project(xyz, small)
    # A position measured in image widths from the outer edge of the first pixel does not change.
    edge = (uv + 0.5) / torch.tensor([640.0, 480.0], dtype=torch.float64)
    assert torch.allclose((uv_small + 0.5) / torch.tensor([320.0, 120.0], dtype=torch.float64), edge, atol=1e-14)
    assert torch.allclose(scale_intrinsics(small, (120, 320), (480, 640)), K, atol=1e-12)


def test_fov():
    K = intrinsics_from_fov((480, 640), 90.0)
    # The image's outer edges, half a pixel beyond the outer pixel centres, are 45 degrees off the axis.
    uv, _ = project(torch.tensor([[-1.0, 0.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64), K)
    assert torch.allclose(uv[:, 0], torch.tensor([-0.5, 639.5], dtype=torch.float64))
    assert intrinsics_from_fov((480, 640), 60.0, "y")[0, 0] == pytest.approx(240 / math.tan(math.radians(30)))
    for bad in (0.0, 180.0, float("nan")):
        with pytest.raises(InputError, match="fov"):
            intrinsics_from_fov((4, 4), bad)


def test_unproject_then_project_gives_the_pixels():
    depth = torch.rand(2, 3, 5, 7, dtype=torch.float64) + 0.5
    K = intrinsics_from_fov((5, 7), 70.0).repeat(2, 3, 1, 1)
    K[1, 2, 0, 1] = 0.3
    uv, z = project(unproject(depth, K), K)
    v, u = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    assert torch.equal(z, depth)
    assert torch.allclose(uv, torch.stack([u, v], -1).double().expand_as(uv), atol=1e-12)
    assert torch.equal(unproject(depth[0, 0], K[0, 0]), unproject(depth, K)[0, 0])
    assert unproject(depth.float(), K).dtype == torch.float32


def test_invert_pose():
    T = random_poses(50).view(5, 10, 4, 4)
    assert torch.allclose(invert_pose(T) @ T, torch.eye(4, dtype=torch.float64).expand_as(T), atol=1e-14)


def test_is_rigid():
    T = random_poses(7)
    T[1, 0, 0] += 1e-3
    T[2, :3, 0] *= -1.0  # a mirror
    T[3, 0, 3] = float("nan")
    T[4, 3, 0] = 1e-3
    T[5, :3, :3] *= 1.1
    T[6, 1, 3] = float("inf")
    assert is_rigid(T).tolist() == [True] + [False] * 6
    assert is_rigid(T[1], 1e-2)


def test_nearest_rigid():
    T = random_poses(20)
    assert torch.equal(nearest_rigid(T), T)
    rough = T.clone()
    rough[:, :3, :3] += 3e-4 * torch.randn(20, 3, 3, dtype=torch.float64)
    rough[:, 3, 0] = 1e-4
    out = nearest_rigid(rough)
    assert is_rigid(out, 1e-14).all()
    U, _, Vh = torch.linalg.svd(rough[:, :3, :3])
    assert torch.allclose(out[:, :3, :3], U @ Vh, atol=1e-13)
    assert torch.equal(out[:, :3, 3], rough[:, :3, 3])
