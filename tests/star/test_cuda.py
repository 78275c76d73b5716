"""Rollouts on CUDA give what the plain ones give on the CPU, on every path there is.

In float32 within 1e-4 of the root mean square, in bfloat16 within what that rounds. Graphs replayed again, on any
stream, give the same bytes. Nothing here needs more than torch, pytest and the golden data.
"""

import threading

import pytest
import torch

from inspatio_core.star.attention import available
from inspatio_core.star.config import StarConfig
from inspatio_core.star.dit import build_star, randomise
from inspatio_core.star.fast import FastRollout
from inspatio_core.star.rollout import Rollout
from tests.conformance.harness import cases

from .plain import HEIGHT, SMALL, WIDTH, deviation, network
from .test_fast import FP8, WIDE, flows
from .test_rollout import clip, roll, text_of

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)])
def device(request) -> str:
    return request.param


GRAPHS = {"graphs": True}
WAYS = [{}, GRAPHS, {"compile": True}, {"compile": True, **GRAPHS}]


def ways(*more: dict):
    named = [*WAYS, *more]
    return pytest.mark.parametrize("how", named, ids=[" ".join(how) or "kernels" for how in named])


def rollouts(device: str, config=SMALL, dtype=torch.float32, **how):
    """Plain on the CPU in float32, fast on the device in `dtype`, with the same weights."""
    on_cpu, there = network(config, torch.float32), network(config, dtype).to(device)
    return Rollout(on_cpu, HEIGHT, WIDTH), FastRollout(Rollout(there, HEIGHT, WIDTH), **how)


def clip_on(device: str, blocks: int, batch: int, seed: int = 0) -> list[dict]:
    return [
        {k: [n.to(device) for n in v] if k == "noise" else v.to(device) for k, v in block.items()}
        for block in clip(blocks, batch, seed)
    ]


def texts(plain: Rollout, fast: FastRollout, lengths: list[int]):
    return text_of(plain.model, lengths), text_of(fast.model, lengths)


@ways()
@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
def test_values_in_float32(device, how, text):
    if device == "cpu" and how:
        pytest.skip("needs CUDA")
    plain, fast = rollouts(device, SMALL.replace(text=text), **how)
    given = texts(plain, fast, [40, 3]) if text else (None, None)
    expected = roll(plain, clip(3, 2), given[0])
    got = roll(fast, clip_on(device, 3, 2), given[1])
    assert got.device.type == device and deviation(got.cpu(), expected) < 1e-4
    again = roll(fast, clip_on(device, 3, 2), given[1])
    assert torch.equal(again, got)


def test_slots_together_are_slots_alone(device):
    _, fast = rollouts(device)
    text = text_of(fast.model, [40, 3, 0])
    together = roll(fast, clip_on(device, 3, 3), text)
    workspace = fast.workspace(3)
    for slot in range(3):
        row = slice(slot, slot + 1)
        mine = [
            {k: [n[row] for n in v] if k == "noise" else v[row] for k, v in b.items()} for b in clip_on(device, 3, 3)
        ]
        alone = roll(fast, mine, text_of(fast.model, [40, 3, 0], row), workspace.slot(slot))
        assert deviation(alone.cpu(), together[row].cpu()) < 1e-5


@needs_cuda
@ways()
@pytest.mark.parametrize("case", cases("dit_tiny"), ids=lambda c: c.name)
def test_golden_flows_in_bfloat16(case, how):
    for name, flow in flows(case, torch.bfloat16, "cuda", **how):
        stated = case.meta["bf16_reference_deviation"][name]["rel_rms"]
        assert 0 < deviation(flow, case.tensors[f"out.{name}"]) <= 1.5 * stated, name


@needs_cuda
@pytest.mark.parametrize("how", [{}, {"compile": True}], ids=["kernels", "compile"])
def test_golden_flows_in_8_bits(how):
    (case,) = (c for c in cases("dit_tiny") if c.name == "dit_tiny_b")
    simulated = dict(flows(case, torch.bfloat16, fp8=True))
    for name, flow in flows(case, torch.bfloat16, "cuda", fp8=True, **how):
        assert 0.01 < deviation(flow, case.tensors[f"out.{name}"]) < FP8, name
        assert deviation(flow, simulated[name]) < 0.02, name


@needs_cuda
def test_attention_backends_agree():
    plain, _ = rollouts("cuda", WIDE)
    expected, got = roll(plain, clip(2, 1), text_of(plain.model, [5])), {}
    for backend in available("cuda", torch.bfloat16):
        model = network(WIDE, torch.bfloat16).cuda()
        model.backend = backend
        fast = FastRollout(Rollout(model, HEIGHT, WIDTH), graphs=True)
        assert f"attention {backend}" in fast.path
        got[backend] = roll(fast, clip_on("cuda", 2, 1), text_of(model, [5])).cpu()
    own = deviation(got["sdpa"], expected)
    for backend, latents in got.items():
        assert deviation(latents, expected) < 1.5 * own, backend


