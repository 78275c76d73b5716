from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gym_env.settings import Settings
from gym_env.spaces import DISCRETE_MOVES, Actions, Observations, inverse_depth, quaternion, relative_pose
from inspatio_core.errors import InputError


def decode(value, **settings):
    twists, rates = Actions(Settings(**settings)).decode(np.array([value]))
    return twists[0].tolist(), None if rates is None else rates[0]


def test_twist6_is_in_base_axes():
    """Forward, left, up are the camera's z, -x, -y; and so for turning."""
    assert decode([1.0, 0.5, 0.25, 0.125, -0.5, 1.0])[0] == [-0.5, -0.25, 1.0, 0.5, -1.0, 0.125]


def test_planar_has_forward_left_and_yaw():
    assert decode([0.5, 0.25, -1.0], action="planar")[0] == [-0.25, 0.0, 0.5, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("move", "twist"),
    [
        ("stay", [0, 0, 0, 0, 0, 0]),
        ("forward", [0, 0, 2, 0, 0, 0]),
        ("backward", [0, 0, -2, 0, 0, 0]),
        ("turn_left", [0, 0, 0, 0, -0.5, 0]),
        ("turn_right", [0, 0, 0, 0, 0.5, 0]),
        ("strafe_left", [-2, 0, 0, 0, 0, 0]),
        ("strafe_right", [2, 0, 0, 0, 0, 0]),
    ],
)
def test_discrete_moves(move, twist):
    got, _ = decode(DISCRETE_MOVES.index(move), action="discrete", max_linear=2.0, max_angular=0.5)
    assert got == twist


def test_playhead_rides_with_the_action():
    assert decode([0.5, 0.0, 0.0, -0.25], action="planar", playhead_action=True) == ([0, 0, 0.5, 0, 0, 0], -0.25)
    assert decode([1, 2], action="discrete", playhead_action=True)[1] == -1.0
    assert Actions(Settings(action="discrete", playhead_action=True)).space == gym.spaces.MultiDiscrete([7, 3])


def test_actions_beyond_the_box_are_clipped():
    assert decode([9.0, 0, 0, 0, 0, -9.0], max_linear=1.5)[0] == decode([1.5, 0, 0, 0, 0, -1.0], max_linear=1.5)[0]


@pytest.mark.parametrize(
    ("settings", "action"),
    [
        ({}, [np.nan, 0, 0, 0, 0, 0]),
        ({}, [0, np.inf, 0, 0, 0, 0]),
        ({}, [0, 0, 0]),
        ({"action": "discrete"}, 7),
        ({"action": "discrete"}, -1),
        ({"action": "discrete"}, 1.5),
        ({"action": "discrete", "playhead_action": True}, [0, 3]),
    ],
)
def test_bad_actions_are_refused_in_one_line(settings, action):
    with pytest.raises(gym.error.InvalidAction) as error:
        decode(action, **settings)
    assert "\n" not in str(error.value)


def test_quaternions_match_scipy_also_at_half_turns():
    rotations = Rotation.concatenate(
        [Rotation.random(200, random_state=0), Rotation.from_rotvec(np.pi * np.eye(3)), Rotation.identity(1)]
    )
    ours, theirs = quaternion(rotations.as_matrix()), rotations.as_quat(canonical=True)
    assert (ours[:, 3] >= 0).all()
    np.testing.assert_allclose(np.abs((ours * theirs).sum(1)), 1.0, atol=1e-12)


def test_relative_pose_is_seen_from_the_start_in_base_axes():
    start = np.eye(4)
    start[:3, :3] = Rotation.from_euler("y", 90, degrees=True).as_matrix()  # looks along world x
    start[:3, 3] = [1, 2, 3]
    pose = start.copy()
    pose[:3, 3] += [2.0, -0.5, 0.0]  # 2 m ahead, half a metre up (camera y is down)
    yaw_left = Rotation.from_euler("y", -30, degrees=True).as_matrix()
    pose[:3, :3] = pose[:3, :3] @ yaw_left
    got = relative_pose(pose[None], start[None])[0]
    np.testing.assert_allclose(got[:3], [2.0, 0.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(got[3:], Rotation.from_euler("z", 30, degrees=True).as_quat(), atol=1e-6)


def test_inverse_depth_mapping():
    depth = np.array([[[0.1, 0.5, 1.0, 5.0, 127.0, 1e9]]], np.float32)
    assert inverse_depth(depth, 0.5)[0, 0].tolist() == [255, 255, 128, 26, 1, 0]


@pytest.mark.parametrize("depth", ["inverse", "metres"])
def test_observations_lie_in_their_space(depth):
    codec = Observations(Settings(size=(20, 30), depth=depth))
    rgb, z = np.full((2, 20, 30, 3), 200, np.uint8), np.full((2, 20, 30), 1e6, np.float32)
    pose = np.tile(np.eye(4), (2, 1, 1))
    pose[:, 2, 3] = 1e9
    found = codec.encode(rgb, z, pose, np.tile(np.eye(4), (2, 1, 1)))
    assert set(found) == {"rgb", "depth", "pose"}
    for i in range(2):
        assert {key: rows[i] for key, rows in found.items()} in codec.space
    found["rgb"][:] = 0
    assert (rgb == 200).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"size": (8, 64)},
        {"size": 64},
        {"size": (64.0, 64)},
        {"observation": ("rgb", "lidar")},
        {"observation": ()},
        {"depth": "cm"},
        {"depth_near": 0.0},
        {"action": "joystick"},
        {"max_linear": -1.0},
        {"max_angular": float("nan")},
        {"fps": 0},
        {"play_rate": float("inf")},
        {"start_jitter": (0.1,)},
        {"colour": True},
    ],
)
def test_bad_settings_are_refused_in_one_line(bad):
    with pytest.raises(InputError, match=next(iter(bad))) as error:
        Settings.parse(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("skip", [3, 6, 0, -4, 4.0])
def test_frame_skip_must_be_whole_blocks(skip):
    with pytest.raises(InputError, match="frame_skip.*multiple of 4"):
        Settings(frame_skip=skip).steps_per_action(4)
    assert Settings(frame_skip=12).steps_per_action(4) == 3
