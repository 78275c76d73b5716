"""The fused steps: Triton kernels and torch.compile against the same in PyTorch.

With CUDA the kernels run there. Without, they run in Triton's interpreter, which must be asked for before Triton is
imported: `test_in_the_interpreter` runs this file again in a process of its own.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from inspatio_core.star import kernels
from inspatio_core.star.fp8 import LARGEST, Quantised, quantise
from inspatio_core.star.kernels import PLAIN, compiled_ops, rotate_complex
from inspatio_core.star.rope import rope_table, rotate

from .plain import deviation, normal

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
needs_triton = pytest.mark.skipif(kernels.triton is None, reason="needs Triton")
here = kernels.triton is not None and (DEVICE == "cuda" or INTERPRETED)
on_kernels = pytest.mark.skipif(
    not here, reason="needs Triton, and CUDA or its interpreter: see test_in_the_interpreter"
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HEADS = [(4, 24), (3, 32), (12, 128), (2, 20)]  # 96, 96, 1536, 40 in all: no powers of two
kernel_dtypes = pytest.mark.parametrize("dtype", DTYPES if here else DTYPES[:1], ids=str)
kernel_heads = pytest.mark.parametrize(("heads", "width"), HEADS if here else HEADS[:1])
EPS = 1e-6


@needs_triton
@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process")
def test_in_the_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "test_kernel_"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]


@pytest.fixture(autouse=True)
def exact_interpreter(monkeypatch):
    """The interpreter truncates to bfloat16, carries nothing in 8 bits and multiplies bfloat16 as if it were whole
    numbers; here it converts as PyTorch does."""
    if not INTERPRETED:
        return
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    known = {tl.float32: torch.float32, tl.float16: torch.float16, tl.bfloat16: torch.bfloat16}
    known[tl.float8e4nv] = torch.float8_e4m3fn
    whole = {8: np.int8, 16: np.int16, 32: np.int32}

    def convert(data, source, target, rounding):
        bits = np.frombuffer(data.tobytes(), whole[source.primitive_bitwidth])
        x = torch.from_numpy(bits.copy()).view(known[source]).to(known[target])
        raw = x.view(getattr(torch, f"int{target.primitive_bitwidth}")).numpy()
        return raw.view(f"uint{target.primitive_bitwidth}").reshape(data.shape)

    def create_dot(self, a, b, d, *_):
        a, b = (
            convert(x.data, x.dtype.scalar, tl.float32, None).view(np.float32) if x.dtype.scalar in known else x.data
            for x in (a, b)
        )
        return interpreter.TensorHandle(np.matmul(a, b) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normal(*shape, seed=seed, dtype=dtype).to(DEVICE)


def assert_rounded_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the rounding of a result, which may fall to the other side."""
    step = max(torch.finfo(actual.dtype).eps, 4e-6)
    torch.testing.assert_close(actual.float(), expected.float(), rtol=step, atol=step / 4)
    assert deviation(actual, expected) < step / 4


def assert_quantised_alike(actual: Quantised, expected: Quantised) -> None:
    torch.testing.assert_close(actual.scale, expected.scale, rtol=1e-5, atol=0)
    a, b = actual.values.float(), expected.values.float()
    assert (a != b).float().mean() < 0.02  # a number between two values may fall to either
    torch.testing.assert_close(a, b, rtol=0.13, atol=2**-9)


# ------------------------------------------------------------------------------------------------------------- kernels


@on_kernels
@kernel_dtypes
@kernel_heads
@pytest.mark.parametrize("adds", ["nothing", "a branch", "a gated branch"])
def test_kernel_add_norm(dtype, heads: int, width: int, adds: str) -> None:
    rows, d = 7, heads * width
    x = 3 * numbers(rows, d, seed=1, dtype=dtype) + 1
    y = None if adds == "nothing" else numbers(rows, d, seed=2, dtype=dtype)
    gate = numbers(d, seed=3) if adds == "a gated branch" else None
    gain, shift = numbers(2, d, seed=4).unbind(0)
    for quantised in (False, True):
        expected_x, expected = PLAIN.add_norm(x, y, gate, gain, shift, EPS, quantised)
        got_x, got = kernels.triton_ops().add_norm(x.clone(), y, gate, gain, shift, EPS, quantised)
        assert got_x.dtype == dtype
        assert_rounded_alike(got_x, expected_x)
        if quantised:
            assert_quantised_alike(got, expected)
        else:
            assert got.dtype == dtype
            assert_rounded_alike(got, expected)


