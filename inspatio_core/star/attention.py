"""Scaled dot-product attention by the fastest kernel that is installed and that the device can run.

Layout [batch, tokens, heads, head width] throughout, as FlashAttention has it. No backend is required: PyTorch's own
is always there, and is the plain path the others are compared with.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("fa3", "cudnn", "fa2", "sdpa")
"""FlashAttention-3 (Hopper), cuDNN's kernel through PyTorch, FlashAttention-2, and whatever PyTorch picks: in the order
of preference where several are there."""


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def available(device: torch.device | str, dtype: torch.dtype) -> tuple[str, ...]:
    """The backends that can run on `device` in `dtype`, best first; ``sdpa`` is always among them."""
    device = torch.device(device)
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return ("sdpa",)
    major, minor = torch.cuda.get_device_capability(device)
    found = []
    if _installed("flash_attn_interface") and major == 9:
        found.append("fa3")
    if torch.backends.cudnn.is_available() and torch.backends.cudnn.version() >= 90000 and major >= 9:
        found.append("cudnn")
    if _installed("flash_attn") and major >= 8:
        found.append("fa2")
    return (*found, "sdpa")


def choose_backend(device: torch.device | str, dtype: torch.dtype, wanted: str = "auto") -> str:
    """`wanted`, or for ``auto`` the best available. Raises ValueError where `wanted` cannot run."""
    here = available(device, dtype)
    if wanted == "auto":
        return here[0]
    if wanted not in here:
        raise ValueError(f"attention: '{wanted}' cannot run on {device} in {dtype}; there is {', '.join(here)}")
    return wanted


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, every query with every key.

    Args:
        q: [B, S, N, d]. k, v: [B, L, N, d], same dtype.
        bias: added to the logits, broadcast to [B, N, S, L]; goes through ``sdpa`` whatever the backend.
        backend: one of `available(q.device, q.dtype)`.

    Returns:
        [B, S, N, d].
    """
    if bias is None and backend in ("fa3", "fa2") and q.shape[-1] % 8 == 0:
        out = _flash(backend)(q, k, v)
        return out[0] if isinstance(out, tuple) else out
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if bias is None and backend == "cudnn" and q.shape[-1] % 8 == 0:
        # By name: `sdpa_kernel` would switch the other kernels off for every thread, a decoder's too.
        backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        out = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, backward)[0]
    else:
        out = F.scaled_dot_product_attention(q, k, v, bias)
    return out.transpose(1, 2)


@functools.cache
def _flash(backend: str) -> Callable:
    if backend == "fa3":
        from flash_attn_interface import flash_attn_func
    else:
        from flash_attn import flash_attn_func
    return flash_attn_func
