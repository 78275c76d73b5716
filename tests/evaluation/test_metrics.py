"""Likeness over regions: values worked out by hand, or by other code."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from inspatio_core.errors import InputError
from inspatio_core.evaluation import metrics


def pictures(n=2, height=40, width=56, seed=0):
    """Smooth pictures and noisy copies, uint8 [N, H, W, 3]."""
    draw = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(draw.normal(size=(n, height, width, 3)), (0, 2, 2, 0))
    a = 128 + 300 * smooth
    b = a + draw.normal(scale=12, size=a.shape)
    return [torch.from_numpy(x.clip(0, 255).round().astype(np.uint8)) for x in (a, b)]


def grey(value, n=1, height=40, width=56):
    return torch.full((n, height, width, 3), value, dtype=torch.uint8)


def test_psnr_by_hand():
    truth, generated = grey(100, n=3), grey(100, n=3)
    mask = torch.zeros(3, 40, 56, dtype=torch.bool)
    mask[:2, :, :8] = True
    generated[1, :, :8] = 110
    generated[:, :, 8:] = 0  # outside the mask
    values = metrics.psnr(generated, truth, mask)
    assert values[0] == metrics.PSNR_MAX
    assert values[1].item() == pytest.approx(20 * math.log10(255 / 10))
    assert values[2].isnan()
    assert values.dtype == torch.float64
    one_channel = truth.clone()
    one_channel[..., 1] += 10
    assert metrics.psnr(one_channel, truth)[0].item() == pytest.approx(10 * math.log10(255**2 / (100 / 3)))


def ssim_by_scipy(a, b):
    """As scikit-image computes it: filters with mirrored borders, the border then left out."""
    maps = []
    for c in range(3):
        x, y = a[..., c].astype(float), b[..., c].astype(float)
        blur = lambda z: ndimage.gaussian_filter(z, 1.5, truncate=3.5)  # noqa: E731
        ux, uy = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - ux * ux, blur(y * y) - uy * uy, blur(x * y) - ux * uy
        c1, c2 = 2.55**2, 7.65**2
        maps.append((2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2)))
    return np.mean(maps, 0)


def test_ssim_equals_an_independent_one():
    a, b = pictures(n=10)  # more than are worked on at once
    expected = np.stack([ssim_by_scipy(x.numpy(), y.numpy()) for x, y in zip(a, b)])
    assert metrics.ssim_map(b, a).numpy() == pytest.approx(expected[:, 5:-5, 5:-5], abs=1e-9)
    assert metrics.ssim(b, a).numpy() == pytest.approx(expected[:, 5:-5, 5:-5].mean((1, 2)), abs=1e-9)
    mask = torch.zeros(10, 40, 56, dtype=torch.bool)
    mask[:9, :20, 2:9] = True
    mask[9, :5] = True  # nothing but border
    values = metrics.ssim(b, a, mask)
    assert values[:9].numpy() == pytest.approx(expected[:9, 5:20, 5:9].mean((1, 2)), abs=1e-9)
    assert values[9].isnan()


def test_ssim_equals_scikit_image():
    """A picture made of integers; the number is scikit-image 0.26's."""
    y, x, c = np.meshgrid(np.arange(48), np.arange(64), np.arange(3), indexing="ij")
    a = ((x * 7 + y * y * 3 + c * 50) % 256).astype(np.uint8)
    b = ((x * 7 + y * y * 3 + c * 50 + (x * y) % 37) % 256).astype(np.uint8)
    value = metrics.ssim(torch.from_numpy(b)[None], torch.from_numpy(a)[None])
    assert value.item() == pytest.approx(0.652177163149375, abs=1e-9)


def test_ssim_identities():
    a, b = pictures()
    assert metrics.ssim(a, a).tolist() == pytest.approx([1.0, 1.0])
    assert metrics.ssim(a, b).tolist() == pytest.approx(metrics.ssim(b, a).tolist())
    # Flat pictures differ in luminance alone.
    c1 = 2.55**2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert metrics.ssim(grey(150), grey(100)).item() == pytest.approx(expected)


def lap1_by_opencv(difference):
    """Of float [H, W], its border zero, so that borders do not matter."""
    total = 0.0
    for level in range(4):
        small = cv2.pyrDown(difference)
        raised = cv2.pyrUp(small, dstsize=difference.shape[::-1])
        total += 4**level * np.abs(difference - raised).sum()
        difference = small
    return total + 4**4 * np.abs(difference).sum()


def test_laplacian_l1():
    for height in (32, 40, 45):
        black = grey(0, height=height)
        assert metrics.laplacian_l1(grey(255, height=height), black).item() == pytest.approx(1.0)
    a, b = pictures(n=1, height=256, width=320)
    mask = torch.zeros(1, 256, 320, dtype=torch.bool)
    mask[0, 120:140, 150:180] = True
    inside = np.where(mask[0].numpy()[..., None], b[0].numpy().astype(float) - a[0].numpy().astype(float), 0) / 255
    expected = sum(lap1_by_opencv(np.ascontiguousarray(inside[..., c])) for c in range(3)) / (3 * 600)
    assert metrics.laplacian_l1(b, a, mask).item() == pytest.approx(expected, rel=1e-9)
    assert metrics.laplacian_l1(b, a, torch.zeros_like(mask)).isnan().all()


