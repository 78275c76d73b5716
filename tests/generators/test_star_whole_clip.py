"""The star generator's streams against whole clips: equal bytes on the CPU, whatever is asked of the world."""

import pytest
import torch

from inspatio_core.generators import GeneratorOptions
from inspatio_core.geometry.motion import Motion
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.world import World

from ..synthetic import make_reference
from .whole_clip import WholeClip

SIZE = (48, 64)


def twist(*values: float) -> Motion:
    return Motion.from_twist(torch.tensor(values, dtype=torch.float64))


def pose(x: float, yaw: float) -> torch.Tensor:
    out, angle = torch.eye(4, dtype=torch.float64), torch.tensor(yaw, dtype=torch.float64)
    out[0, 3] = x
    out[0, 0] = out[2, 2] = angle.cos()
    out[0, 2], out[2, 0] = angle.sin(), -angle.sin()
    return out


SCRIPT = [
    (twist(0, 0, 0, 0, 1.5, 0), None),
    (twist(0.5, 0, 0.5, 0, 1.5, 0), PlayheadCommand(paused=True)),
    (Motion.target(pose(0.6, 0.5)), None),
    (None, PlayheadCommand(paused=False, rate=-1.0)),
    (twist(0, 0, -1, 0, -2, 0), PlayheadCommand(rate=0.5)),
    (Motion.teleport(pose(-0.5, -0.3)), PlayheadCommand(jump=17.0)),
    (twist(0, 0.3, 0, 0, 2, 0), PlayheadCommand(rate=1.0)),
]
"""Play, pause, reverse, half rate, jump; twist, target, hold, teleport."""


def world(memory: bool = True, **options) -> World:
    options = GeneratorOptions(random_weights=True, **{"latents_per_block": 1, **options})
    return World(None, "star", size=SIZE, device="cpu", memory=memory, map_limit=20_000, options=options)


def same(block, row: int, expected) -> None:
    for ours, theirs in zip((block.rgb, block.depth, block.known), expected, strict=True):
        assert torch.equal(ours[row], theirs)


@pytest.fixture(scope="module")
def references():
    return [make_reference(size=SIZE, seed=s) for s in (1, 2)]


@pytest.mark.parametrize(
    ("memory", "codec", "n", "blocks"),
    [(True, "wan", 1, 7), (True, "tae", 1, 7), (False, "tae", 1, 3), (True, "wan", 3, 2), (True, "tae", 3, 2)],
)
def test_a_stream_is_the_whole_clip(references, memory, codec, n, blocks):
    w = world(memory, codec=codec, latents_per_block=n)
    session, clip = w.start(references[0], seeds=5), WholeClip(w, references[0], 5)
    same(session.first, 0, clip.block())
    generated = 0
    for number, (motion, command) in enumerate(SCRIPT[:blocks]):
        if number % 2:
            session.prepare()
        block = session.step(motion, command)
        same(block, 0, clip.block(motion, command))
        generated = max(generated, int((session.maps[0].points().origin == 1).sum()) if memory else 0)
    if memory and blocks > 5:
        assert generated > 50  # what was generated did enter the map, and so the later anchors
    session.close()


def test_slots_reset_and_interleaved_sessions(references):
    w = world(codec="tae")
    one = w.start(references, seeds=[1, 2])
    two = w.start(references[1], seeds=3)
    clips = [WholeClip(w, references[0], 1), WholeClip(w, references[1], 2), WholeClip(w, references[1], 3)]
    for row, clip in enumerate(clips):
        same(one.first if row < 2 else two.first, row % 2 if row < 2 else 0, clip.block())
    for number, (motion, command) in enumerate(SCRIPT[:5]):
        one.prepare()
        two.prepare()  # takes the workspace that one's context lies in
        if number == 2:
            first = one.reset(1, seeds=9)
            clips[1] = WholeClip(w, references[1], 9)
            same(first, 0, clips[1].block())
        block, other = one.step(motion, command), two.step(SCRIPT[-1 - number][0])
        same(block, 0, clips[0].block(motion, command))
        same(block, 1, clips[1].block(motion, command))
        same(other, 0, clips[2].block(SCRIPT[-1 - number][0]))


def test_with_text(references, tmp_path):
    model = tmp_path / "model.json"
    model.write_text('{"dim": 48, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "freq_dim": 32, "text_dim": 24, '
                     '"text_len": 40, "latents_per_block": 1, "codec_width": 8}')  # fmt: skip
    w = world(model=str(model), prompt="a wall")
    session, clip = w.start(references[0], seeds=5), WholeClip(w, references[0], 5, "a wall")
    same(session.first, 0, clip.block())
    session.prepare()
    motion = SCRIPT[0][0]
    same(session.step(motion), 0, clip.block(motion))
    session.prepare()  # what it worked out is for the old prompt
    session.set_prompt("a red panel crosses")
    clip.prompt = "a red panel crosses"
    same(session.step(motion), 0, clip.block(motion))
    session.set_prompt("a wall")
    other = session.step(motion).rgb
    clip.prompt = "something else"
    assert not torch.equal(other[0], clip.block(motion)[0])


def test_four_slots_are_four_worlds(references):
    w = world(codec="tae")
    seeds = [4, 5, 6, 7]
    scenes = [references[k % 2] for k in range(4)]
    together, alone = w.start(scenes, seeds=seeds), [w.start(r, seeds=s) for r, s in zip(scenes, seeds, strict=True)]
    for number, (motion, command) in enumerate(SCRIPT[:3]):
        if number == 1:
            together.reset(2)
            alone[2].reset(0)
        block, singles = together.step(motion, command), [s.step(motion, command) for s in alone]
        for row, single in enumerate(singles):
            same(block, row, (single.rgb[0], single.depth[0], single.known[0]))


def test_snapshot_brings_back_every_byte(references):
    w = world(codec="tae")
    session = w.start(references[0], seeds=5)
    session.step(SCRIPT[0][0])
    saved = session.snapshot()
    first = [session.step(m, c).rgb for m, c in SCRIPT[1:4]]
    session.restore(saved)
    session.prepare()
    assert all(torch.equal(session.step(m, c).rgb, rgb) for (m, c), rgb in zip(SCRIPT[1:4], first, strict=True))


def test_seeds_and_blocks_draw_their_own_noise(references):
    w = world()
    a, b = w.start(references[0], seeds=5), w.start(references[0], seeds=6)
    assert not torch.equal(a.first.rgb, b.first.rgb)
    assert torch.equal(a.first.rgb, w.start(references[0], seeds=5).first.rgb)
