"""`inspatio bench`: counts of operations, stages of a block, kernels, and what is written about them."""

import json
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from inspatio_core.bench import layers, machine, micro, report, stages, timing
from inspatio_core.bench import star as bench_star
from inspatio_core.bench.flops import flops_block, flops_context, flops_denoise, flops_text
from inspatio_core.bench.stages import Drive, Pipeline
from inspatio_core.bench.timing import Stopwatch
from inspatio_core.codecs import make_codec, taehv
from inspatio_core.generators.star import StarGenerator
from inspatio_core.star.config import CONFIGS, StarConfig
from inspatio_core.star.dit import build_star, randomise
from inspatio_core.star.rollout import Rollout
from tests.clips import run
from tests.synthetic import make_reference

CPU = torch.device("cpu")
SMALL = dict(dim=64, ffn_dim=96, num_heads=2, num_layers=3, freq_dim=32, latents_per_block=2, codec_width=8)
TEXT = StarConfig(**SMALL, text_dim=48, text_len=160)
NO_TEXT = StarConfig(**SMALL, text=False)
SIZE = (32, 48)  # of frames: 6 tokens a latent
STAGES = [
    *("encode_source", "noise", "context", "anchor", "encode_anchor"),
    *("denoise_1", "denoise_2", "denoise_3", "denoise_4", "decode", "copy_out", "depth_completion", "map_insertion"),
]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def reference():
    return make_reference(12, SIZE)


def counted(function) -> int:
    """Operations by torch's own counter, which does not know the CPU's attention."""

    def of_attention(q, k, v, *args, out_shape, **kwargs):
        batch, heads, queries, width = q
        return 4 * batch * heads * queries * k[2] * width

    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: of_attention}
    with FlopCounterMode(display=False, custom_mapping=own) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def small_model(config: StarConfig = TEXT):
    model = build_star(config)
    randomise(model)
    return model


def features(config: StarConfig, rows: int = 30):
    return torch.randn(1, rows, config.text_dim)


# --------------------------------------------------------------------------------------------------------- operations


def test_operations_of_the_released_network():
    c = CONFIGS["1.3b"]
    context, step = flops_context(c, 9360), flops_denoise(c, 4680, 9360)
    assert [round(f / 1e12, 2) for f in context] == [5.30, 2.65, 15.46, 0.15, 16.15, 0.88, 0.01]
    assert [round(f / 1e12, 2) for f in step] == [2.65, 1.32, 7.73, 0.15, 12.11, 0.44, 0.00]
    assert round(context.total / 1e12, 2) == 40.60
    assert round(step.total / 1e12, 2) == 24.41
    assert round(flops_context(c, 4680).total / 1e12, 2) == 16.34
    assert round(flops_denoise(c, 4680, 4680).total / 1e12, 2) == 20.38
    block = flops_block(c, 1560)
    assert round(block.total / 1e12, 2) == 138.25
    assert (round(block.dense / 1e12, 2), round(block.attention / 1e12, 2)) == (71.01, 67.24)
    assert round(flops_block(c, 1560, first=True).total / 1e12, 2) == 97.85


@pytest.mark.parametrize("config", [TEXT, NO_TEXT], ids=["text", "no text"])
def test_operations_are_those_that_run(config):
    model, n, tokens = small_model(config), config.latents_per_block, 6 * config.latents_per_block
    text = model.text_kv(features(config), [30])
    rows = 0 if text is None else text.keys.shape[2]
    assert rows == (64 if config.text else 0)  # 30 and what stands for padding, filled up: fewer than all 160
    rollout = Rollout(model, 4, 6)
    cache = rollout.workspace(1)
    latents, mask = torch.randn(1, n, 16, 4, 6), torch.ones(1, n, 4, 4, 6)
    step = rollout.at_step[0]
    executed = dict(executed=True, text_rows=rows)

    for last, context_tokens in ((None, tokens), (latents, 2 * tokens)):
        expected = flops_context(config, context_tokens, **executed).total
        assert counted(lambda last=last: rollout.context(latents, last, cache, text)) == expected
        expected = flops_denoise(config, tokens, context_tokens, **executed).total
        assert counted(lambda: model.denoise(latents, mask, latents, step, rollout.table, cache, text)) == expected

    def as_defined(passed):
        def run_it():
            timestep = model.modulation(torch.tensor([500.0]))
            passed(timestep, model.text_kv(features(config, config.text_len)))

        return counted(run_it)

    all_channels = torch.randn(1, 2 * n, 36, 4, 6)
    found = as_defined(lambda t, text: model.context(all_channels, t, rollout.table, cache, text, flow=True))
    assert found == flops_context(config, 2 * tokens).total
    found = as_defined(lambda t, text: model.denoise(latents, mask, latents, t, rollout.table, cache, text))
    assert found == flops_denoise(config, tokens, 2 * tokens).total
    embeds = features(config, config.text_len)
    assert counted(lambda: model.text_kv(embeds)) == flops_text(config)


