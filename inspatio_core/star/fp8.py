"""Linear layers in 8-bit floating point (e4m3), for GPUs whose matrix units have it.

One scale for each row of what goes in, one for each row of the weight (an output channel): an outlier costs its own row
only. The device sums in its fast way, still finer than the 8 bits. On the CPU the same quantisation is simulated, with
sums in float32.

Keys, values and attention stay in the network's dtype: what PyTorch ships has no 8-bit attention to call (only a
separately built FlashAttention-3 has).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inspatio_core.errors import InputError

LARGEST = 448.0  # of e4m3
SMALLEST_SCALE = 1e-12  # a row of zeros has a scale, too


class Quantised(NamedTuple):
    """values float8_e4m3fn [rows, K] times scale float32 [rows, 1]."""

    values: Tensor
    scale: Tensor


class Fp8Linear(NamedTuple):
    """A quantised linear layer: values float8_e4m3fn [N, K], scale float32 [1, N], bias [N]."""

    values: Tensor
    scale: Tensor
    bias: Tensor


def quantise(x: Tensor, gelu: bool = False) -> Quantised:
    """x [rows, K], after a GELU (tanh) if so wished, with the largest of each row at the end of the range."""
    x = x.float()
    if gelu:
        x = F.gelu(x, approximate="tanh")
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(SMALLEST_SCALE)
    return Quantised((x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale)


def quantise_linear(weight: Tensor, bias: Tensor) -> Fp8Linear:
    """A linear layer's weight [N, K] and bias [N], once and for all."""
    values, scale = quantise(weight)
    return Fp8Linear(values, scale.t().contiguous(), bias)


def fp8_linear(x: Quantised, layer: Fp8Linear) -> Tensor:
    """x weight^T + bias, [rows, N] in the dtype of the bias."""
    if x.values.is_cuda:
        return torch._scaled_mm(
            x.values,
            layer.values.t(),
            scale_a=x.scale,
            scale_b=layer.scale,
            bias=layer.bias,
            out_dtype=layer.bias.dtype,
            use_fast_accum=True,
        )
    product = F.linear(x.values.float(), layer.values.float())
    return (product * (x.scale * layer.scale) + layer.bias.float()).to(layer.bias.dtype)


def require_fp8(device: torch.device, dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    """Raises `InputError` where linear layers of `widths` cannot run in 8 bits; the CPU simulates, so always can."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 9:
            raise InputError(f"fp8: needs a GPU of the Hopper generation (9.0) or newer, not one of {major}.{minor}")
        if dtype != torch.bfloat16:
            raise InputError(f"fp8: goes with a network in bfloat16, not {dtype}")
    elif device.type != "cpu":
        raise InputError(f"fp8: not on {device.type}")
    if odd := [w for w in widths if w % 16]:
        raise InputError(f"fp8: widths must be multiples of 16, not {', '.join(map(str, odd))}")