@needs_cuda
@ways({"fp8": True}, {"fp8": True, **GRAPHS})
def test_waits_for_nothing_and_memory_stays(how):
    _, fast = rollouts("cuda", WIDE, torch.bfloat16, **how)
    text, workspace, blocks = text_of(fast.model, [5, 9]), fast.workspace(2), clip_on("cuda", 4, 2)
    fast.warm_up(workspace, text)
    state, last, held = torch.cuda.get_rng_state(), None, []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for block in blocks:
            fast.context(block["reference"], last, workspace, text)
            last = fast.denoise(block["noise"], block["mask"], block["render"], workspace, text)
            held.append(torch.cuda.memory_allocated())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert held[1] == held[2] == held[3]
    assert torch.equal(torch.cuda.get_rng_state(), state)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fp8", [False, True])
def test_graphs_give_what_launches_give(dtype, fp8):
    if fp8 and dtype != torch.bfloat16:
        pytest.skip("8 bits go with bfloat16")
    _, launched = rollouts("cuda", WIDE, dtype, fp8=fp8)
    _, replayed = rollouts("cuda", WIDE, dtype, fp8=fp8, **GRAPHS)
    assert "CUDA graphs" in replayed.path and "CUDA graphs" not in launched.path
    workspace, tolerance = replayed.workspace(2), 1e-5 if dtype == torch.float32 else 1e-3
    for lengths, seed in (([5, 9], 0), ([5, 9], 3), ([100, 3], 3), ([5, 9], 0), ([9, 5], 0)):
        expected = roll(launched, clip_on("cuda", 3, 2, seed), text_of(launched.model, lengths))
        got = roll(replayed, clip_on("cuda", 3, 2, seed), text_of(replayed.model, lengths), workspace)
        assert deviation(got, expected) < tolerance
    assert len(replayed._graphs.captured) == 2 * 4  # rows of text: 64 and 128


@needs_cuda
@ways()
def test_on_a_stream_and_in_a_thread_of_its_own(how):
    _, fast = rollouts("cuda", WIDE, torch.bfloat16, **how)
    text, workspace, blocks = text_of(fast.model, [5]), fast.workspace(1), clip_on("cuda", 3, 1)
    expected = roll(fast, blocks, text, workspace).clone()
    torch.cuda.synchronize()
    got = []

    def run():
        with torch.cuda.stream(torch.cuda.Stream()):
            got.append(roll(fast, blocks, text, workspace))
            torch.cuda.current_stream().synchronize()

    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(got) == 2 and all(torch.equal(latents, expected) for latents in got)


@needs_cuda
def test_captures_while_another_thread_computes():
    _, fast = rollouts("cuda", WIDE, torch.bfloat16, **GRAPHS)
    text, stop, failed = text_of(fast.model, [5]), threading.Event(), []

    def decode():
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                size = 64
                while not stop.is_set():
                    size = size % 4096 + 64
                    x = torch.randn(size, size, device="cuda")
                    (x @ x).sum()
        except Exception as error:  # noqa: BLE001 - handed to the test
            failed.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    try:
        fast.warm_up(fast.workspace(1), text)
        got = roll(fast, clip_on("cuda", 2, 1), text)
    finally:
        stop.set()
        thread.join()
    assert not failed and torch.equal(got, roll(fast, clip_on("cuda", 2, 1), text))


@needs_cuda
@ways({"fp8": True, **GRAPHS})
def test_full_width(how):
    """Two layers of the 1.3B at 480 x 832: the shapes that it runs with."""
    model = build_star(StarConfig(num_layers=2), "cuda", torch.bfloat16)
    randomise(model)
    plain = Rollout(model, 60, 104)
    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw, device="cuda")

    embeds = normal(1, 512, 4096)
    embeds[:, 70:] = 0
    with torch.no_grad():
        text = model.text_kv(embeds, [70])
    blocks = [
        {
            "reference": normal(1, 3, 16, 60, 104),
            "render": normal(1, 3, 16, 60, 104),
            "mask": normal(1, 3, 4, 60, 104).sign(),
            "noise": [normal(1, 3, 16, 60, 104) for _ in range(4)],
        }
        for _ in range(2)
    ]
    expected = roll(plain, blocks, text)
    got = roll(FastRollout(plain, **how), blocks, text)
    assert 0 < deviation(got, expected) < (0.1 if "fp8" in how else 0.03)
