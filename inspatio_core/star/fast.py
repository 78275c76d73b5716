"""The rollout made fast: the plain network's function in fewer passes over memory, CUDA graphs, 8-bit products.

Where the time goes. A steady block of the 1.3B at 480 x 832 is 138 TFLOP of products and attention, 175 ms at the
790 TFLOP/s that an H200 gives large bf16 products. What lies between the products moves memory only; X = 14.4 MB is one
pass over the activations of a denoising step (4680 x 1536 in bf16). Per layer and step, in X:

    step                                            eager   here
    residual, norm, shift and scale (3 times)          51     12   read x, y; write x, norm
    norm of q and k, rotation, into the workspace      93      6   read q, k, v; write q, k, v
    norm of q for the prompt                           20      2
    GELU (5.8 X wide)                                  12      0   in the product's epilogue
    sum                                               175     20
    of a block: 120 of these, 58 in the context    449 GB  51 GB   104 ms and 12 ms at 4.3 TB/s

Eager is counted from the operations of the plain path; where PyTorch fuses the norms of q and k (2.9 and later, on
CUDA) it is 121. Part of it never leaves the cache: these are upper bounds.

So the steps between the products are what is fused, and no more: `kernels.Ops`, by hand in Triton on CUDA, by
torch.compile if asked to. The compiler moves the same bytes, as products and attention bound what it can fuse, and
needs no kernels of ours, but compiles longer and for each shape: the kernels are the default. It is given these steps
alone, as the network around them has nothing to gain. q, k and v are one product: fewer launches and fuller waves of
tiles, for a copy of v (1 ms a block). At 480 x 832 kernels run longer than their launching takes: graphs win little
there, more at small sizes, and leave the CPU to others.

On the CPU the products go to oneDNN, which on some makes of CPU is twice as fast as what PyTorch asks by itself, and
the steps between are those of `kernels.PLAIN`, each a call or two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspatio_core.errors import InputError
from inspatio_core.star import kernels
from inspatio_core.star.attention import attention, choose_backend
from inspatio_core.star.cache import InPlace, Workspace
from inspatio_core.star.dit import Attention, Layer, Modulation, TextKV
from inspatio_core.star.fp8 import Fp8Linear, Quantised, fp8_linear, quantise_linear, require_fp8
from inspatio_core.star.rollout import Rollout
from inspatio_core.star.rope import RopeTable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Dense(NamedTuple):
    """A linear layer: weight [N, K], bias [N]."""

    weight: Tensor
    bias: Tensor


Linear = Dense | Fp8Linear


class CrossWeights(NamedTuple):
    """Of attention to the prompt: gain and shift (float32 [D]) of the norm before it, projections, norm of q."""

    gain: Tensor
    shift: Tensor
    q: Linear
    o: Linear
    norm_q: Tensor


class LayerWeights(NamedTuple):
    """Of one layer, as they are multiplied with."""

    qkv: Linear
    o: Linear
    up: Linear
    down: Linear
    norm_q: Tensor
    norm_k: Tensor
    cross: CrossWeights | None


class StepModulation(NamedTuple):
    """Of one timestep, float32 [D] each.

    first: gain and shift of the first layer's first norm. layers: of each layer its first gate; gain and shift of the
    feed-forward's norm, its gate; gain and shift of the next layer's first norm, or of the head's.
    """

    first: tuple[Tensor, Tensor]
    layers: list[tuple[Tensor, ...]]


class FastRollout(Rollout):
    """A `Rollout` that gives the same within rounding, sooner. Takes `Workspace`s only, and keeps the path it has.

    The weights of q, k and v become parts of one tensor, which the model's parameters then point to: nothing is held
    twice (but 8-bit weights, which come on top). Norms, modulations and 8-bit weights are taken as they are: make it
    once weights are loaded, and do not move the model afterwards.

    With ``graphs``, one call at a time: the graphs share their memory.

    Args:
        rollout: whose model and size it has.
        compile: let torch.compile fuse the steps between products, instead of the kernels written for them.
        graphs: on CUDA, capture each pass once for every workspace and shape, then replay it: `warm_up` does it ahead.
        fp8: linear layers in 8 bits, on GPUs that can; simulated on the CPU.

    Attributes:
        path: what was chosen, in words.

    Raises:
        InputError: a dtype that is not float32, bfloat16 or float16; ``fp8`` where it cannot be.
    """

    def __init__(self, rollout: Rollout, *, compile: bool = False, graphs: bool = False, fp8: bool = False):
        super().__init__(rollout.model, rollout.height, rollout.width)
        model = self.model
        device, dtype = model.device, model.dtype
        if dtype not in DTYPES:
            raise InputError(f"dtype: the fast path has float32, bfloat16 and float16, not {dtype}")
        if fp8:
            require_fp8(device, dtype, (model.config.dim, model.config.ffn_dim))
        self.fp8, self.graphs = fp8, graphs and device.type == "cuda"
        by_hand = device.type == "cuda" and kernels.triton is not None and not compile
        self.ops = kernels.triton_ops() if by_hand else kernels.compiled_ops() if compile else kernels.PLAIN
        self.backend = choose_backend(device, dtype, model.backend)
        with torch.no_grad():
            self._layers = [_layer_weights(layer, fp8) for layer in model.blocks]
            self._keys_only = _keys_and_values(self._layers[-1].qkv)
            self._zero = _step_modulation(self.at_zero)
            self._steps = [_step_modulation(m) for m in self.at_step]
        self._graphs = _Graphs(device, dtype) if self.graphs else None
        fused = "Triton" if by_hand else "torch.compile" if compile else "PyTorch"
        self.path = f"{fused}, attention {self.backend}{', 8-bit products' * fp8}{', CUDA graphs' * self.graphs}"

    # ------------------------------------------------------------------------------------------------ the passes

    @torch.no_grad()
    def context(self, reference: Tensor, last: Tensor | None, cache: Workspace, text: TextKV | None = None) -> None:
        """The context pass, see `Rollout.context`."""
        if self._graphs is None:
            return super().context(reference, last, cache, text)
        text = self._graphs.text(text)
        frames = [reference] if last is None else [reference, last]

        def run(*frames: Tensor) -> None:
            self._context(torch.cat(frames, 1) if len(frames) > 1 else frames[0], cache, text)

        self._graphs.replay("context", frames, cache, text, run)
        cache.begin_context(sum(f.shape[1] for f in frames) * self._tokens)

    @torch.no_grad()
    def denoise(
        self,
        noise: Sequence[Tensor],
        mask: Tensor | None,
        render: Tensor | None,
        cache: Workspace,
        text: TextKV | None = None,
        trace: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Latents of the block, see `Rollout.denoise`. A `trace` is called from the pass itself: no graph runs then."""
        if self._graphs is None or trace is not None:
            return super().denoise(noise, mask, render, cache, text, trace)
        text = self._graphs.text(text)

        def run(mask: Tensor | None, render: Tensor | None, *noise: Tensor) -> Tensor:
            return super(FastRollout, self).denoise(noise, mask, render, cache, text)

        return self._graphs.replay("denoise", [mask, render, *noise], cache, text, run).clone()

    @property
    def _tokens(self) -> int:
        """Of a latent frame."""
        return self.table.cos.shape[0] // (3 * self.model.config.latents_per_block)

    def _context(self, frames: Tensor, cache: Workspace, text: TextKV | None) -> None:
        x = self.model.embed(frames)
        tokens = x.shape[1]
        cache.begin_context(tokens)
        places = [cache.context_layer(i) for i in range(len(self._layers))]
        self._through(x, self._zero, self.table.rows(0, tokens), places, text, keys_only=True)

    def _flow(self, step: int, x_t, mask, render, cache: Workspace, text: TextKV | None) -> Tensor:
        x = self.model.embed(x_t if mask is None else torch.cat([x_t, mask, render], 2))
        tokens, rows = x.shape[1], self.table.cos.shape[0]
        places = [cache.block_layer(i, tokens) for i in range(len(self._layers))]
        y = self._through(x, self._steps[step], self.table.rows(rows - tokens, rows), places, text)
        return self.model.unpatchify(self.model.head.head(y), x_t)

    def _through(
        self,
        x: Tensor,
        modulation: StepModulation,
        rope: RopeTable,
        places: list[InPlace],
        text: TextKV | None,
        keys_only: bool = False,
    ) -> Tensor | None:
        """Tokens [B, S, D] through all layers and the head's norm, [B S, D]; `keys_only`: up to the last layer's keys
        and values."""
        x = x.flatten(0, 1)
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # Triton launches on the current one
            x, y = self._add_norm(x, None, None, *modulation.first)
            for i, (weights, place) in enumerate(zip(self._layers, places, strict=True)):
                last = i == len(self._layers) - 1
                if keys_only and last:
                    self._write(y, self._keys_only, weights, rope, place)
                    return None
                of_layer = None if text is None else (text.keys[i], text.values[i], text.bias)
                x, y = self._layer(x, y, weights, modulation.layers[i], rope, place, of_layer, last)
        return y

    def _layer(
        self,
        x: Tensor,
        y: Tensor | Quantised,
        w: LayerWeights,
        modulation: tuple[Tensor, ...],
        rope: RopeTable,
        place: InPlace,
        text: tuple[Tensor, Tensor, Tensor | None] | None,
        last: bool,
    ) -> tuple[Tensor, Tensor | Quantised]:
        """x [R, D] and its norm, which is what a layer begins with, one layer on."""
        gate, gain, shift, gate2, next_gain, next_shift = modulation
        q = self._write(y, w.qkv, w, rope, place)
        y = self._linear(attention(q, *place, backend=self.backend).reshape(x.shape), w.o)
        if text is None:
            x, y = self._add_norm(x, y, gate, gain, shift)
        else:
            x, y = self._add_norm(x, y, gate, w.cross.gain, w.cross.shift)
            norm = w.cross.norm_q
            q2 = F.rms_norm(self._linear(y, w.cross.q), norm.shape, norm, self.model.config.eps)
            y = self.ops.text_attention(q2.view(q.shape), *text)
            x, y = self._add_norm(x, self._linear(y.reshape(x.shape), w.cross.o), None, gain, shift)
        if self.fp8:
            y = self._linear(self.ops.quantise(self._linear(y, w.up), gelu=True), w.down)
        else:
            y = self._linear(linear(y, w.up, gelu=True), w.down)
        return self._add_norm(x, y, gate2, next_gain, next_shift, quantised=self.fp8 and not last)

    def _write(self, y, qkv: Linear, w: LayerWeights, rope: RopeTable, place: InPlace) -> Tensor | None:
        """Project y, write keys and values to the end of `place`; the queries."""
        start = place.keys.shape[1] - rope.cos.shape[0]
        own = place.keys[:, start:], place.values[:, start:]
        return self.ops.write_heads(self._linear(y, qkv), w.norm_q, w.norm_k, rope, *own, self.model.config.eps)

    def _add_norm(self, x, y, gate, gain, shift, quantised: bool | None = None) -> tuple[Tensor, Tensor | Quantised]:
        quantised = self.fp8 if quantised is None else quantised
        return self.ops.add_norm(x, y, gate, gain, shift, self.model.config.eps, quantised)

    def _linear(self, x: Tensor | Quantised, w: Linear) -> Tensor:
        if isinstance(w, Dense):
            return linear(x, w)
        return fp8_linear(x if isinstance(x, Quantised) else self.ops.quantise(x), w)