def test_operations_of_a_block_are_its_passes():
    whole = flops_block(TEXT, 6, executed=True, text_rows=64)
    parts = flops_context(TEXT, 24, executed=True, text_rows=64).total
    parts += 4 * flops_denoise(TEXT, 12, 24, executed=True, text_rows=64).total
    assert whole.total == whole.dense + whole.attention == parts < flops_block(TEXT, 6).total


def test_one_layer_counted_for_all_does_what_all_do():
    model = small_model(TEXT.replace(num_layers=1))
    text = model.text_kv(features(TEXT), [30])
    flops = {name: counted(part) for name, part in layers._parts(model, (4, 6), text).items()}
    executed = dict(executed=True, text_rows=64)
    others = TEXT.num_layers - 1
    assert flops["context"] + others * flops["layer of context"] == flops_context(TEXT, 24, **executed).total
    assert flops["step"] + others * flops["layer of step"] == flops_denoise(TEXT, 12, 24, **executed).total


def test_layers_are_timed_once_where_that_takes_long(monkeypatch):
    model = small_model(NO_TEXT.replace(num_layers=1))
    found = layers.time_by_layers(model, NO_TEXT, (4, 6), None)
    assert list(found) == ["context", *(f"denoise_{k}" for k in (1, 2, 3, 4))]
    assert {len(times) for times in found.values()} == {2}
    monkeypatch.setattr(layers, "PATIENCE", 0.0)
    assert {len(times) for times in layers.time_by_layers(model, NO_TEXT, (4, 6), None).values()} == {1}
    assert {len(times) for times in layers.time_by_layers(model, NO_TEXT, (4, 6), None, 3).values()} == {3}


# ------------------------------------------------------------------------------------------------------------ stages


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("kind", ["tae", pytest.param("wan", marks=pytest.mark.slow)])
def test_what_is_timed_is_what_the_generator_does(reference, kind, slots):
    config = NO_TEXT.replace(codec=kind)
    model, codec = small_model(config), make_codec(kind, width=8, random_weights=True)
    generator = StarGenerator(model, codec)
    drive = Drive(reference, slots, codec.look_ahead, CPU)
    states = [generator.new_state(reference, slot) for slot in range(slots)]
    measured = Pipeline(model, codec, Drive(reference, slots, codec.look_ahead, CPU))
    for block in range(3):
        drive.commit(8 if block else 5 + codec.look_ahead)
        rgb = drive.source_rgb()
        condition = generator.condition(rgb.unflatten(0, (slots, -1)), states, [block] * slots)
        committed, shown = drive.anchor(rgb)
        frames = generator.generate(
            committed.views, rgb, states, [block] * slots, condition, shown.anchor.known.flatten(0, 1)
        ).unflatten(0, (slots, -1))
        depth, confidence = drive.complete(frames, shown)
        drive.remember(frames, depth, confidence, shown)
        assert torch.equal(measured.block(Stopwatch(CPU)), frames)
    assert len(measured.drive.maps[0]) == len(drive.maps[0]) > 0


