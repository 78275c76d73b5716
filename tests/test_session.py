"""Contracts of World and Session: streaming equals offline, independent slots, state round-trips, flat memory."""

import gc
import os
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from inspatio_core.errors import InputError
from inspatio_core.generators.geometric import GeometricGenerator
from inspatio_core.geometry.anchor import NEARER
from inspatio_core.geometry.camera import project, unproject
from inspatio_core.geometry.fill import fill
from inspatio_core.geometry.motion import Motion
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.geometry.point_map import OBSERVED, PointMap
from inspatio_core.geometry.splat import splat
from inspatio_core.geometry.visibility import MARGIN
from inspatio_core.reference import Reference
from inspatio_core.world import World
from tests.synthetic import make_reference

SIZE = (48, 64)
FIELDS = ("rgb", "depth", "known", "world_from_camera", "K", "source_index", "stamp", "twist")


@pytest.fixture(scope="module")
def references():
    return [make_reference(24, SIZE, seed=s, travel=1.0 - 0.5 * s, fps=f) for s, f in ((0, 24.0), (1, 30.0), (2, 12.0))]


def assert_equal_blocks(a, b, rows_a=None, rows_b=None):
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        x = x if rows_a is None else x[rows_a]
        y = y if rows_b is None else y[rows_b]
        assert torch.equal(x, y), name


def twist(*v):
    return Motion.from_twist(torch.tensor(v, dtype=torch.float64))


SCRIPT = [  # play, pause, reverse, half rate, jump, a target, a path: (motion, playhead command)
    (twist(0.5, 0, 0.2, 0, 0.3, 0), None),
    (twist(0.5, 0, 0.2, 0, 0.3, 0), None),
    (twist(0, 0.1, 0, 0, -0.5, 0.1), PlayheadCommand(paused=True)),
    (None, None),
    (twist(-1, 0, 0, 0.2, 0, 0), PlayheadCommand(paused=False, rate=-1.0)),
    (twist(-1, 0, 0, 0, 0.4, 0), None),
    (None, PlayheadCommand(rate=0.5)),
    (twist(0, 0, -1, 0, 0.4, 0), PlayheadCommand(jump=18.0)),
    (twist(0, 0, -1, 0, 0.4, 0), None),
]


class Oracle:
    """A whole-clip computation that shares no state with a session: all poses and source indices first, all frames
    splatted in one call, the memory of each block rebuilt from nothing, one fill."""

    def __init__(self, reference, fps):
        self.reference, self.fps = reference, fps
        self.position, self.rate, self.paused = 0.0, 1.0, False
        self.pose = np.eye(4)
        self.blocks = [([0], [np.eye(4)])]
        self._advance_playhead()

    def _advance_playhead(self):
        n = self.reference.frame_count
        if not self.paused:
            self.position += self.rate * self.reference.fps / self.fps
            assert -1e-9 <= self.position <= n - 1 + 1e-9, (
                "the script stays inside the clip; ends are the playhead's own tests"
            )

    def command(self, motion, command, frames):
        if command is not None:
            self.rate = self.rate if command.rate is None else command.rate
            self.paused = self.paused if command.paused is None else command.paused
            self.position = self.position if command.jump is None else command.jump
        indices, poses = [], []
        for _ in range(frames):
            indices.append(int(np.floor(self.position + 1e-6)))
            self._advance_playhead()
            if motion is not None:
                v, w = motion.twist[:3].numpy(), motion.twist[3:].numpy()
                hat = np.array([[0, -w[2], w[1], v[0]], [w[2], 0, -w[0], v[1]], [-w[1], w[0], 0, v[2]], [0, 0, 0, 0]])
                self.pose = self.pose @ scipy.linalg.expm(hat / self.fps)
            poses.append(self.pose.copy())
        self.blocks.append((indices, poses))

    def render(self, poses, memory=True):
        """All blocks at once, at the session's own ``poses`` [T, 4, 4] (checked apart) to compare bytes."""
        r = self.reference
        indices = [i for block, _ in self.blocks for i in block]
        rgb, depth = torch.stack([r.rgb(i) for i in indices]), torch.stack([r.depth(i) for i in indices])
        K = r.K[0].expand(len(indices), 3, 3)
        target_from_source = torch.linalg.inv(poses) @ r.world_from_camera[indices]
        warped = splat(rgb, depth, r.K[indices], K, target_from_source, SIZE)
        out_rgb, out_depth, known = warped.rgb.clone(), warped.depth.clone(), warped.known.clone()
        frame = 0
        for k, (block, _) in enumerate(self.blocks):
            point_map, seen = PointMap(), []
            for earlier, _ in self.blocks[: max(0, k - 1)]:
                i = earlier[-1]
                if i not in seen:
                    seen.append(i)
                    point_map.insert(
                        r.rgb(i),
                        r.depth(i),
                        r.depth(i) > 0,
                        r.K[i],
                        r.world_from_camera[i],
                        OBSERVED,
                        stamp=float(i),
                        moving=r.moving(i),
                    )
            for _ in block:
                if memory and len(point_map):
                    view = point_map.render(K[frame], poses[frame], SIZE)
                    nearer = view.depth < out_depth[frame] * (1 - NEARER)
                    new = view.known & (nearer | ~known[frame])
                    new &= ~self._seen_through(view.depth, K[frame], poses[frame], indices[frame])
                    out_rgb[frame][new], out_depth[frame][new] = view.rgb[new], view.depth[new]
                    known[frame] |= new
                frame += 1
        default = torch.full((len(indices),), r.median_depth, dtype=torch.float64)
        filled_rgb, filled_depth = fill(out_rgb, out_depth, known, default)
        return filled_rgb, filled_depth, known

    def _seen_through(self, depth, K, pose, index):
        """Point by point through the world: projected into source frame ``index``, clearly in front of its surface."""
        r = self.reference
        source_from_target = torch.linalg.inv(r.world_from_camera[index]) @ pose
        points = unproject(depth.double(), K) @ source_from_target[:3, :3].T + source_from_target[:3, 3]
        uv, z = project(points, r.K[index])
        at = torch.floor(uv + 0.5)
        inside = (z > 0) & (at[..., 0] >= 0) & (at[..., 0] < SIZE[1]) & (at[..., 1] >= 0) & (at[..., 1] < SIZE[0])
        at = torch.where(inside[..., None], at, 0.0).long()
        return inside & (r.depth(index)[at[..., 1], at[..., 0]].double() * (1 - MARGIN) > z)


