"""The threads that own world and clock, around a scripted session. Orders and counts are checked, never durations."""

import threading
import time
from concurrent.futures import CancelledError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inspatio_ros.commands import Commands
from inspatio_ros.worker import Cancelled, State, Worker

from inspatio_core.geometry.motion import Motion, block_poses
from inspatio_core.session import Block

FRAMES = 4
FPS = 200.0


class ScriptedSession:
    """One slot that moves as told and renders nothing; ``delay`` seconds a block, ``look_ahead`` frames ahead."""

    def __init__(self, delay=0.0, look_ahead=0):
        self.delay, self.look_ahead = delay, look_ahead
        self.motions, self.commands = [], []
        self.events = []
        self.playhead = SimpleNamespace(direction=[1.0], rate=[1.0], steps=[1.0])
        self.closed = False
        self.first = self.reset()

    def block(self, motion, commits, frames):
        poses, twists = block_poses(self.pose[None], [motion], commits, 1 / FPS)
        self.pose = poses[0, -1]
        index = torch.arange(self.count, self.count + commits)
        self.count += commits
        self.blocks += 1
        self.waiting += zip(poses[0], twists[0], index, strict=True)
        shown, self.waiting = self.waiting[:frames], self.waiting[frames:]
        poses, twists, index = (torch.stack(values)[None] for values in zip(*shown, strict=True))
        return Block(
            rgb=torch.zeros(1, frames, 2, 3, 3, dtype=torch.uint8),
            depth=torch.ones(1, frames, 2, 3),
            known=torch.ones(1, frames, 2, 3, dtype=torch.bool),
            world_from_camera=poses,
            K=torch.eye(3, dtype=torch.float64).expand(1, frames, 3, 3),
            source_index=index,
            stamp=torch.zeros(1, frames, dtype=torch.float64),
            twist=twists,
            index=torch.tensor([self.blocks - 1]),
        )

    def reset(self):
        self.pose, self.count, self.blocks, self.waiting = torch.eye(4, dtype=torch.float64), 0, 0, []
        return self.block(Motion.hold(), 1 + self.look_ahead, 1)

    def prepare(self):
        self.events.append("prepare")

    def step(self, motion, playhead):
        time.sleep(self.delay)
        self.events.append("step")
        self.motions.append(motion)
        self.commands.append(playhead)
        return self.block(motion, FRAMES, FRAMES)

    def close(self):
        self.closed = True