def test_a_block_can_be_made_again(reference):
    model, codec = small_model(NO_TEXT), make_codec("tae", width=8, random_weights=True)
    pipeline = Pipeline(model, codec, Drive(reference, 1, codec.look_ahead, CPU))
    for _ in range(3):
        frames = pipeline.block(Stopwatch(CPU))
    latents, again = pipeline.again(pipeline.inputs)
    assert torch.equal(latents, pipeline.inputs.latents) and torch.equal(again, frames)
    difference = bench_star.difference(pipeline, pipeline.inputs)
    assert difference["latents"] == {"max_abs": 0.0, "relative_rms": 0.0}
    assert difference["frames"]["psnr_db"] is None and difference["frames"]["max_levels"] == 0


def test_a_pass_in_graphs_is_timed_in_graphs():
    class Told(Rollout):
        graphs = False

        def __init__(self):
            pass

        def denoise(self, *args, trace=None):
            if trace:
                trace(0, None, None)
            return args[0]

    marks, rollout = [], Told()
    for graphs in (False, True):
        rollout.graphs = graphs  # a trace would have them left out
        assert stages._MarkedRollout(rollout, marks.append).denoise(7) == 7
    assert marks == ["encode_anchor", "denoise_1", "encode_anchor", "denoise"]


def test_a_stopwatch_gives_all_of_the_time_to_stages(monkeypatch):
    now = iter([10.0, 11.0, 13.0, 16.0, 20.0, 25.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    watch = Stopwatch(CPU)
    watch.start()
    for stage in ("a", "b", "a"):
        watch.mark(stage)
    assert watch.seconds == {"a": 4.0, "b": 2.0}
    watch = Stopwatch(CPU, fine=False)
    watch.start()
    watch.mark("a")
    watch.mark("b", wait=True)
    assert watch.seconds == {"b": 5.0}


def test_spread():
    assert timing.spread([0.003, 0.001, 0.002]) == {
        "median_ms": 2.0,
        "best_ms": 1.0,
        "worst_ms": 3.0,
        "quartiles_ms": [1.5, 2.5],
        "samples_ms": [3.0, 1.0, 2.0],
    }
    assert timing.spread([0.002])["quartiles_ms"] == [2.0, 2.0]


def test_totals_are_sums_block_by_block():
    seconds = {"encode_source": [1, 2], "denoise": [10, 30], "copy_out": [5, 5], "map_insertion": [100, 100]}
    sums = {name: row["samples_ms"] for name, row in report.totals(seconds, [4, 4]).items()}
    assert sums == {
        "before_the_command": [1000, 2000],
        "command_to_frames": [15000, 35000],
        "block": [16000, 37000],
        "block_with_map": [116000, 137000],
        "block_unsynchronised": [4000, 4000],
    }
    rates = report.rates(report.totals(seconds, [4, 4]), 8)
    assert rates == {"block": 8 / 26.5, "block_with_map": 8 / 126.5, "block_unsynchronised": 2.0}


# --------------------------------------------------------------------------------------------------------- the verb


def bench(capsys, tmp_path, *argv, action="star"):
    out = tmp_path / "result.json"
    code, said, err = run(capsys, "bench", action, "--image_size", "32x48", "--device", "cpu", "--out", out, *argv)
    return code, said, err, json.loads(out.read_text()) if out.exists() else None


def check_sums(result):
    for path in result["paths"]:
        samples = {name: row["samples_ms"] for name, row in path["stages"].items()}
        assert all(value > 0 for values in samples.values() for value in values)
        totals = {name: row["samples_ms"] for name, row in path["totals"].items()}
        for block in range(result["blocks"]):
            of = {name: values[block] for name, values in samples.items()}
            ahead = sum(of[name] for name in ("encode_source", "noise", "context"))
            after = of["depth_completion"] + of["map_insertion"]
            whole = sum(of.values())
            assert totals["before_the_command"][block] == pytest.approx(ahead)
            assert totals["command_to_frames"][block] == pytest.approx(whole - ahead - after)
            assert totals["block"][block] == pytest.approx(whole - after)
            assert totals["block_with_map"][block] == pytest.approx(whole)
        frames = result["slots"] * result["frames_per_block"]
        assert path["frames_per_second"]["block"] == pytest.approx(1e3 * frames / path["totals"]["block"]["median_ms"])


def test_every_stage_of_a_block_is_timed(capsys, tmp_path):
    argv = ["--size", "tiny", "--random-weights", "--slots", 2, "--blocks", 2, "--warm_up", 1]
    code, said, err, result = bench(capsys, tmp_path, *argv)
    assert code == 0, err
    assert "RANDOM WEIGHTS in network and codec" in err and "RANDOM WEIGHTS" in said
    assert list(result["paths"][0]["stages"]) == STAGES
    check_sums(result)
    assert result["weights"] == {"network": "random", "codec": "random"} and result["scaled"] is False
    assert result["frames_per_block"] == 4 and result["image_size"] == [32, 48] and result["dtype"] == "float32"
    assert result["machine"]["cpu"] and result["machine"]["torch"] == torch.__version__
    assert result["tflop_per_block"]["as_defined"] == 2 * flops_block(CONFIGS["tiny"], 6).total / 1e12
    path = result["paths"][0]
    assert path["path"] == "plain" and path["difference"] is None and 0 < path["known_share"] <= 1
    assert path["memory"]["host_peak_bytes"] > 50e6 and path["memory"]["device_peak_bytes"] is None
    network = [row for name, row in path["stages"].items() if name == "context" or name.startswith("denoise")]
    assert sum(row["tflop"] for row in network) == pytest.approx(result["tflop_per_block"]["as_defined"])
    assert sum(row["tflop_executed"] for row in network) == pytest.approx(result["tflop_per_block"]["executed"])
    for row in [*network, path["stages"]["decode"]]:
        assert row["tflop_per_s"] == pytest.approx(1e3 * row["tflop_executed"] / row["median_ms"])
        assert row["share_of_kernels"] > 0
    for stage in STAGES:
        assert f"\n  {stage.replace('_', ' ')} " in said
    assert "command to frames" in said and "frames/s" in said


def test_large_networks_are_timed_by_layers_on_a_cpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_star, "PATIENCE", 0.0)
    monkeypatch.setattr(bench_star, "CODEC_PARTS", {"tae": (16, 32), "wan": (16, 16)})
    built = []

    def build(config, *args):
        built.append(config.num_layers)
        return build_star(config, *args)

    monkeypatch.setattr(bench_star, "build_star", build)
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**SMALL, "codec_width": None, "text_dim": 48, "text_len": 160}))
    argv = ["--size", "custom", "--config", path, "--layers", 5, "--random_weights", "--blocks", 2]
    code, said, err, result = bench(capsys, tmp_path, *argv)
    assert code == 0, err
    assert built == [1] and result["network"]["num_layers"] == 5
    assert "the whole network takes about " in err and "so one layer is timed for all (--whole runs it)" in err
    assert result["scaled"] is True and any(note.startswith("SCALED: one layer") for note in result["notes"])
    assert said.count("SCALED") == 2 and "32x48" in said and "16x32" in said
    check_sums(result)
    rows = result["paths"][0]["stages"]
    assert list(rows) == STAGES
    factors = {name: row["scaled_by"] for name, row in rows.items()}
    assert factors == {
        name: 5 if name == "context" or "denoise" in name else 3 if "code" in name else 1 for name in rows
    }

    code, said, err, whole = bench(capsys, tmp_path, *argv, "--whole", "--warm_up", 1)
    assert code == 0, err
    assert built == [1, 5] and whole["scaled"] is False and "as asked for" in err
    for name in ("context", "denoise_1", "encode_source", "decode"):
        assert whole["paths"][0]["stages"][name]["tflop_executed"] == pytest.approx(rows[name]["tflop_executed"])