def run(session, script=SCRIPT):
    return [session.first] + [session.step(m, p) for m, p in script]


def joined(blocks, name, slot=0):
    return torch.cat([getattr(b, name)[slot] for b in blocks])


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("latents", [1, 3])
def test_streaming_equals_an_independent_whole_clip_computation(references, memory, latents):
    reference = make_reference(64, SIZE, seed=3, travel=1.5) if latents == 3 else references[0]
    world = World(reference, size=SIZE, device="cpu", latents_per_block=latents, memory=memory, loop="hold")
    script = SCRIPT[:7] if latents == 3 else SCRIPT
    with world.start() as session, world.start(seeds=7) as other:
        oracle = Oracle(reference, world.fps)
        oracle.blocks, first = [], world.generator.spec.first_frames
        oracle.position = 0.0
        oracle.command(None, None, first)
        blocks = [session.first]
        for motion, command in script:
            blocks.append(session.step(motion, command))
            other.step(twist(0, 0, 1, 0, 0, 0), PlayheadCommand(rate=0.3))
            oracle.command(motion, command, world.generator.spec.frames)
    poses = joined(blocks, "world_from_camera")
    np.testing.assert_allclose(poses.numpy(), np.stack([p for _, ps in oracle.blocks for p in ps]), atol=1e-12)
    assert joined(blocks, "source_index").tolist() == [i for block, _ in oracle.blocks for i in block]
    rgb, depth, known = oracle.render(poses, memory)
    assert torch.equal(joined(blocks, "rgb"), rgb)
    assert torch.equal(joined(blocks, "depth"), depth)
    assert torch.equal(joined(blocks, "known"), known)
    np.testing.assert_allclose(joined(blocks, "stamp").numpy(), np.arange(len(poses)) / world.fps, atol=1e-12)


def test_a_reset_midway_starts_the_same_clip_again(references):
    world = World(references[0], size=SIZE, device="cpu")
    with world.start() as session:
        before = run(session)
        again = [session.reset()] + [session.step(m, p) for m, p in SCRIPT]
    for a, b in zip(before, again, strict=True):
        assert_equal_blocks(a, b)


def test_memory_adds_known_pixels_from_the_block_after_next(references):
    """The camera stays where the source camera leaves: what was seen before is remembered, two blocks later."""
    reference = references[0]
    shares = {}
    for memory in (True, False):
        with World(reference, size=SIZE, device="cpu", memory=memory, loop="hold").start() as session:
            blocks = [session.first] + [session.step() for _ in range(5)]
        shares[memory] = [b.known.float().mean().item() for b in blocks]
    assert shares[True][:2] == shares[False][:2]
    assert shares[True][-1] > shares[False][-1] + 0.05


