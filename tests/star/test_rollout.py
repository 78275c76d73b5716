"""Noise, and sampling a block: replay, slots, what a block does not do."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inspatio_core.star.config import StarConfig
from inspatio_core.star.dit import StarDiT
from inspatio_core.star.rollout import Rollout, block_noise
from inspatio_core.star.schedule import add_noise, x0_from_flow

from .plain import HEIGHT, SMALL, WIDTH, network, normal

N = SMALL.latents_per_block
STEPS = len(SMALL.steps)


# ----------------------------------------------------------------------------------------------------------- noise


def test_noise_is_standard_normal() -> None:
    x = block_noise(7, 3, 1, (3, 16, 60, 104)).double()
    assert x.shape == (3, 16, 60, 104) and block_noise(7, 3, 1, (4,)).dtype == torch.float32
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x**3).mean()) < 0.03 and abs((x**4).mean() - 3) < 0.06
    for axis in range(4):
        assert abs((x * x.roll(1, axis)).mean()) < 0.01


def test_noise_is_a_function_of_seed_block_and_step() -> None:
    shape = (2, 16, 4, 6)
    keys = [(s, b, k) for s in (0, 1, -1, 5) for b in (0, 1, 2, 10**6) for k in (0, 1, 2, 3)]
    drawn = [block_noise(*key, shape) for key in keys]
    flat = torch.stack([x.flatten() for x in drawn]).double()
    alike = torch.corrcoef(flat) - torch.eye(len(keys), dtype=torch.float64)
    assert alike.abs().max() < 0.4  # 192 numbers each: independent ones stay below
    assert len({x.numpy().tobytes() for x in drawn}) == len(keys)
    np.random.seed(3)
    torch.manual_seed(3)
    for key, first in zip(reversed(keys), reversed(drawn), strict=True):  # in whatever order, whatever else is drawn
        assert torch.equal(block_noise(*key, shape), first)


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1, 2**64 + 5, np.int64(-5), np.int32(3), np.uint64(2**64 - 1)])
def test_every_whole_number_is_a_seed(seed) -> None:
    x = block_noise(seed, 0, 0, (16,))
    assert x.isfinite().all() and torch.equal(x, block_noise(int(seed), 0, 0, (16,)))
    for other in (1, 2**32, 2**63):  # all 64 bits count
        assert not torch.equal(x, block_noise(int(seed) + other, 0, 0, (16,)))


def test_noise_is_the_same_in_every_thread() -> None:
    shape, drawn = (3, 16, 8, 8), {}

    def draw(thread: int) -> None:
        drawn[thread] = [block_noise(11, block, 2, shape) for block in range(20)]

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [block_noise(11, block, 2, shape) for block in range(20)]
    assert len(drawn) == 4
    for noises in drawn.values():
        assert all(torch.equal(a, b) for a, b in zip(noises, expected, strict=True))


def test_noise_is_what_it_was_on_the_machine_of_its_author() -> None:
    """Seeds that people note must go on meaning the same, with later versions of NumPy too."""
    assert block_noise(0, 0, 0, (4,)).tolist() == pytest.approx(PINNED[0], rel=1e-6)
    assert block_noise(-12, 345, 2, (4,)).tolist() == pytest.approx(PINNED[1], rel=1e-6)


PINNED = (
    [-1.2346951961517334, -0.026062272489070892, -0.6724063158035278, 0.38748034834861755],
    [0.2680569291114807, 0.36538413166999817, 0.6948408484458923, -1.9497714042663574],
)


# ---------------------------------------------------------------------------------------------------------- rolling


def clip(blocks: int, batch: int, seed: int = 0) -> Iterator[dict]:
    """Reference, mask, render and noise of each block."""
    for block in range(blocks):
        reference, render = (normal(batch, N, 16, HEIGHT, WIDTH, seed=seed + 100 * block + i) for i in (1, 2))
        mask = normal(batch, N, 4, HEIGHT, WIDTH, seed=seed + 100 * block + 3).sign()
        noise = [
            torch.stack([block_noise(seed + slot, block, step, (N, 16, HEIGHT, WIDTH)) for slot in range(batch)])
            for step in range(STEPS)
        ]
        yield {"reference": reference, "mask": mask, "render": render, "noise": noise}


def roll(rollout: Rollout, inputs, text=None, workspace=None, trace=None) -> torch.Tensor:
    inputs = list(inputs)
    workspace = workspace or rollout.workspace(len(inputs[0]["mask"]))
    latents = []
    for block in inputs:
        rollout.context(block["reference"], latents[-1] if latents else None, workspace, text)
        latents.append(rollout.denoise(block["noise"], block["mask"], block["render"], workspace, text, trace))
    return torch.cat(latents, 1)


def text_of(model: StarDiT, lengths, rows=slice(None)):
    embeds = normal(len(lengths), SMALL.text_len, SMALL.text_dim, seed=4)
    for row, length in enumerate(lengths):
        embeds[row, length:] = 0
    with torch.no_grad():
        return model.text_kv(embeds[rows], lengths[rows])


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def rollout(request) -> Rollout:
    return Rollout(network(dtype=request.param), HEIGHT, WIDTH)


def test_slots_together_are_slots_alone(rollout: Rollout) -> None:
    lengths = [3, 40, 0]
    together = roll(rollout, clip(3, 3), text_of(rollout.model, lengths))
    assert together.shape == (3, 3 * N, 16, HEIGHT, WIDTH) and together.dtype == rollout.model.dtype
    workspace = rollout.workspace(3)
    for slot in range(3):
        row = slice(slot, slot + 1)
        mine = [{k: v[row] if k != "noise" else [n[row] for n in v] for k, v in block.items()} for block in clip(3, 3)]
        alone = roll(rollout, mine, text_of(rollout.model, lengths, row), workspace.slot(slot))
        tolerance = 1e-10 if rollout.model.dtype == torch.float64 else 2e-4
        torch.testing.assert_close(together[row], alone, rtol=0, atol=tolerance)


def test_the_same_noise_gives_the_same_bytes(rollout: Rollout) -> None:
    first = roll(rollout, clip(3, 2))
    assert torch.equal(roll(rollout, clip(3, 2)), first)
    assert torch.equal(roll(Rollout(rollout.model, HEIGHT, WIDTH), clip(3, 2)), first)
    for step in range(STEPS):  # every draw counts
        changed = list(clip(1, 2))
        changed[0]["noise"][step] = changed[0]["noise"][step].roll(1)
        assert not torch.allclose(roll(rollout, changed), first[:, :N], atol=1e-3)


def test_later_blocks_follow_from_the_last_prediction_alone(rollout: Rollout) -> None:
    """No more is handed on: blocks 1 and 2 come out of block 0's latents in a fresh workspace."""
    inputs = list(clip(3, 2))
    latents = roll(rollout, inputs)
    last = latents[:, :N]
    for block in (1, 2):
        workspace = rollout.workspace(2)
        rollout.context(inputs[block]["reference"], last, workspace)
        last = rollout.denoise(*(inputs[block][k] for k in ("noise", "mask", "render")), workspace)
        assert torch.equal(last, latents[:, block * N : (block + 1) * N])


