import math

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import invert_pose, is_rigid
from inspatio_core.geometry.motion import (
    Motion,
    _block_poses_twist_torch,
    block_poses,
    block_poses_twist,
    interpolate,
    quaternion_from_rotation,
    rotation_from_quaternion,
    se3_exp,
    se3_log,
)

EYE = torch.eye(4, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator_matrix(xi: torch.Tensor) -> torch.Tensor:
    """The 4x4 matrix whose matrix exponential is the motion."""
    M = torch.zeros(*xi.shape[:-1], 4, 4, dtype=xi.dtype)
    M[..., :3, 3] = xi[..., :3]
    for i, j, k, sign in ((0, 1, 5, -1), (0, 2, 4, 1), (1, 2, 3, -1)):
        M[..., i, j], M[..., j, i] = sign * xi[..., k], -sign * xi[..., k]
    return M


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-8, 1e-4, 0.05, 0.0999, 0.1001, 0.5, 1.5, 10.0])
def test_exp_is_the_matrix_exponential(size):
    xi = randn(200, 6) * size
    xi[:, 3:] = torch.nn.functional.normalize(xi[:, 3:], dim=-1) * size  # all angles equal `size`
    assert torch.allclose(se3_exp(xi), torch.linalg.matrix_exp(generator_matrix(xi)), rtol=0, atol=2e-13)


def test_a_circle_closes():
    # 1 m/s forward at pi/2 rad/s to the right (about y): back at the start after 4 s, one diameter away after 2 s.
    twist = torch.tensor([0, 0, 1.0, 0, math.pi / 2, 0], dtype=torch.float64)
    assert torch.allclose(se3_exp(4 * twist), EYE, atol=1e-15)
    half = se3_exp(2 * twist)
    assert torch.allclose(half[:3, 3], torch.tensor([4 / math.pi, 0, 0], dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("angle", [0.0, 1e-300, 1e-16, 1e-9, 1e-5, 0.0999, 0.1001, 1.0, 3.0, math.pi - 1e-6])
def test_log_undoes_exp(angle):
    axis = torch.nn.functional.normalize(randn(300, 3), dim=-1)
    xi = torch.cat([randn(300, 3, seed=1), axis * angle], -1)
    back = se3_log(se3_exp(xi))
    assert torch.allclose(back, xi, rtol=0, atol=1e-9 if angle > 3.1 else 1e-14)
    # Rotations far below rounding relative to 1 survive, too.
    assert torch.allclose(back[:, 3:], xi[:, 3:], rtol=1e-9, atol=0)


@pytest.mark.parametrize("short", [0.0, 1e-15, 1e-12, 1e-8, 1e-4, -1e-8, -0.1])
def test_log_near_half_a_turn(short):
    axis = torch.nn.functional.normalize(randn(300, 3), dim=-1)
    axis[:3] = torch.eye(3)
    T = se3_exp(torch.cat([randn(300, 3, seed=1), axis * (math.pi - short)], -1))
    xi = se3_log(T)
    assert (xi[:, 3:].norm(dim=-1) <= math.pi + 1e-15).all()
    assert torch.allclose(se3_exp(xi), T, rtol=0, atol=1e-14)


def test_quaternions():
    R = se3_exp(randn(500, 6) * 3)[:, :3, :3]
    q = quaternion_from_rotation(R)
    assert (q[:, 0] >= 0).all()
    assert torch.allclose(rotation_from_quaternion(q), R, atol=1e-14)
    assert torch.allclose(rotation_from_quaternion(-3 * q), R, atol=1e-14)


def test_interpolate():
    a, b = se3_exp(randn(2, 8, 6)).unbind(0)
    assert torch.allclose(interpolate(a, b, 0.0), a, atol=1e-14)
    assert torch.allclose(interpolate(a, b, 1.0), b, atol=1e-14)
    middle = interpolate(a, b, torch.full((8,), 0.5))
    assert torch.allclose(invert_pose(a) @ middle, invert_pose(middle) @ b, atol=1e-14)


def test_twist_block_frames():
    current, v = se3_exp(randn(5, 6)), randn(5, 6, seed=1)
    poses, twists = block_poses_twist(current, v, 4, 1 / 24)
    assert poses.shape == (5, 4, 4, 4) and twists.shape == (5, 4, 6)
    for j in range(4):
        expected = current @ torch.linalg.matrix_exp(generator_matrix(v * (j + 1) / 24))
        assert torch.allclose(poses[:, j], expected, atol=1e-14)
        assert torch.equal(twists[:, j], v)


@pytest.mark.parametrize("size", [0.0, 1e-9, 0.09, 3.0, 100.0])
def test_compiled_twists_equal_the_plain_version(size):
    current, v = se3_exp(randn(9, 6)), randn(9, 6, seed=1) * size
    fast, plain = block_poses_twist(current, v, 5, 0.5), _block_poses_twist_torch(current, v, 5, 0.5)
    assert torch.allclose(fast[0], plain[0], rtol=1e-14, atol=1e-13)
    assert torch.equal(fast[1], plain[1])


def random_motions(n: int, frames: int, seed: int) -> list[Motion]:
    poses = se3_exp(randn(n, frames, 6, seed=seed))
    twists = randn(n, 6, seed=seed + 1)
    makers = (
        lambda i: Motion.hold(),
        lambda i: Motion.from_twist(twists[i]),
        lambda i: Motion.target(poses[i, 0]),
        lambda i: Motion.path(poses[i]),
        lambda i: Motion.teleport(poses[i, 0]),
    )
    return [makers[(i + seed) % 5](i) for i in range(n)]


@pytest.mark.parametrize("frames", [1, 4])
def test_a_batch_is_its_slots(frames):
    current = se3_exp(randn(10, 6))
    motions = random_motions(10, frames, 3)
    poses, twists = block_poses(current, motions, frames, 1 / 24)
    for i, motion in enumerate(motions):
        alone = block_poses(current[i : i + 1], [motion], frames, 1 / 24)
        assert torch.equal(poses[i], alone[0][0]) and torch.equal(twists[i], alone[1][0])
    assert is_rigid(poses, 1e-13).all()


def test_applied_twists_lead_from_frame_to_frame():
    current = se3_exp(randn(10, 6))
    motions = random_motions(10, 4, 0)
    poses, twists = block_poses(current, motions, 4, 0.1)
    at = current
    for j in range(4):
        moved = at @ se3_exp(twists[:, j] * 0.1)
        for i, motion in enumerate(motions):
            if motion.kind != "teleport":
                assert torch.allclose(moved[i], poses[i, j], atol=1e-13), motion.kind
        at = poses[:, j]


def test_kinds():
    current = se3_exp(randn(1, 6))
    goal = se3_exp(randn(6, seed=5))
    poses, twists = block_poses(current, [Motion.hold()], 3, 0.1)
    assert torch.equal(poses[0], current.expand(3, 4, 4)) and not twists.any()
    poses, twists = block_poses(current, [Motion.teleport(goal)], 3, 0.1)
    assert torch.equal(poses[0], goal.expand(3, 4, 4)) and not twists.any()
    poses, twists = block_poses(current, [Motion.target(goal)], 3, 0.1)
    assert torch.equal(poses[0, -1], goal)
    assert torch.allclose(poses[0, 0], interpolate(current[0], goal, 1 / 3), atol=1e-14)
    assert torch.equal(twists[0, 0], twists[0, 2])
    path = se3_exp(randn(3, 6, seed=6))
    assert torch.equal(block_poses(current, [Motion.path(path)], 3, 0.1)[0][0], path)


def test_ten_thousand_blocks_stay_rigid():
    at = EYE[None]
    v = torch.tensor([[0.3, -0.1, 1.0, 0.2, 0.9, -0.4]], dtype=torch.float64)
    for _ in range(10_000):
        at = block_poses_twist(at, v, 4, 1 / 24)[0][:, -1]
    assert is_rigid(at, 1e-11).all()


def test_motions_are_private_copies():
    pose, twist = EYE.clone(), torch.ones(6)
    motions = [Motion.target(pose), Motion.from_twist(twist), Motion.teleport(pose), Motion.path(pose[None])]
    pose[0, 3], twist[0] = 7.0, 7.0
    assert motions[0].pose[0, 3] == 0 and motions[1].twist[0] == 1
    assert motions[2].pose[0, 3] == 0 and motions[3].poses[0, 0, 3] == 0


def test_almost_rigid_poses_are_made_rigid():
    rough = se3_exp(randn(6)).float().double() + 1e-5
    rough[3] = EYE[3]
    assert is_rigid(Motion.target(rough).pose, 1e-14)


BAD_POSES = {
    "NaN": torch.full((4, 4), float("nan")),
    "infinity": EYE * torch.tensor([1, 1, 1, float("inf")]),
    "not rigid": EYE * torch.tensor([2.0, 2.0, 2.0, 1.0]),
    "not rigid ": torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0])),
    "shape": torch.eye(3),
    "numbers": "north",
}


