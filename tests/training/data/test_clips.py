"""Rendered clips: exact, repeatable, seen as the conventions say."""

import math
import multiprocessing

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.camera import invert_pose, is_rigid, project, unproject
from inspatio_core.training.data import (
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    Clip,
    Offsets,
    Script,
    clips,
    disoccluded,
    make_script,
    render,
    render_clip,
    stream,
)
from inspatio_core.training.data.cast import BALL, BOX, DOME, GROUND, clearance, distance
from inspatio_core.training.data.paths import MARGIN, intrinsics, pose, world_solids
from inspatio_core.training.data.scene import FAMILIES, _look, make_world
from inspatio_core.training.data.stage import Dice, Stage
from inspatio_core.training.data.textures import CHECKER, GLYPHS, PANELS

SMALL = {"frames": 4, "size": (40, 72)}


def tensors(clip):
    return clip.rgb, clip.depth, clip.K, clip.world_from_camera, clip.moving


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b)))


def little_world(frames=1, textures=CHECKER, slide=0.0):
    """A chequered ground under the sky; a ball 1 m right of the axis, 5 m ahead, 1 m up; a box 3 m left, 8 m ahead."""
    stage = Stage(Dice.keyed("test"), torch.arange(frames, dtype=torch.float64) / 24)
    chequered = stage.material(CHECKER, 0.5, (0.9, 0.9, 0.9), (0.2, 0.3, 0.4), (0, 0, 0), rough=0.0)
    red = stage.paint((1.0, 0.1, 0.1))
    sheet = stage.material(textures, 0.3, (0.9, 0.9, 0.9), (0.1, 0.1, 0.1), (0.8, 0.1, 0.1), rough=0.0)
    stage.solid(DOME, stage.body(), (0, 0, 0), (60, 60, 60), red)
    stage.solid(GROUND, stage.body(), (0, 0, 0), (1, 1, 1), chequered)
    stage.solid(BALL, stage.body(stage.time * slide, moving=slide > 0), (1, -1, 5), (0.5, 0.5, 0.5), red)
    stage.solid(BOX, stage.body(), (-3, -1, 8), (1, 1, 1), sheet)
    look = _look(stage, False, (5, 5, 5)) | {"clouds": -1.0}
    return stage.world(7, "test", 24.0, look, (5.0, 5.0, 5.0))


def script(world, *cameras, size=(48, 80), fov=70.0):
    K = intrinsics(Dice.keyed(1), size, (fov, fov))
    return Script(world, K.expand(len(cameras), 3, 3), torch.stack(cameras))


def at(x=0.0, y=-1.0, z=0.0, yaw=0.0, pitch=0.0, frames=1):
    """[F,4,4]"""
    angles = (torch.tensor([math.radians(a)], dtype=torch.float64) for a in (yaw, pitch))
    return pose(torch.tensor([[x, y, z]], dtype=torch.float64), *angles).expand(frames, 4, 4)


def test_a_clip_is_a_function_of_its_seed():
    a = render_clip(3, **SMALL)
    assert a.rgb.shape == (2, 4, 40, 72, 3) and a.rgb.dtype == torch.uint8
    assert a.depth.shape == a.moving.shape == (2, 4, 40, 72) and a.depth.dtype == torch.float32
    assert a.K.shape == (2, 3, 3) and a.world_from_camera.shape == (2, 4, 4, 4)
    assert a.K.dtype == a.world_from_camera.dtype == torch.float64 and a.moving.dtype == torch.bool
    assert torch.isfinite(a.depth).all() and (a.depth > 0).all() and is_rigid(a.world_from_camera, 1e-9).all()
    assert same(a, render_clip(3, **SMALL))
    b = render_clip(4, **SMALL)
    assert not torch.equal(a.rgb, b.rgb) and not torch.equal(a.depth, b.depth)


@pytest.mark.parametrize("domain", ["S", "R"])
def test_a_batch_equals_single_clips_and_views(domain, monkeypatch):
    scripts = [make_script(seed, views=3, **SMALL) for seed in (5, 6)]
    batch = render(scripts, size=SMALL["size"], domain=domain)
    for one, of_batch in zip(scripts, batch):
        assert same(render([one], size=SMALL["size"], domain=domain)[0], of_batch)
    # Camera 1 is the same among two cameras and among three; how the work is cut up does not matter.
    monkeypatch.setitem(clips._CHUNK, "cpu", 1)
    two = render_clip(5, views=2, domain=domain, **SMALL)
    assert all(torch.equal(a, b[:2]) for a, b in zip(tensors(two), tensors(batch[0])))


