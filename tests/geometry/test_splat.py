"""The z-tested splat, the point splat, and the released warp, against ray casting and against each other."""

import math

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry import compiled
from inspatio_core.geometry.motion import se3_exp
from inspatio_core.geometry.splat import splat, splat_points, warp_compatible

BACKENDS = ("numba", "torch")
EYE = torch.eye(4, dtype=torch.float64)


def camera(size, fov=62.0):
    h, w = size
    f = w / 2 / math.tan(math.radians(fov) / 2)
    return torch.tensor([[f, 0, (w - 1) / 2], [0, f, (h - 1) / 2], [0, 0, 1]], dtype=torch.float64)


def pose(x=0.0, y=0.0, z=0.0, yaw=0.0, pitch=0.0, roll=0.0):
    """world_from_camera."""
    a, b, c = (math.radians(t) for t in (yaw, pitch, roll))
    R = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]], dtype=torch.float64)
    R = R @ torch.tensor([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]]).double()
    R = R @ torch.tensor([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]]).double()
    T = EYE.clone()
    T[:3, :3], T[:3, 3] = R, torch.tensor([x, y, z], dtype=torch.float64)
    return T


def cast(K, world_from_camera, size, slant=0.0, with_panel=True):
    """A wall at 5 m and before it, at 2 m, a panel turned by ``slant`` degrees: rgb, depth, mask of the panel."""
    h, w = size
    v, u = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    rays = torch.stack((u, v, torch.ones_like(u)), -1) @ torch.linalg.inv(K).T @ world_from_camera[:3, :3].T
    origin = world_from_camera[:3, 3]

    def hit(point, normal):
        t = ((point - origin) @ normal) / (rays @ normal)
        return t, origin + rays * t[..., None]

    def paint(a, b):
        waves = [torch.sin(9 * a + 2 * b), torch.sin(7 * b - 3 * a), torch.sin(5 * a * b + 1)]
        return torch.stack([128 + 50 * s for s in waves], -1)

    z, at = hit(torch.tensor([0, 0, 5.0]).double(), torch.tensor([0, 0, 1.0]).double())
    rgb = paint(at[..., 0] / 2, at[..., 1] / 2)
    s = math.radians(slant)
    across = torch.tensor([math.cos(s), 0, math.sin(s)]).double()
    zp, at = hit(torch.tensor([0, 0, 2.0]).double(), torch.tensor([-math.sin(s), 0, math.cos(s)]).double())
    a, b = (at - torch.tensor([0, 0, 2.0]).double()) @ across, at[..., 1]
    panel = (a.abs() < 0.6) & (b.abs() < 0.45) & (zp > 0) & with_panel
    rgb = torch.where(panel[..., None], paint(3 * a + 1, 3 * b), rgb)
    return rgb.round().to(torch.uint8), torch.where(panel, zp, z).float(), panel


def shrink(mask, by=1):
    return ~grow(~mask, by)


def grow(mask, by=1):
    return torch.nn.functional.max_pool2d(mask[None, None].float(), 2 * by + 1, 1, by)[0, 0] > 0


def view(source, target, size, slant=0.0, backend="auto", target_K=None, target_size=None):
    """Splat the scene from one pose to another; also what ray casting sees there."""
    K = camera(size)
    rgb, depth, _ = cast(K, source, size, slant)
    target_K = K if target_K is None else target_K
    move = torch.linalg.inv(target) @ source
    seen = splat(rgb[None], depth[None], K[None], target_K[None], move[None], target_size, backend)
    truth = cast(target_K, target, target_size or size, slant)
    return [t[0] for t in seen], truth


def random_scene(size, seed=0, batch=1):
    g = torch.Generator().manual_seed(seed)
    rgb = torch.randint(0, 256, (batch, *size, 3), generator=g, dtype=torch.uint8)
    depth = torch.rand((batch, *size), generator=g) * 4 + 0.5
    smooth = torch.nn.functional.avg_pool2d(depth[:, None], 9, 1, 4, count_include_pad=False)[:, 0] * 2
    return rgb, torch.where(torch.rand((batch, *size), generator=g) < 0.5, depth, smooth)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


