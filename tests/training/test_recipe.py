"""Parameter groups, averaged weights, more input channels."""

import pytest
import torch

from inspatio_core.star.dit import build_star
from inspatio_core.training.passes import bidirectional_flow, causal_flow
from inspatio_core.training.recipe import LEARNING_RATES, Ema, parameter_groups, widen
from tests.star.plain import network

from .nets import TINY, N, clip, told, trainable

WITH_TEXT = TINY.replace(text=True, text_len=24)


def test_the_papers_learning_rates() -> None:
    assert LEARNING_RATES == {"teacher": 2e-5, "init": 2e-5, "student": 4e-6, "critic": 8e-7}
    assert LEARNING_RATES["student"] / LEARNING_RATES["critic"] == pytest.approx(5)


def test_every_trained_parameter_is_in_one_group() -> None:
    model = trainable(WITH_TEXT)
    model.blocks[0].ffn.requires_grad_(False)
    decays, stays = parameter_groups(model, 1e-3, 0.1)
    assert (decays["lr"], decays["weight_decay"], stays["weight_decay"]) == (1e-3, 0.1, 0)
    places = {id(p): 0 for p in decays["params"]} | {id(p): 1 for p in stays["params"]}
    assert len(places) == len(decays["params"]) + len(stays["params"])
    for name, p in model.named_parameters():
        if name.startswith("blocks.0.ffn"):
            assert id(p) not in places
        else:
            assert places[id(p)] == (".bias" in name or "norm" in name or "modulation" in name), name


def test_new_channels_change_nothing_until_they_are_trained() -> None:
    narrow = network(WITH_TEXT.replace(in_dim=16), torch.float32)
    wide = build_star(WITH_TEXT)
    wide.load_state_dict(widen(narrow.state_dict()))
    assert wide.patch_embedding.weight.shape[1] == 36 and not wide.patch_embedding.weight[:, 16:].any()
    conditions, t = told(3 * N, text=24), torch.tensor([640.0])
    text = conditions.text_only()
    x_t = clip(3 * N)
    with torch.no_grad():
        expected = bidirectional_flow(narrow, x_t, t, text)
        for given in (text, conditions._replace(reference=None)):
            torch.testing.assert_close(bidirectional_flow(wide, x_t, t, given), expected, rtol=0, atol=1e-5)
    wide.requires_grad_()
    causal_flow(wide, x_t[:, :N], t, conditions.chunk(0, N)).square().mean().backward()
    assert wide.patch_embedding.weight.grad[:, 16:].any()  # and they can be trained
    with pytest.raises(ValueError, match="36 channels"):
        widen(wide.state_dict(), 16)


def test_the_average_follows_the_weights() -> None:
    model = trainable(dtype=torch.bfloat16)
    ema = Ema(model, decay=0.9, start=2)
    expected = None
    for update in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.25
        ema.update(model)
        now = {name: p.detach().float() for name, p in model.named_parameters()}
        if update < 2:
            expected = now
        else:
            expected = {name: 0.9 * expected[name] + 0.1 * p for name, p in now.items()}
    for name, weight in ema.weights.items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, expected[name])
    restored = Ema(trainable(dtype=torch.bfloat16), decay=0.9, start=2)
    restored.load_state_dict(ema.state_dict())
    assert restored.updates == 5
    ema.update(model)
    restored.update(model)
    assert all(torch.equal(weight, restored.weights[name]) for name, weight in ema.weights.items())
    ema.copy_to(model)
    assert all(torch.equal(p, ema.weights[name].bfloat16()) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="another network"):
        ema.load_state_dict({"weights": {}, "updates": 0})
