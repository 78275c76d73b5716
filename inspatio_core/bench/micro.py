"""``inspatio bench star-micro``: every matrix product and attention of the network alone, by every kernel at hand.

Says which kernel to take for which shape, and how fast a block could be if nothing but these products cost time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inspatio_core.bench.timing import seconds_per_call
from inspatio_core.star.attention import attention, available, choose_backend
from inspatio_core.star.config import LATENT_CHANNELS, PATCH, StarConfig

TIMED = (
    "one kernel called again and again on random numbers that stay where they are, after a warm-up; median. fp8: the "
    "product alone, of operands that are in 8 bits already"
)
CPU_LATENT_TOKENS = 128
"""Tokens of a latent on a CPU, where those of a real picture would take minutes."""
E4M3_MAX = 448.0


@dataclass(frozen=True)
class Product:
    """x [m, k] times weights [k, n]; `calls` of them a block."""

    name: str
    m: int
    k: int
    n: int
    calls: int

    @property
    def flops(self) -> int:
        """Of one call."""
        return 2 * self.m * self.k * self.n


@dataclass(frozen=True)
class Attend:
    """`queries` tokens attend to `keys` tokens; `calls` of them a block."""

    name: str
    batch: int
    queries: int
    keys: int
    heads: int
    width: int
    calls: int

    @property
    def flops(self) -> int:
        """Of one call."""
        return 4 * self.batch * self.queries * self.keys * self.heads * self.width


def products(config: StarConfig, latent_tokens: int, slots: int = 1) -> list[Product]:
    """The matrix products of a steady block. Those with 0 calls are alternatives: q, k and v in one."""
    d, ffn, layers, steps = config.dim, config.ffn_dim, config.num_layers, len(config.steps)
    patch = PATCH * PATCH
    found = []
    block = slots * config.latents_per_block * latent_tokens
    for where, m, passes, whole in (("context", 2 * block, 1, layers - 1), ("denoise", block, steps, layers)):
        channels = LATENT_CHANNELS if where == "context" else config.in_dim
        square = 2 * layers + 2 * whole + (2 * whole if config.text else 0)  # k, v; q, o; cross q, o
        found += [
            Product(f"{where} embed", m, channels * patch, d, passes),
            Product(f"{where} q k v o", m, d, d, passes * square),
            Product(f"{where} q+k+v in one", m, d, 3 * d, 0),
            Product(f"{where} ffn up", m, d, ffn, passes * whole),
            Product(f"{where} ffn down", m, ffn, d, passes * whole),
        ]
    return [*found, Product("denoise head", block, d, patch * config.out_dim, steps)]


def attends(config: StarConfig, latent_tokens: int, slots: int = 1) -> list[Attend]:
    """The self attention of a steady block."""
    block, heads = config.latents_per_block * latent_tokens, (config.num_heads, config.head_dim)
    return [
        Attend("context attention", slots, 2 * block, 2 * block, *heads, config.num_layers - 1),
        Attend("denoise attention", slots, block, 3 * block, *heads, config.num_layers * len(config.steps)),
    ]


def fp8_product(x: Tensor, weight: Tensor, rowwise: bool) -> Callable[[], Tensor]:
    """x [m, k] @ weight [n, k]^T in 8 bits (e4m3), as a call without arguments; the result is bfloat16.

    One scale for each row of x and of weight, or one for each of the two.
    """

    def quantised(t: Tensor) -> tuple[Tensor, Tensor]:
        top = t.float().abs().amax(1, keepdim=True) if rowwise else t.float().abs().amax()
        scale = top.clamp(min=1e-12) / E4M3_MAX
        return (t.float() / scale).to(torch.float8_e4m3fn), scale

    (x8, x_scale), (w8, w_scale) = quantised(x), quantised(weight)
    scales = (x_scale, w_scale.t() if rowwise else w_scale)
    return lambda: torch._scaled_mm(x8, w8.t(), *scales, out_dtype=torch.bfloat16, use_fast_accum=True)


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies in 8 bits."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def time_product(product: Product, device: torch.device, dtype: torch.dtype, budget: float) -> dict[str, float | str]:
    """Seconds a call by kernel; a text instead where a kernel fails."""
    x = torch.randn(product.m, product.k, device=device, dtype=dtype)
    weight = torch.randn(product.n, product.k, device=device, dtype=dtype) / product.k**0.5
    bias = torch.randn(product.n, device=device, dtype=dtype)
    kernels = {str(dtype).removeprefix("torch."): lambda: F.linear(x, weight, bias)}
    results: dict[str, float | str] = {}
    if has_fp8(device) and product.k % 16 == 0 and product.n % 16 == 0:
        for name, rowwise in (("fp8 tensor", False), ("fp8 row", True)):
            with _failure_in(results, name):
                kernels[name] = fp8_product(x, weight, rowwise)
    for name, kernel in kernels.items():
        with _failure_in(results, name):
            results[name] = seconds_per_call(kernel, device, budget)
    return results


def time_attend(attend: Attend, device: torch.device, dtype: torch.dtype, budget: float) -> dict[str, float | str]:
    """Seconds a call by backend; a text instead where one fails."""
    q, k, v = (
        torch.randn(attend.batch, tokens, attend.heads, attend.width, device=device, dtype=dtype)
        for tokens in (attend.queries, attend.keys, attend.keys)
    )
    results: dict[str, float | str] = {}
    for backend in available(device, dtype):
        with _failure_in(results, backend):
            results[backend] = seconds_per_call(lambda b=backend: attention(q, k, v, backend=b), device, budget)
    return results


@contextmanager
def _failure_in(results: dict, name: str) -> Iterator[None]:
    """What a kernel raises is its result: the others are still worth knowing."""
    try:
        yield
    except (RuntimeError, ImportError, ValueError, TypeError, AttributeError) as error:
        results[name] = f"failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"[:200]


def star_micro(
    config: StarConfig,
    device: torch.device,
    dtype: torch.dtype,
    machine: dict,
    image_size: tuple[int, int] = (480, 832),
    slots: int = 1,
    budget: float = 0.4,
    tell: Callable[[str], None] = lambda line: None,
) -> dict:
    """Time every shape by every kernel.

    Args:
        machine: what `machine.describe` says of where this runs.
        image_size: (height, width) of the frames; on a CPU shapes are made smaller, which the result says.
        budget: seconds a kernel and shape.
        tell: called with each row of the table as it is there.

    Returns:
        What is written as JSON.
    """
    real = image_size[0] * image_size[1] // config.multiple**2
    tokens = min(real, CPU_LATENT_TOKENS) if device.type == "cpu" else real
    place = machine.get("gpu", machine["cpu"])
    tell(f"{place}, torch {machine['torch']}, {str(dtype).removeprefix('torch.')}, {tokens} tokens a latent")
    if tokens < real:
        tell(f"SMALLER than the {real} tokens of {image_size[0]}x{image_size[1]}, which would take long here")
    tell(f"{'':22}{'shape':>22} {'calls':>6}  TFLOP/s by kernel")
    rows = []
    with torch.no_grad():
        for product in products(config, tokens, slots):
            what = f"{product.m} x {product.k} x {product.n}"
            rows.append(_row("product", product, what, time_product(product, device, dtype, budget), tell))
        for attend in attends(config, tokens, slots):
            what = f"{attend.queries} x {attend.keys} x {attend.heads} x {attend.width}"
            rows.append(_row("attention", attend, what, time_attend(attend, device, dtype, budget), tell))
    report = {
        "what": "kernels of the STAR network",
        "timed": TIMED,
        "machine": machine,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "image_size": list(image_size),
        "slots": slots,
        "latent_tokens": tokens,
        "smaller_than_asked": tokens < real,
        "rows": rows,
        "best": recommend(rows, choose_backend(device, dtype)),
    }
    for line in report["best"]["lines"]:
        tell(line)
    return report


def _row(kind: str, shape: Product | Attend, what: str, seconds: dict[str, float | str], tell) -> dict:
    rates = {n: t if isinstance(t, str) else shape.flops / t / 1e12 for n, t in seconds.items()}
    shown = ", ".join(f"{n} {r if isinstance(r, str) else format(r, '.4g')}" for n, r in rates.items())
    tell(f"{shape.name:22}{what:>22} {shape.calls:6}  {shown}")
    return {
        "kind": kind,
        "name": shape.name,
        "shape": what,
        "calls_per_block": shape.calls,
        "tflop": shape.flops / 1e12,
        "ms": {n: t if isinstance(t, str) else 1e3 * t for n, t in seconds.items()},
        "tflop_per_s": rates,
    }


def recommend(rows: list[dict], chosen: str) -> dict:
    """What `rows` speak for.

    Args:
        rows: those of `star_micro`.
        chosen: the attention backend that is taken without being asked for one.

    Returns:
        ``attention`` the best backend for each shape, ``products`` the best kernel for each, ``block_ms`` what all
        calls of a block take: ``plain`` with the 16- or 32-bit products and the chosen backend, ``best`` with the best
        of all; ``lines`` the same in words. A shape without one kernel that works makes block_ms None.
    """
    lines, best, plain_ms, best_ms = [], {"product": {}, "attention": {}}, 0.0, 0.0
    for row in rows:
        times = {name: ms for name, ms in row["ms"].items() if not isinstance(ms, str)}
        if not times:
            lines.append(f"{row['name']}: no kernel works")
            plain_ms = best_ms = None
            continue
        fastest = min(times, key=times.__getitem__)
        best[row["kind"]][row["name"]] = fastest
        usual = chosen if row["kind"] == "attention" else next(iter(n for n in times if not n.startswith("fp8")), None)
        if plain_ms is not None:
            plain_ms = None if usual not in times else plain_ms + row["calls_per_block"] * times[usual]
        if best_ms is not None:
            best_ms += row["calls_per_block"] * times[fastest]
        if usual in times and fastest != usual:
            ratio = times[usual] / times[fastest]
            lines.append(f"{row['name']}: {fastest}, {ratio:.2f} times as fast as {usual}")
    for where in ("context", "denoise"):
        by_name = {row["name"]: row["ms"] for row in rows if row["kind"] == "product"}
        apart, together = by_name.get(f"{where} q k v o", {}), by_name.get(f"{where} q+k+v in one", {})
        for name in apart:
            if not isinstance(apart[name], str) and not isinstance(together.get(name, ""), str):
                ratio = 3 * apart[name] / together[name]
                lines.append(f"{where} q, k, v in one product, {name}: {ratio:.2f} times as fast as in three")
    if best_ms is not None:
        plain = "not known" if plain_ms is None else f"{plain_ms:.1f} ms"
        what = "products and self attention of a block of these shapes"
        lines.append(f"{what}: {plain} as it is, {best_ms:.1f} ms by the best kernels")
    return {
        "attention": best["attention"],
        "products": best["product"],
        "attention_taken": chosen,
        "block_ms": {"plain": plain_ms, "best": best_ms},
        "lines": lines,
    }