def test_how_long_the_whole_network_takes():
    def seconds(blocks=8, product=0.1, **options):
        options = bench_star.StarBench(size="1.3b", image_size=(96, 160), **options)
        kernels = {"product": {"tflop_per_s": product}, "attention": {"tflop_per_s": 0.05}}
        return bench_star.seconds_whole(bench_star.config_of(options), options, kernels, blocks)

    assert 120 < seconds() < 400  # 2.6 TFLOP of the network a block
    assert seconds(16) == pytest.approx(2 * seconds()) == seconds(slots=2)
    assert seconds(product=10.0) < 60
    assert seconds(codec="wan") > seconds() + 8 * 89 / 26 / 0.1 * 0.8
    tiny = bench_star.StarBench(size="tiny", image_size=(96, 160))
    kernels = {"product": {"tflop_per_s": 0.01}, "attention": {"tflop_per_s": 0.01}}
    assert bench_star.seconds_whole(bench_star.config_of(tiny), tiny, kernels, 8) < 10


class Shifted:
    """A rollout that is off by a hundredth, as a faster one might be."""

    def __init__(self, rollout):
        self.plain = rollout

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def denoise(self, *args):
        return self.plain.denoise(*args) + 0.01


def test_paths_side_by_side(capsys, tmp_path, monkeypatch):
    made = []

    def fast(rollout, **how):
        made.append(how)
        return Shifted(rollout)

    monkeypatch.setattr(bench_star, "_has_fast", lambda: True)
    monkeypatch.setattr(bench_star, "_fast", fast)
    argv = ["--size", "tiny", "--random_weights", "--blocks", 2, "--warm_up", 1, "--paths", "plain", "fast", "fp8"]
    code, said, err, result = bench(capsys, tmp_path, *argv)
    assert code == 0, err
    assert made == [bench_star.PATHS["fast"], bench_star.PATHS["fp8"]]
    plain, *others = result["paths"]
    assert [path["path"] for path in others] == ["fast", "fp8"] and plain["difference"] is None
    for path in others:
        assert "denoise" in path["stages"] and "denoise_1" not in path["stages"]
        steps = [plain["stages"][f"denoise_{step}"]["tflop"] for step in (1, 2, 3, 4)]
        assert path["stages"]["denoise"]["tflop"] == pytest.approx(sum(steps))
        difference = path["difference"]
        assert difference["latents"]["max_abs"] == pytest.approx(0.01, rel=1e-3)
        assert 0 < difference["latents"]["relative_rms"] < 0.1 and difference["frames"]["lpips"]
        ratio = plain["totals"]["block"]["median_ms"] / path["totals"]["block"]["median_ms"]
        assert path["times_as_fast"]["block"] == pytest.approx(ratio)
    check_sums(result)
    assert said.count("as fast as the first path") == 2 and "PSNR" in said


