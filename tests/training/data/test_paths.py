"""Camera paths: what a pan, a tilt, an arc, a driving robot is."""

import math

import pytest
import torch

from inspatio_core.geometry.camera import is_rigid
from inspatio_core.training.data.paths import filmed, progress, robot
from inspatio_core.training.data.stage import Dice

PLACE, AIM = (1.0, -1.2, -4.0), (0.5, -1.0, 1.0)


def angles(T):
    """Yaw to the right and pitch upwards, degrees [F]."""
    forward = T[:, :3, 2]
    return torch.rad2deg(torch.atan2(forward[:, 0], forward[:, 2])), torch.rad2deg(torch.asin(-forward[:, 1]))


def paths(kind, count=20):
    return [filmed(Dice.keyed(kind, i), 121, 5.0, PLACE, AIM, kind) for i in range(count)]


def test_all_begin_rigid_and_look_at_the_subject():
    for kind in ("static", "translate", "polyline"):
        for T in paths(kind):
            assert is_rigid(T, 1e-9).all() and T.shape == (121, 4, 4)
            way = torch.tensor(AIM) - torch.tensor(PLACE)
            assert float(T[0, :3, 2] @ (way / way.norm()).double()) > math.cos(math.radians(0.5))
            torch.testing.assert_close(T[0, :3, 3], torch.tensor(PLACE, dtype=torch.float64))


def test_pan_and_tilt_turn_on_the_spot():
    for T in paths("pan"):
        yaw, pitch = angles(T)
        assert T[:, :3, 3].std(0).max() < 1e-9 and pitch.std() < 1e-6
        assert 4.9 < float(yaw.max() - yaw.min()) < 45.1
    for T in paths("tilt"):
        yaw, pitch = angles(T)
        assert T[:, :3, 3].std(0).max() < 1e-9 and yaw.std() < 1e-6
        assert 4.9 < float(pitch.max() - pitch.min()) < 30.1


def test_translation_keeps_its_direction_and_arc_its_distance():
    for T in paths("translate"):
        step = T[1:, :3, 3] - T[:-1, :3, 3]
        gone = T[-1, :3, 3] - T[0, :3, 3]
        assert torch.allclose(T[:, :3, :3], T[:1, :3, :3]) and 0.2 < float(gone.norm()) < 6.1
        assert ((step @ gone) > 0).all()
    for T in paths("arc"):
        away = T[:, :3, 3] - torch.tensor(AIM, dtype=torch.float64)
        assert (away.norm(dim=-1) - away.norm(dim=-1)[0]).abs().max() < 1e-9
        assert (-(away / away.norm(dim=-1, keepdim=True)) * T[:, :3, 2]).sum(-1).min() > math.cos(math.radians(0.5))
        yaw, _ = angles(T)
        assert 14.9 < float(yaw.max() - yaw.min()) < 75.1


def test_half_move_at_constant_speed():
    even = 0
    for i in range(200):
        s = progress(50, Dice.keyed("s", i))
        assert float(s[0]) == 0 and float(s[-1]) == pytest.approx(1.0) and (s.diff() > 0).all()
        even += bool(s.diff().std() < 1e-9)
    assert 70 < even < 130


def test_a_robot_drives_on_the_ground():
    stops = turns = 0
    for i in range(20):
        T = robot(Dice.keyed("robot", i), 240, 24.0, (0.0, -0.6, 0.0), 0.4)
        assert is_rigid(T, 1e-9).all()
        assert (T[:, 1, 3] == -0.6).all() and T[:, 1, 2].std() < 1e-9  # height, pitch
        assert T[0, 0, 3] == 0 and T[0, 2, 3] == 0
        yaw = torch.atan2(T[:, 0, 2], T[:, 2, 2])
        step = (T[1:, :3, 3] - T[:-1, :3, 3]) * 24
        middle = yaw[:-1] + torch.atan2((yaw[1:] - yaw[:-1]).sin(), (yaw[1:] - yaw[:-1]).cos()) / 2
        assert (step[:, 0] * middle.cos() - step[:, 2] * middle.sin()).abs().max() < 1e-9  # never sideways
        speed = step.norm(dim=-1)
        assert speed.max() < 2.2 and speed.diff().abs().max() < 0.8
        turning = yaw.diff().abs() > 1e-4
        stops += int((speed < 1e-9).sum() > 5)
        turns += int(((speed < 1e-9) & turning).sum() > 5)
    assert stops > 5 and turns > 3
