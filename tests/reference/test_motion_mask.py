import numpy as np
import pytest
import torch

from inspatio_core import assets
from inspatio_core.errors import InputError
from inspatio_core.geometry.point_map import OBSERVED, PointMap
from inspatio_core.reference.motion_mask import motion_masks
from inspatio_core.reference.scene import open_scene
from tests.moving_scene import frame

COUNT = 14


@pytest.fixture(scope="module")
def clip():
    return [frame(i) for i in range(COUNT)]


def estimate(clip, indices=range(COUNT), depth_error=0.0, pose_error=0.0):
    """Masks from the clip with a smooth relative depth error and a camera that jitters by metres."""
    rng = np.random.default_rng(0)
    poses = np.stack([f.pose for f in clip])
    poses[:, :3, 3] += pose_error * rng.normal(size=(len(clip), 3))
    v, u = np.mgrid[: clip[0].depth.shape[0], : clip[0].depth.shape[1]]
    error = np.exp(depth_error * np.sin(u / 48 + v / 65)).astype(np.float32)
    return list(
        motion_masks(
            lambda i: clip[i].rgb, lambda i: clip[i].depth * error, np.stack([f.K for f in clip]), poses, indices
        )
    )


def share_of_moving_points(clip, masks):
    """Share of a map's points that lie on moving objects: the true mask is inserted as the colour."""
    point_map = PointMap(limit=200_000)
    for i, f in enumerate(clip):
        label = np.repeat(f.moving[..., None] * np.uint8(255), 3, axis=2)
        point_map.insert(label, f.depth, np.ones_like(f.moving), f.K, f.pose, OBSERVED, stamp=i, moving=masks[i])
    return float((point_map.points().rgb[:, 0] > 0).float().mean())


@pytest.mark.parametrize(("depth_error", "pose_error"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01)])
def test_under_one_percent_of_map_points_on_moving_objects(clip, depth_error, pose_error):
    assert np.mean([f.moving.mean() for f in clip]) > 0.05
    masks = estimate(clip, depth_error=depth_error, pose_error=pose_error)
    assert share_of_moving_points(clip, masks) < 0.01
    found = sum((m & f.moving).sum() for m, f in zip(masks, clip)) / sum(f.moving.sum() for f in clip)
    marked_still = sum((m & ~f.moving).sum() for m, f in zip(masks, clip)) / sum((~f.moving).sum() for f in clip)
    assert found > 0.98
    assert marked_still < 0.2


def test_under_one_percent_on_the_sample_scene():
    scene = assets.find("scenes/courtyard")
    plain, true = open_scene(scene, moving="none"), open_scene(scene, moving="true")
    indices = range(0, plain.frame_count, 6)
    rgb, depth = (lambda i: plain.rgb(i).numpy()), (lambda i: plain.depth(i).numpy())
    masks = motion_masks(rgb, depth, plain.K.numpy(), plain.world_from_camera.numpy(), indices)
    withheld, masked = PointMap(), PointMap()
    for i, mask in zip(indices, masks):
        label = true.moving(i).to(torch.uint8)[..., None].expand(-1, -1, 3) * 255
        frame = (label, plain.depth(i), plain.depth(i) > 0, plain.K[i], plain.world_from_camera[i], OBSERVED)
        withheld.insert(*frame, stamp=i)
        masked.insert(*frame, stamp=i, moving=mask)
    share = [float((m.points().rgb[:, 0] > 0).float().mean()) for m in (masked, withheld)]
    assert share[0] < 0.01 < share[1]


def test_nothing_moves_in_a_still_scene(clip):
    first = clip[0]
    still = [first._replace(rgb=first.rgb)] * 12
    assert not any(m.any() for m in estimate(still, range(12)))


def test_noise_in_the_dark_is_not_motion(clip):
    rng = np.random.default_rng(1)
    rgb = clip[0].rgb // 2
    rgb[:, 150:] = 8
    noisy = [clip[0]._replace(rgb=(rgb + rng.integers(0, 5, rgb.shape)).astype(np.uint8)) for _ in range(10)]
    assert not any(m.any() for m in estimate(noisy, range(10)))


def test_indices_in_any_order_give_the_same_masks(clip):
    forward = estimate(clip, [3, 7, 11])
    backward = estimate(clip, [11, 7, 3])
    for a, b in zip(forward, reversed(backward)):
        np.testing.assert_array_equal(a, b)


def test_a_single_frame_and_unknown_depth(clip):
    assert not estimate(clip[:1], [0])[0].any()
    blind = [f._replace(depth=np.full_like(f.depth, np.nan)) for f in clip[:8]]
    assert not estimate(blind, [4])[0].any()


def test_bad_arguments():
    K, poses = np.eye(3)[None], np.eye(4)[None].repeat(2, 0)
    with pytest.raises(InputError, match="K"):
        next(motion_masks(None, None, K, poses, [0]))
    with pytest.raises(InputError, match="gaps"):
        next(motion_masks(None, None, K.repeat(2, 0), poses, [0], gaps=(0,)))