MOVES = {
    "yaw": pose(yaw=5),
    "side": pose(0.2, 0.1, 0.0, yaw=-2),
    "forward": pose(z=1.1),
    "back": pose(z=-3, pitch=4),
    "roll": pose(z=0.4, roll=40),
    "far away": pose(z=-300),
    "beyond": pose(z=8),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(48, 80), (1, 1), (37, 5), (480, 832)])
def test_identity_is_exact(size, backend):
    rgb, depth = random_scene(size)
    depth[..., 0, 0] = 7e3
    K = camera(size)[None]
    # a pose and its inverse, computed apart, cancel to rounding only
    T = pose(13.7, -2.1, 40.3, yaw=33, pitch=-12, roll=71)
    seen = splat(rgb, depth, K, K.clone(), (torch.linalg.inv(T) @ T)[None], backend=backend)
    assert torch.equal(seen.rgb, rgb)
    assert torch.equal(seen.depth, depth)
    assert seen.known.all()


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_compiled_equals_plain(move):
    for size, target_size, seed in (((48, 80), None, 1), ((33, 47), (60, 90), 2), ((64, 64), (20, 31), 3)):
        rgb, depth = random_scene(size, seed)
        for start, value in enumerate((0.0, -1.0, math.nan, math.inf, 0.3)):
            depth.view(-1)[start::85] = value
        K, target_K = camera(size)[None], camera(target_size or size)[None]
        T = torch.linalg.inv(move)[None]
        results = [splat(rgb, depth, K, target_K, T, target_size, backend) for backend in BACKENDS]
        assert same(*results)


def test_whole_pixel_shift_keeps_bytes():
    size = (24, 40)
    rgb, _ = random_scene(size)
    depth = torch.full((1, *size), 2.0)
    K = camera(size)[None]
    T = EYE.clone()
    T[0, 3] = 3 * 2.0 / K[0, 0, 0]  # three pixels to the right
    seen = splat(rgb, depth, K, K, T[None])
    assert torch.equal(seen.rgb[:, :, 3:], rgb[:, :, :-3])
    assert seen.known[:, :, 3:].all() and not seen.known[:, :, :3].any()
    assert not seen.rgb[:, :, :3].any() and not seen.depth[:, :, :3].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_pixel_shift_is_bilinear(backend):
    size = (16, 24)
    rgb, _ = random_scene(size)
    depth = torch.full((1, *size), 2.0)
    K = camera(size)[None]
    T = EYE.clone()
    T[0, 3] = 0.5 * 2.0 / K[0, 0, 0]
    seen = splat(rgb, depth, K, K, T[None], backend=backend)
    mean = (rgb[:, :, :-1].float() + rgb[:, :, 1:].float()) / 2
    assert (seen.rgb[:, :, 1:].float() - mean).abs().max() <= 0.5
    assert torch.equal(seen.depth[:, :, 1:], depth[:, :, 1:])


@pytest.mark.parametrize(
    ("target", "slant"),
    [
        (pose(z=0.7), 0),  # magnified 1.5 times
        (pose(z=1.2), 0),  # 2.5 times
        (pose(z=0.6, roll=30), 0),
        (pose(z=0.5, roll=45), 0),
        (pose(1.6, 0, 0.6, yaw=-45), -60),  # a slanted panel turns towards the camera: stretched in one direction only
        (pose(0.25, 0.1, 0.2, yaw=-4, pitch=2), 50),
    ],
)
@pytest.mark.parametrize("size", [(96, 160), (240, 416)])
def test_no_cracks_and_no_shine_through(target, slant, size):
    (rgb, depth, known), (true_rgb, true_depth, panel) = view(EYE, target, size, slant)
    inside = shrink(panel, 2)
    inside[:4] = inside[-4:] = False
    inside[:, :4] = inside[:, -4:] = False
    assert inside.sum() > 200
    assert known[inside].all(), "cracks"
    assert ((depth - true_depth).abs() <= 0.03 * true_depth)[inside].all(), "the wall shines through"
    assert (rgb.float() - true_rgb.float())[inside].abs().mean() < 12