def test_weights_from_a_folder(capsys, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(NO_TEXT.replace(codec="tae"))))
    save_file({k: v.clone() for k, v in small_model(NO_TEXT).state_dict().items()}, folder / "star.safetensors")
    save_file(taehv.random_weights(8, seed=0), folder / "codec.safetensors")
    argv = ["--checkpoint_path", folder, "--blocks", 1, "--warm_up", 1]
    code, said, err, result = bench(capsys, tmp_path, *argv)
    assert code == 0, err
    assert "RANDOM" not in said + err
    assert result["weights"] == {"network": "star.safetensors", "codec": "codec.safetensors"}
    assert result["network"]["dim"] == 64 and result["network"]["size"] == "model"
    code, _, err, _ = bench(capsys, tmp_path, *argv, "--size", "tiny")
    assert code == 2 and "leave --size out" in err
    (folder / "star.safetensors").unlink()
    code, _, err, _ = bench(capsys, tmp_path, *argv)
    assert code == 2 and "star.safetensors is not a file" in err


def test_weights_of_a_layer_come_from_the_file(tmp_path):
    model = small_model(TEXT)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "star.safetensors")
    weights = bench_star.Weights(TEXT, tmp_path / "star.safetensors", None)
    one = weights.make_star(TEXT.replace(num_layers=1), CPU, torch.float32, one_layer=True)
    assert len(one.blocks) == 1
    for name, value in one.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--size", "1.3b"], "no weights of the network and the codec tae are here"),
        (["--size", "tiny", "--checkpoint_path", "absent.safetensors"], "absent.safetensors is not a file"),
        (["--random_weights", "--checkpoint_path", "a.safetensors"], "draws what --checkpoint_path would give"),
        (["--random_weights", "--codec_checkpoint_path", "a"], "draws what --codec_checkpoint_path would give"),
        (["--size", "tiny", "--layers", "3", "--random_weights"], "go with --size custom"),
        (["--size", "custom", "--random_weights"], "give --config FILE.json"),
        (["--size", "custom", "--dim", "65", "--random_weights"], "dim, num_heads"),
        (["--size", "tiny", "--random_weights", "--paths", "warp"], "warp is not one of plain"),
        (["--size", "tiny", "--random_weights", "--image_size", "40x64"], "not in multiples of 16"),
        (["--size", "tiny", "--random_weights", "--image_size", "big"], "not HEIGHTxWIDTH"),
        (["--size", "tiny", "--random_weights", "--slots", "0"], "at least 1"),
        (["--size", "tiny", "--random_weights", "--out", "."], "cannot be written"),
        (["--size", "tiny", "--random_weights", "--device", "cuda:77"], "is not here"),
        (["--size", "tiny", "--random_weights", "--scene", "nowhere"], "no such file or folder"),
    ],
)
def test_bad_input(capsys, tmp_path, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    code, _, err, result = bench(capsys, tmp_path, *argv)
    assert code == 2 and result is None
    lines = [line for line in err.splitlines() if "error" in line]
    assert len(lines) == 1 and said in lines[0] and "Traceback" not in err


def test_networks_measured_by_layers_run_plain(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_star, "PATIENCE", 0.0)
    monkeypatch.setattr(bench_star, "_has_fast", lambda: True)
    code, _, err, _ = bench(capsys, tmp_path, "--size", "tiny", "--random_weights", "--paths", "plain", "fast")
    assert code == 2 and "--whole" in err


def test_a_network_without_anchor_is_refused(capsys, tmp_path):
    path = tmp_path / "t2v.json"
    path.write_text(json.dumps({**SMALL, "in_dim": 16}))
    code, _, err, _ = bench(capsys, tmp_path, "--size", "custom", "--config", path, "--random_weights")
    assert code == 2 and "without anchor" in err


def test_an_interrupted_run_leaves_nothing(capsys, tmp_path, monkeypatch):
    calls = []

    def block(self, watch, count=False):
        calls.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.Pipeline, "block", block)
    code, said, err, result = bench(capsys, tmp_path, "--size", "tiny", "--random_weights")
    assert code == 130 and calls and result is None and said == ""
    assert "interrupted" in err and list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ kernels