def linear(x: Tensor, w: Dense, gelu: bool = False) -> Tensor:
    """x [R, K] weight^T + bias, after that a GELU (tanh) if so wished, in the product's epilogue where there is one."""
    if ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32:
        after = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, w.weight, w.bias, *after)
    if gelu and x.is_cuda:  # on CUDA this is the tanh form, on the CPU the other
        return torch._addmm_activation(w.bias, x, w.weight.t(), use_gelu=True)
    y = F.linear(x, w.weight, w.bias)
    return F.gelu(y, approximate="tanh") if gelu else y


# ------------------------------------------------------------------------------------------------------------- weights


def _layer_weights(layer: Layer, in_8_bits: bool) -> LayerWeights:
    def prepared(weight: Tensor, bias: Tensor) -> Linear:
        weight, bias = weight.detach(), bias.detach()
        return quantise_linear(weight, bias) if in_8_bits else Dense(weight, bias)

    own, cross = layer.self_attn, None
    if hasattr(layer, "cross_attn"):
        norm, text = layer.norm3, layer.cross_attn
        cross = CrossWeights(
            norm.weight.detach().float(),
            norm.bias.detach().float(),
            prepared(text.q.weight, text.q.bias),
            prepared(text.o.weight, text.o.bias),
            text.norm_q.weight.detach(),
        )
    return LayerWeights(
        prepared(*joined(own)),
        prepared(own.o.weight, own.o.bias),
        prepared(layer.ffn[0].weight, layer.ffn[0].bias),
        prepared(layer.ffn[2].weight, layer.ffn[2].bias),
        own.norm_q.weight.detach(),
        own.norm_k.weight.detach(),
        cross,
    )