def blurred(frames):
    return torch.from_numpy(np.stack([cv2.GaussianBlur(f.numpy(), (0, 0), 2) for f in frames]))


def test_sharpness_tells_blur_from_noise():
    _, truth = pictures()
    hole = torch.zeros(2, 40, 56, dtype=torch.bool)
    hole[:, 10:30, 20:40] = True
    soft = torch.where(hole[..., None], blurred(truth), truth)
    draw = torch.Generator().manual_seed(1)
    harsh = (truth + 20 * torch.randn(truth.shape, generator=draw)).clamp(0, 255).to(torch.uint8)
    assert metrics.sharpness_ratio(truth, truth, hole).tolist() == [1.0, 1.0]
    assert (metrics.sharpness_ratio(soft, truth, hole) < 0.05).all()
    assert (metrics.sharpness_ratio(harsh, truth, hole) > 1.5).all()
    assert metrics.sharpness_ratio(soft, truth, ~hole).tolist() == [1.0, 1.0]


def test_sharpness_by_hand():
    truth, generated = grey(100), grey(100)
    truth[0, 20, 20] = 110  # a Laplacian of -40 there, 10 at its four neighbours
    generated[0, 20, 20] = 105
    mask = torch.zeros(1, 40, 56, dtype=torch.bool)
    mask[0, 18:23, 18:23] = True
    assert metrics.sharpness_ratio(generated, truth, mask).item() == pytest.approx(0.25)
    generated[0, 17, 20] = 255  # the pixel beside the mask: a seam
    assert metrics.sharpness_ratio(generated, truth, mask).item() == pytest.approx(0.25)
    assert metrics.sharpness_ratio(generated, grey(100), mask).isnan().all()  # nothing to be sharp about
    mask[:] = False
    mask[0, 18:23, 18:20] = True  # no pixel has all its neighbours inside
    assert metrics.sharpness_ratio(generated, truth, mask).isnan().all()


def test_regions():
    hole = torch.zeros(1, 20, 30, dtype=torch.bool)
    hole[:, :, 12:] = True
    known = ~hole
    known[:, 0] = False
    found = metrics.regions(known, hole)
    assert set(found) == {"all", "known", "hole", "boundary"}
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[:, 9:15] = True  # three on either side; the frame's border is no outline
    assert torch.equal(found["boundary"][0], expected)
    assert found["all"].all() and torch.equal(found["known"], known)
    assert not metrics.boundary_band(torch.ones_like(hole)).any()
    assert "dynamic" in metrics.regions(known, hole, known)
    with pytest.raises(InputError, match="dynamic"):
        metrics.regions(known, hole, known[:, 1:])


def test_compare_pools_over_the_scene():
    truth, generated = pictures(n=3)
    hole = torch.zeros(3, 40, 56, dtype=torch.bool)
    hole[0, 10:30, 10:40] = True
    hole[1, 15:19, 15:19] = True
    generated[1, 15:19, 15:19] = 0
    report = metrics.compare(generated, truth, metrics.regions(~hole, hole, torch.zeros_like(hole)))
    json.dumps(report, allow_nan=False)
    squares = (generated.double() - truth.double()).square()[hole]
    found = report["hole"]
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / squares.mean().item()))
    assert found["psnr_frames"] == pytest.approx(metrics.psnr(generated, truth, hole)[:2].mean().item())
    assert abs(found["psnr"] - found["psnr_frames"]) > 1  # the few pixels of frame 1 do not rule
    assert (found["pixels"], found["frames"], found["missing"]) == (616, 2, 1)
    assert report["all"]["ssim"] == pytest.approx(metrics.ssim(generated, truth).mean().item())
    lap = metrics.laplacian_l1(generated, truth, hole)
    assert found["laplacian_l1"] == pytest.approx((600 * lap[0] + 16 * lap[1]).item() / 616)
    assert {key for key, value in report["dynamic"].items() if value is None} == {
        "psnr",
        "psnr_frames",
        "ssim",
        "laplacian_l1",
        "sharpness",
    }
    assert (report["dynamic"]["pixels"], report["dynamic"]["missing"]) == (0, 3)


def test_summary_counts_what_is_missing():
    values = torch.tensor([1.0, math.nan, 3.0], dtype=torch.float64)
    assert metrics.summary(values) == {"mean": 2.0, "count": 2, "missing": 1}
    assert metrics.summary(values[1:2]) == {"mean": None, "count": 0, "missing": 1}


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda: metrics.psnr(grey(1).float(), grey(1)), "generated: need uint8"),
        (lambda: metrics.psnr(grey(1), grey(1, n=2)), "does not fit"),
        (lambda: metrics.psnr(grey(1), grey(1), torch.ones(1, 40, 55, dtype=torch.bool)), "need a bool mask"),
        (lambda: metrics.psnr(grey(1), grey(1), torch.ones(1, 40, 56)), "need a bool mask"),
        (lambda: metrics.ssim(grey(1, height=10), grey(1, height=10)), "11 x 11"),
        (lambda: metrics.laplacian_l1(grey(1, height=30), grey(1, height=30)), "32 x 32"),
    ],
)
def test_bad_input_is_one_line(call, what):
    with pytest.raises(InputError, match=what):
        call()