def test_overlapped_insertion_gives_the_same_bytes(references):
    results = []
    for overlap in (True, False):
        with World(references[0], size=SIZE, device="cpu", overlap=overlap).start() as session:
            results.append(run(session))
    for a, b in zip(*results, strict=True):
        assert_equal_blocks(a, b)


def test_batch_equals_stacked_singles_and_reset_of_one_slot_leaves_the_others(references):
    world = World(size=SIZE, device="cpu")
    batch = world.start(references, seeds=[1, 2, 3])
    singles = [world.start(r, seeds=s) for r, s in zip(references, (1, 2, 3), strict=True)]
    for slot, single in enumerate(singles):
        assert_equal_blocks(batch.first, single.first, slot, 0)
    for k, (motion, command) in enumerate(SCRIPT):
        if k == 4:
            fresh = batch.reset([1], seeds=[9], references=[references[2]])
            singles[1] = world.start(references[2], seeds=9)
            assert fresh.rgb.shape[0] == 1
            assert_equal_blocks(fresh, singles[1].first)
        block = batch.step(motion, command)
        for slot, single in enumerate(singles):
            assert_equal_blocks(block, single.step(motion, command), slot, 0)
    assert batch.frames_shown.tolist() == [1 + 4 * 9, 1 + 4 * 5, 1 + 4 * 9]
    for s in [batch, *singles]:
        s.close()


def test_slots_take_their_own_commands(references):
    world = World(size=SIZE, device="cpu")
    with world.start([references[0]] * 2) as session:
        block = session.step([twist(1, 0, 0, 0, 0, 0), Motion.hold()], [None, PlayheadCommand(paused=True)])
    np.testing.assert_allclose(block.world_from_camera[0, -1, 0, 3], 4 / 24)
    assert torch.equal(block.world_from_camera[1, -1], torch.eye(4, dtype=torch.float64))
    assert block.source_index.tolist() == [[1, 2, 3, 4], [1, 1, 1, 1]]


def test_twist_tensor_equals_twist_motions(references):
    world = World(size=SIZE, device="cpu")
    twists = torch.tensor([[0.3, 0, 1, 0, 0.5, 0], [0, 0.2, 0, 0.1, 0, -0.4]], dtype=torch.float64)
    with world.start(references[:2]) as a, world.start(references[:2]) as b:
        for _ in range(3):
            assert_equal_blocks(a.step(twists), b.step([Motion.from_twist(t) for t in twists]))


def test_snapshot_and_restore_round_trip_bit_for_bit(references):
    world = World(size=SIZE, device="cpu")
    with world.start(references[:2]) as session:
        for motion, command in SCRIPT[:4]:
            session.step(motion, command)
        snapshot = session.snapshot()
        future = [session.step(m, p) for m, p in SCRIPT[4:]]
        session.restore(snapshot)
        again = [session.step(m, p) for m, p in SCRIPT[4:]]
    with world.start(references[:2]) as other:
        other.restore(snapshot)
        elsewhere = [other.step(m, p) for m, p in SCRIPT[4:]]
    for a, b, c in zip(future, again, elsewhere, strict=True):
        assert_equal_blocks(a, b)
        assert_equal_blocks(a, c)
    del snapshot["references"]
    assert pickle.dumps(snapshot)


def test_riding_on_the_source_camera(references):
    reference = references[0]
    world = World(reference, size=SIZE, device="cpu", relative_to_source=True)
    with world.start() as session:
        for _ in range(4):  # memory is there by now, and does not cover what the frame shows
            held = session.step()
        assert len(session.maps[0]) > 0
        assert torch.equal(held.rgb[0], torch.stack([reference.rgb(i) for i in held.source_index[0]])), (
            "an identity warp is exact"
        )
        np.testing.assert_allclose(
            held.world_from_camera[0], reference.world_from_camera[held.source_index[0]], atol=1e-12
        )
        goal = torch.eye(4, dtype=torch.float64)
        goal[0, 3] = 0.4
        np.testing.assert_allclose(session.step(Motion.target(goal)).world_from_camera[0, -1], goal, atol=1e-9)
        path = goal.repeat(4, 1, 1)
        assert torch.equal(session.step(Motion.path(path)).world_from_camera[0], path)
        jump = session.step(Motion.teleport(torch.eye(4, dtype=torch.float64)))
        assert torch.equal(jump.world_from_camera[0], torch.eye(4, dtype=torch.float64).repeat(4, 1, 1))
        assert torch.count_nonzero(jump.twist) == 0


