"""A generator that must see frames beyond those it shows: what is committed, what is shown, and when."""

import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.generators import GeneratorSpec
from inspatio_core.geometry.camera import invert_pose
from inspatio_core.geometry.motion import Motion, se3_log
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.world import World
from tests.fake_generator import FakeGenerator
from tests.synthetic import make_reference
from tests.test_session import SCRIPT, assert_equal_blocks, joined, twist

SIZE = (32, 48)
ASIDE = torch.eye(4, dtype=torch.float64)
ASIDE[:3, 3] = torch.tensor([-0.4, 0.1, 0.2])
PATH = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
PATH[:, 0, 3] = torch.tensor([-0.1, -0.3, -0.2, -0.4])
LONG_SCRIPT = [
    *SCRIPT,
    (Motion.teleport(ASIDE), PlayheadCommand(freeze=2)),
    (Motion.target(torch.eye(4)), None),
    (Motion.path(PATH), PlayheadCommand(indices=[3, 9, 9, 2])),
    (twist(0, 0, 0.5, 0, 0, 0), None),
]


@pytest.fixture(scope="module")
def references():
    return [make_reference(24, SIZE, seed=s, travel=1.0 - 0.5 * s, fps=f) for s, f in ((0, 24.0), (1, 30.0))]


@dataclass(frozen=True)
class LongFirst(GeneratorSpec):
    """A first block as long as what a look-ahead commits at first."""

    extra: int = 0

    @property
    def first_frames(self):
        return super().first_frames + self.extra


def without_look_ahead(look_ahead):
    """A generator that commits the same frames in the same blocks, and shows them all at once."""
    generator = FakeGenerator()
    generator.spec = LongFirst("fake", needs=generator.spec.needs, extra=look_ahead)
    return generator


def world(references, look_ahead=3, **options):
    options = {"generator": FakeGenerator(look_ahead), "loop": "hold"} | options
    return World(references, size=SIZE, device="cpu", **options)


def run(session, script=LONG_SCRIPT):
    return [session.first] + [session.step(m, p) for m, p in script]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("look_ahead", [3, 6])
def test_frames_are_shown_as_they_were_committed(references, look_ahead, relative):
    """Against a run without look-ahead whose blocks commit the same frames: the same frames, L frames later."""
    options = {"relative_to_source": relative, "memory": False}
    with world(references[0], look_ahead, **options).start() as session:
        blocks = run(session)
        assert [b.frames for b in blocks] == [1] + [4] * len(LONG_SCRIPT)
        assert int(session.frames_shown) == 1 + 4 * len(LONG_SCRIPT)
        last = session.world_from_camera[0]
    with world(references[0], generator=without_look_ahead(look_ahead), **options).start() as plain:
        committed = run(plain)
    shown = 1 + 4 * len(LONG_SCRIPT)
    for name in ("world_from_camera", "source_index", "stamp", "twist", "depth", "known", "K"):
        assert torch.equal(joined(blocks, name), joined(committed, name)[:shown]), name
    assert torch.equal(last, committed[-1].world_from_camera[0, -1]), "of the last frame committed"
    known = joined(blocks, "known")
    assert not known.all(), "there is something to generate"
    assert torch.equal(joined(blocks, "rgb")[known], joined(committed, "rgb")[:shown][known])


def test_a_command_is_seen_look_ahead_frames_later(references):
    with world(references[0]).start() as session:
        here = session.step(Motion.hold(), PlayheadCommand(paused=True))
        gone = session.step(Motion.teleport(ASIDE), PlayheadCommand(jump=20))
        there = session.step()
    assert here.source_index.tolist() == [[1, 2, 3, 4]], "three were committed by the first block, and one by this"
    assert gone.source_index.tolist() == [[4, 4, 4, 20]]
    expected = torch.stack([*torch.eye(4, dtype=torch.float64).expand(3, 4, 4), ASIDE])
    assert torch.equal(gone.world_from_camera[0], expected) and torch.count_nonzero(gone.twist) == 0
    assert torch.equal(there.world_from_camera[0], ASIDE.expand(4, 4, 4))


def test_batch_equals_stacked_singles_with_a_reset_in_between(references):
    w = world(None)
    batch = w.start(references, seeds=[1, 2])
    singles = [w.start(r, seeds=s) for r, s in zip(references, (1, 2), strict=True)]
    for k, (motion, command) in enumerate(LONG_SCRIPT):
        if k == 3:
            fresh = batch.reset([1], seeds=[9], references=[references[0]])
            singles[1].close()
            singles[1] = w.start(references[0], seeds=9)
            assert_equal_blocks(fresh, singles[1].first)
        batch.prepare()
        block = batch.step(motion, command)
        for slot, single in enumerate(singles):
            assert_equal_blocks(block, single.step(motion, command), slot, 0)
    for s in [batch, *singles]:
        s.close()


@pytest.mark.parametrize("overlap", [True, False])
def test_a_reset_of_all_starts_the_same_clip_again(references, overlap):
    with world(references[0], overlap=overlap).start() as session:
        before = run(session)
        again = [session.reset()] + [session.step(m, p) for m, p in LONG_SCRIPT]
    for a, b in zip(before, again, strict=True):
        assert_equal_blocks(a, b)


