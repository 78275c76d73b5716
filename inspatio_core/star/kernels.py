"""What the fast path does between matrix products: each step in plain PyTorch, and as one Triton kernel.

`PLAIN` runs everywhere and is what the others are compared with, `triton_ops()` has the kernels, `compiled_ops()` what
torch.compile makes of the plain ones. All take and give the same: tokens [R, D] with R = B S, whatever the widths (D
and the head width need not be powers of two).

The kernels read what they need once and write what is kept once; sums, norms and angles are in float32, rounded once.
None is tuned at run time: the same shapes give the same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inspatio_core.star.attention import attention
from inspatio_core.star.fp8 import LARGEST, SMALLEST_SCALE, Quantised, quantise
from inspatio_core.star.rope import RopeTable, rotate

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch come without
    triton = None


SHAPES = 256
"""How many shapes torch.compile may meet (it would stop at 8): slots, first and later blocks, sizes."""


class Ops(NamedTuple):
    """The steps, see the functions of the same names."""

    add_norm: Callable[..., tuple[Tensor, Tensor | Quantised]]
    write_heads: Callable[..., Tensor | None]
    text_attention: Callable[..., Tensor]
    quantise: Callable[..., Quantised]


# ------------------------------------------------------------------------------------------------------- in PyTorch


def add_norm(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    quantised: bool = False,
) -> tuple[Tensor, Tensor | Quantised]:
    """What a branch adds to the residual stream, and the layer norm before the next branch.

    Args:
        x: [R, D]; may be overwritten. y: [R, D] that is added, None for nothing.
        gate: float32 [D] that y is multiplied with, None for 1.
        gain, shift: float32 [D].
        quantised: give the norm in 8 bits.

    Returns:
        x + gate y, and LN(of it) gain + shift.
    """
    if y is not None:
        x = x + y if gate is None else torch.addcmul(x, gate, y).to(x.dtype)
    norm = F.layer_norm(x.float(), x.shape[-1:], gain, shift, eps)
    return x, quantise(norm) if quantised else norm.to(x.dtype)


def write_heads(
    qkv: Tensor,
    norm_q: Tensor,
    norm_k: Tensor,
    rope: RopeTable,
    keys: Tensor,
    values: Tensor,
    eps: float,
    rotate: Callable[[Tensor, RopeTable], Tensor] = rotate,
) -> Tensor | None:
    """Norm over all heads, rotation, and the way into the workspace, of projected tokens.

    Args:
        qkv: [R, 3 D] queries, keys and values side by side, or [R, 2 D] keys and values.
        norm_q, norm_k: [D].
        rope: angles of the S tokens of a slot.
        keys, values: [B, S, N, d] of the workspace, written.
        rotate: turns pairs.

    Returns:
        The queries [B, S, N, d], None where there were none.
    """
    b, tokens, heads, width = keys.shape
    *q, k, v = qkv.view(b, tokens, -1, heads * width).unbind(2)
    keys.copy_(rotate(_normed_heads(k, norm_k, heads, eps), rope))
    values.copy_(v.unflatten(-1, (heads, width)))
    return rotate(_normed_heads(q[0], norm_q, heads, eps), rope) if q else None


def _normed_heads(x: Tensor, weight: Tensor, heads: int, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps).unflatten(-1, (heads, -1))


def rotate_complex(x: Tensor, table: RopeTable) -> Tensor:
    """`rope.rotate` by a complex product: one pass over x where nothing fuses, as on the CPU."""
    turn = torch.complex(table.cos, table.sin)[:, None]
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def text_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of q [B, S, N, d] to the prompt: k, v [B, rows, N, d], bias [B, 1, 1, rows] or None."""
    return attention(q, k, v, bias)


PLAIN = Ops(add_norm, functools.partial(write_heads, rotate=rotate_complex), text_attention, quantise)


