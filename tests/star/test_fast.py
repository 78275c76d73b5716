"""The fast rollout against the plain one: values, memory, graphs' bookkeeping, 8 bits, the compiler."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.star import fast
from inspatio_core.star.cache import Workspace
from inspatio_core.star.config import StarConfig
from inspatio_core.star.dit import StarDiT, TextKV
from inspatio_core.star.fast import Dense, FastRollout, joined, linear
from inspatio_core.star.fp8 import fp8_linear, quantise, quantise_linear, require_fp8
from inspatio_core.star.kernels import compiled_ops
from inspatio_core.star.rollout import Rollout
from tests.conformance.harness import Case, cases
from tests.conformance.star import network as golden_network

from .plain import HEIGHT, SMALL, WIDTH, deviation, network, normal
from .test_rollout import Operations, clip, roll, text_of

FP32 = 1e-5  # of the root mean square
FP8 = 0.03  # what 8 bits may cost on golden data; 0.025 when written
WIDE = StarConfig(
    dim=64, ffn_dim=96, num_heads=2, num_layers=3, freq_dim=16, text_dim=12, text_len=192, latents_per_block=2
)


def both(config: StarConfig = SMALL, dtype: torch.dtype = torch.float32, **how) -> tuple[Rollout, FastRollout]:
    plain = Rollout(network(config, dtype), HEIGHT, WIDTH)
    return plain, FastRollout(plain, **how)


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("text", ["few rows", "every row", "none"])
def test_it_gives_what_the_plain_rollout_gives(batch: int, text: str) -> None:
    config = SMALL if text != "none" else SMALL.replace(text=False)
    plain, quick = both(config)
    lengths = [40, 3][:batch]
    given = None if text == "none" else text_of(plain.model, lengths)
    if text == "every row":
        embeds = normal(batch, SMALL.text_len, SMALL.text_dim, seed=4)
        with torch.no_grad():
            given = plain.model.text_kv(embeds)
        assert given.bias is None
    workspaces = [r.workspace(batch) for r in (plain, quick)]
    expected, got = (roll(r, clip(3, batch), given, space) for r, space in zip((plain, quick), workspaces, strict=True))
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert deviation(got, expected) < FP32
    for ours, theirs in zip(workspaces[1].k, workspaces[0].k, strict=True):
        assert deviation(ours, theirs) < FP32
    for ours, theirs in zip(workspaces[1].v, workspaces[0].v, strict=True):
        assert deviation(ours, theirs) < FP32
    assert workspaces[1].context == workspaces[0].context


def test_without_anchor() -> None:
    plain, quick = both(SMALL.replace(in_dim=16))
    inputs = [{**block, "mask": None, "render": None} for block in clip(2, 1)]
    got, expected = (roll(r, inputs, workspace=r.workspace(1)) for r in (quick, plain))
    assert deviation(got, expected) < FP32


def test_one_layer() -> None:
    plain, quick = both(SMALL.replace(num_layers=1))
    text = text_of(plain.model, [9])
    assert deviation(roll(quick, clip(2, 1), text), roll(plain, clip(2, 1), text)) < FP32


def flows(case: Case, dtype: torch.dtype, device: str = "cpu", **how):
    """(name, flow) of every pass that a golden case holds."""
    t = {name: case.tensors[name].to(device) for name in case.tensors if name.startswith("in.")}
    model = golden_network(case, dtype).to(device)
    rollout = FastRollout(Rollout(model, *case.meta["latent_hw"]), **how)
    embeds = t["in.prompt_embeds"]
    with torch.no_grad():
        text = model.text_kv(embeds, case.meta["prompt_lengths"])
    workspace = rollout.workspace(len(embeds))
    for block in (0, 1):
        at = f"in.block{block}"
        rollout.context(t[f"{at}.ref_latent"], t[f"{at}.last_pred"] if block else None, workspace, text)
        anchor = [t[name].to(dtype) if name in t else None for name in (f"{at}.mask_latent", f"{at}.render_latent")]
        for step in range(len(t["in.timesteps"])):
            x_t = t[f"{at}.step{step}.x_t"].to(dtype)
            with torch.no_grad():
                yield f"block{block}.step{step}.flow", rollout._flow(step, x_t, *anchor, workspace, text).cpu()


golden = pytest.mark.parametrize("case", cases("dit_tiny"), ids=lambda c: c.name)


@golden
def test_golden_flows(case: Case) -> None:
    for name, flow in flows(case, torch.float32):
        case.check(f"out.{name}", flow)


@golden
def test_golden_flows_in_bfloat16(case: Case) -> None:
    """At most as far off as the released code in bfloat16."""
    for name, flow in flows(case, torch.bfloat16):
        stated = case.meta["bf16_reference_deviation"][name]["rel_rms"]
        assert 0 < deviation(flow, case.tensors[f"out.{name}"]) <= stated, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in cases("dit_tiny") if c.name == "dit_tiny_b"], ids=lambda c: c.name)
def test_golden_flows_in_8_bits(case: Case, dtype: torch.dtype) -> None:
    for name, flow in flows(case, dtype, fp8=True):
        assert 0.01 < deviation(flow, case.tensors[f"out.{name}"]) < FP8, name


# ------------------------------------------------------------------------------------------- the model stays as it was


def test_the_plain_path_keeps_its_bytes_and_the_model_its_parameters() -> None:
    plain = Rollout(network(dtype=torch.float32), HEIGHT, WIDTH)
    model, text = plain.model, text_of(plain.model, [5])
    kept, expected = copy.deepcopy(model.state_dict()), roll(plain, clip(2, 1), text)
    FastRollout(plain)
    assert torch.equal(roll(plain, clip(2, 1), text), expected)
    after = model.state_dict()
    assert list(after) == list(kept) and all(torch.equal(after[k], kept[k]) for k in kept)


def test_joined_weights_are_the_parameters() -> None:
    plain, first = both()
    memory = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in plain.model.parameters()}
    assert sum(memory.values()) == sum(p.nbytes for p in plain.model.parameters())
    weights = first._layers[0].qkv
    attn = plain.model.blocks[0].self_attn
    d = SMALL.dim
    for i, part in enumerate((attn.q, attn.k, attn.v)):
        assert weights.weight[i * d].data_ptr() == part.weight.data_ptr()
        assert torch.equal(weights.bias[i * d : i * d + d], part.bias)
    second = FastRollout(plain)  # for another size, say
    assert second._layers[0].qkv.weight.data_ptr() == weights.weight.data_ptr()
    text = text_of(plain.model, [5])
    before = roll(first, clip(1, 1), text)
    with torch.no_grad():
        attn.k.weight.mul_(1.5)  # as loading does: in place
    assert deviation(roll(first, clip(1, 1), text), roll(plain, clip(1, 1), text)) < FP32
    assert deviation(roll(first, clip(1, 1), text), before) > 100 * FP32


def test_parts_that_only_look_joined_are_not_taken_for_it() -> None:
    """The parameters of one storage in another order."""
    attn = network(dtype=torch.float32).blocks[0].self_attn
    store = torch.cat([attn.v.weight, attn.k.weight, attn.q.weight]).detach()
    expected = torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]).detach()
    for part, at in zip((attn.v, attn.k, attn.q), store.chunk(3), strict=True):
        part.weight.data = at
    assert torch.equal(joined(attn)[0], expected)
    assert torch.equal(torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]), expected)


# ------------------------------------------------------------------------------------------------------- the interface


def test_it_is_a_rollout() -> None:
    plain, quick = both()
    assert isinstance(quick, Rollout) and quick.noise_shape == plain.noise_shape
    assert quick.sampler.sigmas == plain.sampler.sigmas
    assert isinstance(quick.workspace(2), Workspace) and quick.workspace(2).k.shape == plain.workspace(2).k.shape
    assert quick.path == "PyTorch, attention sdpa"
    traced: dict[str, list] = {"plain": [], "quick": []}
    for name, r in (("plain", plain), ("quick", quick)):
        roll(r, clip(1, 1), trace=lambda step, x_t, x0, of=traced[name]: of.append((step, x_t, x0)))
    assert [step for step, *_ in traced["quick"]] == list(range(len(plain.sampler)))
    for (_, *ours), (_, *theirs) in zip(traced["quick"], traced["plain"], strict=True):
        assert all(deviation(a, b) < FP32 for a, b in zip(ours, theirs, strict=True))


def test_the_same_noise_gives_the_same_bytes_in_every_slot() -> None:
    """One by one, as the CPU runs them, on parts of one workspace."""
    _, quick = both()
    text, workspace = text_of(quick.model, [5]), quick.workspace(3)
    alone = roll(quick, clip(3, 1), text)
    for slot in range(3):
        assert torch.equal(roll(quick, clip(3, 1), text, workspace.slot(slot)), alone)


def test_inputs_are_left_as_they_are() -> None:
    _, quick = both()
    inputs, kept = list(clip(2, 2)), list(clip(2, 2))
    text = text_of(quick.model, [5, 9])
    before = [None if t is None else t.clone() for t in text]
    first = roll(quick, inputs[:1], text)
    copied = first.clone()
    roll(quick, inputs, text)
    assert torch.equal(first, copied)
    for a, b in zip(inputs, kept, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("reference", "mask", "render"))
        assert all(torch.equal(x, y) for x, y in zip(a["noise"], b["noise"], strict=True))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(text, before, strict=True))


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_warming_up_runs_what_will_run_and_changes_nothing(kind: str, monkeypatch) -> None:
    plain, quick = both()
    rollout = {"plain": plain, "fast": quick}[kind]
    text, workspace = text_of(plain.model, [5]), rollout.workspace(1)
    expected = roll(rollout, clip(2, 1), text)
    ran = []

    def noted(name: str, one):
        return lambda *given: ran.append((name, workspace.context)) or one(*given)

    for name in ("context", "denoise"):
        monkeypatch.setattr(rollout, name, noted(name, getattr(rollout, name)))
    workspace.ticket = "someone's"
    rollout.warm_up(workspace, text)
    rows = SMALL.latents_per_block * 12
    assert [name for name, _ in ran] == ["context", "denoise"] * 2
    assert [rows_ for name, rows_ in ran if name == "denoise"] == [rows, 2 * rows]
    assert workspace.ticket is None
    monkeypatch.undo()
    assert torch.equal(roll(rollout, clip(2, 1), text, workspace), expected)


def test_no_value_is_waited_for_and_nothing_is_joined() -> None:
    _, quick = both()
    text, workspace, last, made = text_of(quick.model, [3, 40]), quick.workspace(2), None, []
    for block in clip(3, 2):
        with Operations() as operations:
            quick.context(block["reference"], last, workspace, text)
            last = quick.denoise(block["noise"], block["mask"], block["render"], workspace, text)
        made.append(operations.made)
    assert made[1] == made[2]  # the same memory layouts
    joins = [shape for op, shape, *_ in made[2] if op == torch.ops.aten.cat.default]
    assert all(len(shape) == 5 for shape in joins)


def test_a_block_needs_no_values_at_all() -> None:
    """On the meta device, at full size."""
    with torch.device("meta"):
        model = StarDiT(StarConfig(num_layers=3)).to(torch.bfloat16).eval()
    rollout = FastRollout(Rollout(model, 60, 104))
    workspace, text = rollout.workspace(2), model.text_kv(torch.zeros(2, 512, 4096), (20, 30))
    latents, mask = (torch.zeros(2, 3, c, 60, 104, device="meta") for c in (16, 4))
    rollout.context(latents, latents, workspace, text)
    out = rollout.denoise([latents] * 4, mask, latents, workspace, text)
    assert out.is_meta and out.shape == latents.shape and out.dtype == torch.bfloat16 and workspace.context == 9360


def test_float64_is_refused() -> None:
    with pytest.raises(InputError, match="not torch.float64"):
        both(dtype=torch.float64)


# ------------------------------------------------------------------------------------------- graphs, without a device


@pytest.fixture
def pretended(monkeypatch):
    """A rollout whose graphs are not captured but run again, on the same memory; and the list of captures."""
    captures = []

    def record(self, run, places):
        captures.append(run.__qualname__.split(".")[-3])
        output = run(*places)

        def replay():
            again = run(*places)
            if output is not None:
                output.copy_(again)

        return replay, places, output

    monkeypatch.setattr(fast._Graphs, "_record", record)
    plain, quick = both()
    quick._graphs = fast._Graphs(torch.device("cpu"), torch.float32)
    return plain, quick, captures


def test_replays_give_what_runs_give(pretended) -> None:
    plain, quick, captures = pretended
    without = FastRollout(plain)
    text = text_of(plain.model, [5, 9])
    workspace = quick.workspace(2)
    for seed in (0, 7):
        expected = roll(without, clip(4, 2, seed), text)
        assert torch.equal(roll(quick, clip(4, 2, seed), text, workspace), expected)
        # context and denoising of a first and of a later block; nothing more for other values
        assert captures == ["context", "denoise"] * 2


def test_what_was_returned_is_not_written_to_again(pretended) -> None:
    _, quick, _ = pretended
    blocks, workspace = list(clip(2, 1)), quick.workspace(1)
    quick.context(blocks[0]["reference"], None, workspace)
    first = quick.denoise(blocks[0]["noise"], blocks[0]["mask"], blocks[0]["render"], workspace)
    copied = first.clone()
    quick.context(blocks[1]["reference"], None, workspace)
    second = quick.denoise(blocks[1]["noise"], blocks[1]["mask"], blocks[1]["render"], workspace)
    assert torch.equal(first, copied) and not torch.equal(first, second)


def test_a_new_prompt_is_captured_anew_only_where_its_rows_differ(pretended) -> None:
    plain, quick, captures = pretended
    without, workspace = FastRollout(plain), quick.workspace(1)
    prompts = [text_of(plain.model, [n]) for n in (5, 9, 100)]
    prompts[1] = TextKV(prompts[1].keys * 1.1, *prompts[1][1:])
    assert [p.keys.shape[2] for p in prompts] == [64, 64, 128]
    for i in (0, 1, 2, 0, 2, 1):  # and back
        expected = roll(without, clip(2, 1), prompts[i])
        assert torch.equal(roll(quick, clip(2, 1), prompts[i], workspace), expected)
    assert len(captures) == 2 * 4
    with torch.no_grad():
        every = plain.model.text_kv(normal(1, 128, SMALL.text_dim, seed=3))
    every = TextKV(every.keys[:, :, :128].contiguous(), every.values[:, :, :128].contiguous(), None)
    assert torch.equal(roll(quick, clip(2, 1), every, workspace), roll(without, clip(2, 1), every))
    assert len(captures) == 3 * 4  # as many rows, but no bias
    assert torch.equal(roll(quick, clip(2, 1), None, workspace), roll(without, clip(2, 1)))
    assert len(captures) == 4 * 4


def test_each_workspace_has_graphs_of_its_own(pretended) -> None:
    _, quick, captures = pretended
    both_slots, other = quick.workspace(2), quick.workspace(2)
    expected = roll(quick, clip(2, 1), workspace=both_slots.slot(0))
    assert len(captures) == 4
    assert torch.equal(roll(quick, clip(2, 1), workspace=both_slots.slot(1)), expected)
    assert len(captures) == 8
    assert torch.equal(roll(quick, clip(2, 1), workspace=both_slots.slot(0)), expected)
    assert len(captures) == 8
    roll(quick, clip(2, 2), workspace=other)
    roll(quick, clip(2, 2), workspace=both_slots)
    assert len(captures) == 16


def test_warming_up_captures_all_that_a_session_runs(pretended) -> None:
    plain, quick, captures = pretended
    text, workspace = text_of(plain.model, [5]), quick.workspace(1)
    quick.warm_up(workspace, text)
    assert len(captures) == 4
    assert torch.equal(roll(quick, clip(3, 1), text, workspace), roll(FastRollout(plain), clip(3, 1), text))
    assert len(captures) == 4


def test_a_trace_runs_the_pass_itself(pretended) -> None:
    _, quick, captures = pretended
    workspace, steps = quick.workspace(1), []
    expected = roll(quick, clip(2, 1), workspace=workspace)
    got = roll(quick, clip(2, 1), workspace=workspace, trace=lambda step, *_: steps.append(step))
    assert torch.equal(got, expected) and len(steps) == 2 * len(quick.sampler) and len(captures) == 4


# -------------------------------------------------------------------------------------------------------------- 8 bits


def test_all_large_products_are_in_8_bits(monkeypatch) -> None:
    plain, quick = both(WIDE, fp8=True)
    assert "8-bit products" in quick.path
    products = []
    monkeypatch.setattr(fast, "linear", lambda *_, **__: pytest.fail("a product in full"))
    monkeypatch.setattr(fast, "fp8_linear", lambda x, w: products.append(w.values.shape) or fp8_linear(x, w))
    text = text_of(plain.model, [5])
    got, expected = roll(quick, clip(1, 1), text), roll(plain, clip(1, 1), text)
    d, f = WIDE.dim, WIDE.ffn_dim
    layer = [(3 * d, d), (d, d), (d, d), (d, d), (f, d), (d, f)]
    step = layer * WIDE.num_layers
    assert products == layer * (WIDE.num_layers - 1) + [(2 * d, d)] + step * len(quick.sampler)
    assert 0.005 < deviation(got, expected) < 0.1


def test_an_8_bit_product() -> None:
    x, weight, bias = normal(7, 64, seed=1).float(), normal(48, 64, seed=2).float(), normal(48, seed=3).float()
    weight[3] *= 50
    x[2] *= 50
    layer = quantise_linear(weight, bias)
    got = fp8_linear(quantise(x), layer)
    assert layer.values.dtype == torch.float8_e4m3fn and layer.values.shape == (48, 64) and layer.scale.shape == (1, 48)
    back = (quantise(x).values.double() * quantise(x).scale) @ (layer.values.double() * layer.scale.t()).T + bias
    torch.testing.assert_close(got.double(), back, rtol=1e-5, atol=1e-4)
    exact = x @ weight.T + bias
    usual = [column for column in range(48) if column != 3]
    for row in range(7):  # a large row, a large column cost the others nothing
        assert 0.01 < deviation(got[row, usual], exact[row, usual]) < 0.06


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "width", "message"),
    [
        ("cuda", (9, 0), torch.bfloat16, 64, None),
        ("cuda", (10, 0), torch.bfloat16, 64, None),
        ("cuda", (8, 9), torch.bfloat16, 64, r"Hopper generation \(9.0\) or newer, not one of 8.9"),
        ("cuda", (9, 0), torch.float32, 64, "bfloat16, not torch.float32"),
        ("cuda", (9, 0), torch.bfloat16, 40, "multiples of 16, not 40"),
        ("cpu", None, torch.float32, 64, None),
        ("cpu", None, torch.float32, 40, "multiples of 16, not 40"),
        ("mps", None, torch.float32, 64, "not on mps"),
    ],
)
def test_where_8_bits_cannot_be(monkeypatch, device, capability, dtype, width, message) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if message is None:
        require_fp8(torch.device(device), dtype, (width,))
    else:
        with pytest.raises(InputError, match=message):
            require_fp8(torch.device(device), dtype, (width,))


# ------------------------------------------------------------------------------------------------------- on the CPU


@pytest.mark.parametrize("onednn", [True, False])
def test_products(monkeypatch, onednn: bool) -> None:
    monkeypatch.setattr(fast, "ONEDNN", onednn and fast.ONEDNN)
    for dtype in (torch.float32, torch.bfloat16):
        x, w = (
            normal(7, 20, seed=1, dtype=dtype),
            Dense(normal(9, 20, seed=2, dtype=dtype), normal(9, seed=3, dtype=dtype)),
        )
        expected = x.double() @ w.weight.double().T + w.bias.double()
        after = torch.nn.functional.gelu(expected, approximate="tanh")
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        assert deviation(linear(x, w), expected) < tolerance
        assert deviation(linear(x, w, gelu=True), after) < tolerance


# -------------------------------------------------------------------------------------------------------- the compiler


def test_compiled_it_gives_the_same() -> None:
    plain, quick = both(SMALL.replace(num_layers=2), compile=True)
    assert quick.path == "torch.compile, attention sdpa"
    quick.ops = compiled_ops("aot_eager")
    text = text_of(plain.model, [5, 40])
    assert deviation(roll(quick, clip(2, 2), text), roll(plain, clip(2, 2), text)) < FP32


@pytest.mark.slow
def test_compiled_by_inductor_it_gives_the_same(tmp_path, monkeypatch) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # noqa: BLE001 - whatever it raises, there is none
        pytest.skip(f"needs a C++ compiler: {error}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for dtype, limit in ((torch.float32, FP32), (torch.bfloat16, 0.02)):
        plain, quick = both(dataclasses.replace(WIDE, num_layers=2), dtype, compile=True)
        text = text_of(plain.model, [5])
        assert deviation(roll(quick, clip(2, 1), text), roll(plain, clip(2, 1), text)) < limit
    _, eight = both(WIDE, fp8=True)
    _, compiled = both(WIDE, fp8=True, compile=True)
    assert deviation(roll(compiled, clip(1, 1)), roll(eight, clip(1, 1))) < 0.01