class Rig:
    """A running worker and what it showed."""

    def __init__(self, session=None, pacing="lockstep", **callbacks):
        self.session = session or ScriptedSession()
        self.shown, self.moments, self.failed = [], [], []
        self.commands = Commands(timeout=0.1)
        spec = SimpleNamespace(frames=FRAMES, first_frames=1, look_ahead=self.session.look_ahead)
        world = SimpleNamespace(generator=SimpleNamespace(spec=spec), relative_to_source=False)
        self.worker = Worker(
            callbacks.pop("open_world", lambda progress: (world, self.session)),
            callbacks.pop("show", self.show),
            self.commands,
            on_failed=self.failed.append,
            fps=FPS,
            pacing=pacing,
        )

    def show(self, frame, sim_time):
        self.shown.append((frame, sim_time))
        self.moments.append(time.monotonic())

    def ask(self, job):
        return self.worker.ask(job).result(timeout=10)

    def wait(self, condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "nothing happened for 10 s"
            time.sleep(0.002)

    def wait_frames(self, count):
        self.wait(lambda: len(self.shown) >= count)


@pytest.fixture
def rig():
    rigs = []

    def make(*args, **kwargs):
        rigs.append(Rig(*args, **kwargs))
        rigs[-1].worker.start()
        return rigs[-1]

    yield make
    for r in rigs:
        assert r.worker.stop(5.0)


def test_every_frame_is_shown_in_order_and_sim_time_counts_them(rig):
    r = rig()
    r.wait_frames(30)
    frames = r.shown[:30]
    assert [f.source_index for f, _ in frames] == list(range(30))
    assert np.allclose([t for _, t in frames], np.arange(1, 31) / FPS)
    assert [f.jump for f, _ in frames] == [True] + [False] * 29


def test_a_slow_generator_slows_sim_time_in_lockstep_and_drops_nothing(rig):
    r = rig(ScriptedSession(delay=3 * FRAMES / FPS))
    r.wait_frames(13)
    assert [f.source_index for f, _ in r.shown[:13]] == list(range(13))
    assert r.worker.late_blocks > 0 and r.worker.dropped_frames == 0
    assert r.moments[12] - r.moments[0] > 12 / FPS


def test_a_slow_generator_keeps_the_pace_in_realtime_by_longer_strides(rig):
    r = rig(ScriptedSession(delay=2.5 * FRAMES / FPS), pacing="realtime")
    r.commands.timeout = 1e9
    r.commands.twist(np.array([0.0, 0, 1, 0, 0, 0]), 0.0)
    r.wait_frames(25)
    frames = r.shown
    strides = [f.stride for f, _ in frames[9:25]]
    assert min(strides) >= 3, "each frame stands for the block's compute time at least"
    # No motion is lost: the camera is where 1 m/s for the sim time between has brought it.
    (a, ta), (b, tb) = frames[9], frames[24]
    assert b.world_from_camera[2, 3] - a.world_from_camera[2, 3] == pytest.approx(tb - ta)
    assert np.allclose(b.twist, [0, 0, 1, 0, 0, 0])
    assert any(c is not None and c.rate is not None and c.rate >= 3 for c in r.session.commands)


def test_pause_ends_at_a_block_and_loses_nothing(rig):
    r = rig()
    r.wait_frames(10)
    r.ask(r.worker.pause)
    count = len(r.shown)
    assert (count - 1) % FRAMES == 0 and r.worker.state is State.PAUSED
    time.sleep(10 / FPS)
    assert len(r.shown) == count
    r.ask(r.worker.play)
    r.wait_frames(count + 5)
    assert [f.source_index for f, _ in r.shown] == list(range(len(r.shown)))


def test_steps_show_exactly_that_many_frames_and_obey_the_newest_command(rig):
    r = rig()
    r.wait_frames(5)
    r.ask(r.worker.pause)
    count = len(r.shown)
    for steps in (FRAMES, 1, 3, 2 * FRAMES, 2):
        r.ask(lambda n=steps: r.worker.step(n))
        count += steps
        assert len(r.shown) == count
    r.ask(lambda: r.worker.step(2))  # the two that are left of the block
    r.commands.twist(np.array([0.0, 0, 2, 0, 0, 0]), r.worker.time)
    r.ask(lambda: r.worker.step(1))
    frame = r.shown[-1][0]
    assert np.allclose(frame.twist, [0, 0, 2, 0, 0, 0])
    assert frame.world_from_camera[2, 3] == pytest.approx(2 / FPS)


def test_what_is_made_counts_the_frames_that_are_not_shown_yet(rig):
    """What a job changes holds for the frames after this time, and for those alone."""
    r = rig()
    r.wait_frames(5)
    r.ask(r.worker.pause)
    r.ask(lambda: r.worker.step(1))
    assert r.worker.made == pytest.approx(r.worker.time + (FRAMES - 1) / FPS)
    r.ask(lambda: r.worker.step(FRAMES - 1))
    assert r.worker.made == pytest.approx(r.worker.time)


def test_reset_of_state_keeps_the_clock_and_reset_of_time_the_state(rig):
    r = rig()
    r.wait_frames(10)
    r.ask(r.worker.pause)
    time_before, count = r.worker.time, len(r.shown)
    r.commands.twist(np.ones(6), r.worker.time)
    r.ask(lambda: r.worker.reset(state=True, time=False))
    frame, sim_time = r.shown[-1]
    assert len(r.shown) == count + 1 and frame.jump and frame.source_index == 0
    assert sim_time == pytest.approx(time_before + 1 / FPS)
    r.ask(lambda: r.worker.reset(state=False, time=True))
    assert r.worker.time == 0.0 and len(r.shown) == count + 1
    r.ask(lambda: r.worker.step(1))
    assert r.shown[-1][1] == pytest.approx(1 / FPS) and r.shown[-1][0].source_index == 1
    assert r.session.motions[-1].kind == "hold", "a reset forgets the command before it"


def test_reset_while_playing_goes_on_from_the_start(rig):
    r = rig()
    r.wait_frames(10)
    r.ask(lambda: r.worker.reset())
    at = next(i for i, (f, _) in enumerate(r.shown) if i and f.jump)
    r.wait_frames(at + 10)
    assert [f.source_index for f, _ in r.shown[at : at + 10]] == list(range(10))
    assert [t for _, t in r.shown[at : at + 10]] == pytest.approx(list(np.arange(1, 11) / FPS))


def test_halt_stops_at_the_very_start(rig):
    r = rig()
    r.wait_frames(6)
    r.ask(r.worker.halt)
    count = len(r.shown)
    assert r.worker.state is State.STOPPED and r.shown[-1][0].source_index == 0
    assert r.worker.time == pytest.approx(1 / FPS)
    time.sleep(10 / FPS)
    assert len(r.shown) == count


def test_a_teleport_is_a_jump_and_a_target_is_not(rig):
    r = rig()
    r.wait_frames(2)
    r.ask(r.worker.pause)
    there = torch.eye(4, dtype=torch.float64)
    there[2, 3] = 3.0
    r.commands.pose(Motion.teleport(there))
    r.ask(lambda: r.worker.step(FRAMES))
    assert [f.jump for f, _ in r.shown[-FRAMES:]] == [True, False, False, False]
    r.commands.pose(Motion.target(torch.eye(4, dtype=torch.float64)))
    r.ask(lambda: r.worker.step(FRAMES))
    assert not any(f.jump for f, _ in r.shown[-FRAMES:])
    assert np.allclose(r.shown[-1][0].world_from_camera, np.eye(4))


def test_the_motion_is_committed_late(rig):
    """What is asked while a block is on show is seen in the next: the one after has not been made."""
    r = rig()
    r.wait_frames(20)
    r.ask(r.worker.pause)
    r.ask(r.worker.play)
    before = len(r.session.motions)
    shown = len(r.shown)
    r.wait_frames(shown + 2 * FRAMES)
    assert len(r.session.motions) - before <= 4


def test_a_teleport_is_a_jump_of_the_frame_that_shows_it(rig):
    r = rig(ScriptedSession(look_ahead=3))
    r.wait_frames(2)
    r.ask(r.worker.pause)
    there = torch.eye(4, dtype=torch.float64)
    there[2, 3] = 3.0
    r.commands.pose(Motion.teleport(there))
    r.ask(lambda: r.worker.step(2 * FRAMES))
    frames = [f for f, _ in r.shown[-2 * FRAMES :]]
    assert [f.jump for f in frames] == [False, False, False, True] + [False] * 4
    assert [f.world_from_camera[2, 3] for f in frames] == [0, 0, 0] + [3.0] * 5
    assert [f.source_index for f, _ in r.shown] == list(range(len(r.shown)))
    r.ask(lambda: r.worker.reset())
    assert r.shown[-1][0].jump and r.shown[-1][0].source_index == 0
    r.ask(lambda: r.worker.step(FRAMES))
    assert not any(f.jump for f, _ in r.shown[-FRAMES:]), "what waited before the reset is forgotten"


def test_a_frame_keeps_the_stride_it_was_committed_with(rig):
    r = rig(ScriptedSession(delay=2.5 * FRAMES / FPS, look_ahead=3), pacing="realtime")
    r.commands.timeout = 1e9
    r.commands.twist(np.array([0.0, 0, 1, 0, 0, 0]), 0.0)
    r.wait_frames(25)
    moving = [f for f, _ in r.shown if np.any(f.twist)]
    assert len({f.stride for f in moving}) > 1
    for frame in moving:  # the session was told stride times the twist, and each frame tells what was asked for
        assert np.allclose(frame.twist, [0, 0, 1, 0, 0, 0])


# ------------------------------------------------------------------------------------------------------- preparation


def test_every_block_is_prepared_before_its_command_is_taken(rig):
    r = rig()
    r.wait_frames(30)
    assert r.session.events[:14] == ["prepare", "step"] * 7


def test_what_was_asked_for_comes_before_preparation(rig):
    session = ScriptedSession()
    entered, go_on = threading.Event(), threading.Event()
    step = session.step

    def slow_step(motion, playhead):
        entered.set()
        assert go_on.wait(10)
        return step(motion, playhead)

    session.step = slow_step
    r = rig(session)
    assert entered.wait(10)
    asked = r.worker.ask(lambda: session.events.append("job"))
    go_on.set()
    asked.result(timeout=10)
    r.wait(lambda: len(session.events) >= 5)
    assert session.events[:5] == ["prepare", "step", "job", "prepare", "step"]


def test_a_paused_world_prepares_once_and_waits(rig):
    r = rig()
    r.wait_frames(5)
    r.ask(r.worker.pause)
    r.wait(lambda: r.session.events[-1] == "prepare")
    r.ask(lambda: None)  # a job may have undone it: asked again, which costs a session that is prepared nothing
    r.wait(lambda: r.session.events[-2:] == ["prepare", "prepare"])
    count = len(r.session.events)
    time.sleep(10 / FPS)
    assert len(r.session.events) == count


def test_the_time_of_a_block_leaves_out_what_was_done_ahead(rig):
    session = ScriptedSession()
    session.prepare = lambda: time.sleep(0.1)
    r = rig(session)
    r.wait_frames(13)
    assert min(r.worker.compute_times()) < 0.1


def test_failure_while_preparing_is_told(rig):
    session = ScriptedSession()
    session.prepare = lambda: 1 / 0
    r = rig(session)
    r.wait(lambda: r.failed)
    assert isinstance(r.failed[0], ZeroDivisionError) and r.worker.state is State.FAILED and session.closed


def test_failure_while_loading_is_told(rig):
    def broken(progress):
        raise MemoryError("no room")

    r = rig(open_world=broken)
    r.wait(lambda: r.failed)
    assert isinstance(r.failed[0], MemoryError) and r.worker.state is State.FAILED
    with pytest.raises(CancelledError):
        r.ask(r.worker.play)


def test_failure_while_stepping_or_showing_is_told(rig):
    session = ScriptedSession()
    session.step = lambda motion, playhead: 1 / 0
    r = rig(session)
    r.wait(lambda: r.failed)
    assert isinstance(r.failed[0], ZeroDivisionError) and session.closed

    def show(frame, sim_time):
        raise RuntimeError("no publisher")

    r = rig(show=show)
    r.wait(lambda: r.failed)
    assert r.worker.state is State.FAILED


def test_stop_interrupts_loading_at_the_next_progress():
    entered, ended = threading.Event(), []

    def slow(progress):
        entered.set()
        try:
            while True:
                progress("reading", 0.5)
                time.sleep(0.01)
        except Cancelled:
            ended.append(True)
            raise

    r = Rig(open_world=slow)
    r.worker.start()
    assert entered.wait(5) and r.worker.state is State.LOADING and r.worker.stage == ("reading", 0.5)
    assert r.worker.stop(5.0) and ended and not r.failed


def test_a_long_step_can_be_ended(rig):
    r = rig(ScriptedSession(delay=0.01))
    r.wait_frames(2)
    r.ask(r.worker.pause)
    before, ended = len(r.shown), threading.Event()
    stepping = r.worker.ask(lambda: r.worker.step(10**9, ended))
    r.wait_frames(before + 3)
    ended.set()
    shown = stepping.result(timeout=10)
    assert 3 <= shown == len(r.shown) - before
    assert r.ask(lambda: r.worker.step(3)) == 3, "the next step is not ended"


def test_stop_ends_a_long_step_and_cancels_what_waits(rig):
    r = rig(ScriptedSession(delay=0.01))
    r.wait_frames(2)
    r.ask(r.worker.pause)
    stepping = r.worker.ask(lambda: r.worker.step(10**9))
    waiting = r.worker.ask(r.worker.play)
    r.wait_frames(len(r.shown) + 3)
    assert r.worker.stop(5.0)
    assert stepping.result(timeout=1) < 10**9
    assert waiting.cancelled() and r.session.closed
