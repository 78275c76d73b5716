"""Generated pixels get the depth of the surface whose colours they continue, and a confidence that says how sure."""

import math

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.depth_completion import complete_depth
from inspatio_core.geometry.fill import fill
from inspatio_core.geometry.splat import splat

from .test_fill import BACKENDS, DEFAULT, blobs, natural
from .test_splat import EYE, camera, pose, random_scene, same

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
]
RED, BLUE = (190, 70, 60), (60, 90, 170)


def paint(mask, inside=RED, outside=BLUE, noise=4.0, seed=0):
    """uint8 [1, H, W, 3]: two colours with the grain of a generated picture."""
    rgb = torch.where(mask[..., None], torch.tensor(inside).float(), torch.tensor(outside).float())
    rgb = rgb + noise * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(seed))
    return rgb.round().clamp(0, 255).to(torch.uint8)[None]


def filled(rgb, depth, known):
    """What geometry alone makes of it."""
    return fill(rgb, torch.where(known, depth, 0.0), known, DEFAULT)[1]


def errors(rgb, depth, known, backend="auto"):
    """Mean relative errors in the holes of completed and of filled depth; the former's error and confidence as maps."""
    background = filled(rgb, depth, known)
    out, confidence = complete_depth(rgb, torch.where(known, depth, 0.0), known, background, backend)
    off, off_filled = ((d / depth - 1).abs() for d in (out, background))
    return off[~known].mean().item(), off_filled[~known].mean().item(), off[0], confidence[0]


def grid(size):
    v, u = torch.meshgrid(*(torch.arange(n).float() for n in size), indexing="ij")
    return u, v


def hole(size, rows, columns):
    known = torch.ones((1, *size), dtype=torch.bool)
    known[:, slice(*rows), slice(*columns)] = False
    return known


ROOM = (((0, 1, 0), 1.5), ((0, -1, 0), 2.5), ((0, 0, 1), 9.0), ((1, 0, 0), 4.0), ((-1, 0, 0), 4.0))
BALLS = (((-1.4, 0.8, 5.0), 0.7), ((1.6, 0.9, 6.5), 0.6))
PAINTS = ((150, 120, 90), (215, 215, 205), (90, 130, 110), (120, 90, 140), (170, 160, 110), RED, (40, 60, 190))


def room(world_from_camera, K, size, seed=0):
    """Floor, ceiling, three walls and two balls, each of its own colour with some grain: rgb [1,H,W,3], depth."""
    u, v = grid(size)
    rays = torch.stack((u, v, torch.ones_like(u)), -1).double() @ torch.linalg.inv(K).T @ world_from_camera[:3, :3].T
    eye, hits = world_from_camera[:3, 3], []
    for normal, distance in ROOM:
        normal = torch.tensor(normal).double()
        slope = rays @ normal
        hits.append(torch.where(slope > 1e-9, (distance - normal @ eye) / slope, torch.inf))
    for centre, radius in BALLS:
        away = eye - torch.tensor(centre).double()
        a, b = (rays**2).sum(-1), rays @ away
        root = b * b - a * (away @ away - radius**2)
        hits.append(torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, torch.inf))
    depth, surface = torch.stack(hits).min(0)
    grain = torch.randn((*size, 3), generator=torch.Generator().manual_seed(seed))
    rgb = torch.tensor(PAINTS)[surface] + 6 * grain
    return rgb.round().clamp(0, 255).to(torch.uint8)[None], depth.float()[None]


def turned_room(size, turn, aside):
    """The room, warped to another view: what is seen from there, its depth, and what is known."""
    K, target = camera(size, 75), pose(aside, yaw=turn)
    rgb, depth = room(EYE, K, size)
    seen = splat(rgb, depth, K[None], K[None], torch.linalg.inv(target)[None])
    return *room(target, K, size, seed=1), seen


# ------------------------------------------------------------------------------------------------------ what it is for