@pytest.mark.parametrize("what", BAD_POSES)
def test_bad_poses(what):
    for make in (Motion.target, Motion.teleport):
        with pytest.raises(InputError, match=what.strip()):
            make(BAD_POSES[what])


def test_a_bad_path_names_its_frame():
    poses = EYE.repeat(5, 1, 1)
    poses[3, 0, 0] = 2.0
    with pytest.raises(InputError, match="frame 3"):
        Motion.path(poses)
    with pytest.raises(InputError, match="shape"):
        Motion.path(EYE)
    with pytest.raises(InputError, match="shape"):
        Motion.path(torch.zeros(0, 4, 4))


@pytest.mark.parametrize(
    "twist", [[0, 0, float("nan"), 0, 0, 0], [float("inf")] * 6, [1, 2, 3], "left", torch.zeros(1, 6)]
)
def test_bad_twists(twist):
    with pytest.raises(InputError, match="twist"):
        Motion.from_twist(twist)


@pytest.mark.parametrize(
    "call",
    [
        lambda: block_poses(EYE[None], [], 4, 0.1),
        lambda: block_poses(EYE[None], [Motion.path(EYE.repeat(3, 1, 1))], 4, 0.1),
        lambda: block_poses(EYE[None], [Motion.hold()], 0, 0.1),
        lambda: block_poses(EYE[None], [Motion.hold()], 4, 0.0),
        lambda: block_poses(EYE, [Motion.hold()], 4, 0.1),
        lambda: block_poses_twist(EYE[None], torch.zeros(2, 6), 4, 0.1),
        lambda: block_poses_twist(EYE[None], torch.full((1, 6), float("nan")), 4, 0.1),
    ],
)
def test_bad_blocks(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_blocks_on_cuda_equal_those_on_the_cpu():
    current, motions = se3_exp(randn(10, 6)), random_motions(10, 4, 0)
    for here, there in zip(
        block_poses(current, motions, 4, 0.1), block_poses(current.cuda(), motions, 4, 0.1), strict=True
    ):
        assert there.is_cuda and torch.allclose(here, there.cpu(), atol=1e-12)