def joined(attn: Attention) -> tuple[Tensor, Tensor]:
    """Weight [3 D, D] and bias [3 D] of q, k and v in one; the parameters become parts of them."""
    parts = (attn.q, attn.k, attn.v)
    return _joined([p.weight for p in parts]), _joined([p.bias for p in parts])


def _joined(parameters: list[nn.Parameter]) -> Tensor:
    first, *others = parameters
    ends = [first.data_ptr() + i * first.nbytes for i in range(1, len(parameters))]
    whole = (sum(len(p) for p in parameters), *first.shape[1:])
    if all(
        p.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() and p.data_ptr() == end
        for p, end in zip(others, ends, strict=True)
    ):  # by another rollout of the same model
        return first.detach().as_strided(whole, first.stride())
    together = torch.cat([p.detach() for p in parameters])
    for parameter, part in zip(parameters, together.chunk(len(parameters)), strict=True):
        parameter.data = part
    return together


def _keys_and_values(qkv: Linear) -> Linear:
    """The part of a joined projection that gives keys and values."""
    d = len(qkv.bias) // 3
    if isinstance(qkv, Dense):
        return Dense(qkv.weight[d:], qkv.bias[d:])
    return Fp8Linear(qkv.values[d:], qkv.scale[:, d:], qkv.bias[d:])


