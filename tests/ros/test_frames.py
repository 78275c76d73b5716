"""REP 103 and REP 105 in numbers."""

import numpy as np
import pytest
from inspatio_ros import frames
from scipy.spatial.transform import Rotation


def random_pose(rng) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    out[:3, 3] = rng.normal(size=3)
    return out


def test_optical_frame_is_the_rotation_of_rep_103():
    assert np.allclose(frames.quaternion(frames.LINK_FROM_OPTICAL), [-0.5, 0.5, -0.5, 0.5])
    rpy = Rotation.from_matrix(frames.LINK_FROM_OPTICAL[:3, :3]).as_euler("xyz", degrees=True)
    assert np.allclose(rpy, [-90, 0, -90])


@pytest.mark.parametrize(
    "base, camera",
    [
        ((1, 0, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0)),  # forward: along optical z
        ((0, 1, 0, 0, 0, 0), (-1, 0, 0, 0, 0, 0)),  # left: against optical x
        ((0, 0, 1, 0, 0, 0), (0, -1, 0, 0, 0, 0)),  # up: against optical y
        ((0, 0, 0, 0, 0, 1), (0, 0, 0, 0, -1, 0)),  # turn left (yaw up): about -y
        ((0, 0, 0, 0, 1, 0), (0, 0, 0, -1, 0, 0)),  # pitch down (about left): about -x
        ((0, 0, 0, 1, 0, 0), (0, 0, 0, 0, 0, 1)),  # roll about forward
    ],
)
def test_twist_axes(base, camera):
    base, camera = np.array(base, float), np.array(camera, float)
    assert np.array_equal(frames.camera_twist(base), camera)
    assert np.array_equal(frames.base_twist(camera), base)


def test_planar_keeps_x_y_and_yaw_only():
    twist = frames.base_twist(frames.camera_twist(np.arange(1.0, 7.0), planar=True))
    assert np.array_equal(twist, [1, 2, 0, 0, 0, 6])


def test_twist_and_pose_conversions_agree():
    """Integrating in camera axes and converting the pose equals integrating the base twist in map."""
    import torch

    from inspatio_core.geometry.motion import se3_exp

    rng = np.random.default_rng(1)
    twist, start, dt = rng.normal(size=6), random_pose(rng), 0.3
    moved = start @ se3_exp(torch.from_numpy(frames.camera_twist(twist) * dt)).numpy()
    expected = frames.map_from_link(start) @ se3_exp(torch.from_numpy(twist * dt)).numpy()
    assert np.allclose(frames.map_from_link(moved), expected, atol=1e-12)


def test_pose_conversions_are_inverse_and_move_points_alike():
    rng = np.random.default_rng(2)
    world_from_camera = random_pose(rng)
    assert np.allclose(frames.world_from_camera(frames.map_from_link(world_from_camera)), world_from_camera)
    p_camera = rng.normal(size=(5, 3))
    p_world = p_camera @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    map_from_optical = frames.map_from_link(world_from_camera) @ frames.LINK_FROM_OPTICAL
    p_map = p_camera @ map_from_optical[:3, :3].T + map_from_optical[:3, 3]
    assert np.allclose(frames.map_points(p_world), p_map)


def test_quaternions_round_trip_through_any_length():
    T = random_pose(np.random.default_rng(3))
    assert np.allclose(frames.matrix(T[:3, 3], 7.0 * frames.quaternion(T)), T)


def test_odom_is_continuous_where_map_jumps():
    rng = np.random.default_rng(4)
    tree, poses = frames.OdomTree(), [random_pose(rng) for _ in range(5)]
    tree.update(poses[0], jump=True)
    assert np.allclose(tree.odom_from_base, np.eye(4))
    tree.update(poses[1], jump=False)
    before = tree.odom_from_base.copy()
    tree.update(poses[2], jump=True)
    assert np.array_equal(tree.odom_from_base, before)
    tree.update(poses[3], jump=False)
    assert np.allclose(tree.odom_from_base, before @ frames.invert(poses[2]) @ poses[3])
    assert np.allclose(tree.map_from_odom @ tree.odom_from_base, poses[3])