def test_snapshots_hold_the_frames_that_wait(references):
    w = world(references)
    with w.start() as session, w.start() as other:
        for motion, command in LONG_SCRIPT[:5]:
            session.step(motion, command)
        snapshot = session.snapshot()
        size = len(pickle.dumps({k: v for k, v in snapshot.items() if k not in ("references", "maps")}))
        future = [session.step(m, p) for m, p in LONG_SCRIPT[5:]]
        for s in (session, other):
            s.restore(snapshot)
            for (motion, command), block in zip(LONG_SCRIPT[5:], future, strict=True):
                s.prepare()
                assert_equal_blocks(s.step(motion, command), block)
    per_slot = 3 * SIZE[0] * SIZE[1] * (16 + 4)  # the anchor's bytes, and what the fake generator queues
    assert size < 2 * per_slot + 50_000, "nothing else is kept alive by what waits"


def test_last_frame_alone_is_that_of_the_whole_block(references):
    with world(references).start() as whole, world(references).start() as last:
        for motion, command in LONG_SCRIPT:
            expected, alone = whole.step(motion, command), last.step(motion, command, last_only=True)
            assert alone.frames == 1
            assert_equal_blocks(expected.last(), alone)


def test_the_anchor_kept_is_that_of_the_frames_shown(references):
    with world(references, keep_anchor=True).start() as session:
        for block in run(session):
            assert torch.equal(block.anchor.known, block.known.flatten(0, 1))
            shown = block.rgb.flatten(0, 1)
            assert torch.equal(block.anchor.rgb[block.anchor.known], shown[block.anchor.known])
            assert torch.equal(block.anchor.filled_depth, block.depth.flatten(0, 1))


# ------------------------------------------------------------------------------------------------ the first frames


def test_a_start_may_give_every_frame_it_commits(references):
    n = 1 + 3
    poses = torch.eye(4, dtype=torch.float64).repeat(2, n, 1, 1)
    poses[0, :, 0, 3] = torch.tensor([-0.1, -0.15, -0.3, -0.2])
    poses[1, :, 2, 3] = torch.tensor([0.0, 0.1, 0.2, 0.3])
    indices = [[4, 4, 9, 8], [0, 2, 1, 3]]
    with world(references).start(start_indices=indices, start_poses=poses) as session:
        blocks = [session.first, session.step()]
        held = session.step()
    for slot in (0, 1):
        assert joined(blocks, "source_index", slot)[:n].tolist() == indices[slot]
        assert torch.equal(joined(blocks, "world_from_camera", slot)[:n], poses[slot])
        moved = se3_log(invert_pose(poses[slot, :-1]) @ poses[slot, 1:]) * 24
        twists = joined(blocks, "twist", slot)
        assert torch.equal(twists[1:n], moved) and torch.count_nonzero(twists[0]) == 0
        assert torch.equal(held.world_from_camera[slot, -1], poses[slot, -1])
    assert blocks[1].source_index[0, 3] == 9, "the playhead goes on from the last one given"


def test_a_first_block_of_several_frames_may_follow_a_path(references):
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 9, 1, 1)
    poses[0, :, 0, 3] = torch.linspace(0, -0.4, 9)
    w = world(references[0], generator=FakeGenerator(latents=3))
    with w.start(start_indices=[range(8, -1, -1)], start_poses=poses) as session:
        assert torch.equal(session.first.world_from_camera, poses)
        assert session.first.source_index.tolist() == [list(range(8, -1, -1))]


def test_the_first_frames_ride_on_the_source_camera(references):
    with world(references[0], relative_to_source=True).start() as session:
        blocks = [session.first, session.step()]
    poses, indices = joined(blocks, "world_from_camera"), joined(blocks, "source_index")
    np.testing.assert_allclose(poses, references[0].world_from_camera[indices], atol=1e-12)
    np.testing.assert_allclose(
        joined(blocks, "twist")[1:], se3_log(invert_pose(poses[:-1]) @ poses[1:]) * 24, atol=1e-9
    )


@pytest.mark.parametrize(
    "start",
    [
        {"start_indices": [[0, 1, 2]]},
        {"start_indices": [[0, 1, 2, 24]]},
        {"start_indices": [[0, 1, 2, -1]]},
        {"start_indices": [[0, 1, 2, 0.5]]},
        {"start_indices": 1e13},
        {"start_poses": torch.eye(4).repeat(1, 3, 1, 1)},
        {"start_poses": 2 * torch.eye(4).repeat(1, 4, 1, 1)},
    ],
)
def test_bad_starts_are_refused_and_change_nothing(references, start):
    w = world(references[0])
    with w.start() as session, w.start() as twin:
        with pytest.raises(InputError, match=next(iter(start))):
            session.reset(seeds=7, **start)
        assert_equal_blocks(session.step(), twin.step())


def test_a_framewise_generator_that_looks_ahead_commits_every_frame(references):
    generators = [FakeGenerator(3) for _ in range(2)]
    generators[1].spec = replace(generators[1].spec, framewise=True)
    sessions = [world(references, generator=g).start() for g in generators]
    for motion, command in SCRIPT[:4]:
        a, b = (s.step(motion, command, last_only=True) for s in sessions)
        assert_equal_blocks(a, b)
    for s in sessions:
        s.close()