def compiled_ops(backend: str = "inductor") -> Ops:
    """The steps fused by torch.compile, for each shape anew: a shape's bytes do not depend on what ran before."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    fuse = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
    return Ops(fuse(add_norm), fuse(write_heads), text_attention, fuse(quantise))


# ----------------------------------------------------------------------------------------------------------- in Triton

if triton is not None:

    @triton.jit
    def _quantise_row(x, LARGEST: tl.constexpr, SMALLEST: tl.constexpr):
        scale = tl.maximum(tl.max(tl.abs(x), 0) / LARGEST, SMALLEST)
        return tl.clamp(x / scale, -LARGEST, LARGEST), scale

    @triton.jit
    def _add_norm_kernel(
        x_ptr, y_ptr, gate_ptr, gain_ptr, shift_ptr, out_ptr, scale_ptr, eps,
        D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, GATE: tl.constexpr, QUANTISED: tl.constexpr,
        LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        at = row.to(tl.int64) * D
        column = tl.arange(0, BLOCK)
        inside = column < D
        x = tl.load(x_ptr + at + column, inside, 0.0).to(tl.float32)
        if ADD:
            y = tl.load(y_ptr + at + column, inside, 0.0).to(tl.float32)
            if GATE:
                y *= tl.load(gate_ptr + column, inside, 0.0)
            rounded = (x + y).to(x_ptr.dtype.element_ty)
            tl.store(x_ptr + at + column, rounded, inside)
            x = rounded.to(tl.float32)
        x = tl.where(inside, x - tl.sum(x, 0) / D, 0.0)
        x *= 1 / tl.sqrt(tl.sum(x * x, 0) / D + eps)
        x = x * tl.load(gain_ptr + column, inside, 0.0) + tl.load(shift_ptr + column, inside, 0.0)
        if QUANTISED:
            x, scale = _quantise_row(x, LARGEST, SMALLEST)
            tl.store(scale_ptr + row, scale)
        tl.store(out_ptr + at + column, x.to(out_ptr.dtype.element_ty), inside)

    @triton.jit
    def _normed_turned(x_ptr, weight_ptr, cos, sin, eps, D: tl.constexpr, BLOCK: tl.constexpr):
        column = tl.arange(0, BLOCK)
        inside = column < D
        x = tl.load(x_ptr + column, inside, 0.0).to(tl.float32)
        x *= 1 / tl.sqrt(tl.sum(x * x, 0) / D + eps)
        x *= tl.load(weight_ptr + column, inside, 0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
        return tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (BLOCK,))

    @triton.jit
    def _write_heads_kernel(
        qkv_ptr, norm_q_ptr, norm_k_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, S, slot_stride, eps,
        D: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        slot, token = row // S, row % S
        column = tl.arange(0, BLOCK)
        inside = column < D
        pair = tl.arange(0, BLOCK // 2)
        angle = token * PAIRS + pair % PAIRS
        cos = tl.load(cos_ptr + angle, pair < D // 2, 1.0)
        sin = tl.load(sin_ptr + angle, pair < D // 2, 0.0)
        if QUERIES:
            qkv_ptr += row.to(tl.int64) * (3 * D)
            q = _normed_turned(qkv_ptr, norm_q_ptr, cos, sin, eps, D, BLOCK)
            tl.store(q_ptr + row.to(tl.int64) * D + column, q.to(q_ptr.dtype.element_ty), inside)
            qkv_ptr += D
        else:
            qkv_ptr += row.to(tl.int64) * (2 * D)
        at = slot.to(tl.int64) * slot_stride + token * D + column
        k = _normed_turned(qkv_ptr, norm_k_ptr, cos, sin, eps, D, BLOCK)
        tl.store(k_ptr + at, k.to(k_ptr.dtype.element_ty), inside)
        tl.store(v_ptr + at, tl.load(qkv_ptr + D + column, inside, 0.0), inside)

    @triton.jit
    def _text_attention_kernel(
        q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, S, ROWS, scale,
        HEADS: tl.constexpr, WIDTH: tl.constexpr, BIAS: tl.constexpr,
        BLOCK_S: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        slot = tl.program_id(2).to(tl.int64)
        token = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
        d = tl.arange(0, BLOCK_WIDTH)
        head = tl.program_id(1) * WIDTH + d
        here = (token < S)[:, None] & (d < WIDTH)[None]
        at = (slot * S + token)[:, None] * (HEADS * WIDTH) + head[None]
        q = tl.load(q_ptr + at, here, 0.0)
        top = tl.full((BLOCK_S,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_S,), tl.float32)
        out = tl.zeros((BLOCK_S, BLOCK_WIDTH), tl.float32)
        for first in range(0, ROWS, BLOCK_ROWS):  # the first rows are never all masked: `top` is finite from there on
            row = first + tl.arange(0, BLOCK_ROWS)
            there = (row < ROWS)[:, None] & (d < WIDTH)[None]
            row_at = (slot * ROWS + row)[:, None] * (HEADS * WIDTH) + head[None]
            k = tl.load(k_ptr + row_at, there, 0.0)
            v = tl.load(v_ptr + row_at, there, 0.0)
            logits = tl.dot(q, tl.trans(k)) * scale
            if BIAS:
                logits += tl.load(bias_ptr + slot * ROWS + row, row < ROWS, 0.0).to(tl.float32)[None]
            logits = tl.where((row < ROWS)[None], logits, float("-inf"))
            new_top = tl.maximum(top, tl.max(logits, 1))
            weights = tl.exp(logits - new_top[:, None])
            shrink = tl.exp(top - new_top)
            total = total * shrink + tl.sum(weights, 1)
            out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
            top = new_top
        tl.store(out_ptr + at, (out / total[:, None]).to(out_ptr.dtype.element_ty), here)

    @triton.jit
    def _quantise_kernel(
        x_ptr, out_ptr, scale_ptr,
        K: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        at = row.to(tl.int64) * K
        column = tl.arange(0, BLOCK)
        inside = column < K
        x = tl.load(x_ptr + at + column, inside, 0.0).to(tl.float32)
        if GELU:
            x *= tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # (1 + tanh(y)) / 2 = sigmoid(2 y)
        x, scale = _quantise_row(x, LARGEST, SMALLEST)
        tl.store(scale_ptr + row, scale)
        tl.store(out_ptr + at + column, x.to(out_ptr.dtype.element_ty), inside)


def _row_launch(width: int) -> dict[str, int]:
    """Block and warps of a kernel that has a row of `width` to a program: 16 numbers a thread."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def _empty_quantised(like: Tensor) -> Quantised:
    return Quantised(
        torch.empty_like(like, dtype=torch.float8_e4m3fn), like.new_empty(len(like), 1, dtype=torch.float32)
    )