@on_kernels
@kernel_dtypes
@kernel_heads
@pytest.mark.parametrize("parts", [3, 2], ids=["q k v", "k v"])
def test_kernel_write_heads(dtype, heads: int, width: int, parts: int) -> None:
    slots, tokens, context, d = 2, 6, 5, heads * width
    qkv = numbers(slots * tokens, parts * d, seed=1, dtype=dtype)
    norms = (1 + numbers(2, d, seed=2) / 4).to(dtype).unbind(0)
    rope = rope_table(1, 2, 3, width, DEVICE, first=6)
    space = torch.full((2, slots, context + tokens + 3, heads, width), 7.0, dtype=dtype, device=DEVICE)
    own = space[:, :, context : context + tokens]
    queries = kernels.triton_ops().write_heads(qkv, *norms, rope, *own, EPS)
    wide = torch.empty(2, slots, tokens, heads, width, device=DEVICE)  # rounded once, at the end
    expected = PLAIN.write_heads(qkv.float(), *(n.float() for n in norms), rope, *wide, EPS)
    assert_rounded_alike(own[0], wide[0])
    assert torch.equal(own[1], wide[1].to(dtype))
    assert (space[:, :, :context] == 7).all() and (space[:, :, context + tokens :] == 7).all()
    if parts == 2:
        assert queries is expected is None
    else:
        assert queries.shape == expected.shape and queries.is_contiguous()
        assert_rounded_alike(queries, expected)


