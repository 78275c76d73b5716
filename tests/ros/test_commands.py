"""The latch between callbacks and the world thread."""

import numpy as np
import pytest
import torch
from inspatio_ros.commands import Commands

from inspatio_core.errors import InputError
from inspatio_core.geometry.motion import Motion

TWIST = np.array([0.0, 0, 1, 0, 0, 0])


def test_a_twist_lasts_until_its_timeout():
    commands = Commands(timeout=0.5)
    commands.twist(TWIST, now=1.0)
    assert commands.take(1.4)[0].kind == "twist"
    assert commands.take(1.5)[0].kind == "twist"
    assert commands.take(1.6)[0].kind == "hold"
    assert commands.take(1.0)[0].kind == "hold", "once timed out it stays so"


def test_the_newest_twist_wins_and_nothing_queues():
    commands = Commands()
    for x in range(5):
        commands.twist(TWIST * x, now=0.0)
    assert torch.equal(commands.take(0.0)[0].twist, torch.from_numpy(TWIST * 4))


def test_the_last_kind_of_command_wins():
    commands, target = Commands(), Motion.target(torch.eye(4, dtype=torch.float64))
    commands.twist(TWIST, now=0.0)
    commands.pose(target)
    assert commands.take(0.0)[0] is target
    assert commands.take(0.0)[0].kind == "hold", "a target is taken once and the twist before it is gone"
    commands.pose(target)
    commands.twist(TWIST, now=0.0)
    assert commands.take(0.0)[0].kind == "twist"


def test_playhead_changes_merge_and_are_taken_once():
    commands = Commands()
    commands.playhead(paused=True)
    commands.playhead(jump=7.0)
    commands.playhead(paused=False)
    command = commands.take(0.0)[1]
    assert (command.paused, command.jump, command.rate) == (False, 7.0, None)
    assert commands.take(0.0)[1] is None


def test_a_bad_playhead_command_is_refused_and_leaves_nothing():
    commands = Commands()
    with pytest.raises(InputError):
        commands.playhead(rate=float("nan"))
    assert commands.take(0.0)[1] is None


def test_reverse_turns_whichever_way_the_playhead_moves():
    commands = Commands()
    commands.playhead(rate=2.0)
    assert commands.take(0.0)[1].rate == 2.0
    commands.reverse()
    assert commands.take(0.0)[1].rate == -2.0
    # It bounced at frame 0: rate -2 with direction -1 moves forward, so turning it means backward.
    commands.reverse()
    assert commands.take(0.0, direction=-1.0)[1].rate == -2.0
    commands.reverse()
    commands.reverse()
    assert commands.take(0.0)[1] is None, "twice is as if never"


def test_a_stride_scales_twist_and_rate():
    commands = Commands()
    commands.twist(TWIST, now=0.0)
    motion, playhead = commands.take(0.0, stride=3)
    assert torch.equal(motion.twist, torch.from_numpy(TWIST * 3)) and playhead.rate == 3.0
    assert commands.take(0.0, stride=3)[1] is None
    assert commands.take(0.0, stride=1)[1].rate == 1.0


def test_clear_forgets_everything():
    commands = Commands()
    commands.twist(TWIST, now=0.0)
    commands.playhead(rate=3.0)
    commands.clear()
    motion, playhead = commands.take(0.0)
    assert motion.kind == "hold" and playhead is None