def test_both_domains_show_the_same_world():
    s, r = (render_clip(8, domain=d, **SMALL) for d in "SR")
    assert torch.equal(s.depth, r.depth) and torch.equal(s.moving, r.moving)
    assert torch.equal(s.world_from_camera, r.world_from_camera)
    assert (s.rgb.float() - r.rgb.float()).abs().mean() > 5


@pytest.mark.parametrize("factor", [2, 3])
def test_more_rays_a_pixel_leave_depth_alone(factor):
    coarse, fine = (render_clip(9, supersample=k, **SMALL) for k in (1, factor))
    torch.testing.assert_close(fine.depth, coarse.depth, rtol=1e-5, atol=1e-4)
    assert (fine.moving == coarse.moving).float().mean() > 0.999
    assert not torch.equal(fine.rgb, coarse.rgb)
    assert (fine.rgb.float() - coarse.rgb.float()).abs().mean() < 12


def test_conventions():
    one = script(little_world(), at())
    clip = render([one], size=(48, 80))[0]
    depth, rgb, K = clip.depth[0, 0], clip.rgb[0, 0], clip.K[0]
    # The ball's nearest point lies towards the camera; the red disc is centred near the projection of its middle.
    u, v = (K @ torch.tensor([1.0, 0.0, 5.0], dtype=torch.float64))[:2] / 5
    reds = (rgb[..., 0].float() > 2.5 * rgb[..., 1].float()) & (depth < 6)
    rows, columns = reds.nonzero().double().unbind(1)
    assert abs(float(columns.mean() - u)) < 0.6 and abs(float(rows.mean() - v)) < 0.6
    ray = torch.tensor([1.0, 0.0, 5.0], dtype=torch.float64)
    assert float(depth[reds].min()) == pytest.approx(5 - 0.5 / float(ray.norm()) * 5, abs=0.02)
    # Ground 1 m below: z = f / (v - cy). The box's front is flat in z.
    for row in (40, 47):
        assert float(depth[row, 5]) == pytest.approx(float(K[1, 1] / (row - K[1, 2])), rel=1e-4)
    u, v = (K @ torch.tensor([-3.0, 0.0, 7.0], dtype=torch.float64))[:2] / 7
    assert float(depth[round(float(v)), round(float(u))]) == pytest.approx(7.0, rel=1e-5)
    # Turned right, things move left; moved right, too; looking up, down.
    seen = [
        render([script(little_world(), at(**move))], size=(48, 80))[0]
        for move in ({"yaw": 5}, {"x": 0.3}, {"pitch": 5})
    ]
    middles = []
    for other in seen:
        rgb = other.rgb[0, 0].float()
        middles.append(((rgb[..., 0] > 2.5 * rgb[..., 1]) & (other.depth[0, 0] < 6)).nonzero().double().mean(0))
    assert middles[0][1] < columns.mean() - 2 and middles[1][1] < columns.mean() - 2
    assert middles[2][0] > rows.mean() + 2


SIDES = ((-3, 4, 0), (-3, 12, 180), (-7, 8, 90), (1, 8, -90))  # x, z and yaw of cameras around the box