@pytest.mark.parametrize(
    ("target", "slant"),
    [(pose(0.3), 0), (pose(-0.2, 0.1, -0.5, yaw=3), 30), (pose(z=-1, roll=20), 0), (pose(z=0.8), 0)],
)
def test_foreground_does_not_grow(target, slant):
    size = (240, 416)
    (_, depth, known), (_, true_depth, panel) = view(EYE, target, size, slant)
    outside = ~grow(panel, 1)
    assert not (known & outside & (depth < 0.8 * true_depth)).any()
    # a pixel claims at most its half cell, so of the ring of one pixel around the panel it may take a third
    border = grow(panel, 1) & ~panel
    assert (known & border & (depth < 0.8 * true_depth)).sum() <= border.sum() / 3


def test_holes_are_where_nothing_was_seen():
    size = (240, 416)
    source, target = EYE, pose(0.4)
    (_, _, known), (_, true_depth, _) = view(source, target, size)
    # ask ray casting: is the point that the target sees visible from the source?
    K = camera(size)
    v, u = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    points = torch.stack((u, v, torch.ones_like(u)), -1) @ torch.linalg.inv(K).T * true_depth.double()[..., None]
    points = points @ target[:3, :3].T + target[:3, 3]
    back = points @ K.T
    x, y = back[..., 0] / back[..., 2], back[..., 1] / back[..., 2]
    _, source_depth, _ = cast(K, source, size)
    xi, yi = x.round().long().clamp(0, size[1] - 1), y.round().long().clamp(0, size[0] - 1)
    visible = (points[..., 2] <= source_depth[yi, xi] * 1.02) & (x >= 0) & (x <= size[1] - 1) & (y >= 0)
    visible &= y <= size[0] - 1
    assert known[shrink(visible, 2)].all()
    assert not known[shrink(~visible, 2)].any()
    assert shrink(~visible, 2).sum() > 1000


