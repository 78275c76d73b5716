"""Camera following: poses of ray-cast frames, which are known."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.evaluation import camera
from inspatio_core.geometry.camera import invert_pose
from tests.evaluation.scene import H, K, W, camera_at, render, view_at

POSE = camera_at(yaw=8.0, right=0.3, forward=0.4)


@functools.cache
def frame(yaw=8.0, right=0.3, forward=0.4, seed=0):
    return render(camera_at(yaw, right, forward), seed)[0]


@functools.cache
def source():
    return view_at(camera_at())


def errors(found, true=POSE):
    pose = found.world_from_camera
    return float(camera.rotation_degrees(pose, true)), float((pose[:3, 3] - true[:3, 3]).norm())


@pytest.mark.parametrize("kind, degrees, metres", [("sift", 0.1, 0.01), ("orb", 0.5, 0.05)])
def test_finds_the_pose_of_a_true_frame(kind, degrees, metres):
    found = camera.estimate_pose(frame(), K, [source()], kind=kind)
    rotation, translation = errors(found)
    assert rotation < degrees and translation < metres
    assert found.inliers >= 100 and found.error_px < 1.0
    again = camera.estimate_pose(frame(), K, [source()], kind=kind)
    assert torch.equal(again.world_from_camera, found.world_from_camera)


def test_features_lie_on_pixel_centres():
    """The view itself, twice as fine, its K worked out for centres at integers: any other reading turns the camera."""
    small = source().rgb.permute(2, 0, 1)[None].float()
    fine = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic")[0].permute(1, 2, 0)
    fine = fine.clamp(0, 255).round().to(torch.uint8)
    K_fine = K.clone()
    K_fine[:2] *= 2
    K_fine[:2, 2] += 0.5
    assert errors(camera.estimate_pose(fine, K_fine, [source()]), camera_at())[0] < 0.03
    K_fine[:2, 2] += 0.5
    assert errors(camera.estimate_pose(fine, K_fine, [source()]), camera_at())[0] > 0.05


def test_world_and_depth_scale_are_those_of_the_views():
    moved = camera_at(yaw=-70.0, right=4.0, forward=-2.0)
    view = dataclasses.replace(source(), world_from_camera=moved @ source().world_from_camera)
    assert errors(camera.estimate_pose(frame(), K, [view]), moved @ POSE)[1] < 0.01
    twice = dataclasses.replace(source(), depth=2 * source().depth)
    found = camera.estimate_pose(frame(), K, [twice]).world_from_camera
    assert found[:3, 3].numpy() == pytest.approx(2 * POSE[:3, 3].numpy(), abs=0.02)


def test_unknown_depth_and_masks_of_views_are_not_used():
    broken = source().depth.clone()
    broken[:, : W // 2] = 0.0
    broken[:20] = math.nan
    found = camera.estimate_pose(frame(), K, [dataclasses.replace(source(), depth=broken)])
    assert errors(found)[0] < 0.2 and errors(found)[1] < 0.02
    whole = camera.estimate_pose(frame(), K, [source()])
    assert found.matches < 0.8 * whole.matches
    # Depth that is wrong, but masked.
    wrong, mask = source().depth.clone(), torch.ones(H, W, dtype=torch.bool)
    wrong[:, 150:] *= 1.5
    mask[:, 150:] = False
    found = camera.estimate_pose(frame(), K, [dataclasses.replace(source(), depth=wrong, mask=mask)])
    assert errors(found)[1] < 0.05


def test_only_features_inside_the_mask_count():
    """Right half of a frame seen from elsewhere: each half tells of its own camera."""
    other = camera_at(yaw=8.0, right=0.1, forward=0.4)
    mixed = frame().clone()
    mixed[:, W // 2 :] = frame(8.0, 0.1, 0.4)[:, W // 2 :]
    right = torch.zeros(H, W, dtype=torch.bool)
    right[:, W // 2 :] = True
    views = [source()]
    of_right, of_left = (camera.estimate_pose(mixed, K, views, mask) for mask in (right, ~right))
    assert errors(of_right, other)[1] < 0.03 < errors(of_right)[1]
    assert errors(of_left)[1] < 0.03 < errors(of_left, other)[1]
    # A view that shows the truth there, as for generated pixels.
    assert errors(camera.estimate_pose(mixed, K, [view_at(POSE)], ~right))[1] < 0.01


def test_views_add_up():
    half = torch.zeros(H, W, dtype=torch.bool)
    half[:, : W // 2] = True
    views = [dataclasses.replace(source(), mask=mask) for mask in (half, ~half)]
    one, two = camera.estimate_pose(frame(), K, views[:1]), camera.estimate_pose(frame(), K, views)
    assert two.inliers > 1.3 * one.inliers
    # The same view twice tells nothing new.
    once, twice = (camera.estimate_pose(frame(), K, [source()] * n) for n in (1, 2))
    assert (twice.matches, twice.inliers) == (once.matches, once.inliers)


@pytest.mark.parametrize("what", ["noise", "grey", "another scene"])
def test_failure_is_told(what):
    rgb = {
        "noise": torch.randint(0, 256, (H, W, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
        "grey": torch.full((H, W, 3), 128, dtype=torch.uint8),
        "another scene": frame(seed=3),
    }[what]
    found = camera.estimate_pose(rgb, K, [source()])
    assert found.world_from_camera is None and found.error_px is None
    assert found.inliers < camera.MIN_INLIERS


def test_few_matches_are_a_failure_even_if_they_agree():
    few = torch.zeros(H, W, dtype=torch.bool)
    few[40:75, 60:95] = True
    found = camera.estimate_pose(frame(), K, [source()], few)
    assert 6 <= found.inliers < camera.MIN_INLIERS and found.world_from_camera is None


def test_following_beside_its_floor():
    poses = torch.stack([camera_at(yaw=2.0 * i, right=0.1 * i) for i in range(4)])
    true = torch.stack([frame(2.0 * i, 0.1 * i, 0.0) for i in range(4)])
    generated = true.clone()
    generated[1] = 128  # unrecognisable
    generated[2] = frame(2.0, 0.1, 0.0)  # lags behind
    Ks, views = K.repeat(4, 1, 1), [[source()]] * 4
    floor = camera.camera_following(true, Ks, poses, views)
    found = camera.camera_following(generated, Ks, poses, views)
    assert found.failed.tolist() == [False, True, False, False] and not floor.failed.any()
    assert found.rotation[2].item() == pytest.approx(2.0, abs=0.1)
    assert found.translation[2].item() == pytest.approx(0.1, abs=0.01)
    assert found.unit[2].item() == pytest.approx(1 / 3, abs=0.03)
    report = camera.beside_floor(found, floor)
    json.dumps(report, allow_nan=False)
    assert report["generated"]["rotation_deg"] == pytest.approx(2 / 3, abs=0.05)
    assert report["floor"]["rotation_deg"] < 0.1
    assert [report[k]["frames"] for k in report] == [3, 3]
    assert [report[k]["failures"] for k in ("generated", "floor")] == [1, 0]
    swapped = camera.beside_floor(floor, found)  # where the floor itself has no pose, nothing is known
    assert swapped["generated"]["frames"] == 3 and swapped["floor"]["failures"] == 1
    nothing = camera.camera_following(generated[1:2], Ks[:1], poses[:1], views[:1]).summary()
    assert nothing["rotation_deg"] is None and nothing["failures"] == 1


@pytest.mark.parametrize("degrees", [0.0, 1e-5, 0.5, 90.0, 179.0, 180.0])
def test_rotation_degrees(degrees):
    a, b = camera_at(yaw=30.0), camera_at(yaw=30.0 + degrees)
    assert float(camera.rotation_degrees(a, b)) == pytest.approx(
        degrees, rel=1e-6, abs=1e-6 if degrees == 180.0 else 1e-9
    )


def path(n=12, seed=0):
    """A winding path, [N, 4, 4]."""
    draw = np.random.default_rng(seed)
    poses = torch.stack([camera_at(yaw=10.0 * i) for i in range(n)])
    poses[:, :3, 3] = torch.from_numpy(draw.normal(size=(n, 3)).cumsum(0))
    return poses


def test_trajectory_errors_by_hand():
    true = path(3)
    true[:, :3, :3] = torch.eye(3)
    true[:, :3, 3] = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [1.0, 0.0, 4.0]])
    estimated = true.clone()
    estimated[:, :3, 3] = 2 * true[:, :3, 3]  # twice as large, and elsewhere
    estimated[2, 0, 3] += 0.8
    rotation, translation, unit = camera.trajectory_errors(estimated, true)
    assert rotation.tolist() == [0.0, 0.0, 0.0]
    assert translation.tolist() == pytest.approx([1.0, 3.0, math.hypot(1.8, 4.0)])
    size = math.hypot(0.8, 8.0)
    assert unit.tolist() == pytest.approx([0.0, abs(4 / size - 0.5), math.hypot(0.8 / size, 8 / size - 1)])
    estimated[0] = math.nan
    rotation, translation, unit = camera.trajectory_errors(estimated, true)
    assert rotation.isnan().tolist() == translation.isnan().tolist() == unit.isnan().tolist() == [True, False, False]
    # A camera that only turns has no unit.
    turning = torch.stack([camera_at(yaw=i) for i in range(3)])
    assert camera.trajectory_errors(turning, turning)[2].isnan().all()


def test_alignment_undoes_another_world_and_scale():
    true = path()
    estimated = invert_pose(camera_at(yaw=50.0, right=3.0, forward=-1.0)) @ true
    estimated[:, :3, 3] *= 0.3
    estimated[4] = math.nan
    aligned = camera.align_trajectory(estimated, true)
    there = torch.arange(12) != 4
    assert torch.allclose(aligned[there], true[there], atol=1e-9)
    assert aligned[4, :3].isnan().all()
    # Without scale it stays 0.3 times as large.
    rigid = camera.align_trajectory(estimated, true, scale=False)
    step = (rigid[1, :3, 3] - rigid[0, :3, 3]).norm() / (true[1, :3, 3] - true[0, :3, 3]).norm()
    assert step.item() == pytest.approx(0.3)
    # A mirrored path is not turned inside out.
    mirrored = true.clone()
    mirrored[:, 0, 3] *= -1
    turned = camera.align_trajectory(mirrored, true)
    assert torch.linalg.det(turned[:, :3, :3]).numpy() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda: camera.estimate_pose(frame(), K, []), "at least one view"),
        (lambda: camera.estimate_pose(frame(), K, [source()], kind="surf"), "sift or orb"),
        (lambda: camera.estimate_pose(frame(), K, [source()], torch.ones(H, W)), "bool mask"),
        (
            lambda: camera.estimate_pose(frame(), K, [dataclasses.replace(source(), depth=torch.ones(3, 3))]),
            "does not fit rgb",
        ),
        (lambda: camera.camera_following(frame()[None], K[None], POSE[None], []), "0 views"),
        (lambda: camera.align_trajectory(path(2), path(2)), "at least 3"),
        (lambda: camera.align_trajectory(*[torch.stack([camera_at(right=i) for i in range(4)])] * 2), "one line"),
        (lambda: camera.trajectory_errors(path(2), path(3)), "trajectories"),
    ],
)
def test_bad_input_is_one_line(call, what):
    with pytest.raises(InputError, match=what):
        call()
