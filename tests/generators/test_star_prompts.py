"""Slots of one session of the star generator: each follows its own prompt, and none the size of the batch."""

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.world import World

from ..synthetic import make_reference
from .test_star_whole_clip import SCRIPT, same, world

SIZE = (48, 64)
MOTION = SCRIPT[0][0]
MODEL = (
    '{"dim": %d, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "freq_dim": 32, "text_dim": 24, "text_len": 40, '
    '"latents_per_block": 1, "codec_width": 8}'
)
PROMPTS = ["a red ball", "a much longer prompt of the sea and of what swims in it"]


def with_text(folder, dim: int = 48) -> World:
    """A world whose slots follow "a wall" until they are told otherwise."""
    model = folder / "model.json"
    model.write_text(MODEL % dim)
    return world(model=str(model), prompt="a wall")


@pytest.fixture(scope="module")
def reference():
    return make_reference(size=SIZE, seed=1)


def test_slots_follow_their_own_prompts(reference, tmp_path):
    w = with_text(tmp_path)
    together, alone = w.start([reference] * 2, seeds=[1, 1]), [w.start(reference, seeds=1) for _ in PROMPTS]
    together.set_prompt(PROMPTS)
    for session, prompt in zip(alone, PROMPTS, strict=True):
        session.set_prompt(prompt)
    block, singles = together.step(MOTION), [session.step(MOTION) for session in alone]
    for row, single in enumerate(singles):
        same(block, row, (single.rgb[0], single.depth[0], single.known[0]))
    assert not torch.equal(block.rgb[0], block.rgb[1])


def test_prompts_are_set_for_all_slots_or_for_none(reference, tmp_path, monkeypatch):
    w = with_text(tmp_path)
    session, untouched = w.start([reference] * 2, seeds=[1, 2]), w.start([reference] * 2, seeds=[1, 2])
    embed = w.generator.embed

    def failing(prompt):
        if prompt == "bad":
            raise InputError("weights: gone")
        return embed(prompt)

    monkeypatch.setattr(w.generator, "embed", failing)
    for prompts in ("bad", ["good", "bad"], ["bad", "good"]):
        with pytest.raises(InputError, match="gone"):
            session.set_prompt(prompts)
        assert session.prompts == (None, None)
    assert torch.equal(session.step(MOTION).rgb, untouched.step(MOTION).rgb)


def test_slots_run_one_by_one_on_the_cpu(tmp_path, monkeypatch):
    """Whether a product's bytes depend on its number of rows is the CPU's affair, so that bytes alone do not tell."""
    size = (48, 80)
    w = World(None, with_text(tmp_path, dim=40).generator, size=size, device="cpu", memory=False)
    model, batches = w.generator.model, []
    for name in ("context", "denoise"):
        passed = getattr(model, name)
        monkeypatch.setattr(model, name, lambda x, *a, f=passed, **k: batches.append(len(x)) or f(x, *a, **k))
    scenes = [make_reference(size=size, seed=s) for s in (1, 2, 3)]
    together = w.start(scenes, seeds=[1, 2, 3])
    block = together.step(MOTION)
    assert batches and set(batches) == {1}
    for row, scene in enumerate(scenes):
        session = w.start(scene, seeds=row + 1)
        single = session.step(MOTION)
        same(block, row, (single.rgb[0], single.depth[0], single.known[0]))
