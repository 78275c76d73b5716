"""`Reference`: units, frames, sizes, sanitised depth, the bounded cache."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.reference import FrameCache, Reference
from inspatio_core.reference.reference import resize_depth, sanitise_depth

H, W = 24, 40
K = np.array([[30.0, 0, 19.5], [0, 32.0, 11.5], [0, 0, 1]])


def arrays(n=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, H, W, 3), np.uint8), rng.uniform(1, 4, (n, H, W)).astype(np.float32)


def turned(angle, shift):
    T = np.eye(4)
    T[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    T[:3, 3] = shift
    return T


def test_frames_come_back_unchanged():
    rgb, depth = arrays()
    moving = rgb[..., 0] > 128
    ref = Reference.from_arrays(rgb, depth, K, moving=moving, fps=25)
    assert ref.frame_count == 3 and ref.size == (H, W) and ref.fps == 25 and ref.metres_per_unit == 1
    for i in range(3):
        assert torch.equal(ref.rgb(i), torch.tensor(rgb[i]))
        assert torch.equal(ref.depth(i), torch.tensor(depth[i]))
        assert torch.equal(ref.moving(i), torch.tensor(moving[i]))
    assert ref.rgb(0).dtype == torch.uint8 and ref.depth(0).dtype == torch.float32
    assert Reference.from_arrays(rgb, depth, K).moving(0) is None


def test_world_is_the_first_camera():
    rgb, depth = arrays()
    poses = np.stack([turned(0.3, [1, 2, 3]), turned(0.5, [1, 2, 4]), turned(0.1, [0, 2, 3])])
    ref = Reference.from_arrays(rgb, depth, K, poses)
    assert torch.equal(ref.world_from_camera[0], torch.eye(4, dtype=torch.float64))
    expected = np.linalg.inv(poses[0]) @ poses[2]
    np.testing.assert_allclose(ref.world_from_camera[2], expected, atol=1e-12)


def test_clips_without_scale_get_three_metres():
    rgb, depth = arrays()
    poses = np.stack([turned(0, [0, 0, z]) for z in (0.0, 10.0, 20.0)])
    ref = Reference.from_arrays(rgb, depth * 10, K, poses, metric=False)
    assert ref.median_depth == pytest.approx(3.0)
    assert float(torch.cat([ref.depth(i).flatten() for i in range(3)]).median()) == pytest.approx(3.0, rel=0.05)
    assert float(ref.world_from_camera[2, 2, 3]) == pytest.approx(20 * ref.metres_per_unit)
    explicit = Reference.from_arrays(rgb, depth * 10, K, poses, metric=False, metres_per_unit=0.1)
    torch.testing.assert_close(explicit.depth(1), torch.tensor(depth[1]))
    assert float(explicit.world_from_camera[2, 2, 3]) == pytest.approx(2.0)


def test_resized_keeps_the_rays():
    rgb, depth = arrays()
    ref = Reference.from_arrays(rgb, depth, K)
    big = ref.resized((48, 120))
    assert big.rgb(1).shape == (48, 120, 3) and big.depth(1).shape == (48, 120) and big.K.shape == (3, 3, 3)
    # The left edge of the image, u = -0.5, is the same ray at either size.
    for k, edge in ((ref.K[0], -0.5), (big.K[0], -0.5)):
        assert float((edge - k[0, 2]) / k[0, 0]) == pytest.approx((-0.5 - 19.5) / 30)
    assert float((119.5 - big.K[0, 0, 2]) / big.K[0, 0, 0]) == pytest.approx((39.5 - 19.5) / 30)
    assert torch.equal(big.resized((H, W)).rgb(1), ref.rgb(1))
    with pytest.raises(InputError, match="size"):
        ref.resized((0, 3))


def test_resized_depth_is_exact_on_planes_and_invents_nothing_at_edges():
    u = np.arange(80) + 0.5
    plane = np.tile(1 / (0.2 + 0.004 * u), (60, 1)).astype(np.float32)
    out = resize_depth(plane, (33, 47))
    v = (np.arange(47) + 0.5) * 80 / 47
    np.testing.assert_allclose(out[:, 2:-2], np.tile(1 / (0.2 + 0.004 * v), (33, 1))[:, 2:-2], rtol=1e-4)
    step = np.where(np.arange(80) < 37, 2.0, 9.0)[None].repeat(60, 0).astype(np.float32)
    for size in ((33, 47), (100, 200)):
        assert set(np.unique(resize_depth(step, size))) == {2.0, 9.0}


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0, np.inf, -np.inf])
def test_bad_depth_is_replaced(bad):
    rgb, depth = arrays()
    depth[:, :, :20], depth[:, :, 20:] = 2.0, 5.0
    depth[1, 5:9, 30:33] = bad
    out = Reference.from_arrays(rgb, depth, K).depth(1)
    assert torch.equal(out[5:9, 30:33], torch.full((4, 3), 5.0))
    assert bool((out > 0).all() and torch.isfinite(out).all())


def test_sky_is_as_far_as_anything_in_the_clip():
    rgb, depth = arrays()
    depth[2] = 7.0
    depth[0, :5] = np.inf
    assert float(Reference.from_arrays(rgb, depth, K).depth(0)[0, 0]) == 7.0


def test_depth_invalid_everywhere_is_refused():
    rgb, depth = arrays()
    depth[1] = np.nan
    with pytest.raises(InputError, match="frame 1"):
        Reference.from_arrays(rgb, depth, K)
    with pytest.raises(InputError, match="map.png"):
        sanitise_depth(np.zeros((4, 4)), "map.png")


def test_bad_arrays_are_refused():
    rgb, depth = arrays()
    sheared, gone = np.tile(np.eye(4), (3, 1, 1)), np.tile(np.eye(4), (3, 1, 1))
    sheared[1, 0, 1], gone[2, 0, 3] = 0.5, np.nan
    for match, call in {
        "frame 1 is not a rigid": lambda: Reference.from_arrays(rgb, depth, K, sheared),
        "frame 2 is not a rigid": lambda: Reference.from_arrays(rgb, depth, K, gone),
        "2 poses for 3": lambda: Reference.from_arrays(rgb, depth, K, np.tile(np.eye(4), (2, 1, 1))),
        "does not fit": lambda: Reference.from_arrays(rgb, depth[:, 1:], K),
        "uint8": lambda: Reference.from_arrays(rgb / 255.0, depth, K),
        "focal": lambda: Reference.from_arrays(rgb, depth, K * np.nan),
        "per second": lambda: Reference.from_arrays(rgb, depth, K, fps=0),
        "metres_per_unit": lambda: Reference.from_arrays(rgb, depth, K, metres_per_unit=-1),
    }.items():
        with pytest.raises(InputError, match=match):
            call()


def test_copies_are_the_thing_itself():
    ref = Reference.from_arrays(*arrays(), K)
    assert copy.copy(ref) is ref and copy.deepcopy({"references": [ref]})["references"][0] is ref


def test_index_out_of_range():
    ref = Reference.from_arrays(*arrays(), K)
    for i in (-1, 3):
        with pytest.raises(IndexError):
            ref.rgb(i)


def test_cache_is_bounded_and_serves_threads():
    rgb, depth = arrays(n=20)
    frame = rgb[0].nbytes
    cache = FrameCache(limit=4 * frame)
    ref = Reference.from_arrays(rgb, depth, K, cache=cache)
    with ThreadPoolExecutor(8) as pool:
        order = np.random.default_rng(0).integers(0, 20, 400)
        for i, out in zip(order, pool.map(lambda i: ref.rgb(int(i)), order), strict=True):
            assert torch.equal(out, torch.tensor(rgb[i]))
    assert 0 < cache.bytes <= 4 * frame
    assert ref.rgb(7) is ref.rgb(7)