def test_the_loop_of_one_block(rollout: Rollout) -> None:
    """Step by step, with modulations worked out on the fly."""
    model, dtype = rollout.model, rollout.model.dtype
    inputs = list(clip(2, 2))
    steps: list = []
    latents = roll(rollout, inputs, trace=lambda step, x_t, x0: steps.append((step, x_t, x0)))
    assert [step for step, _, _ in steps] == 2 * list(range(STEPS))
    workspace = rollout.workspace(2)
    last = None
    with torch.no_grad():
        for number, block in enumerate(inputs):
            frames = [block["reference"]] + ([] if last is None else [last])
            context = torch.cat(frames, 1).to(dtype)
            model.context(context, model.modulation(torch.zeros(1)), rollout.table, workspace)
            condition = block["mask"].to(dtype), block["render"].to(dtype)
            for step, (t, sigma) in enumerate(
                zip((1000, 937.5, 2500 / 3, 625), (1, 0.9375, 5 / 6, 0.625), strict=True)
            ):
                noise = block["noise"][step].to(dtype)
                x_t = add_noise(x0, noise, sigma) if step else noise  # noqa: F821 - set by the step before
                modulation = model.modulation(torch.tensor([t], dtype=torch.float32))
                flow = model.denoise(x_t, *condition, modulation, rollout.table, workspace)
                x0 = x0_from_flow(flow, x_t, sigma)
                _, traced_x_t, traced_x0 = steps[number * STEPS + step]
                torch.testing.assert_close(traced_x_t, x_t, rtol=0, atol=2e-4)
                torch.testing.assert_close(traced_x0, x0, rtol=0, atol=2e-4)
            last = x0
            torch.testing.assert_close(latents[:, number * N : (number + 1) * N], x0, rtol=0, atol=2e-4)
            assert torch.equal(steps[number * STEPS + STEPS - 1][2], latents[:, number * N : (number + 1) * N])


def test_without_anchor(rollout: Rollout) -> None:
    inputs = [{**block, "mask": None, "render": None} for block in clip(2, 2)]
    workspace = rollout.workspace(2)
    latents = roll(rollout, inputs, workspace=workspace)
    zeros = [{**block, "mask": block["mask"] * 0, "render": block["render"] * 0} for block in clip(2, 2)]
    torch.testing.assert_close(latents, roll(rollout, zeros), rtol=0, atol=2e-4)
    assert not torch.allclose(latents, roll(rollout, clip(2, 2)), atol=1e-2)


def test_fixed_modulations_are_worked_out_once(monkeypatch) -> None:
    calls = []
    original = StarDiT.modulation
    monkeypatch.setattr(StarDiT, "modulation", lambda self, t: calls.append(t.tolist()) or original(self, t))
    rollout = Rollout(network(dtype=torch.float32), HEIGHT, WIDTH)
    assert sorted(t for (t,) in calls) == pytest.approx([0, 625, 833.333, 937.5, 1000], rel=1e-5)
    roll(rollout, clip(2, 1))
    assert len(calls) == 5


