"""Keys and values: memory that stays where it is, and the joining counterpart that gradients flow through."""

import pytest
import torch

from inspatio_core.star.cache import GrowingCache, Workspace
from inspatio_core.star.dit import StarDiT

from .plain import HEIGHT, WIDTH, forward, network, normal

TOKENS = HEIGHT * WIDTH // 4  # of a latent frame
N = 2


@pytest.fixture(scope="module")
def model() -> StarDiT:
    return network()


def blocks(count: int = 3, batch: int = 2):
    """Of each block: context latents, x_t, mask, render."""
    for block in range(count):
        frames = N if block == 0 else 2 * N
        shapes = ((frames, 16), (N, 16), (N, 4), (N, 16))
        yield [normal(batch, f, c, HEIGHT, WIDTH, seed=10 * block + i) for i, (f, c) in enumerate(shapes)]


def roll(model: StarDiT, cache, block, text=None) -> torch.Tensor:
    """Context and two denoising passes of a block; both flows."""
    context, x_t, mask, render = block
    table = model.rope(HEIGHT, WIDTH)
    model.context(context, model.modulation(torch.zeros(1)), table, cache, text)
    steps = [model.modulation(torch.full((1,), t)) for t in (1000.0, 625.0)]
    return torch.stack([model.denoise(x_t, mask, render, step, table, cache, text) for step in steps])


def layout(batch: int = 3) -> Workspace:
    return Workspace(layers=2, batch=batch, tokens=12, heads=2, head_dim=4, device="cpu", dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------- the memory


def test_context_lies_at_the_beginning_and_the_block_right_behind() -> None:
    w = layout()
    assert w.k.shape == w.v.shape == (2, 3, 12, 2, 4) and w.nbytes == 2 * 2 * 3 * 12 * 2 * 4 * 4
    w.begin_context(5)
    k, v = normal(3, 5, 2, 4, seed=1).float(), normal(3, 5, 2, 4, seed=2).float()
    keys, values = w.context_layer(1).extend(k, v)
    assert torch.equal(keys, k) and torch.equal(values, v)
    own_k, own_v = normal(3, 4, 2, 4, seed=3).float(), normal(3, 4, 2, 4, seed=4).float()
    keys, values = w.block_layer(1, 4).extend(own_k, own_v)
    assert torch.equal(keys, torch.cat([k, own_k], 1)) and torch.equal(values, torch.cat([v, own_v], 1))
    assert torch.equal(w.k[1, :, :9], keys) and torch.equal(w.v[1, :, :9], values)
    assert keys.data_ptr() == w.k[1].data_ptr() and values.data_ptr() == w.v[1].data_ptr()  # a slice, no copy
    assert not w.k[0].any() and not w.v[0].any() and not w.k[:, :, 9:].any()


def test_a_slot_is_a_view_of_its_row() -> None:
    w = layout()
    w.begin_context(5)
    slot = w.slot(1)
    assert slot.k.shape == (2, 1, 12, 2, 4) and slot.context == 5
    slot.context_layer(0).extend(torch.full((1, 5, 2, 4), 3.0), torch.full((1, 5, 2, 4), 4.0))
    slot.block_layer(1, 2).extend(torch.full((1, 2, 2, 4), 5.0), torch.full((1, 2, 2, 4), 6.0))
    assert (w.k[0, 1, :5] == 3).all() and (w.v[0, 1, :5] == 4).all()
    assert (w.k[1, 1, 5:7] == 5).all() and (w.v[1, 1, 5:7] == 6).all()
    others = torch.cat([w.k[:, [0, 2]], w.v[:, [0, 2]]])
    assert not others.any()
    assert slot.k.untyped_storage().data_ptr() == w.k.untyped_storage().data_ptr()


def test_slots_of_one_workspace_are_workspaces_of_their_own(model: StarDiT) -> None:
    """Interleaved, at different stages: the first slot in its first block, the second in a later one."""
    first, later, *_ = blocks()
    first, later = ([x[:1] for x in block] for block in (first, later))
    with torch.no_grad():
        alone = [roll(model, model.workspace(1, HEIGHT, WIDTH), block) for block in (first, later)]
        shared = model.workspace(2, HEIGHT, WIDTH)
        slots = [shared.slot(0), shared.slot(1)]
        table, zero = model.rope(HEIGHT, WIDTH), model.modulation(torch.zeros(1))
        for slot, block in zip(slots, (first, later), strict=True):
            model.context(block[0], zero, table, slot)
        step = model.modulation(torch.full((1,), 1000.0))
        for slot, block, expected in zip(slots, (first, later), alone, strict=True):
            assert torch.equal(model.denoise(*block[1:], step, table, slot), expected[0])
    assert [slot.context for slot in slots] == [N * TOKENS, 2 * N * TOKENS]


def test_memory_stays_where_it_is_over_blocks(model: StarDiT) -> None:
    w = model.workspace(2, HEIGHT, WIDTH)
    assert w.k.shape == (3, 2, 3 * N * TOKENS, 2, 20) and w.k.dtype == w.v.dtype == model.dtype
    where = w.k.data_ptr(), w.v.data_ptr()
    with torch.no_grad():
        for block in blocks():
            roll(model, w, block)
            assert (w.k.data_ptr(), w.v.data_ptr()) == where
            assert w.context == block[0].shape[1] * TOKENS


def test_nothing_survives_a_block(model: StarDiT) -> None:
    w, cleared = (model.workspace(2, HEIGHT, WIDTH) for _ in range(2))
    with torch.no_grad():
        for block in blocks():
            for cache in (cleared.k, cleared.v):
                cache.fill_(torch.nan)
            assert torch.equal(roll(model, w, block), roll(model, cleared, block))


# ------------------------------------------------------------------------------------------- the joining counterpart


def test_joined_keys_and_values_give_the_same(model: StarDiT) -> None:
    w, joined = model.workspace(2, HEIGHT, WIDTH), GrowingCache()
    embeds = normal(2, model.config.text_len, model.config.text_dim, seed=5)
    with torch.no_grad():
        text = model.text_kv(embeds)
        for block in blocks():
            torch.testing.assert_close(
                roll(model, w, block, text), roll(model, joined, block, text), rtol=0, atol=1e-12
            )
            assert joined.context == w.context


def test_the_joined_context_is_forgotten_when_the_next_begins() -> None:
    cache = GrowingCache()
    cache.begin_context(3)
    cache.context_layer(0).extend(torch.ones(1, 3, 1, 2), torch.ones(1, 3, 1, 2))
    keys, values = cache.block_layer(0, 2).extend(torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2))
    assert keys.shape == values.shape == (1, 5, 1, 2)
    keys, _ = cache.block_layer(0, 2).extend(torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2))
    assert keys.shape == (1, 5, 1, 2)  # a pass leaves nothing behind
    cache.begin_context(4)
    with pytest.raises(KeyError):
        cache.block_layer(0, 2).extend(keys, keys)