def test_accuracy_against_ray_casting():
    size = (240, 416)
    (rgb, depth, known), (true_rgb, true_depth, panel) = view(EYE, pose(0.15, 0.05, 0.2, yaw=3, pitch=1), size)
    smooth = known & (shrink(panel, 2) | shrink(~panel, 2))
    assert (depth / true_depth - 1)[smooth].abs().max() < 2e-3
    assert (rgb.float() - true_rgb.float())[smooth].abs().mean() < 1.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearest_wins_whatever_the_order(backend):
    """Two pixels land on one spot, the nearer one first or last in the image: it is seen, unmixed."""
    K = torch.tensor([[10.0, 0, 0], [0, 10, 0], [0, 0, 1]], dtype=torch.float64)[None]
    rgb = torch.zeros((1, 1, 12, 3), dtype=torch.uint8)
    rgb[0, 0, 2], rgb[0, 0, 7] = torch.tensor([200, 0, 0]), torch.tensor([0, 0, 200])
    # a step of one metre moves a pixel by 10 / depth
    for step, near, near_depth, far, far_depth, spot in ((1, 2, 10 / 7, 7, 5.0, 9), (-1, 7, 10 / 6, 2, 10.0, 1)):
        depth = torch.zeros((1, 1, 12))
        depth[0, 0, near], depth[0, 0, far] = near_depth, far_depth
        T = EYE.clone()
        T[0, 3] = step
        seen = splat(rgb, depth, K, K, T[None], backend=backend)
        assert torch.equal(seen.rgb[0, 0, spot], rgb[0, 0, near])
        assert seen.depth[0, 0, spot] == depth[0, 0, near]


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_depth_is_ignored(backend):
    size = (20, 30)
    rgb, _ = random_scene(size)
    depth = torch.full((1, *size), 2.0)
    bad = torch.zeros((1, *size), dtype=torch.bool)
    for i, value in enumerate((math.nan, math.inf, -math.inf, 0.0, -3.0, 1e-3)):
        depth[0, 3 * i, 5], bad[0, 3 * i, 5] = value, True
    K = camera(size)[None]
    seen = splat(rgb, depth, K, K, EYE[None], backend=backend)
    assert torch.equal(seen.known, ~bad)
    assert torch.equal(seen.rgb[~bad], rgb[~bad])
    nothing = splat(rgb, torch.full_like(depth, math.nan), K, K, EYE[None], backend=backend)
    assert not nothing.known.any() and not nothing.rgb.any() and not nothing.depth.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_behind_and_too_near_are_dropped(backend):
    size = (20, 30)
    rgb, _ = random_scene(size)
    depth = torch.full((1, *size), 2.0)
    K = camera(size)[None]
    for move in (2.5, 1.97):  # past the wall; 3 cm before it
        T = EYE.clone()
        T[2, 3] = -move
        assert not splat(rgb, depth, K, K, T[None], backend=backend).known.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_equals_singles(backend):
    size, target = (200, 260), (180, 300)  # large enough for the rows to go to threads
    rgb, depth = random_scene(size, 5, batch=5)
    K = camera(size).expand(5, 3, 3).clone()
    K[:, 0, 0] += torch.arange(5)
    Kt = camera(target).expand(5, 3, 3)
    T = torch.stack([torch.linalg.inv(pose(0.1 * i, 0, 0.2 * i, yaw=3 * i)) for i in range(5)])
    whole = splat(rgb, depth, K, Kt, T, target, backend)
    for i in range(5):
        s = slice(i, i + 1)
        assert same([t[s] for t in whole], splat(rgb[s], depth[s], K[s], Kt[s], T[s], target, backend))


def test_same_bytes_again_and_with_one_thread():
    size = (240, 320)
    rgb, depth = random_scene(size, 6, batch=3)
    K, T = camera(size).expand(3, 3, 3), torch.linalg.inv(pose(0.3, yaw=4)).expand(3, 4, 4)
    first = splat(rgb, depth, K, K, T)
    assert same(first, splat(rgb, depth, K, K, T))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert same(first, splat(rgb, depth, K, K, T))
    finally:
        torch.set_num_threads(threads)


def test_very_many_pixels_on_one():
    """A whole wall shrinks into one pixel: the packed sums must hold."""
    size = (400, 600)
    rgb = torch.full((1, *size, 3), 255, dtype=torch.uint8)
    rgb[..., 1] = 254
    K = camera(size)[None]
    K[:, 0, 2], K[:, 1, 2] = 300, 200
    T = EYE.clone()
    T[2, 3] = 2e5
    seen = splat(rgb, torch.full((1, *size), 2.0), K, K, T[None])
    assert seen.known.nonzero().tolist() == [[0, 200, 300]]
    assert seen.rgb[0, 200, 300].tolist() == [255, 254, 255]
    assert seen.depth[0, 200, 300] == 200002


def test_target_of_another_size_and_camera():
    size, target = (96, 160), (144, 300)
    (rgb, depth, known), (true_rgb, true_depth, panel) = view(
        EYE, pose(0.1, yaw=2), size, target_K=camera(target, fov=50), target_size=target
    )
    assert rgb.shape == (*target, 3)
    inside = shrink(panel, 3)
    assert known[inside].all()
    assert (depth / true_depth - 1)[inside].abs().max() < 0.01
    assert (rgb.float() - true_rgb.float())[inside].abs().mean() < 8


def test_non_contiguous_inputs_and_float64_depth():
    size = (30, 44)
    rgb, depth = random_scene(size)
    K, T = camera(size)[None], torch.linalg.inv(pose(0.2))[None]
    strided = rgb.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert same(splat(rgb, depth, K, K, T), splat(strided, depth.double(), K.float().double(), K, T))


