"""CUDA gives what the CPU gives: geometry, anchors and a session. (The STAR network: star/test_cuda.py.)

Every test runs the plain torch path on a device and compares it with the compiled path on the CPU; the device is the
CPU, where it must be the same bytes, and CUDA where there is one. On CUDA, too, the warp, the points and what is seen
through are the same bytes: they sum integers, and round each operation on its own. The filling sums floats: depth
within 1e-5, colours within one level.
"""

import functools

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
from inspatio_core.world import World
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
