"""Attention: the formula, and which kernel is taken when."""

import importlib.machinery
import math
import sys
import types

import pytest
import torch

from inspatio_core.star import attention as module
from inspatio_core.star.attention import attention, available, choose_backend

from .plain import normal

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def dense(q, k, v, bias=None):
    """softmax(q k^T / sqrt(d) + bias) v in float64, head by head."""
    q, k, v = (x.double() for x in (q, k, v))
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for head in range(q.shape[2]):
            logits = q[b, :, head] @ k[b, :, head].T / math.sqrt(q.shape[3])
            if bias is not None:
                logits = logits + bias.double().expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])[b, head]
            e = (logits - logits.max(1, keepdim=True).values).exp()
            out[b, :, head] = e / e.sum(1, keepdim=True) @ v[b, :, head]
    return out


def qkv(dtype=torch.float64, queries: int = 5, keys: int = 11):
    return [normal(2, rows, 3, 8, seed=i, dtype=dtype) for i, rows in enumerate((queries, keys, keys))]


def test_it_is_dense_softmax() -> None:
    q, k, v = qkv()
    torch.testing.assert_close(attention(q, k, v), dense(q, k, v))


def test_a_slice_of_a_workspace_is_as_good_as_a_copy() -> None:
    q, _, _ = qkv()
    k, v = (normal(2, 20, 3, 8, seed=i)[:, :11] for i in (5, 6))
    assert not k.is_contiguous()
    torch.testing.assert_close(attention(q, k, v), dense(q, k.contiguous(), v.contiguous()))


@pytest.mark.parametrize("shape", [(2, 1, 1, 11), (1, 1, 1, 11), (2, 3, 5, 11)])
def test_a_bias_is_added_to_the_logits(shape) -> None:
    q, k, v = qkv()
    bias = normal(*shape, seed=7)
    bias[..., 9:] = -math.inf
    torch.testing.assert_close(attention(q, k, v, bias), dense(q, k, v, bias))
    torch.testing.assert_close(attention(q, k, v, bias), dense(q, k[:, :9], v[:, :9], bias[..., :9]))


def test_the_log_of_a_number_counts_a_row_that_often() -> None:
    q, k, v = qkv(keys=3)
    bias = torch.tensor([0, math.log(4), 0], dtype=torch.float64)
    often = [0, 1, 1, 1, 1, 2]
    torch.testing.assert_close(attention(q, k, v, bias.expand(2, 1, 1, 3)), dense(q, k[:, often], v[:, often]))


# ------------------------------------------------------------------------------------------------------- the choice


def test_the_cpu_has_pytorchs_own_only() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert available("cpu", dtype) == ("sdpa",)
        assert choose_backend(torch.device("cpu"), dtype) == choose_backend("cpu", dtype, "sdpa") == "sdpa"


@pytest.mark.parametrize("wanted", ["fa3", "fa2", "cudnn", "none such"])
def test_what_cannot_run_is_refused_with_what_can(wanted: str) -> None:
    with pytest.raises(ValueError, match=rf"'{wanted}' cannot run on cpu in torch.bfloat16; there is sdpa"):
        choose_backend("cpu", torch.bfloat16, wanted)


@pytest.fixture
def a_device(monkeypatch):
    """Pretends that there is a CUDA device, and packages: a_device((9, 0), 90100, "flash_attn")."""
    module._flash.cache_clear()

    def pretend(capability: tuple[int, int], cudnn: int | None, *packages: str) -> dict[str, list]:
        calls: dict[str, list] = {}
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: cudnn is not None)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        for name in ("flash_attn", "flash_attn_interface"):
            if name not in packages:
                monkeypatch.setitem(sys.modules, name, None)
                continue
            fake = types.ModuleType(name)
            fake.__spec__ = importlib.machinery.ModuleSpec(name, None)
            calls[name] = []

            def flash_attn_func(q, k, v, of=calls[name], pair=name == "flash_attn_interface"):
                of.append((q, k, v))
                out = dense(q, k, v).to(q.dtype)
                return (out, "log-sum-exp") if pair else out

            fake.flash_attn_func = flash_attn_func
            monkeypatch.setitem(sys.modules, name, fake)
        return calls

    yield pretend
    module._flash.cache_clear()


@pytest.mark.parametrize(
    ("capability", "cudnn", "packages", "expected"),
    [
        ((9, 0), 90100, ("flash_attn", "flash_attn_interface"), ("fa3", "cudnn", "fa2", "sdpa")),
        ((9, 0), 90100, (), ("cudnn", "sdpa")),
        ((9, 0), 8907, ("flash_attn",), ("fa2", "sdpa")),
        ((9, 0), None, (), ("sdpa",)),
        ((10, 0), 90100, ("flash_attn", "flash_attn_interface"), ("cudnn", "fa2", "sdpa")),
        ((8, 9), 90100, ("flash_attn", "flash_attn_interface"), ("fa2", "sdpa")),
        ((7, 5), 90100, ("flash_attn", "flash_attn_interface"), ("sdpa",)),
    ],
)
def test_what_a_device_can_run(a_device, capability, cudnn, packages, expected) -> None:
    a_device(capability, cudnn, *packages)
    assert available("cuda", torch.bfloat16) == available("cuda:0", torch.float16) == expected
    assert choose_backend("cuda", torch.bfloat16) == expected[0]
    assert available("cuda", torch.float32) == ("sdpa",)
    for backend in expected:
        assert choose_backend("cuda", torch.bfloat16, backend) == backend


@pytest.mark.parametrize(("backend", "package"), [("fa3", "flash_attn_interface"), ("fa2", "flash_attn")])
def test_an_installed_package_is_called_in_its_layout(a_device, backend: str, package: str) -> None:
    calls = a_device((9, 0), 90100, "flash_attn", "flash_attn_interface")
    q, k, v = qkv()
    torch.testing.assert_close(attention(q, k, v, backend=backend), dense(q, k, v))
    assert {name: len(made) for name, made in calls.items()} == {package: 1, **{n: 0 for n in calls if n != package}}
    for given, passed in zip((q, k, v), calls[package][0], strict=True):
        assert passed.data_ptr() == given.data_ptr() and passed.shape == given.shape  # [B, tokens, heads, width]


def test_a_bias_goes_through_pytorch_whatever_the_backend(a_device) -> None:
    calls = a_device((9, 0), 90100, "flash_attn", "flash_attn_interface")
    q, k, v = qkv()
    bias = normal(2, 1, 1, 11, seed=3)
    for backend in module.BACKENDS:
        torch.testing.assert_close(attention(q, k, v, bias, backend), dense(q, k, v, bias))
    assert not any(calls.values())


@needs_cuda
@pytest.mark.parametrize("with_bias", [False, True])
def test_kernels_of_this_device_agree(with_bias: bool) -> None:
    q, k, v = (normal(2, rows, 4, 64, seed=i, dtype=torch.bfloat16).cuda() for i, rows in enumerate((96, 224, 224)))
    bias = None
    if with_bias:
        bias = torch.zeros(2, 1, 1, 224, dtype=torch.bfloat16, device="cuda")
        bias[0, ..., 100:] = -math.inf
        bias[1, ..., 5] = 6.0
    expected = dense(q, k, v, bias)
    for backend in available("cuda", torch.bfloat16):
        out = attention(q, k, v, bias, backend).double()
        assert (out - expected).norm() / expected.norm() < 0.01, backend
