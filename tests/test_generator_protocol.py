"""What a session asks of a generator, in which order, and what is done ahead of the command."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.generators import GENERATORS, GeneratorOptions, make_generator
from inspatio_core.generators.geometric import GeometricGenerator
from inspatio_core.geometry.motion import Motion
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.reference import Reference
from inspatio_core.world import World
from tests.fake_generator import FakeGenerator
from tests.synthetic import make_reference
from tests.test_session import assert_equal_blocks, twist

SIZE = (32, 48)
AWAY = twist(-3, 0, 0, 0, 0, 0)  # from what the source sees, so that there is something to generate
STEPS = [  # (motion, playhead command, whether the playhead goes on as it was)
    (AWAY, None, True),
    (twist(-0.5, 0, 0, 0.2, 0, 0), PlayheadCommand(paused=True), False),
    (None, PlayheadCommand(paused=True), True),
    (twist(1.5, 0, 0, 0, 0, 0), PlayheadCommand(paused=False, rate=-0.5), False),
    (Motion.teleport(torch.eye(4)), PlayheadCommand(jump=20), False),
    (twist(0, 0, 0, 0, 0.4, 0), None, True),
]


@pytest.fixture(scope="module")
def references():
    return [make_reference(24, SIZE, seed=s) for s in (0, 1)]


def world(references=None, generator=None, **options):
    return World(references, generator or FakeGenerator(), size=SIZE, device="cpu", loop="hold", **options)


# ------------------------------------------------------------------------------------------------ order, work ahead


def test_condition_then_generate_for_each_block(references):
    w = world(references)
    calls = w.generator.calls
    with w.start() as session:
        assert calls == [("condition", [0, 0]), ("generate", [0, 0])]
        session.step()
        assert calls[2:] == [("condition", [1, 1]), ("generate", [1, 1])]
        del calls[:]
        session.prepare()
        session.prepare()
        assert calls == [("condition", [2, 2])]
        session.step(twist(1, 0, 0, 0, 0, 0))
        assert calls[1:] == [("generate", [2, 2])]
        session.reset([1])
        assert calls[2:] == [("condition", [0]), ("generate", [0])], "a reset asks for its slots only"


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_prepared_or_not_the_bytes_are_the_same(references, look_ahead):
    results = []
    for prepared in (False, True):
        w = world(references, FakeGenerator(look_ahead))
        with w.start() as session:
            blocks = []
            for motion, command, goes_on in STEPS:
                if prepared:
                    session.prepare()
                del w.generator.calls[:]
                blocks.append(session.step(motion, command))
                conditions = [name for name, _ in w.generator.calls].count("condition")
                assert conditions == (0 if prepared and goes_on else 1)
            results.append(blocks)
    for a, b in zip(*results, strict=True):
        assert_equal_blocks(a, b)


def test_what_was_prepared_ends_with_reset_restore_and_a_new_prompt(references):
    def shake(session, ahead):
        blocks, snapshot = [], session.snapshot()
        for change in (
            lambda: session.reset([0], seeds=5),
            lambda: session.set_prompt("a kitchen", 1),
            lambda: session.restore(snapshot),
            lambda: session.reset([1], references=references[0], start_indices=9),
        ):
            if ahead:
                session.prepare()
            change()
            if ahead:
                session.prepare()
            blocks.append(session.step(AWAY))
        return blocks

    w = world(references)
    with w.start() as one, w.start() as two:
        for a, b in zip(shake(one, False), shake(two, True), strict=True):
            assert_equal_blocks(a, b)
            assert a.known.float().mean() < 0.95


def test_restore_drops_what_was_prepared_of_the_same_frames(references):
    """Paused, every block commits the same frames: those alone do not tell what was prepared for another history."""
    with world(references).start() as session:
        session.step(AWAY, PlayheadCommand(paused=True))
        session.step(AWAY)
        snapshot = session.snapshot()
        expected = session.step(AWAY)
        session.prepare()
        session.restore(snapshot)
        assert_equal_blocks(session.step(AWAY), expected)


def test_prepare_leaves_the_session_as_it_was(references):
    with world(references).start() as session, world(references).start() as twin:
        session.prepare()
        assert torch.equal(session.playhead.state_dict()["position"], twin.playhead.state_dict()["position"])
        snapshot = session.snapshot()
        session.restore(snapshot)
        assert_equal_blocks(session.step(), twin.step())


def test_sessions_of_one_world_do_not_disturb_each_other(references):
    alone = []
    for slots in ([0], [1, 0]):
        with world().start([references[i] for i in slots]) as session:
            alone.append([session.step(m, c) for m, c, _ in STEPS])
    w = world()
    with w.start([references[0]]) as a, w.start([references[1], references[0]]) as b:
        for k, (motion, command, _) in enumerate(STEPS):
            a.prepare()
            b.prepare()
            assert_equal_blocks(a.step(motion, command), alone[0][k])
            assert_equal_blocks(b.step(motion, command), alone[1][k])


def test_nothing_is_prepared_for_a_generator_that_reads_only_the_anchor(references, monkeypatch):
    w = World(references[0], size=SIZE, device="cpu")
    with w.start() as session:
        for owner, name in ((GeometricGenerator, "condition"), (Reference, "rgb")):
            monkeypatch.setattr(owner, name, lambda *a: pytest.fail("asked for nothing"))
        session.prepare()
        assert session._prepared is None


# ---------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_takes_effect_at_the_next_block_of_its_slots(references):
    w = world(references)
    sessions = [w.start() for _ in range(3)]
    one, two, plain = ([s.step(AWAY)] for s in sessions)
    sessions[0].set_prompt("a kitchen")
    sessions[1].set_prompt(["a kitchen"], [1])
    assert [s.prompts for s in sessions] == [("a kitchen",) * 2, (None, "a kitchen"), (None, None)]
    for blocks, session in zip((one, two, plain), sessions, strict=True):
        blocks.append(session.step(AWAY))
        session.close()
    assert torch.equal(one[0].rgb, plain[0].rgb)
    assert not torch.equal(one[1].rgb[0], plain[1].rgb[0]) and not torch.equal(one[1].rgb[1], plain[1].rgb[1])
    assert torch.equal(two[1].rgb[0], plain[1].rgb[0]) and torch.equal(two[1].rgb[1], one[1].rgb[1])


def test_a_prompt_stays_with_its_slot_until_another_reference(references):
    w = world(references)
    with w.start() as session, w.start() as plain:
        session.set_prompt(["a kitchen", "a street"])
        snapshot = session.snapshot()
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = -2.0
        asked = session.reset(start_poses=pose)
        assert session.prompts == ("a kitchen", "a street")
        assert not torch.equal(asked.rgb, plain.reset(start_poses=pose).rgb)
        session.reset(references=references)
        assert session.prompts == ("a kitchen", "a street"), "the reference is the same"
        session.reset([0], references=references[1])
        assert session.prompts == (None, "a street")
        session.restore(snapshot)
        assert session.prompts == ("a kitchen", "a street")


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.set_prompt(None),
        lambda s: s.set_prompt(3),
        lambda s: s.set_prompt(["one"]),
        lambda s: s.set_prompt(["one", None]),
        lambda s: s.set_prompt("one", 2),
    ],
)
def test_bad_prompts_are_refused_and_change_nothing(references, call):
    w = world(references)
    with w.start() as session, w.start() as twin:
        with pytest.raises(InputError):
            call(session)
        assert session.prompts == (None, None)
        assert_equal_blocks(session.step(AWAY), twin.step(AWAY))


def test_a_generator_that_reads_no_text_takes_no_prompt(references):
    with World(references[0], size=SIZE, device="cpu").start() as session:
        with pytest.raises(InputError, match="prompt: generator geometric reads no text"):
            session.set_prompt("a kitchen")


# ------------------------------------------------------------------------------------------- making one, its sizes


@pytest.fixture
def star(monkeypatch):
    """The arguments ``StarGenerator.create`` was last given."""
    asked = {}

    def create(**arguments):
        asked.update(arguments)
        return FakeGenerator(multiple=16)

    module = SimpleNamespace(StarGenerator=SimpleNamespace(create=create))
    monkeypatch.setitem(sys.modules, "inspatio_core.generators.star", module)
    return asked


def test_star_is_made_with_what_the_world_knows(star):
    options = GeneratorOptions(prompt="a kitchen", latents_per_block=3)
    World(generator="star", size=(48, 64), device="cpu", options=options)
    device = torch.device("cpu")
    assert star == {"latents_per_block": 3, "options": options, "device": device, "size": (48, 64)}
    World(generator="star", size="auto", device="cpu", latents_per_block=2, options=options)
    assert star["latents_per_block"] == 2 and star["size"] == (480, 832)
    make_generator("star")
    assert star == {"latents_per_block": None, "options": GeneratorOptions(), "device": device, "size": None}
    upright = make_reference(2, (64, 48))
    assert World(upright, "star", size="auto", device="cpu").size == star["size"] == (832, 480)


def test_what_the_generator_lacks_is_told_before_a_clip_is_opened(star, monkeypatch):
    def create(**arguments):
        raise InputError("checkpoint: not here")

    monkeypatch.setattr(sys.modules["inspatio_core.generators.star"].StarGenerator, "create", create)
    with pytest.raises(InputError, match="checkpoint: not here"):
        World("no/such/clip.mp4", "star", device="cpu")


def test_geometric_takes_no_notice_of_network_options():
    options = GeneratorOptions(checkpoint_path="no/such/file", fp8=True, prompt="x")
    assert make_generator("geometric", options=options, device="cpu", size=(480, 832)).spec.latents_per_block == 1
    assert make_generator("geometric", options=replace(options, latents_per_block=3)).spec.frames == 12
    with pytest.raises(InputError, match="latents_per_block"):
        make_generator("geometric", latents_per_block=0)


def test_an_unknown_generator_is_told_with_the_known_ones():
    assert GENERATORS == ("geometric", "star")
    with pytest.raises(InputError, match="generator: 'stars' .* geometric, star"):
        make_generator("stars")


@pytest.mark.parametrize(
    ("size", "near"),
    [((50, 64), "48x64 or 64x64"), ((48, 72), "48x64 or 48x80"), ((17, 17), "16x16 or 16x32 or 32x16 or 32x32")],
)
def test_a_size_off_the_generators_multiple_is_refused_with_those_next_to_it(size, near):
    given = f"{size[0]}x{size[1]}"
    with pytest.raises(
        InputError, match=f"size: generator fake works at multiples of 16 pixels, not {given}; use {near}$"
    ):
        World(generator=FakeGenerator(multiple=16), size=size, device="cpu")
    assert World(generator=FakeGenerator(multiple=16), size=(48, 64), device="cpu").size == (48, 64)


def test_options_by_name():
    given = {"checkpoint_path": "w.safetensors", "fp8": True, "prompt": None, "latents_per_block": 3}
    assert GeneratorOptions.parse(given) == GeneratorOptions(
        checkpoint_path="w.safetensors", fp8=True, latents_per_block=3
    )
    assert GeneratorOptions.parse({}) == GeneratorOptions()
    for bad in ({"speed": 1}, {"fp8": "yes"}, {"latents_per_block": True}, {"codec": None}, {"prompt": 7}):
        with pytest.raises(InputError, match=next(iter(bad))):
            GeneratorOptions.parse(bad)