@pytest.mark.parametrize("backend", BACKENDS)
def test_colours_decide_where_two_planes_meet(backend):
    """A hole across the edge between a red panel at 2 m and a blue wall at 6 m; the picture shows where the edge is."""
    size = (90, 140)
    u, v = grid(size)
    panel = u < 70 + 12 * torch.sin(v / 9)
    depth = torch.where(panel, 2.0, 6.0)[None]
    error, by_fill, off, confidence = errors(paint(panel), depth, hole(size, (20, 70), (45, 95)), backend)
    assert by_fill > 0.2
    assert error < by_fill / 10
    beside = torch.zeros(size, dtype=torch.bool)
    beside[20:70, 45:95] = True
    edge = torch.nn.functional.max_pool2d((panel[:, 1:] != panel[:, :-1])[None].float(), 7, 1, 3)[0] > 0
    assert off[:, 1:][beside[:, 1:] & ~edge].max() < 0.05, "wrong side farther than three pixels from the edge"
    assert confidence[45, 50] > 0.8 and confidence[45, 90] > 0.8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_slanted_plane_goes_on_with_its_slope(backend, noise):
    """A floor whose nearest third is not known: the filled depth stays flat, the completed one comes nearer."""
    size = (96, 128)
    u, v = grid(size)
    depth = (1 / (0.05 + 0.004 * v + 0.0006 * u))[None]
    measured = depth * (1 + noise * torch.randn(depth.shape, generator=torch.Generator().manual_seed(1)))
    known = hole(size, (64, 96), (0, 128))
    rgb = natural(size)[None]
    background = filled(rgb, measured, known)
    out, _ = complete_depth(rgb, measured, known, background, backend)
    error, by_fill = (((d / depth - 1).abs())[~known].mean().item() for d in (out, background))
    assert by_fill > 0.15
    assert error < by_fill / (4 if noise else 10)


def test_a_slanted_plane_is_exact_without_noise():
    size = (64, 64)
    u, v = grid(size)
    depth = (1 / (0.2 + 0.001 * v - 0.002 * u))[None]
    error, by_fill, off, _ = errors(paint(u < 0), depth, hole(size, (20, 40), (24, 44)))
    assert off.max() < 0.005 and error < by_fill / 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wall_and_a_floor_go_on_beside_their_crease(backend):
    """Planes are told apart by depth as well: pixels near the crease do not go on with a mean of the two."""
    size = (96, 128)
    u, v = grid(size)
    wall, floor = 0.06 + 0.001 * u, -0.1 + 0.004 * v
    depth = (1 / torch.maximum(wall, floor))[None]
    error, by_fill, off, _ = errors(paint(wall > floor), depth, hole(size, (0, 96), (88, 128)), backend)
    near = ((wall - floor).abs() < 12 * 0.004) & (u >= 88)
    assert error < by_fill / 8
    assert off[near].median() < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_object_goes_on_into_the_hole(backend):
    """A red disc of which the left half is known; the rest of it, and of the wall, was generated."""
    size = (100, 160)
    u, v = grid(size)
    disc = (u - 80) ** 2 + (v - 50) ** 2 < 30**2
    depth = torch.where(disc, 1.5, 5.0)[None]
    known = hole(size, (10, 90), (80, 130))
    error, by_fill, off, confidence = errors(paint(disc), depth, known, backend)
    inner = (u - 80) ** 2 + (v - 50) ** 2 < 27**2
    outer = ((u - 80) ** 2 + (v - 50) ** 2 > 33**2) & ~known[0]
    assert by_fill > 0.5
    assert error < by_fill / 10
    assert off[inner].max() < 0.08 and off[outer].max() < 0.08
    assert confidence[50, 82] > confidence[50, 105] > 0.05


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [4, 20, 40])
def test_where_colours_do_not_tell_the_foreground_stays_out(backend, width):
    size = (80, 140)
    u, _ = grid(size)
    depth = torch.where(u < 50, 1.5, 5.0)[None]
    known = hole(size, (0, 80), (50, 50 + width))
    _, _, off, _ = errors(paint(u < 0), depth, known, backend)
    assert off[~known[0]].max() < 0.08