def test_kernels_by_shape(capsys, tmp_path):
    code, said, err, result = bench(capsys, tmp_path, "--size", "tiny", "--slots", 2, action="star-micro")
    assert code == 0, err
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["context attention"]["shape"] == "12 x 12 x 4 x 32"
    assert rows["denoise ffn up"]["shape"] == "12 x 128 x 512" and rows["denoise ffn up"]["calls_per_block"] == 16
    for row in rows.values():
        for name, ms in row["ms"].items():
            assert ms > 0 and row["tflop_per_s"][name] == pytest.approx(1e3 * row["tflop"] / ms)
    assert result["best"]["attention"] == {"context attention": "sdpa", "denoise attention": "sdpa"}
    expected = sum(row["calls_per_block"] * min(row["ms"].values()) for row in rows.values())
    assert result["best"]["block_ms"]["best"] == pytest.approx(expected)
    assert (
        not result["smaller_than_asked"] and "products and self attention of a block" in said and "SMALLER" not in said
    )


def test_kernels_of_large_pictures_are_made_smaller_on_a_cpu(monkeypatch):
    monkeypatch.setattr(micro, "seconds_per_call", lambda function, device, budget: function() is not None)
    said = []
    result = micro.star_micro(CONFIGS["tiny"], CPU, torch.float32, machine.describe(), (480, 832), tell=said.append)
    assert result["smaller_than_asked"] and result["latent_tokens"] == micro.CPU_LATENT_TOKENS
    assert any("SMALLER than the 1560 tokens" in line for line in said)


def test_kernels_do_all_products_of_a_block():
    config, tokens, slots = NO_TEXT, 6, 2
    dense = sum(p.calls * p.flops for p in micro.products(config, tokens, slots))
    attended = sum(a.calls * a.flops for a in micro.attends(config, tokens, slots))
    executed = flops_block(config, tokens, executed=True)
    assert (dense, attended) == (slots * executed.dense, slots * executed.attention)
    executed = flops_block(TEXT, tokens, executed=True, text_rows=64)
    assert sum(p.calls * p.flops for p in micro.products(TEXT, tokens)) == executed.dense
    assert sum(a.calls * a.flops for a in micro.attends(TEXT, tokens)) == executed.self_attention