def test_bad_arguments():
    rgb, depth = random_scene((8, 8))
    K = camera((8, 8))[None]
    with pytest.raises(InputError, match="backend"):
        splat(rgb, depth, K, K, EYE[None], backend="cuda")
    with pytest.raises(InputError, match="rgb"):
        splat(rgb.float(), depth, K, K, EYE[None])
    with pytest.raises(InputError, match="splat_points"):
        splat_points(torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.uint8), torch.zeros(4), K[0], EYE, (8, 8))


# ---- points


def cloud(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    xyz = torch.randn((n, 3), generator=g) * torch.tensor([2.0, 1.5, 2.0]) + torch.tensor([0, 0, 4.0])
    return xyz, torch.randint(0, 256, (n, 3), generator=g, dtype=torch.uint8), torch.rand(n, generator=g) * 0.05


@pytest.mark.parametrize("move", [MOVES[name] for name in ("yaw", "side", "back", "roll", "far away", "beyond")])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_points_compiled_equals_plain(move, count):
    xyz, rgb, radius = cloud(count)
    if count > 10:
        xyz[3, 0], xyz[4, 2], radius[5], radius[6] = math.nan, math.inf, math.nan, math.inf
    results = [splat_points(xyz, rgb, radius, camera((60, 90)), move, (60, 90), b) for b in BACKENDS]
    assert same(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_of_a_frame_give_the_frame_back(backend):
    size = (36, 60)
    K, T = camera(size), pose(0.4, -0.2, 1, yaw=20)
    rgb, depth, _ = cast(K, T, size, with_panel=False)
    v, u = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    xyz = torch.stack((u, v, torch.ones_like(u)), -1) @ torch.linalg.inv(K).T * depth.double()[..., None]
    xyz = (xyz @ T[:3, :3].T + T[:3, 3]).float().view(-1, 3)
    radius = (0.75 * depth / K[0, 0]).float().view(-1)
    order = torch.randperm(len(xyz), generator=torch.Generator().manual_seed(0))
    seen = splat_points(xyz[order], rgb.view(-1, 3)[order], radius[order], K, T, size, backend)
    assert seen.known.all()
    assert torch.equal(seen.rgb, rgb)
    assert (seen.depth / depth - 1).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_are_z_tested_discs(backend):
    K = torch.tensor([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]], dtype=torch.float64)
    xyz = torch.tensor([[0, 0, 4.0], [0, 0, 2.0], [0.2, 0, 4.0], [0, 0, -2.0], [0, 0, 0.01]])
    rgb = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9], [9, 9, 9]], dtype=torch.uint8)
    radius = torch.tensor([0.2, 0.06, 1e-9, 1.0, 1.0])
    seen = splat_points(xyz, rgb, radius, K, EYE, (65, 65), backend)
    v, u = torch.meshgrid(torch.arange(65), torch.arange(65), indexing="ij")
    assert torch.equal(seen.rgb[32, 32], rgb[1])
    near = ((u - 32) ** 2 + (v - 32) ** 2) <= 3**2 + 0.25  # 100 * 0.06 / 2
    assert torch.equal((seen.rgb == rgb[1]).all(-1), near)
    spot = (seen.rgb == rgb[2]).all(-1).nonzero().tolist()
    assert spot == [[32, 37]]  # never smaller than a pixel, and its centre beats the large disc around it
    assert seen.known.sum() == (((u - 32) ** 2 + (v - 32) ** 2) <= 5**2 + 0.25).sum()
    assert set(seen.depth.unique().tolist()) == {0.0, 2.0, 4.0}
    again = splat_points(xyz * torch.tensor([1, 1, 0.1]), rgb, radius * 10, K, EYE, (65, 65), backend)
    assert (again.rgb == rgb[1]).all(-1).sum() <= 13 * 13  # never larger than 6 pixels