@on_kernels
@kernel_dtypes
@pytest.mark.parametrize(("heads", "width"), [(4, 24), (2, 128)] if here else [(4, 24)])
@pytest.mark.parametrize("rows", [1, 70] if here else [70])
def test_kernel_text_attention(dtype, heads: int, width: int, rows: int) -> None:
    slots, tokens = 2, 70  # neither fills its blocks
    q = numbers(slots, tokens, heads, width, seed=1, dtype=dtype)
    k, v = numbers(2, slots, rows, heads, width, seed=2, dtype=dtype).unbind(0)
    bias = torch.zeros(slots, 1, 1, rows, dtype=dtype, device=DEVICE)
    bias[1, ..., rows // 2 + 1 :] = -math.inf
    bias[1, ..., rows // 2] = math.log(9)
    for given in (None, bias):
        expected = PLAIN.text_attention(*(x.float() for x in (q, k, v)), None if given is None else given.float())
        got = kernels.triton_ops().text_attention(q, k, v, given)
        assert got.shape == q.shape and got.dtype == dtype
        assert deviation(got, expected) < max(torch.finfo(dtype).eps, 1e-5)


@on_kernels
@kernel_dtypes
@pytest.mark.parametrize("width", [96, 1536, 2000])
@pytest.mark.parametrize("gelu", [False, True])
def test_kernel_quantise(dtype, width: int, gelu: bool) -> None:
    x = numbers(5, width, seed=1, dtype=dtype)
    x[0] *= 1000
    x[1] = 0
    assert_quantised_alike(kernels.triton_ops().quantise(x, gelu), quantise(x, gelu))


@on_kernels
def test_kernel_gives_the_same_bytes_again_and_to_each_row_alone() -> None:
    x, y = numbers(2, 9, 96, seed=1, dtype=torch.bfloat16).unbind(0)
    gate, gain, shift = numbers(3, 96, seed=2).unbind(0)
    add_norm = kernels.triton_ops().add_norm
    first = add_norm(x.clone(), y, gate, gain, shift, EPS)
    for again, once in zip(add_norm(x.clone(), y, gate, gain, shift, EPS), first, strict=True):
        assert torch.equal(again, once)
    for row in range(9):
        own = slice(row, row + 1)
        for alone, together in zip(add_norm(x[own].clone(), y[own], gate, gain, shift, EPS), first, strict=True):
            assert torch.equal(alone[0], together[row])


POINTERS = {"eps": "fp32", "scale": "fp32", "S": "i32", "ROWS": "i32", "slot_stride": "i32"}
OF_1_3B = {"D": 1536, "BLOCK": 2048}
FP8 = {"LARGEST": LARGEST, "SMALLEST": 1e-12}
FOR_HOPPER = {
    "_add_norm_kernel": ({**OF_1_3B, **FP8, "ADD": True, "GATE": True, "QUANTISED": False}, 4),
    "_write_heads_kernel": ({**OF_1_3B, "PAIRS": 64, "QUERIES": True}, 4),
    "_text_attention_kernel": (
        {"HEADS": 12, "WIDTH": 128, "BIAS": True, "BLOCK_S": 64, "BLOCK_ROWS": 64, "BLOCK_WIDTH": 128},
        4,
    ),
    "_quantise_kernel": ({"K": 8960, "BLOCK": 16384, "GELU": True, **FP8}, 16),
}


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("name", FOR_HOPPER)
def test_kernels_compile_for_hopper_with_wide_accesses(name: str, tmp_path, monkeypatch) -> None:
    """Also where there is no GPU: Triton brings the assembler along."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, (constants, warps) = getattr(kernels, name), FOR_HOPPER[name]
    in_float32 = {"gate_ptr", "gain_ptr", "shift_ptr", "cos_ptr", "sin_ptr", "scale_ptr"}
    signature, aligned = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        else:
            in_8_bits = name == "_quantise_kernel" and argument == "out_ptr"
            kind = "fp8e4nv" if in_8_bits else "fp32" if argument in in_float32 else "bf16"
            signature[argument] = POINTERS.get(argument, f"*{kind}")
            if argument not in ("eps", "scale", "S"):
                aligned[(place,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=aligned)
    made = kernels.triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 2}
    )
    code = made.asm["ptx"]
    assert "ld.global.v4" in code and "st.global.v4" in code  # 16 bytes at a time
    assert ".local" not in code  # nothing spilled by indexing registers
    assert ("wgmma" in code) == (name == "_text_attention_kernel")
    assert len(made.asm["cubin"]) > 1000


# ------------------------------------------------------------------------------------------- in PyTorch, and compiled


def test_turning_by_a_complex_product_is_turning() -> None:
    rope = rope_table(3, 2, 5, 20, DEVICE)
    for dtype in DTYPES:
        x = numbers(2, 30, 3, 20, seed=1, dtype=dtype)
        assert_rounded_alike(rotate_complex(x, rope), rotate(x, rope))
        assert rotate_complex(x, rope).dtype == dtype


def steps(ops, dtype: torch.dtype) -> list[torch.Tensor]:
    """Something of every step."""
    x, y = numbers(2, 6, 40, seed=1, dtype=dtype).unbind(0)
    gate, gain, shift = numbers(3, 40, seed=2).unbind(0)
    qkv, norms = numbers(6, 120, seed=3, dtype=dtype), numbers(2, 40, seed=4, dtype=dtype).unbind(0)
    space = torch.zeros(2, 2, 5, 2, 20, dtype=dtype, device=DEVICE)
    out = [*ops.add_norm(x, None, None, gain, shift, EPS), *ops.add_norm(x, y, None, gain, shift, EPS)]
    out += [*ops.add_norm(x, y, gate, gain, shift, EPS)]
    out.append(ops.write_heads(qkv, *norms, rope_table(1, 1, 3, 20, DEVICE), *space[:, :, 2:], EPS))
    for quantised in (ops.add_norm(x, y, gate, gain, shift, EPS, True)[1], ops.quantise(y), ops.quantise(y, gelu=True)):
        out.append(quantised.values.float() * quantised.scale)
    return [*out, space]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_compiler_sees_each_step_whole(dtype) -> None:
    """No graph breaks (fullgraph raises at one), nothing changed, nothing compiled a second time."""
    from torch._dynamo.utils import counters

    ops, expected = compiled_ops("aot_eager"), steps(PLAIN, dtype)
    step = max(torch.finfo(dtype).eps, 1e-5)
    counters.clear()
    for _ in range(2):
        for got, one in zip(steps(ops, dtype), expected, strict=True):
            torch.testing.assert_close(got.float(), one.float(), rtol=step, atol=1e-5)
        compiled = counters["stats"]["unique_graphs"]
        assert not counters["graph_break"]
        steps(ops, dtype)
        assert counters["stats"]["unique_graphs"] == compiled > 0


def test_quantised_numbers_are_near() -> None:
    x = numbers(4, 64, seed=1)
    x[1] *= 1e4
    x[2] = 0
    values, scale = quantise(x)
    assert values.dtype == torch.float8_e4m3fn and scale.shape == (4, 1)
    assert (values[[0, 1, 3]].float().abs().amax(1) == LARGEST).all() and (values[2].float() == 0).all()
    back = values.float() * scale
    assert ((back - x).abs() <= (x.abs() / 16).clamp_min(2**-10 * scale)).all()  # half a step of three bits
    assert deviation(back[0], x[0]) > 0.01