def test_start_index_and_pose(references):
    world = World(references[0], size=SIZE, device="cpu")
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 0.5
    with world.start(start_indices=7, start_poses=pose) as session:
        assert session.first.source_index.tolist() == [[7]]
        assert torch.equal(session.first.world_from_camera[0, 0], pose)
        assert session.step().source_index.tolist() == [[8, 9, 10, 11]]


def test_an_unmoved_camera_shows_the_reference_exactly(references):
    with World(references[0], size=SIZE, device="cpu").start() as session:
        assert torch.equal(session.first.rgb[0, 0], references[0].rgb(0))
        assert torch.equal(session.first.depth[0, 0], references[0].depth(0))
        assert bool(session.first.known.all())


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.step([Motion.hold()] * 3),
        lambda s: s.step(torch.full((1, 6), float("nan"), dtype=torch.float64)),
        lambda s: s.step(torch.zeros(2, 6, dtype=torch.float64)),
        lambda s: s.step(Motion.path(torch.eye(4, dtype=torch.float64).repeat(3, 1, 1))),
        lambda s: s.step(None, [None, None]),
        lambda s: s.reset([1]),
        lambda s: s.reset([0, 0]),
        lambda s: s.reset([0], seeds=[1, 2]),
        lambda s: s.reset("0"),
        lambda s: s.reset([0.5]),
        lambda s: s.reset(seeds=1.5),
        lambda s: s.reset(seeds=["one"]),
        lambda s: s.reset(start_indices=2.5),
        lambda s: s.reset(start_poses=torch.eye(3)),
        lambda s: s.reset(start_poses=None, references=[]),
        lambda s: s.reset(seeds=5, start_poses=2 * torch.eye(4)),
        lambda s: s.reset(seeds=5, start_poses=torch.full((1, 4, 4), float("nan"))),
        lambda s: s.restore(None),
        lambda s: s.restore({}),
        lambda s: s.restore(s.snapshot() | {"maps": []}),
        lambda s: s.restore(s.snapshot() | {"seeds": None}),
        lambda s: s.restore({k: v for k, v in s.snapshot().items() if k != "rig"}),
    ],
)
def test_bad_calls_are_refused_and_change_nothing(references, call):
    world = World(references[0], size=SIZE, device="cpu")
    with world.start() as session, world.start() as twin:
        with pytest.raises(InputError) as error:
            call(session)
        assert "\n" not in str(error.value)
        assert_equal_blocks(session.step(), twin.step())


@pytest.mark.parametrize(
    "start",
    [
        {"start_poses": torch.full((4, 4), float("nan"))},
        {"start_poses": torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0]))},
        {"start_poses": torch.eye(4).repeat(2, 1, 1)},
        {"seeds": 0.5},
        {"seeds": [None, "x"]},
        {"start_indices": ["first"]},
    ],
    ids=lambda start: next(iter(start)),
)
def test_bad_starts_are_refused(references, start):
    world = World(references[0], size=SIZE, device="cpu")
    with pytest.raises(InputError, match=next(iter(start))):
        world.start(**start)


def test_a_bad_pose_is_told_with_its_slot(references):
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[2, 0, 0] = 1.1
    with pytest.raises(InputError, match="start_poses.*slot 2.*rigid"):
        World(references, size=SIZE, device="cpu").start(start_poses=poses)


def test_numbers_and_poses_of_numpy_are_as_good(references):
    pose = np.eye(4)
    pose[0, 3] = 0.25
    with World(references[0], size=SIZE, device="cpu").start() as session:
        plain = session.reset(0, seeds=3, start_indices=5, start_poses=torch.from_numpy(pose))
        given = session.reset(np.int64(0), np.array([3]), start_indices=np.int32(5), start_poses=pose)
        assert_equal_blocks(plain, given)
        assert given.source_index.item() == 5 and torch.equal(given.world_from_camera[0, 0], torch.from_numpy(pose))


def test_a_snapshot_of_another_world_is_refused(references):
    worlds = [World(references[0], device="cpu", size=SIZE, map_limit=n) for n in (1000, 2000)]
    worlds.append(World(references[0], device="cpu", size=(32, 32), map_limit=1000))
    sessions = [world.start() for world in worlds]
    for other in sessions[1:]:
        with pytest.raises(InputError, match="snapshot: of a world"):
            sessions[0].restore(other.snapshot())
    assert sessions[0].references[0].size == SIZE