@pytest.mark.parametrize("turn, aside", [(14, 0.0), (-18, 0.0), (-4, 0.5), (8, -0.4)])
def test_a_turned_camera_in_a_room(turn, aside):
    """The true colours of a ray-cast room in the holes of a warped view."""
    rgb, depth, seen = turned_room((120, 208), turn, aside)
    background = fill(*seen, DEFAULT)[1]
    out, confidence = complete_depth(rgb, seen.depth, seen.known, background)
    new = ~seen.known
    off, off_filled = (((d / depth).log().abs())[new] for d in (out, background))
    assert new.float().mean() > 0.03
    assert off.mean() < off_filled.mean() / 3
    sure = confidence[new] > 0.5
    assert sure.any() and off[sure].mean() < off[~sure].mean() and off[sure].median() < 0.02


# ---------------------------------------------------------------------------------------------------------- confidence


@pytest.mark.parametrize("backend", BACKENDS)
def test_confidence_falls_with_distance(backend):
    size = (60, 120)
    depth = torch.full((1, *size), 3.0)
    known = hole(size, (0, 60), (40, 120))
    rgb = paint(torch.zeros(size, dtype=torch.bool), noise=0)
    _, confidence = complete_depth(rgb, depth, known, depth, backend)
    row = confidence[0, 30, 39:]
    assert row[0] == 1
    assert (row[1:] < row[:-1]).all()
    assert row[1] > 0.99 and 0 < row[-1] < 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_confidence_falls_across_a_colour_edge(backend):
    size = (60, 120)
    u, _ = grid(size)
    depth = torch.full((1, *size), 3.0)
    known = hole(size, (0, 60), (40, 120))
    plain, edged = (complete_depth(paint(m), depth, known, depth, backend)[1][0] for m in (u < 0, u < 60))
    assert (edged[:, 62:] < 0.5 * plain[:, 62:]).all()
    assert torch.allclose(edged[:, :58], plain[:, :58], atol=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_confidence_falls_where_known_depths_disagree(backend):
    """Between two banks of one colour, a little apart in depth: nobody knows where one ends and the other begins."""
    size = (40, 100)
    u, _ = grid(size)
    known = hole(size, (0, 40), (30, 70))
    rgb = paint(torch.zeros(size, dtype=torch.bool), noise=0)
    depths = (torch.full((1, *size), 3.0), torch.where(u < 50, 3.0, 2.0)[None])
    agree, disagree = (complete_depth(rgb, d, known, torch.full_like(d, 2.0), backend)[1][0] for d in depths)
    assert disagree[20, 50] < 0.5 * agree[20, 50]
    assert disagree[20, 31] > 0.9 * agree[20, 31]


# --------------------------------------------------------------------------------------------------- what it promises


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.02, 0.4, 0.95])
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (37, 53), (1, 9), (8, 1), (1, 1), (120, 200)])
def test_compiled_equals_plain(size, share, device):
    _, depth = random_scene(size, 1, batch=3)
    rgb = torch.stack([natural(size, seed) for seed in range(3)])
    known = torch.stack([blobs(size, seed, share) for seed in range(3)])
    background = filled(rgb, depth, known)
    fast = complete_depth(rgb, depth, known, background, "numba")
    slow = complete_depth(*(t.to(device) for t in (rgb, depth, known, background)), backend="torch")
    assert same(fast, [t.cpu() for t in slow])
    assert torch.equal(fast[0][known], depth[known]) and (fast[1][known] == 1).all()
    assert (fast[0] > 0).all() and fast[0].isfinite().all()
    assert (fast[1][~known] >= 0).all() and (fast[1][~known] < 1).all()


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_equals_plain_in_a_room(device):
    rgb, _, seen = turned_room((240, 416), 12, 0.3)
    background = fill(*seen, DEFAULT)[1]
    fast = complete_depth(rgb, seen.depth, seen.known, background)
    slow = complete_depth(*(t.to(device) for t in (rgb, seen.depth, seen.known, background)), backend="torch")
    assert same(fast, [t.cpu() for t in slow])


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_equals_singles(backend):
    size = (160, 200)
    _, depth = random_scene(size, 4, batch=5)
    rgb = torch.stack([natural(size, seed) for seed in range(5)])
    known = torch.stack([blobs(size, seed, 0.2 * seed) for seed in range(5)])
    known[4] = False
    background = filled(rgb, depth, known)
    whole = complete_depth(rgb, depth, known, background, backend)
    assert same(whole, complete_depth(rgb, depth, known, background, backend))
    for i in range(5):
        s = slice(i, i + 1)
        assert same([t[s] for t in whole], complete_depth(rgb[s], depth[s], known[s], background[s], backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_depth_holds_in_holes_does_not_matter(backend):
    size = (40, 60)
    _, depth = random_scene(size, 2)
    rgb, known = natural(size)[None], blobs(size, 3, 0.3)[None]
    background = filled(rgb, depth, known)
    expected = complete_depth(rgb, depth, known, background, backend)
    for value in (0.0, -1.0, math.nan, math.inf):
        assert same(expected, complete_depth(rgb, torch.where(known, depth, value), known, background, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(16, 16), (30, 50)])
def test_nothing_known_and_everything_known(backend, size):
    rgb, depth = random_scene(size)
    background = depth + 1
    out, confidence = complete_depth(rgb, depth, torch.zeros((1, *size), dtype=torch.bool), background, backend)
    assert torch.equal(out, background) and (confidence == 0).all()
    before = depth.clone()
    out, confidence = complete_depth(rgb, depth, torch.ones((1, *size), dtype=torch.bool), background, backend)
    assert torch.equal(out, before) and (confidence == 1).all()
    out.zero_()
    assert torch.equal(depth, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_known_pixel(backend):
    size = (16, 16)
    rgb = paint(torch.zeros(size, dtype=torch.bool), noise=0)
    known = torch.zeros((1, *size), dtype=torch.bool)
    known[0, 3, 4] = True
    depth = torch.where(known, 2.5, 0.0)
    out, confidence = complete_depth(rgb, depth, known, torch.full((1, *size), 2.5), backend)
    assert torch.allclose(out, torch.tensor(2.5))
    assert (confidence > 0.5).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [0.0, -2.0, math.nan, math.inf])
def test_depth_that_is_none_is_completed(backend, bad):
    """Pixels called known without a depth that can be, and a filled depth that can not be."""
    size = (24, 32)
    depth, known = torch.full((1, *size), 4.0), torch.ones((1, *size), dtype=torch.bool)
    depth[:, 8:16, 8:16] = bad
    rgb = natural(size)[None]
    out, confidence = complete_depth(rgb, depth, known, torch.full((1, *size), 4.0), backend)
    assert torch.allclose(out, torch.tensor(4.0)) and (confidence[:, 8:16, 8:16] < 1).all()
    for unknown in (known & (depth != 4.0), known):
        out, confidence = complete_depth(rgb, depth, ~unknown, torch.full((1, *size), bad), backend)
        assert out.isfinite().all() and (out > 0).all() and confidence.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depths", [(1e-30, 1e30), (1e-3, 5e3), (1e-42, 3e38)])
def test_extreme_depths(backend, depths):
    size = (24, 32)
    _, depth = random_scene(size, 5)
    depth = torch.where(depth > 2, *depths)
    known = blobs(size, 7, 0.4)[None]
    out, confidence = complete_depth(natural(size)[None], depth, known, torch.full_like(depth, 2.0), backend)
    assert torch.equal(out[known], depth[known])
    assert out.isfinite().all() and (out > 0).all()
    assert (confidence >= 0).all() and (confidence <= 1).all()


def test_a_strided_view_of_a_larger_tensor():
    size = (32, 48)
    rgb, depth, seen = turned_room(size, 10, 0.2)
    args = rgb, seen.depth, seen.known, fill(*seen, DEFAULT)[1]
    wide = [torch.stack((t, t), 2)[:, :, 1] for t in args]
    assert not wide[0].is_contiguous()
    assert same(complete_depth(*args), complete_depth(*wide))


def test_bad_arguments():
    rgb, depth = random_scene((8, 8))
    known = torch.ones((1, 8, 8), dtype=torch.bool)
    with pytest.raises(InputError, match="complete_depth"):
        complete_depth(rgb, depth[:, :4], known, depth)
    with pytest.raises(InputError, match="uint8"):
        complete_depth(rgb.float(), depth, known, depth)
    with pytest.raises(InputError, match="backend"):
        complete_depth(rgb, depth, known, depth, backend="fast")
