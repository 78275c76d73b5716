"""Steadiness: frames whose motion, drift and repetition are known."""

import math

import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.evaluation import temporal
from inspatio_core.geometry.camera import intrinsics_from_fov

H, W = 24, 36


def noise(n=1, seed=0, width=W):
    return torch.randint(0, 256, (n, H, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def sliding(n, step):
    """Frames of one wide picture seen ever `step` pixels further right."""
    picture = noise(width=W + n * step)[0]
    return torch.stack([picture[:, t * step : t * step + W] for t in range(n)])


def cameras(n, metres):
    """A path of `metres` to the right per frame, and its K."""
    poses = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    poses[:, 0, 3] = metres * torch.arange(n)
    return intrinsics_from_fov((H, W), 60.0).repeat(n, 1, 1), poses


def test_flow_of_a_wall():
    K, poses = cameras(3, 0.1)
    depth = torch.full((3, H, W), 2.0)
    flow, valid = temporal.static_flow(depth, K, poses)
    step = float(K[0, 0, 0]) * 0.1 / 2.0  # what moves left lay to the right before
    assert 1.0 < step < 2.0
    assert valid[:, :, :-2].all() and not valid[:, :, -1].any()
    assert flow[valid][:, 0].numpy() == pytest.approx(step) and flow[valid][:, 1].abs().max() < 1e-9
    assert (flow[~valid] == 0).all()


def test_flow_knows_what_was_hidden_and_what_is_unknown():
    K, poses = cameras(2, 0.2)
    depth = torch.full((2, H, W), 4.0)
    left = [20, 20 - round(float(K[0, 0, 0]) * 0.2 / 1.0)]  # a box one metre away jumps left
    for t in (0, 1):
        depth[t, 8:16, left[t] : left[t] + 6] = 1.0
    depth[1, 0, 5] = 0.0
    depth[1, 1, 5] = math.inf
    _, valid = temporal.static_flow(depth, K, poses)
    behind = slice(left[0], left[0] + 4)  # wall, 1.6 pixels further right before: behind the box
    assert not valid[0, 9:15, behind].any() and valid[0, 2:6, behind].all()
    assert valid[0, 9:15, left[1] + 1 : left[1] + 5].all()
    assert not valid[0, :2, 5].any()


def test_warping_error_follows_the_flow():
    frames = sliding(4, 2)
    flow = torch.zeros(3, H, W, 2, dtype=torch.float64)
    flow[..., 0] = 2.0
    valid = torch.ones(3, H, W, dtype=torch.bool)
    assert temporal.warping_error(frames, flow, valid).abs().max() < 1e-9  # what enters at the right does not count
    wrong = temporal.warping_error(frames, 0.0 * flow, valid)
    assert wrong[0].item() == pytest.approx((frames[1].int() - frames[0].int()).abs().double().mean().item())
    assert (wrong > 50).all()
    # Half a pixel: the mean of two neighbours.
    flow[..., 0] = 0.5
    blend = (frames[0, :, :-1].double() + frames[0, :, 1:].double()) / 2
    expected = (frames[1, :, :-1].double() - blend).abs().mean()
    assert temporal.warping_error(frames, flow, valid)[0].item() == pytest.approx(expected.item())
    assert temporal.warping_error(frames, flow, ~valid).isnan().all()
    with pytest.raises(InputError, match="flow"):
        temporal.warping_error(frames, flow[:2], valid)


def test_flicker():
    frames = noise().repeat(3, 1, 1, 1)
    assert temporal.flicker(frames).tolist() == [0.0, 0.0]
    frames[2, :, :9] = frames[2, :, :9] // 2 + 100
    change = (frames[2].int() - frames[1].int()).abs().double()
    assert temporal.flicker(frames)[1].item() == pytest.approx(change.mean().item())
    mask = torch.zeros(2, H, W, dtype=torch.bool)
    mask[1, :, :9] = True
    found = temporal.flicker(frames, mask)
    assert found[0].isnan() and found[1].item() == pytest.approx(change[:, :9].mean().item())


def test_jumps_at_block_boundaries():
    # Blocks of 1, 4, 4 frames: frames 1, 5 begin one, so steps 0 and 4 enter one.
    errors = torch.tensor([3.0, 1.0, 1.0, 1.0, 5.0, 1.0, math.nan, 1.0])
    assert temporal.boundary_jump_ratio(errors, first=1, steady=4) == pytest.approx(4.0)
    assert temporal.boundary_jump_ratio(errors, first=5, steady=4) == pytest.approx(5.0 / (8.0 / 6.0))
    assert temporal.boundary_jump_ratio(errors, first=1, steady=1) is None
    assert temporal.boundary_jump_ratio(0 * errors, first=1, steady=4) is None
    with pytest.raises(InputError):
        temporal.boundary_jump_ratio(errors, first=0, steady=4)


def alike(draw, n, keep=0.9):
    """Noise of which each value resembles the last (first-order autoregressive, deviation 1)."""
    steps = draw.normal(size=n) * math.sqrt(1 - keep**2)
    values = np.empty(n)
    values[0] = draw.normal()
    for t in range(1, n):
        values[t] = keep * values[t - 1] + steps[t]
    return values


def test_drift_covers_the_true_slope_though_frames_are_alike():
    draw = np.random.default_rng(0)
    found = [temporal.drift(torch.from_numpy(alike(draw, 1000) - 0.002 * np.arange(1000))) for _ in range(200)]
    inside = np.mean([d.low <= -2.0 <= d.high for d in found])
    assert 0.88 <= inside <= 0.99
    assert np.mean([d.slope for d in found]) == pytest.approx(-2.0, abs=0.1)
    assert np.mean([d.change for d in found]) == pytest.approx(-1.6, abs=0.1)  # 800 frames apart
    # Least squares that takes frames as independent would be far too sure.
    assert np.mean([d.high - d.low for d in found]) > 1.0


def test_drift_counts_what_is_missing():
    values = 30.0 - 0.001 * torch.arange(900.0, dtype=torch.float64)
    values[300:500] = math.nan
    found = temporal.drift(values)
    assert found.slope == pytest.approx(-1.0) and found.low == pytest.approx(-1.0) == found.high
    assert (found.count, found.missing) == (700, 200)
    assert found.change == pytest.approx(-0.7)
    few = temporal.drift(values[:10])
    assert few.slope is None and few.count == 10
    nothing = temporal.drift(values[300:500])
    assert (nothing.slope, nothing.change, nothing.missing) == (None, None, 200)


def test_revisits():
    angles = [0, 15, 30, 15, 0, 15]
    poses = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    for pose, angle in zip(poses, angles):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        pose[:3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    same = torch.zeros(6, dtype=torch.long)
    assert temporal.find_revisits(poses, same, gap=2) == [(1, 3), (0, 4), (1, 5)]
    assert temporal.find_revisits(poses, same, gap=3) == [(0, 4), (1, 5)]
    assert temporal.find_revisits(poses, torch.tensor([0, 0, 0, 0, 1, 0]), gap=3) == [(1, 5)]
    poses[4, 0, 3] = 0.5
    assert temporal.find_revisits(poses, same, gap=3) == [(1, 5)]

    frames = noise(n=6)
    frames[4] = frames[0]
    unseen = torch.zeros(6, H, W, dtype=torch.bool)
    unseen[:, :, 20:] = True
    unseen[1] = False
    frames[4, :, :20] = 0  # was seen: does not count
    found = temporal.revisit_psnr(frames, [(0, 4), (2, 3), (1, 5)], unseen)
    assert found[0] == 100.0 and found[1] < 15.0 and found[2].isnan()
    assert len(temporal.revisit_psnr(frames, [])) == 0