class OneSize(GeometricGenerator):
    """A generator that, as networks do, works at one size only."""

    def __init__(self):
        super().__init__()
        self.spec = replace(self.spec, name="narrow", size=(32, 48), dtype="bfloat16")


def test_a_size_that_the_generator_does_not_do_is_refused(references):
    with pytest.raises(InputError, match="size: generator narrow works at 32x48 only, not 48x64"):
        World(references[0], OneSize(), size=SIZE, device="cpu")
    for size in ((32, 48), "auto"):
        world = World(references[0], OneSize(), size=size, device="cpu")
        with world.start() as session:
            assert session.first.rgb.shape[2:4] == (32, 48)
    spec = World(references[0], size=SIZE, device="cpu").generator.spec
    assert spec.size is None and hasattr(torch, spec.dtype)


@pytest.mark.parametrize(
    "arguments",
    [
        {"generator": "nonsense"},
        {"device": "abacus"},
        {"device": "cuda:99"},
        {"size": (5, 5)},
        {"size": "big"},
        {"fps": 0.0},
        {"loop": "x"},
    ],
)
def test_bad_worlds_are_refused(arguments):
    with pytest.raises(InputError) as error:
        World(**arguments)
    assert next(iter(arguments)) in str(error.value) and "\n" not in str(error.value)


def _resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_flat_over_ten_thousand_frames():
    """10,000 frames with memory on, all playhead modes, moving about: the process grows by less than 8 MB."""
    reference = make_reference(48, (24, 32), seed=5)
    world = World(reference, size=(24, 32), device="cpu", map_limit=20_000)
    generator = torch.Generator().manual_seed(0)
    with world.start() as session:

        def drive(blocks):
            for k in range(blocks):
                twists = torch.randn(1, 6, generator=generator, dtype=torch.float64) * 0.5
                if k % 50 == 0:
                    twists[:] = 0
                    session.step(
                        Motion.teleport(torch.eye(4, dtype=torch.float64)), PlayheadCommand(rate=(-1.0) ** (k // 50))
                    )
                session.step(twists)

        drive(300)
        session.wait()
        gc.collect()
        before, threads = _resident(), len(os.listdir("/proc/self/task"))
        drive(2500)
        session.wait()
        gc.collect()
        grown = _resident() - before
        assert len(os.listdir("/proc/self/task")) <= threads
        assert int(session.frames_shown[0]) > 10_000
    assert grown < 8 * 2**20, f"grew by {grown / 2**20:.1f} MB"


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_last_frame_alone_is_that_of_the_whole_block(references, memory, relative):
    sessions = [
        World(references, size=SIZE, device="cpu", memory=memory, relative_to_source=relative).start() for _ in range(2)
    ]
    for motion, command in SCRIPT:
        motions = [motion or Motion.hold()] * 3
        whole, last = sessions[0].step(motions, command), sessions[1].step(motions, command, last_only=True)
        assert last.frames == 1 and torch.equal(whole.index, last.index)
        assert_equal_blocks(whole.last(), last)
    assert torch.equal(sessions[0].world_from_camera, sessions[1].world_from_camera)
    for session in sessions:
        session.close()


def test_a_scene_is_opened_once_however_often_it_is_asked_for():
    world = World(size=SIZE, device="cpu")
    assert world.fitted("courtyard") is world.fitted("courtyard")
    reference = make_reference(4, (40, 56))
    assert world.fitted(reference) is world.fitted(reference)
    assert world.fitted(reference).size == SIZE


def test_frames_are_decoded_ahead(references, monkeypatch):
    """At any rate, what the next block shows was asked for before it; bytes stay the same."""
    monkeypatch.setattr("inspatio_core.session.WORTH_A_THREAD", 1)
    with World(references[0], size=SIZE, device="cpu", overlap=False).start() as plain:
        expected = run(plain)
    asked, rgb = [], Reference.rgb

    def spy(self, index):
        if threading.current_thread().name.startswith("inspatio-session"):
            asked.append(index)
        return rgb(self, index)

    monkeypatch.setattr(Reference, "rgb", spy)
    with World(references[0], size=SIZE, device="cpu").start() as session:
        blocks = [session.first]
        for motion, command in SCRIPT:
            session._background().submit(int).result()  # what was queued before is done
            before = set(asked)
            blocks.append(session.step(motion, command))
            if command is None and len(blocks) > 2:  # nobody could have known of a new command
                assert set(blocks[-1].source_index.flatten().tolist()) <= before
    for a, b in zip(expected, blocks, strict=True):
        assert_equal_blocks(a, b)