def side_of_box(textures, x, z, yaw):
    """Where a side shows [h,w,3], 0..255, cut out."""
    world = little_world(textures=textures)
    clip = render([script(world, at(x, -1, z, yaw), size=(96, 96), fov=50.0)], size=(96, 96), supersample=3)[0]
    rows, columns = ((clip.depth[0, 0] - 3.0).abs() < 1e-3).nonzero().unbind(1)
    return clip.rgb[0, 0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()


@pytest.mark.parametrize("place", SIDES)
def test_print_is_upright_and_not_mirrored(place):
    page = side_of_box(GLYPHS, *place)
    red = (page[..., 0] - page[..., 1] > 60).nonzero()
    assert len(red) and red[:, 0].max() < 0.35 * len(page)  # the headline
    door = side_of_box(PANELS, *place)
    red = door[..., 0] - door[..., 1] > 30
    n = door.shape[1]
    left, right = red[:, int(0.09 * n) : int(0.16 * n)], red[:, int(0.84 * n) : int(0.91 * n)]
    assert right.sum() > left.sum() + 5  # the knob


def warp(clip, a, b, frame):
    """Where the pixels of camera a lie in camera b's picture: uv [H,W,2], depth there [H,W]."""
    points = unproject(clip.depth[a, frame].double(), clip.K[a])
    T = invert_pose(clip.world_from_camera[b, frame]) @ clip.world_from_camera[a, frame]
    return project(points @ T[:3, :3].T + T[:3, 3], clip.K[b])


def sample(image, uv):
    """Bilinear; image [H,W] or [H,W,3], and the spread of the four neighbours."""
    h, w = image.shape[:2]
    u, v = uv[..., 0].clamp(0, w - 1.001), uv[..., 1].clamp(0, h - 1.001)
    i, j = v.long(), u.long()
    a, b = v - i, u - j
    if image.dim() == 3:
        a, b = a[..., None], b[..., None]
    four = torch.stack([image[i, j], image[i, j + 1], image[i + 1, j], image[i + 1, j + 1]])
    value = (four[0] * (1 - b) + four[1] * b) * (1 - a) + (four[2] * (1 - b) + four[3] * b) * a
    return value, four.amax(0) - four.amin(0)


@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_cameras_agree_where_both_see(seed):
    size = (64, 112)
    clip = render_clip(seed, frames=3, size=size, supersample=3)
    uv, z = warp(clip, 1, 0, 2)
    hidden = disoccluded(clip, 0, 1)[2]
    inside = (uv[..., 0] >= 0) & (uv[..., 0] <= size[1] - 1) & (uv[..., 1] >= 0) & (uv[..., 1] <= size[0] - 1)
    depth, spread = sample(clip.depth[0, 2].double(), uv)
    smooth = ~hidden & inside & (z > 0) & (spread < 0.1 * depth)
    assert smooth.float().mean() > 0.2
    assert ((depth - z).abs() < 0.01 * z)[smooth].double().mean() > 0.98
    colour, _ = sample(clip.rgb[0, 2].double(), uv)
    error = (colour - clip.rgb[1, 2].double()).abs().mean(-1)[smooth]
    wrong = (colour - clip.rgb[1, 2].double().flip(1)).abs().mean(-1)[smooth]
    assert error.mean() < 7 and error.mean() < 0.4 * wrong.mean()


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_what_is_hidden_is_what_the_way_to_the_source_runs_into(seed):
    size = (24, 40)
    clip = render_clip(seed, frames=2, size=size, offsets=Offsets(yaw=(15, 25), travel=(0.03, 0.06)))
    got = disoccluded(clip, 0, 1)[1]
    solids = world_solids(clip.world)
    points = unproject(clip.depth[1, 1].double(), clip.K[1])
    T = clip.world_from_camera[1, 1]
    points = (points @ T[:3, :3].T + T[:3, 3]).flatten(0, 1)
    eye = clip.world_from_camera[0, 1, :3, 3]
    uv, z = warp(clip, 1, 0, 1)
    inside = (z > 0) & (uv >= -0.5).all(-1) & (uv[..., 0] <= size[1] - 0.5) & (uv[..., 1] <= size[0] - 0.5)
    one, frame = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    steps = torch.linspace(0, 0.98, 200, dtype=torch.float64)[:, None]
    way = points + steps[..., None] * (eye - points)
    room = clearance(solids, one, frame, way.flatten(0, 1)[None])[0].view(200, *size).double()
    length = (eye - points).norm(dim=-1)
    left = (steps * length > 0.1).view(room.shape)  # beyond the point's own surface
    hidden = ~inside | (room.amin(0) < -0.01)
    free = inside & (torch.where(left, room, 9.0).amin(0) > 0.01 + length.view(size) / 400)  # nothing between the steps
    assert hidden.sum() > 20 and free.sum() > 200
    assert got[hidden].double().mean() > 0.99 and got[free].double().mean() < 0.01


def test_moving_mask_and_depth_agree_with_geometry():
    seen = 0
    for seed in (31, 32, 33, 34):
        clip = render_clip(seed, frames=6, size=(32, 56))
        world = clip.world
        shift = (world.centre - world.centre[:1]).abs().amax((0, 2)) + (world.turn - world.turn[:1]).abs().amax(
            (0, 2, 3)
        )
        assert torch.equal(shift > 1e-9, world.moving)
        # The nearest surface to every seen point, found by distances instead of rays.
        for view, frame in ((0, 0), (1, 5)):
            T = clip.world_from_camera[view, frame]
            points = unproject(clip.depth[view, frame].double(), clip.K[view]) @ T[:3, :3].T + T[:3, 3]
            off = []
            for k in range(len(world.kind)):
                q = (points - world.centre[frame, k]) @ world.turn[frame, k]
                q = q.float().unbind(-1)
                off.append(distance(int(world.kind[k]), q, world.half[k].unbind(-1), world.param[k]).abs())
            off = torch.stack(off)
            still, moved = off[~world.moving].amin(0), off[world.moving].amin(0)
            assert (torch.minimum(still, moved) < 0.03 + 0.002 * clip.depth[view, frame]).float().mean() > 0.97
            sure = (still - moved).abs() > 0.1
            assert torch.equal(clip.moving[view, frame][sure], (moved < still)[sure])
            seen += int(clip.moving[view, frame].sum())
    assert seen > 100


def test_a_sliding_thing_is_marked_and_moves():
    world = little_world(frames=13, slide=0.8)
    clip = render([script(world, at(frames=13))], size=(48, 80))[0]
    middles = [m.nonzero().double().mean(0)[1] for m in clip.moving[0]]
    assert float(middles[12] - middles[0]) == pytest.approx(0.4 / 5 * float(clip.K[0, 0, 0]), rel=0.05)
    still = ~clip.moving[0].any(0)
    assert torch.equal(clip.rgb[0, 0][still], clip.rgb[0, 12][still])


def test_cameras_keep_clear_of_everything():
    for seed in range(40, 64):
        s = make_script(seed, views=3, frames=24, size=(32, 56))
        solids = world_solids(s.world)
        frames = torch.arange(24)
        places = s.world_from_camera[:, :, :3, 3].transpose(0, 1)
        assert clearance(solids, torch.zeros(24, dtype=torch.int64), frames, places).min() > 0.99 * MARGIN, seed


def test_offsets_are_obeyed():
    offsets = Offsets(yaw=(12, 12), travel=(0.0, 0.0), pitch=0.0, own_path=0.0, fov=(60, 60))
    for seed in range(70, 76):
        s = make_script(seed, frames=16, size=(64, 112), offsets=offsets)
        a, b = s.world_from_camera
        assert torch.equal(a[:, :3, 3], b[:, :3, 3])
        # The turn is about the upright, so what is upright stays so.
        torch.testing.assert_close(a[:, 1, 2], b[:, 1, 2])
        cosine = ((a[:, :3, :3].mT @ b[:, :3, :3]).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
        assert math.degrees(cosine.clamp(-1, 1).acos().max()) == pytest.approx(12, abs=0.8)
        assert float(s.K[0, 0, 0]) == pytest.approx(56 / math.tan(math.radians(30)))


def test_seeds_for_training_and_validation_have_nothing_in_common():
    assert TRAIN_SEEDS.start >= VALIDATION_SEEDS.stop and len(VALIDATION_SEEDS) == 10_000
    first = next(stream(batch=2, views=1, frames=2, size=(16, 16)))
    assert [c.seed for c in first] == [TRAIN_SEEDS.start, TRAIN_SEEDS.start + 1]


def test_worlds_made_ahead_by_other_processes_are_the_same():
    options = {"batch": 2, "frames": 2, "size": (16, 24)}
    plain, ahead = stream(500, **options), stream(500, workers=1, **options)
    for _ in range(2):
        for a, b in zip(next(plain), next(ahead)):
            assert same(a, b)
    ahead.close()
    assert not multiprocessing.active_children()


def test_worlds_differ():
    families = {make_world(seed, 2, 24.0).family for seed in range(80)}
    assert families == set(FAMILIES)
    means, depths, fovs, contrasts = [], [], [], []
    for seed in range(100, 112):
        clip = render_clip(seed, views=1, frames=2, size=(32, 56), domain="R")
        means.append(clip.rgb.float().mean((0, 1, 2, 3)))
        contrasts.append(float(clip.rgb.float().std()))
        depths.append(float(clip.depth.median()))
        fovs.append(float(clip.K[0, 0, 0]))
    assert torch.stack(means).std(0).min() > 10
    assert max(depths) > 2.5 * min(depths) and max(fovs) > 1.5 * min(fovs)
    assert min(contrasts) > 8 and max(contrasts) > 1.5 * min(contrasts)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="domain"):
        render_clip(0, domain="X", frames=1, size=(16, 16))
    with pytest.raises(InputError, match="views"):
        render_clip(0, views=0)
    with pytest.raises(InputError, match="equal numbers"):
        render([make_script(0, frames=f, size=(16, 16)) for f in (1, 2)], size=(16, 16))
    clip = render_clip(0, frames=1, size=(16, 16))
    bare = Clip(*tensors(clip)[:3], clip.world_from_camera, clip.moving, 24.0, 0)
    with pytest.raises(InputError, match="geometry"):
        disoccluded(bare, 0, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("domain", ["S", "R"])
def test_cuda_agrees_with_the_cpu_and_with_itself(domain):
    s = [make_script(seed, **SMALL) for seed in (5, 6)]
    cpu, gpu, again = (render(s, size=SMALL["size"], domain=domain, device=d) for d in ("cpu", "cuda", "cuda"))
    for a, b, c in zip(cpu, gpu, again):
        assert same(b, c)
        off = (a.depth - b.depth.cpu()).abs() > 1e-3 * a.depth
        assert off.float().mean() < 0.005
        assert (a.rgb.float() - b.rgb.cpu().float()).abs().mean() < 1.0
        assert (disoccluded(a, 0, 1) != disoccluded(b, 0, 1).cpu()).float().mean() < 0.01