def test_inputs_are_left_as_they_are(rollout: Rollout) -> None:
    inputs, kept = list(clip(2, 2)), list(clip(2, 2))
    first = roll(rollout, inputs[:1])
    copy = first.clone()
    roll(rollout, inputs)
    assert torch.equal(first, copy)
    for a, b in zip(inputs, kept, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("reference", "mask", "render"))
        assert all(torch.equal(x, y) for x, y in zip(a["noise"], b["noise"], strict=True))


# -------------------------------------------------------------------------------------------- what a block does not do


class Operations(TorchDispatchMode):
    """Notes every operation with the shapes it makes; fails at one that waits for a value or makes a shape of it."""

    FORBIDDEN = {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.is_nonzero.default,
        torch.ops.aten._unique2.default,
    }

    def __init__(self):
        super().__init__()
        self.made: list = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        assert function not in self.FORBIDDEN and not by_mask, function
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.made.append((function, tuple(out.shape), tuple(out.stride()), out.dtype))
        return out


@pytest.mark.parametrize("waits", ["item", "bool", "float", "nonzero", "index by a mask"])
def test_waiting_would_be_noticed(waits: str) -> None:
    x = torch.ones(3)
    ways = {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.sum() > 0),
        "float": lambda: float(x[0]),
        "nonzero": lambda: x.nonzero(),
        "index by a mask": lambda: x[x > 0],
    }
    with Operations(), pytest.raises(AssertionError, match="aten"):
        ways[waits]()


@pytest.fixture
def no_reading(monkeypatch):
    """Ways to read a tensor that are no operations."""
    for name in ("tolist", "numpy", "__array__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("a block reads a value"))


@pytest.mark.parametrize("anchor", [True, False], ids=["anchor", "no anchor"])
def test_no_value_is_waited_for_and_shapes_stay(no_reading, anchor: bool) -> None:
    model = network(SMALL.replace(num_layers=2), torch.float32)
    rollout, text = Rollout(model, HEIGHT, WIDTH), text_of(model, [3, 40])
    workspace, last, made = rollout.workspace(2), None, []
    for number, block in enumerate(clip(4, 2)):
        block = {k: [n * number for n in v] if k == "noise" else v * number for k, v in block.items()}
        with Operations() as context:
            rollout.context(block["reference"], last, workspace, text)
        with Operations() as denoise:
            condition = (block["mask"], block["render"]) if anchor else (None, None)
            last = rollout.denoise(block["noise"], *condition, workspace, text)
        made.append((context.made, denoise.made))
    assert len(made[1][0]) > 50 and len(made[1][1]) > 100
    assert made[1] == made[2] == made[3]  # other values, the same memory layouts
    for passes in made:
        joined = [shape for of in passes for op, shape, *_ in of if op == torch.ops.aten.cat.default]
        assert all(len(shape) == 5 for shape in joined)  # frames and channels that go in; keys and values never


def test_a_block_needs_no_values_at_all() -> None:
    """On the meta device, where there are none."""
    config = StarConfig(num_layers=3)
    with torch.device("meta"):
        model = StarDiT(config).to(torch.bfloat16).eval()
    rollout = Rollout(model, 60, 104)
    workspace, text = rollout.workspace(2), model.text_kv(torch.zeros(2, 512, 4096), (20, 30))
    assert workspace.nbytes == 2 * 2 * 3 * 14040 * 1536 * 2 and text.keys.shape == (3, 2, 64, 12, 128)
    latents, mask = (torch.zeros(2, 3, c, 60, 104, device="meta") for c in (16, 4))
    last = None
    for rows in (4680, 9360):
        rollout.context(latents, last, workspace, text)
        assert workspace.context == rows
        last = rollout.denoise([latents] * 4, mask, latents, workspace, text)
        assert last.is_meta and last.shape == latents.shape and last.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_a_block_does_not_synchronise_and_gives_what_the_cpu_gives() -> None:
    on_cpu = Rollout(network(dtype=torch.float32), HEIGHT, WIDTH)
    on_cuda = Rollout(network(dtype=torch.float32).cuda(), HEIGHT, WIDTH)
    expected = roll(on_cpu, clip(3, 2), text_of(on_cpu.model, [3, 40]))
    text, workspace, last, latents = text_of(on_cuda.model, [3, 40]), on_cuda.workspace(2), None, []
    inputs = [
        {k: [n.cuda() for n in v] if k == "noise" else v.cuda() for k, v in block.items()} for block in clip(3, 2)
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for block in inputs:
            on_cuda.context(block["reference"], last, workspace, text)
            last = on_cuda.denoise(block["noise"], block["mask"], block["render"], workspace, text)
            latents.append(last)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(torch.cat(latents, 1).cpu(), expected, rtol=0, atol=2e-3)