def test_points_no_points():
    seen = splat_points(*cloud(0), camera((8, 9)), EYE, (8, 9))
    assert not seen.known.any() and seen.rgb.shape == (8, 9, 3)


# ---- the released warp


def test_compatible_depends_on_the_batch_unless_normalised():
    size = (30, 40)
    rgb, depth = random_scene(size, 8, batch=2)
    rgb = rgb.permute(0, 3, 1, 2).float() / 127.5 - 1
    depth = depth[:, None]
    depth[1] *= 50
    source = EYE.expand(2, 4, 4)
    target = torch.linalg.inv(pose(0.2, yaw=3)).expand(2, 4, 4)
    K = camera(size).expand(2, 3, 3)
    both, _ = warp_compatible(rgb, depth, source, target, K)
    alone, _ = warp_compatible(rgb[:1], depth[:1], source[:1], target[:1], K[:1])
    assert (both[:1] - alone).abs().max() > 0.01
    both, _ = warp_compatible(rgb, depth, source, target, K, normaliser=math.log(201))
    alone, mask = warp_compatible(rgb[:1], depth[:1], source[:1], target[:1], K[:1], normaliser=math.log(201))
    assert torch.equal(both[:1], alone)
    assert (alone[(mask == 0).expand_as(alone)] == -1).all()


def test_compatible_nan_blanks_the_batch():
    rgb, depth = random_scene((20, 24), 9, batch=2)
    depth[1, 3, 3] = math.nan
    eye, K = EYE.expand(2, 4, 4), camera((20, 24)).expand(2, 3, 3)
    render, mask = warp_compatible(rgb.permute(0, 3, 1, 2).float() / 127.5 - 1, depth[:, None], eye, eye, K)
    assert not mask.any() and (render == -1).all()


def test_splat_agrees_with_the_released_warp_inside_surfaces():
    """The two differ at depth edges, by design; within surfaces they show the same picture."""
    size, target = (96, 160), pose(0.2, 0.05, 0.3, yaw=2)
    K = camera(size)
    rgb, depth, _ = cast(K, EYE, size)
    (seen, _, known), (_, _, panel) = view(EYE, target, size)
    render, _ = warp_compatible(
        rgb.permute(2, 0, 1)[None].float() / 127.5 - 1,
        depth[None, None],
        EYE[None],
        torch.linalg.inv(target)[None],
        K[None],
    )
    inside = known & (shrink(panel, 3) | shrink(~panel, 3))
    released = (render[0].permute(1, 2, 0) + 1) * 127.5
    assert (released - seen.float())[inside].abs().mean() < 1.5


@pytest.mark.parametrize("count", [2, 3])
def test_threads_that_share_a_frame_give_the_bytes_of_one(monkeypatch, count):
    """Bands of the target, with surfaces that stretch across their borders and points from any row of the source."""
    generator = torch.Generator().manual_seed(3)
    size = (53, 64)
    rgb = torch.randint(0, 256, (1, *size, 3), generator=generator, dtype=torch.uint8)
    depth = 1 + 3 * torch.rand((1, *size), generator=generator)
    depth[:, 20:40] = torch.linspace(1.0, 4.0, 64)
    K = torch.tensor([[[50.0, 0, 31.5], [0, 50.0, 26.0], [0, 0, 1]]], dtype=torch.float64)
    threads = torch.get_num_threads()
    for k in range(6):
        xi = torch.randn(6, generator=generator, dtype=torch.float64) * torch.tensor([0.3] * 5 + [1.0])
        T = se3_exp(xi)[None]
        try:
            torch.set_num_threads(1)
            alone = splat(rgb, depth, K, K, T, (61 + k, 70))
            torch.set_num_threads(count)
            monkeypatch.setattr(compiled, "WORTH_A_THREAD", 1)
            together = splat(rgb, depth, K, K, T, (61 + k, 70))
        finally:
            torch.set_num_threads(threads)
        assert 0.1 < alone.known.float().mean()
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a, b)
