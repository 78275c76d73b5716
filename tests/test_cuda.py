"""CUDA gives what the CPU gives: geometry, anchors, a session, and the STAR network's rollouts.

Every test runs the plain torch path on a device and compares it with the compiled path on the CPU; the device is the
CPU, where it must be the same bytes, and CUDA where there is one. On CUDA, too, the warp, the points and what is seen
through are the same bytes: they sum integers, and round each operation on its own. The filling sums floats: depth
within 1e-5, colours within one level.

The network's plain path runs on the CPU in float32, its fast path on the device: within 1e-4 of the root mean square in
float32, in bfloat16 within what that rounds. Graphs replayed twice, on any stream, give the same bytes.
"""

import functools
import threading

import pytest
import torch

from inspatio_core.geometry import anchor as anchor_module
from inspatio_core.geometry.anchor import build_anchor
from inspatio_core.geometry.camera import intrinsics_from_fov, invert_pose
from inspatio_core.geometry.fill import fill
from inspatio_core.geometry.motion import Motion, se3_exp
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.geometry.point_map import OBSERVED, PointMap
from inspatio_core.geometry.splat import splat, splat_points
from inspatio_core.geometry.visibility import seen_through
from inspatio_core.star.attention import available
from inspatio_core.star.config import StarConfig
from inspatio_core.star.dit import build_star, randomise
from inspatio_core.star.fast import FastRollout
from inspatio_core.star.rollout import Rollout
from inspatio_core.world import World
from tests.conformance.harness import cases
from tests.star.plain import HEIGHT, SMALL, WIDTH, deviation, network
from tests.star.test_fast import FP8, WIDE, flows
from tests.star.test_rollout import clip, roll, text_of
from tests.synthetic import make_reference

SIZE = (48, 64)
TARGET = (40, 72)
VIEWS = 4

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)])
def device(request) -> str:
    return request.param


@pytest.fixture
def plain(monkeypatch):
    """The plain torch path in anchors, on the CPU, too."""
    for function in (splat, fill, seen_through):
        monkeypatch.setattr(anchor_module, function.__name__, functools.partial(function, backend="torch"))


@pytest.fixture(scope="module")
def reference():
    return make_reference(12, SIZE)


