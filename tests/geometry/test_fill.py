"""Holes are closed from the background side, smoothly, the same way every time."""

import math

import pytest
import torch
from scipy.ndimage import distance_transform_edt

from inspatio_core.errors import InputError
from inspatio_core.geometry.fill import fill
from inspatio_core.geometry.splat import splat

from .test_splat import EYE, camera, cast, grow, pose, random_scene, same

BACKENDS = ("numba", "torch")
DEFAULT = torch.tensor([3.0], dtype=torch.float64)


def colour(size, value):
    return torch.tensor(value, dtype=torch.uint8).expand(1, *size, 3).clone()


def blobs(size, seed, share):
    """Masks of holes of all sizes."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.zeros(size)
    for scale in (1, 4, 16):
        coarse = torch.randn((1, 1, *(s // scale + 2 for s in size)), generator=g)
        noise += torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0, 0]
    return noise > noise.flatten().quantile(share)


def natural(size, seed=0):
    """A texture with detail at every scale, as pictures have."""
    g = torch.Generator().manual_seed(seed)
    out = torch.zeros((3, *size))
    for scale in (2, 4, 8, 16, 32, 64):
        coarse = torch.randn((1, 3, *(s // scale + 2 for s in size)), generator=g)
        out += scale**0.5 * torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0]
    return (128 + 14 * out).clamp(0, 255).permute(1, 2, 0).to(torch.uint8)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.95])
@pytest.mark.parametrize("size", [(64, 64), (37, 53), (1, 9), (8, 1), (2, 3), (120, 200)])
def test_compiled_equals_plain(size, share):
    rgb, depth = random_scene(size, 1, batch=3)
    known = torch.stack([blobs(size, seed, share) for seed in range(3)])
    default = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    fast, slow = (fill(rgb, depth, known, default, backend) for backend in BACKENDS)
    assert same(fast, slow)
    assert torch.equal(fast[0][known], rgb[known])
    assert torch.equal(fast[1][known], depth[known])
    assert (fast[1] > 0).all() and fast[1].isfinite().all()


def test_compiled_equals_plain_on_a_warped_frame():
    size = (480, 832)
    K = camera(size)[None]
    rgb, depth, _ = cast(K[0], EYE, size, slant=20)
    seen = splat(rgb[None], depth[None], K, K, torch.linalg.inv(pose(0.3, 0.1, 0.2, yaw=6))[None])
    assert 0.05 < (~seen.known).float().mean() < 0.5
    assert same(*(fill(*seen, DEFAULT, backend) for backend in BACKENDS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_in_the_holes_does_not_matter(backend):
    size = (40, 60)
    rgb, depth = random_scene(size, 2)
    known = blobs(size, 3, 0.3)[None]
    other_rgb = torch.where(known[..., None], rgb, 255 - rgb)
    other_depth = torch.where(known, depth, math.nan)
    assert same(fill(rgb, depth, known, DEFAULT, backend), fill(other_rgb, other_depth, known, DEFAULT, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_equals_singles(backend):
    size = (160, 200)
    rgb, depth = random_scene(size, 4, batch=5)
    known = torch.stack([blobs(size, seed, 0.2 * seed) for seed in range(5)])
    known[4] = False
    default = torch.arange(1, 6).double()
    whole = fill(rgb, depth, known, default, backend)
    for i in range(5):
        s = slice(i, i + 1)
        assert same([t[s] for t in whole], fill(rgb[s], depth[s], known[s], default[s], backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_known_and_everything_known(backend):
    size = (20, 30)
    rgb, depth = random_scene(size)
    grey, plane = fill(rgb, depth, torch.zeros((1, *size), dtype=torch.bool), torch.tensor([2.5]).double(), backend)
    assert (grey == 128).all() and (plane == 2.5).all()
    before = rgb.clone()
    copy, copied_depth = fill(rgb, depth, torch.ones((1, *size), dtype=torch.bool), DEFAULT, backend)
    assert torch.equal(copy, rgb) and torch.equal(copied_depth, depth)
    copy.zero_()
    assert torch.equal(rgb, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [1, 3, 10, 40])
@pytest.mark.parametrize("object_depth", [1.0, 3.4])
def test_a_hole_beside_an_object_shows_the_background(backend, width, object_depth):
    """A red object before a blue wall at 4 m; the hole lies between them."""
    size = (90, 140)
    rgb, depth = colour(size, [0, 0, 200]), torch.full((1, *size), 4.0)
    rgb[:, 20:70, 30:70] = torch.tensor([200, 0, 0], dtype=torch.uint8)
    depth[:, 20:70, 30:70] = object_depth
    known = torch.ones((1, *size), dtype=torch.bool)
    known[:, 20:70, 70 : 70 + width] = False
    out, out_depth = fill(rgb, depth, known, DEFAULT, backend)
    hole = ~known
    assert (out[hole].int() - torch.tensor([0, 0, 200])).abs().max() <= 1, "the object bleeds"
    assert (out_depth[hole] - 4).abs().max() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crack_in_an_object_is_closed_with_the_object(backend):
    size = (64, 96)
    rgb, depth = colour(size, [0, 0, 200]), torch.full((1, *size), 9.0)
    rgb[:, 10:50, 20:70] = torch.tensor([200, 0, 0], dtype=torch.uint8)
    depth[:, 10:50, 20:70] = 1.0
    known = torch.ones((1, *size), dtype=torch.bool)
    known[:, 15:45, 40:42] = False
    known[:, 30, 25:65] = False
    out, out_depth = fill(rgb, depth, known, DEFAULT, backend)
    assert (out[~known].int() - torch.tensor([200, 0, 0])).abs().max() <= 1
    assert (out_depth[~known] - 1).abs().max() < 1e-3


@pytest.mark.parametrize("target", [pose(0.4), pose(-0.3, 0.1, -0.4, yaw=-3), pose(0.2, -0.2, yaw=8)])
def test_filled_depth_is_not_nearer_than_the_background(target):
    size = (180, 300)
    K = camera(size)[None]
    rgb, depth, _ = cast(K[0], EYE, size, slant=25)
    seen = splat(rgb[None], depth[None], K, K, (torch.linalg.inv(target))[None])
    _, full = fill(*seen, DEFAULT)
    wall = seen.depth[seen.known & (seen.depth > 3.5)]
    hole = ~seen.known
    assert hole.sum() > 500
    assert full[hole].min() >= wall.min() * (1 - 1e-4)
    assert full[hole].max() <= wall.max() * (1 + 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outside_the_frame_the_rows_go_on(backend):
    """What a turn brings into view continues what was at the border: floor beside floor, wall beside wall."""
    size = (64, 96)
    rows = torch.linspace(0, 250, size[0])
    rgb = rows.to(torch.uint8)[None, :, None, None].expand(1, *size, 3).contiguous()
    depth = torch.linspace(8, 1, size[0])[None, :, None].expand(1, *size).contiguous()
    known = torch.ones((1, *size), dtype=torch.bool)
    known[:, :, 84:] = False
    out, out_depth = fill(rgb, depth, known, DEFAULT, backend)
    assert (out[0, :, 84:, 0].float() - rows[:, None]).abs().mean() < 12
    assert (out_depth[:, :, 84:] - depth[:, :, 84:]).abs().mean() < 0.4
    assert (out[0, :, 84].float() - rows[:, None]).abs().mean() < 5


def test_steady_from_frame_to_frame():
    """A slow camera: filled pixels change little, less than those of a nearest-pixel fill, and never all at once."""
    size = (180, 300)
    K = camera(size)[None]
    _, depth, _ = cast(K[0], EYE, size)
    rgb = natural(size)
    previous, change, nearest_change = None, [], []
    for i in range(24):
        seen = splat(rgb[None], depth[None], K, K, torch.linalg.inv(pose(0.2 + 0.004 * i, 0.05, yaw=4 + 0.1 * i))[None])
        out, _ = fill(*seen, DEFAULT)
        assert torch.equal(out, fill(*seen, DEFAULT)[0])
        y, x = distance_transform_edt(~seen.known[0].numpy(), return_distances=False, return_indices=True)
        now = (~seen.known[0], out[0].float(), seen.rgb[0][y, x].float())
        if previous is not None:
            hole = now[0] & previous[0]
            change.append((now[1] - previous[1])[hole].abs().mean().item())
            nearest_change.append((now[2] - previous[2])[hole].abs().mean().item())
        previous = now
    mean = sum(change) / len(change)
    assert mean < 2
    assert mean < sum(nearest_change) / len(nearest_change)
    assert max(change) < 2.5 * mean, "a jump: some pixel grid shows through"


def test_a_filled_hole_is_smooth():
    size = (100, 160)
    K = camera(size)[None]
    rgb, depth, _ = cast(K[0], EYE, size)
    known = torch.ones(size, dtype=torch.bool)
    known[20:80, 50:110] = False
    out, _ = fill(rgb[None], depth[None], known[None], DEFAULT)
    inside = ~grow(known, 3)
    step = (out[0, :, 1:].float() - out[0, :, :-1].float()).abs()[inside[:, 1:]]
    assert step.max() <= 12
    assert step.mean() < 3


def test_bad_arguments():
    rgb, depth = random_scene((8, 8))
    known = torch.ones((1, 8, 8), dtype=torch.bool)
    with pytest.raises(InputError, match="fill"):
        fill(rgb, depth[:, :4], known, DEFAULT)
    with pytest.raises(InputError, match="backend"):
        fill(rgb, depth, known, DEFAULT, backend="fast")