@pytest.mark.parametrize("rowwise", [False, True])
def test_products_in_8_bits(rowwise):
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(32, 64, generator=draw), torch.randn(48, 64, generator=draw)
    x[3] *= 1e8  # a row of its own scale
    out = micro.fp8_product(x, weight, rowwise)().float()
    expected = x @ weight.t()
    assert report.compare(out, expected)["relative_rms"] < 0.08
    others = torch.arange(32) != 3
    error = report.compare(out[others], expected[others])["relative_rms"]
    assert error < 0.06 if rowwise else error > 0.06


def test_the_best_kernels_are_recommended():
    def row(kind, name, calls, **ms):
        return {"kind": kind, "name": name, "calls_per_block": calls, "ms": ms}

    rows = [
        row("product", "denoise q k v o", 10, bfloat16=2.0, **{"fp8 row": 1.0}),
        row("product", "denoise q+k+v in one", 0, bfloat16=5.0, **{"fp8 row": "failed: no"}),
        row("attention", "denoise attention", 3, cudnn=4.0, fa2="failed: no", sdpa=2.0),
    ]
    best = micro.recommend(rows, "cudnn")
    assert best["attention"] == {"denoise attention": "sdpa"} and best["products"]["denoise q k v o"] == "fp8 row"
    assert best["block_ms"] == {"plain": 32.0, "best": 16.0}
    assert "denoise attention: sdpa, 2.00 times as fast as cudnn" in best["lines"]
    assert "denoise q, k, v in one product, bfloat16: 1.20 times as fast as in three" in best["lines"]
    best = micro.recommend([*rows, row("attention", "context attention", 1, cudnn="failed: no")], "cudnn")
    assert best["block_ms"] == {"plain": None, "best": None} and "context attention: no kernel works" in best["lines"]


def test_a_kernel_that_fails_is_told_of_and_the_others_timed(monkeypatch):
    def attention(q, k, v, backend):
        if backend == "fa3":
            raise RuntimeError("no kernel image\nand more")
        return q

    monkeypatch.setattr(micro, "attention", attention)
    monkeypatch.setattr(micro, "available", lambda *_: ("fa3", "sdpa"))
    found = micro.time_attend(micro.Attend("a", 1, 4, 4, 2, 8, 1), CPU, torch.float32, 0.001)
    assert found["fa3"] == "failed: no kernel image" and found["sdpa"] > 0


# -------------------------------------------------------------------------------------------------- what is told


def test_difference_of_frames(monkeypatch, tmp_path):
    a = torch.full((1, 2, 8, 8, 3), 100, dtype=torch.uint8)
    found = report.compare_frames(a, a + 5)
    assert found["psnr_db"] == pytest.approx(34.15, abs=0.01) and found["max_levels"] == 5
    assert found["lpips"] == "not available: package lpips is not installed"

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, x, y):
            assert x.shape == (2, 3, 8, 8) and x.min() >= -1
            return (x - y).abs().mean((1, 2, 3))

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "no weights" in report.compare_frames(a, a + 5)["lpips"]  # nothing is fetched
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert report.compare_frames(a, a + 5)["lpips"] == pytest.approx(5 / 127.5)


def test_a_gpu_is_named(monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=1 << 37, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(machine, "_driver", lambda: "580.1")
    about = machine.describe("cuda:0")
    assert about["gpu"] == "NVIDIA H200" and about["compute_capability"] == "9.0" and about["driver"] == "580.1"
    assert about["torch"] == torch.__version__ and "gpu" not in machine.describe("cpu")


def test_a_busy_machine_is_told_of(reference):
    options = bench_star.StarBench(size="tiny", random_weights=True, device="cpu", image_size=SIZE)
    for load, expected in ((9.0, True), (0.1, False)):
        about = machine.describe() | {"load_at_start": load, "cores": 2}
        notes = bench_star._Bench(options, about, lambda line: None).notes
        assert any("busy" in note for note in notes) == expected