def test_gradients_reach_the_context_and_all_weights(model: StarDiT) -> None:
    """They are those of one forward over all tokens."""
    config = model.config
    model = network()
    for p in model.parameters():
        p.requires_grad_()
    context, x_t, mask, render = list(blocks())[1]
    context.requires_grad_()
    embeds = normal(2, config.text_len, config.text_dim, seed=5)
    towards = normal(2, N, 16, HEIGHT, WIDTH, seed=6)

    cache, table = GrowingCache(), model.rope(HEIGHT, WIDTH)
    text = model.text_kv(embeds)
    model.context(context, model.modulation(torch.zeros(1)), table, cache, text)
    flow = model.denoise(x_t, mask, render, model.modulation(torch.full((1,), 833.3)), table, cache, text)
    (flow * towards).sum().backward()
    of_context = context.grad
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())

    again = context.detach().requires_grad_()
    zeros = torch.zeros(2, 2 * N, 20, HEIGHT, WIDTH, dtype=torch.float64)
    frames = torch.cat([torch.cat([again, zeros], 2), torch.cat([x_t, mask, render], 2)], 1)
    t = torch.cat([torch.zeros(2, 2 * N), torch.full((2, N), 833.3)], 1)
    expected = forward(model, frames, range(3 * N), t, [True] * 2 * N + [False] * N, embeds)[:, 2 * N :]
    (expected * towards).sum().backward()
    for half in (slice(0, N), slice(N, 2 * N)):  # reference, last prediction
        assert again.grad[:, half].norm() > 1e-3
        assert (of_context[:, half] - again.grad[:, half]).norm() / again.grad[:, half].norm() < 1e-5