@pytest.fixture(scope="module")
def frames(reference):
    """rgb, depth, K_source, K_target, source poses and target poses of VIEWS views that uncover something."""
    rgb, depth = (torch.stack([f(3 * i) for i in range(VIEWS)]) for f in (reference.rgb, reference.depth))
    K = reference.K[: 3 * VIEWS : 3].clone()
    source = reference.world_from_camera[: 3 * VIEWS : 3].clone()
    xi = torch.randn(VIEWS, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    target = source @ se3_exp(xi * torch.tensor([0.3, 0.2, 0.3, 0.1, 0.15, 0.1]))
    return rgb, depth, K, intrinsics_from_fov(TARGET, 75.0).expand(VIEWS, 3, 3).clone(), source, target


@pytest.fixture(scope="module")
def point_map(reference):
    points = PointMap()
    for i in (0, 5, 11):
        depth = reference.depth(i)
        points.insert(
            reference.rgb(i), depth, depth > 0, reference.K[i], reference.world_from_camera[i], OBSERVED, stamp=float(i)
        )
    return points


def on(device: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.to(device) for t in tensors]


def assert_same(got, expected) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


def assert_filled_alike(device: str, got, expected) -> None:
    """(rgb, depth), both complete."""
    if device == "cpu":
        assert_same(got, expected)
        return
    (rgb, depth), (expected_rgb, expected_depth) = got, expected
    torch.testing.assert_close(depth.cpu(), expected_depth.cpu(), rtol=1e-5, atol=0)
    assert (rgb.cpu().int() - expected_rgb.cpu().int()).abs().max() <= 1


def check(device: str, run, tensors, compare, batched: bool = True) -> None:
    """`run(backend, *tensors)` on the device like the compiled one; twice the same bytes; a batch like its singles."""
    there = on(device, *tensors)
    got = run("torch", *there)
    assert all(t.device.type == device for t in got)
    compare(got, run("numba", *tensors))
    compare(got, run("torch", *tensors))
    assert_same(run("torch", *there), got)
    assert_same(run("auto", *there), got if device != "cpu" else run("numba", *tensors))
    if batched:
        singles = [run("torch", *(t[i : i + 1] for t in there)) for i in range(len(tensors[0]))]
        assert_same((torch.cat(parts) for parts in zip(*singles, strict=True)), got)


def test_splat(device, frames):
    rgb, depth, K_source, K_target, source, target = frames

    def run(backend, rgb, depth, *cameras):
        return splat(rgb, depth, *cameras, TARGET, backend)

    depth = depth.clone()
    depth[0, 5, 5], depth[1, 6, 6], depth[2, 7, 7] = 0.0, float("nan"), float("inf")
    check(device, run, (rgb, depth, K_source, K_target, invert_pose(target) @ source), assert_same)
    cameras = (K_source, K_target, invert_pose(target) @ source)  # as a session gives them: on the CPU
    assert_same(splat(*on(device, rgb, depth), *cameras, TARGET, "torch"), run("numba", rgb, depth, *cameras))


def test_splat_points(device, frames, point_map):
    *_, K_target, _, target = frames
    points = point_map.points()
    assert len(points.xyz) > 1000
    tensors = (points.xyz, points.rgb, points.radius, K_target[0], target[0])

    def run(backend, *tensors):
        return splat_points(*tensors, TARGET, backend)

    check(device, run, tensors, assert_same, batched=False)
    nothing = splat_points(*on(device, *(t[:0] for t in points[:3])), K_target[0], target[0], TARGET, "torch")
    assert not nothing.known.any() and nothing.rgb.device.type == device


def test_fill(device, frames):
    rgb, depth, K_source, K_target, source, target = frames
    seen = splat(rgb, depth, K_source, K_target, invert_pose(target) @ source, TARGET)
    seen.known[-1] = False
    assert not seen.known.flatten(1).all(1).any()
    default = torch.linspace(2.0, 3.0, VIEWS, dtype=torch.float64)

    def run(backend, *tensors):
        return fill(*tensors, backend)

    check(device, run, (*seen, default), functools.partial(assert_filled_alike, device))
    got = fill(*on(device, *seen), default, "torch")  # the default depth as a session gives it: on the CPU
    assert_filled_alike(device, got, run("numba", *seen, default))


def test_seen_through(device, frames, point_map):
    _, depth, K_source, K_target, source, target = frames
    seen = point_map.render(K_target[0], target[0], TARGET)
    nearer = torch.where(torch.arange(TARGET[1]) % 2 == 0, seen.depth * 0.7, seen.depth)  # every other column floats
    tensors = (nearer, seen.known, K_target[0], K_source[1], invert_pose(source[1]) @ target[0], depth[1])

    def run(backend, *tensors):
        return [seen_through(*tensors, backend)]

    check(device, run, tensors, assert_same, batched=False)
    (through,) = run("torch", *tensors)
    assert 0 < through.sum() < seen.known.sum()
    geometry = tensors[2:5]  # as build_anchor gives it: on the CPU
    mixed = seen_through(*on(device, *tensors[:2]), *geometry, tensors[5].to(device), "torch")
    assert torch.equal(mixed.cpu(), through)


def anchors(device: str, frames, maps, views=slice(None)):
    rgb, depth, *cameras = (t[views] for t in frames)
    K_source, K_target, source, target = cameras
    default = torch.full((len(rgb),), 3.0, dtype=torch.float64)
    return build_anchor(*on(device, rgb, depth), K_source, source, K_target, target, TARGET, default, maps[views])


def assert_anchors_alike(device: str, got, expected) -> None:
    seen = ("rgb", "depth", "known", "memory")
    assert_same((getattr(got, name) for name in seen), (getattr(expected, name) for name in seen))
    filled = ("filled_rgb", "filled_depth")
    assert_filled_alike(device, *([getattr(a, name) for name in filled] for a in (got, expected)))


def test_anchor(device, frames, point_map, request):
    maps = [point_map, None, point_map, PointMap()]
    expected = anchors("cpu", frames, maps)
    assert expected.memory.any() and not expected.known.all()
    request.getfixturevalue("plain")
    got = anchors(device, frames, maps)
    assert all(t.device.type == device for t in vars(got).values())
    assert_anchors_alike(device, got, expected)
    assert_same(vars(anchors(device, frames, maps)).values(), vars(got).values())
    singles = [vars(anchors(device, frames, maps, slice(i, i + 1))).values() for i in range(VIEWS)]
    assert_same((torch.cat(parts) for parts in zip(*singles, strict=True)), vars(got).values())


def blocks_of(device: str, references) -> list:
    """Five blocks of a session that turns, slides, plays backwards and jumps; memory shows from the third on."""
    world = World(references, size=SIZE, device=device, memory=True)
    out = []
    with world.start() as session:
        out.append(session.first)
        twists = torch.tensor([[0.4, 0.0, 0.2, 0.0, 0.8, 0.0]], dtype=torch.float64).repeat(session.batch, 1)
        for motion, command in (
            (twists, None),
            (twists.to(device), PlayheadCommand(rate=-1.0)),
            (Motion.from_twist([0.0, 0.1, 0.0, 0.0, -1.5, 0.1]), None),
            (Motion.hold(), PlayheadCommand(jump=8.0)),
        ):
            out.append(session.step(motion, command))
    return out


def assert_blocks_alike(device: str, got, expected) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.rgb.device.type == a.depth.device.type == a.known.device.type == device
        for name in ("known", "world_from_camera", "K", "source_index", "stamp", "twist", "index"):
            assert torch.equal(getattr(a, name).cpu(), getattr(b, name).cpu()), name
        assert_filled_alike(device, (a.rgb, a.depth), (b.rgb, b.depth))


def test_session(device, reference, request):
    references = [reference, make_reference(9, SIZE, seed=1)]
    expected = blocks_of("cpu", references)
    assert len(expected) == 5
    request.getfixturevalue("plain")
    got = blocks_of(device, references)
    assert_blocks_alike(device, got, expected)
    for again, block in zip(blocks_of(device, references), got, strict=True):
        assert_same((again.rgb, again.depth, again.known), (block.rgb, block.depth, block.known))
    for slot, alone in enumerate(references):
        for single, block in zip(blocks_of(device, [alone]), got, strict=True):
            assert_same(
                (single.rgb[0], single.depth[0], single.known[0]),
                (t[slot] for t in (block.rgb, block.depth, block.known)),
            )


# ---------------------------------------------------------------------------------------------------- STAR's rollouts

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
def test_star_in_float32(device, how, text):
    if device == "cpu" and how:
        pytest.skip("needs CUDA")
    plain, fast = rollouts(device, SMALL.replace(text=text), **how)
    given = texts(plain, fast, [40, 3]) if text else (None, None)
    expected = roll(plain, clip(3, 2), given[0])
    got = roll(fast, clip_on(device, 3, 2), given[1])
    assert got.device.type == device and deviation(got.cpu(), expected) < 1e-4
    again = roll(fast, clip_on(device, 3, 2), given[1])
    assert torch.equal(again, got)


def test_star_slots_together_are_slots_alone(device):
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
def test_star_golden_flows_in_bfloat16(case, how):
    for name, flow in flows(case, torch.bfloat16, "cuda", **how):
        stated = case.meta["bf16_reference_deviation"][name]["rel_rms"]
        assert 0 < deviation(flow, case.tensors[f"out.{name}"]) <= 1.5 * stated, name


@needs_cuda
@pytest.mark.parametrize("how", [{}, {"compile": True}], ids=["kernels", "compile"])
def test_star_golden_flows_in_8_bits(how):
    (case,) = (c for c in cases("dit_tiny") if c.name == "dit_tiny_b")
    simulated = dict(flows(case, torch.bfloat16, fp8=True))
    for name, flow in flows(case, torch.bfloat16, "cuda", fp8=True, **how):
        assert 0.01 < deviation(flow, case.tensors[f"out.{name}"]) < FP8, name
        assert deviation(flow, simulated[name]) < 0.02, name


@needs_cuda
def test_star_attention_backends_agree():
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
def test_star_waits_for_nothing_and_memory_stays(how):
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
def test_star_graphs_give_what_launches_give(dtype, fp8):
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
def test_star_on_a_stream_and_in_a_thread_of_its_own(how):
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
def test_star_captures_while_another_thread_computes():
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
def test_star_at_its_full_width(how):
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