def _triton_add_norm(x, y, gate, gain, shift, eps, quantised=False):
    rows, width = x.shape
    out = _empty_quantised(x) if quantised else torch.empty_like(x)
    values, scale = out if quantised else (out, out)
    _add_norm_kernel[(rows,)](
        x, x if y is None else y, gain if gate is None else gate, gain, shift, values, scale, eps,
        D=width, ADD=y is not None, GATE=gate is not None, QUANTISED=quantised,
        LARGEST=LARGEST, SMALLEST=SMALLEST_SCALE, **_row_launch(width),
    )  # fmt: skip
    return x, out


def _triton_write_heads(qkv, norm_q, norm_k, rope, keys, values, eps):
    b, tokens, heads, width = keys.shape
    dim = heads * width
    assert keys.stride() == values.stride() and keys.stride()[1:] == (dim, width, 1)
    queries = qkv.shape[1] == 3 * dim
    q = qkv.new_empty(b, tokens, heads, width) if queries else qkv
    _write_heads_kernel[(b * tokens,)](
        qkv, norm_q, norm_k, rope.cos, rope.sin, q, keys, values, tokens, keys.stride(0), eps,
        D=dim, PAIRS=width // 2, QUERIES=queries, **_row_launch(dim),
    )  # fmt: skip
    return q if queries else None


def _triton_text_attention(q, k, v, bias):
    if q.dtype == torch.float32:  # the matrix units would round, and without them there is nothing to win
        return text_attention(q, k, v, bias)
    b, tokens, heads, width = q.shape
    out = torch.empty_like(q)
    block_s = 64
    _text_attention_kernel[(triton.cdiv(tokens, block_s), heads, b)](
        q, k.contiguous(), v.contiguous(), q if bias is None else bias, out, tokens, k.shape[1], width**-0.5,
        HEADS=heads, WIDTH=width, BIAS=bias is not None,
        BLOCK_S=block_s, BLOCK_ROWS=64, BLOCK_WIDTH=max(triton.next_power_of_2(width), 16), num_warps=4, num_stages=2,
    )  # fmt: skip
    return out


def _triton_quantise(x, gelu=False):
    out = _empty_quantised(x)
    width = x.shape[1]
    _quantise_kernel[(len(x),)](
        x, *out, K=width, GELU=gelu, LARGEST=LARGEST, SMALLEST=SMALLEST_SCALE, **_row_launch(width)
    )
    return out


def triton_ops() -> Ops:
    """The kernels. Raises RuntimeError without Triton."""
    if triton is None:
        raise RuntimeError("Triton is not installed")
    return Ops(_triton_add_norm, _triton_write_heads, _triton_text_attention, _triton_quantise)
