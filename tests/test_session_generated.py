"""What a generator invents gets depth, and enters the map where that depth is certain."""

import pickle
import sys
from types import SimpleNamespace

import pytest
import torch

from inspatio_core.geometry.camera import project
from inspatio_core.geometry.depth_completion import complete_depth
from inspatio_core.geometry.motion import Motion
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.geometry.point_map import GENERATED, OBSERVED
from inspatio_core.memory import CONFIDENT
from inspatio_core.world import World
from tests.fake_generator import FakeGenerator
from tests.synthetic import make_reference
from tests.test_session import assert_equal_blocks, twist

SIZE = (32, 48)
ASIDE = torch.eye(4, dtype=torch.float64)
ASIDE[0, 3] = -1.5
SCRIPT = [
    (Motion.teleport(ASIDE), PlayheadCommand(paused=True)),
    (twist(0.5, 0, 0, 0, 0, 0), None),
    (None, PlayheadCommand(paused=False)),
    (twist(0, 0, 1, 0, 0.5, 0), None),
    (twist(-2, 0, 0, 0, 0, 0), PlayheadCommand(rate=-1)),
    (twist(-2, 0, 0, 0, 0, 0), None),
]


@pytest.fixture(scope="module")
def references():
    return [make_reference(24, SIZE, seed=s) for s in (0, 1)]


@pytest.fixture
def completion(monkeypatch):
    """A stand-in for depth completion: depth 5 m by the picture's columns, sure in the left half of it alone."""
    calls = []

    def complete(rgb, depth, known, filled_depth):
        calls.append(len(rgb))
        assert rgb.dtype == torch.uint8 and rgb.shape == (*known.shape, 3) and bool((filled_depth > 0).all())
        columns = torch.linspace(0.95, 0.05, SIZE[1]).expand(known.shape)
        return torch.where(known, depth, 5.0), torch.where(known, 1.0, columns)

    monkeypatch.setitem(
        sys.modules, "inspatio_core.geometry.depth_completion", SimpleNamespace(complete_depth=complete)
    )
    return calls


def world(references, look_ahead=0, generates=True, **options):
    generator = FakeGenerator(look_ahead, generates=generates)
    return World(references, generator, size=SIZE, device="cpu", loop="hold", **options)


def generated(point_map):
    points = point_map.points()
    return points._replace(**{name: t[points.origin == GENERATED] for name, t in points._asdict().items()})


@pytest.mark.parametrize("look_ahead", [0, 3])
@pytest.mark.parametrize("overlap", [True, False])
def test_generated_points_enter_where_they_are_unknown_and_certain(references, completion, look_ahead, overlap):
    def run(**options):
        with world(references[0], look_ahead, **options).start() as session:
            block = session.step(Motion.teleport(ASIDE), PlayheadCommand(paused=True))
            session.wait()
            assert len(generated(session.maps[0]).xyz) == 0, "the first block's frame was known everywhere"
            following = session.step()  # the map gets the block's last frame while this is made
            session.wait()
            return block, following, generated(session.maps[0]), session.step()

    block, following, points, then = run(overlap=overlap)
    assert len(points.xyz) > 50 and bool((points.last_seen == block.stamp[0, -1]).all())
    camera = torch.linalg.inv(block.world_from_camera[0, -1])
    uv, z = project(points.xyz.double() @ camera[:3, :3].T + camera[:3, 3], block.K[0, -1])
    torch.testing.assert_close(z, torch.full_like(z, 5.0), atol=1e-5, rtol=0)
    u, v = uv.round().long().unbind(-1)
    sure = torch.linspace(0.95, 0.05, SIZE[1])[u]
    assert torch.equal(points.confidence, sure) and bool((sure >= CONFIDENT).all())
    assert torch.equal(points.rgb, block.rgb[0, -1, v, u])
    assert not block.known[0, -1, v, u].any()

    _, bare, _, bare_then = run(generates=False)
    assert torch.equal(following.known[:, -1], bare.known[:, -1])
    new = then.known[0, -1] & ~bare_then.known[0, -1]
    assert int(new.sum()) > 50, "two blocks on, the anchor shows what was generated"
    same = (then.rgb[0, -1][new] == block.rgb[0, -1][new]).all(-1)
    assert float(same.float().mean()) > 0.3, "the very noise, as far as there is a point a pixel"


def test_depth_of_a_block_is_completed(references, completion):
    for memory in (True, False):
        del completion[:]
        with world(references[0], memory=memory).start() as session:
            block = session.step(Motion.teleport(ASIDE))
            assert completion == [1, 4]
            assert bool((block.depth[~block.known] == 5).all()) and not block.known.all()
            assert bool((block.depth[block.known] < 4.1).all()), "the scene's own"
            last = session.step(last_only=True)
            assert completion == [1, 4, 1] and last.depth.shape == (1, 1, *SIZE)


def test_nothing_is_completed_where_nothing_is_generated(references, completion):
    with World(references[0], size=SIZE, device="cpu").start() as session:
        session.step(Motion.teleport(ASIDE))
        session.step()
        session.step()
        assert completion == []
        assert bool((session.maps[0].points().origin == OBSERVED).all())


def test_the_map_is_the_same_overlapped_or_not_and_in_batches(references, completion):
    def run(session, slot):
        blocks = [session.step(m, p) for m, p in SCRIPT]
        session.wait()
        return blocks, session.maps[slot].state_dict()

    w, serial = world(None), world(None, overlap=False)
    with w.start(references) as batch, serial.start(references[1]) as single, w.start(references[1]) as other:
        results = [run(batch, 1), run(single, 0), run(other, 0)]
    for blocks, state in results[1:]:
        for a, b in zip(results[0][0], blocks, strict=True):
            assert_equal_blocks(a, b, 1, 0)
        for name, value in state.items():
            assert torch.equal(value, results[0][1][name]) if torch.is_tensor(value) else value == results[0][1][name]
    assert bool((state["origin"] == GENERATED).any())


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_snapshots_hold_what_has_not_entered_yet(references, completion, look_ahead):
    w = world(references, look_ahead)
    with w.start() as session, w.start() as other:
        for motion, command in SCRIPT[:2]:
            session.step(motion, command)
        snapshot = session.snapshot()
        future = [session.step(m, p) for m, p in SCRIPT[2:]]
        for s in (session, other):
            s.restore(snapshot)
            for (motion, command), block in zip(SCRIPT[2:], future, strict=True):
                assert_equal_blocks(s.step(motion, command), block)
    assert snapshot["pending"][0].generated is not None
    pixels = SIZE[0] * SIZE[1]
    assert len(pickle.dumps(snapshot["pending"])) < 2 * pixels * (3 + 4 + 4) + 5000, "one frame a slot, and no more"


def test_a_reset_forgets_what_was_generated(references, completion):
    w = world(references)
    with w.start() as session, w.start() as fresh:
        for motion, command in SCRIPT:
            session.step(motion, command)
        session.reset()
        for motion, command in SCRIPT:
            assert_equal_blocks(session.step(motion, command), fresh.step(motion, command))


def test_with_the_depth_completion_there_is(references):
    """The last frame alone has the bytes it has in the whole block, and depth is positive everywhere."""
    with world(references).start() as whole, world(references).start() as last:
        for motion, command in SCRIPT:
            block = whole.step(motion, command)
            assert_equal_blocks(block.last(), last.step(motion, command, last_only=True))
            assert bool((block.depth > 0).all())
        whole.wait()
        assert len(generated(whole.maps[0]).xyz) > 0
    assert complete_depth.__module__ == "inspatio_core.geometry.depth_completion"