def _step_modulation(modulation: Modulation) -> StepModulation:
    (head,) = modulation.head
    rows = [m[0].unbind(0) for m in modulation.layers]
    first = [(1 + scale, shift) for shift, scale, *_ in rows]
    following = [*first[1:], (1 + head[1], head[0])]
    layers = [
        (gate, 1 + scale2, shift2, gate2, *after)
        for (_, _, gate, shift2, scale2, gate2), after in zip(rows, following, strict=True)
    ]
    return StepModulation(first[0], layers)


# -------------------------------------------------------------------------------------------------------------- graphs


class _Captured(NamedTuple):
    replay: Callable[[], None]
    inputs: list[Tensor | None]
    output: Tensor | None
    kept: tuple  # the memory it reads and writes


class _Graphs:
    """Passes captured in CUDA graphs, one for each workspace and each shape of what goes in."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.captured: dict[tuple, _Captured] = {}
        self.texts: dict[tuple, tuple[TextKV, TextKV]] = {}

    def text(self, text: TextKV | None) -> TextKV | None:
        """The place that graphs for such a number of rows read from, with `text` copied there."""
        if text is None:
            return None
        key = (text.keys.shape, text.bias is None)
        place, inside = self.texts.get(key, (None, None))
        if inside is not text:
            place = place or TextKV(*(None if t is None else torch.empty_like(t) for t in text))
            for to, given in zip(place, text, strict=True):
                if given is not None:
                    to.copy_(given)
            self.texts[key] = place, text
        return place

    def replay(
        self,
        name: str,
        inputs: Sequence[Tensor | None],
        cache: Workspace,
        text: TextKV | None,
        run: Callable[..., Tensor | None],
    ) -> Tensor | None:
        """What run(*inputs) gives, in memory that the next call writes to; captured if that has not been done yet."""
        shapes = tuple(None if x is None else tuple(x.shape) for x in inputs)
        rows = None if text is None else (text.keys.shape[2], text.bias is None)
        context = cache.context if name == "denoise" else 0
        key = (name, cache.k.data_ptr(), tuple(cache.k.shape), context, shapes, rows)
        if key not in self.captured:
            places = [None if x is None else torch.zeros(x.shape, dtype=self.dtype, device=self.device) for x in inputs]
            self.captured[key] = _Captured(*self._record(run, places), (cache.k, cache.v, text))
        captured = self.captured[key]
        for place, given in zip(captured.inputs, inputs, strict=True):
            if given is not None:
                place.copy_(given)
        captured.replay()
        return captured.output

    @functools.cached_property
    def _shared(self) -> dict:
        return {
            "pool": torch.cuda.graph_pool_handle(),
            "stream": torch.cuda.Stream(self.device),
            "capture_error_mode": "thread_local",  # other threads, a decoder's, may allocate meanwhile
        }

    def _record(self, run: Callable[..., Tensor | None], places: list[Tensor | None]):
        """Replays run(*places); its inputs; the output, written by each replay."""
        stream, now = self._shared["stream"], torch.cuda.current_stream(self.device)
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            run(*places)  # so that what is compiled, planned or allocated once is so before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, **self._shared):
            output = run(*places)
        now.wait_stream(stream)
        return graph.replay, places, output
