"""The `inspatio` command: verbs, the released argument names, signals, pipes."""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from inspatio_core import assets, checkpoints, cli, generators
from inspatio_core.cli import OF_THE_NETWORK, WITHOUT_EFFECT, build_parser, main
from inspatio_core.errors import InputError
from inspatio_core.export import VideoWriter
from inspatio_core.generators import GeneratorOptions
from tests.clips import make_scene, make_video, run
from tests.fake_generator import FakeGenerator

ROOT = Path(__file__).resolve().parent.parent
RELEASED = """--input_dir --traj_txt_path --checkpoint_path --config_path --da3_model_path --florence_model_path
--step1_gpus --step2_gpus --step3_gpus --step3_nproc --output_folder --master_port --skip_step1 --skip_step2
--skip_step3 --relative_to_source --rotation_only --disable_adaptive_frame --freeze_repeat --freeze_frame --use_tae
--tae_checkpoint_path --compile_dit --render_backend --seed --num_samples --width --height""".split()

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("scene") / "wall", frames=12)


@pytest.fixture
def arc(tmp_path):
    path = tmp_path / "arc.txt"
    path.write_text("0 3 0\n0 6 0\n2 2\n")
    return path


def frames_of(path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def command(*argv, **kwargs) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "inspatio_core.cli", *map(str, argv)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **kwargs)


def verbs(parser) -> dict[str, argparse.ArgumentParser]:
    """Every verb with its parser, actions of a verb included."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found[name] = child
                found |= {f"{name} {sub}": p for sub, p in verbs(child).items()}
    return found


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom inspatio_core.cli import main\n"
        "try: main(['render', '--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'cv2', 'av', 'scipy', 'numba'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--traj_txt_path" in done.stdout


def test_version_and_no_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and re.match(r"inspatio \d+\.\d+", capsys.readouterr().out)
    code, out, err = run(capsys)
    assert code == 2 and out == "" and "render" in err


def test_the_page_on_the_command_line_names_every_verb_and_option():
    text = (ROOT / "docs" / "cli.md").read_text()
    for verb, parser in verbs(build_parser()).items():
        section = text.partition(f"## `inspatio {verb}`")[2].partition("\n## ")[0]
        if " " in verb:  # an action of a verb is documented with it
            section = text.partition(f"## `inspatio {verb.split()[0]}`")[2].partition("\n## ")[0]
            assert f"inspatio {verb}" in section
        assert section, f"docs/cli.md has no section on inspatio {verb}"
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or f"`{option}" in section, f"docs/cli.md: {verb} {option}"


def test_every_option_of_the_page_exists():
    text = (ROOT / "docs" / "cli.md").read_text()
    for verb, parser in verbs(build_parser()).items():
        section = text.partition(f"## `inspatio {verb}`")[2].partition("\n## ")[0]
        known = {o for p in [parser, *verbs(parser).values()] for a in p._actions for o in a.option_strings}
        for option in re.findall(r"^\|? ?`(--?[a-z_0-9]+)", section, re.M):
            assert option in known, f"docs/cli.md: {verb} {option}"


# -------------------------------------------------------------------------------------------------------------- render


def test_render_writes_what_it_says(capsys, scene, arc, tmp_path):
    out = tmp_path / "out"
    code, said, err = run(capsys, "render", scene, "--traj_txt_path", arc, "-o", out, "--size", "48x64", "--map")
    assert code == 0, err
    assert err == ""  # no progress bar where stderr is no terminal
    assert said.count("\n") == 1 and str(out) in said and "121 frames of 48x64 at 24 fps" in said
    assert frames_of(out / "video.mp4") == 121 == len(list((out / "depth").iterdir()))
    manifest = json.loads((out / "render.json").read_text())
    assert manifest["depth_source"] and manifest["frames"] == 121 and "map.ply" in manifest["files"]


def test_render_runs_twice_to_the_same_bytes(capsys, scene, arc, tmp_path):
    argv = ["render", scene, "--traj_txt_path", arc, "-o", tmp_path / "o", "--frames", 9, "--images", "-q"]
    argv += ["--size", "96x128"]  # with a few macroblocks only, x264 itself is not deterministic

    def render():
        code, out, err = run(capsys, *argv)
        assert (code, out, err) == (0, "", "")
        return {p.relative_to(tmp_path): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    assert render() == render()


def test_default_place_and_trajectory(capsys, scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "render", scene, "--size", "48x64", "--frames", 3, "--depth", "none")
    assert code == 0, err
    assert frames_of(tmp_path / "output/wall/pan/video.mp4") == 3


def test_released_command_line(capsys, arc, tmp_path, monkeypatch):
    """A folder of clips with the released names, networks' arguments included: every clip is rendered, one note."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("b", "a"):
        make_video(clips / f"{name}.mp4", frames=10)
    (clips / "notes.txt").write_text("not a clip")
    argv = ["render", "--input_dir", clips, "--traj_txt_path", arc, "--relative_to_source", "--rotation_only"]
    argv += ["--freeze_repeat", 3, "--freeze_frame", 4, "--disable_adaptive_frame", "--output_folder", tmp_path / "out"]
    argv += ["--checkpoint_path", "x.safetensors", "--config_path", "c.yaml", "--use_tae", "--compile_dit"]
    argv += ["--skip_step1", "--step3_nproc", 1, "--width", 64, "--height", 48, "--prompt", "a wall"]
    code, out, err = run(capsys, *argv)
    assert code == 0, err
    for name in ("a", "b"):
        assert frames_of(tmp_path / "out" / name / "video.mp4") == 13
        transforms = json.loads((tmp_path / "out" / name / "transforms.json").read_text())
        assert [f["source_index"] for f in transforms["frames"]] == [0, 1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8, 9]
        assert transforms["w"] == 64 and transforms["h"] == 48
    notes = [line for line in err.splitlines() if "no effect" in line]
    assert len(notes) == 1
    assert notes[0].endswith(
        "with the geometric generator: --checkpoint_path, --config_path, --use_tae, --prompt, --compile_dit, "
        "--step3_nproc, --skip_step1"
    )


def test_every_released_argument_name_is_accepted():
    known = {o for a in verbs(build_parser())["render"]._actions for o in a.option_strings}
    assert set(RELEASED) <= known
    assert set(WITHOUT_EFFECT) <= set(RELEASED) and set(OF_THE_NETWORK) <= known - set(WITHOUT_EFFECT)


def render_options(*argv) -> GeneratorOptions:
    return cli._generator_options(build_parser().parse_args(["render", "courtyard", "--generator", "star", *argv]))


@pytest.mark.parametrize(
    "argv, options",
    [
        ([], {}),
        (["--checkpoint_path", "a.safetensors", "--model", "14b", "--codec", "tae"],
         {"checkpoint_path": "a.safetensors", "model": "14b", "codec": "tae"}),
        (["--use_tae", "--tae_checkpoint_path", "t.pth", "--compile_dit"],
         {"codec": "tae", "tae_checkpoint_path": "t.pth", "compile": True}),
        (["--use_tae", "--codec", "tae"], {"codec": "tae"}),
        (["--config_path", "mine.json"], {"model": "mine.json"}),
        (["--config_path", "mine.json", "--model", "mine.json"], {"model": "mine.json"}),
        (["--prompt", "", "--fp8", "--dtype", "float16"], {"prompt": "", "fp8": True, "dtype": "float16"}),
        (["--random-weights", "--latents_per_block", "2"], {"random_weights": True, "latents_per_block": 2}),
        (["--random_weights", "--compatible"], {"random_weights": True, "compatible": True}),
    ],
)  # fmt: skip
def test_arguments_steer_the_star_generator(argv, options):
    assert render_options(*argv) == GeneratorOptions(**options)


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--use_tae", "--codec", "wan"], "--use_tae and --codec wan"),
        (["--model", "1.3b", "--config_path", "mine.json"], "--model and --config_path"),
        (["--codec", "vqgan"], "--codec"),
        (["--dtype", "int4"], "--dtype"),
        (["--latents_per_block", "0"], "--latents_per_block"),
    ],
)
def test_arguments_that_contradict_each_other_or_cannot_be(argv, says):
    with pytest.raises(InputError, match=says):
        render_options(*argv)


def test_star_with_random_weights(capsys, scene, tmp_path):
    """The warning is shown even where nothing else is; a model of one's own by the released name, and its prompt."""
    model = tmp_path / "model.json"
    sizes = {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 1, "freq_dim": 16, "text_dim": 24, "text_len": 8}
    model.write_text(json.dumps(sizes | {"latents_per_block": 2, "codec_width": 8}))
    argv = ["render", scene, "--generator", "star", "--random_weights", "--size", "48x64", "--frames", 6]
    argv += ["--config_path", model, "--prompt", "a wall", "--skip_step1", "-o", tmp_path / "out"]
    code, out, err = run(capsys, *argv, "-q")
    assert code == 0 and out == "", err
    assert err.count("\n") == 1 and err.startswith("inspatio: warning: RANDOM WEIGHTS")
    assert frames_of(tmp_path / "out" / "video.mp4") == 6
    manifest = json.loads((tmp_path / "out" / "render.json").read_text())
    options = GeneratorOptions.parse(manifest["generator_options"])
    assert options == GeneratorOptions(model=str(model), prompt="a wall", random_weights=True)
    assert manifest["generator"] == "star" and "RANDOM WEIGHTS" in manifest["notices"][0]


def test_star_tells_what_has_no_effect(capsys, scene, tmp_path, monkeypatch):
    made = []

    def make(name, *, options, device, size):
        made.append((name, options.model, size))
        return FakeGenerator(needs=frozenset({"anchor", "reference"}), multiple=16)

    monkeypatch.setattr(generators, "make_generator", make)
    argv = ["render", scene, "--generator", "star", "-o", tmp_path / "out", "--frames", 1, "--config_path", "c.yaml"]
    argv += ["--prompt", "a wall", "--num_samples", 1, "--skip_step1"]
    code, out, err = run(capsys, *argv, "--size", "48x64")
    assert code == 0, err
    assert made == [("star", "auto", (48, 64))]
    assert [line.removeprefix("inspatio: note: ") for line in err.splitlines()] == [
        "no effect: --num_samples, --skip_step1",
        "--config_path c.yaml: not needed, the model's own sizes are taken",
        "no effect: --prompt, since this model reads no text",
    ]
    code, out, err = run(capsys, *argv, "--size", "40x64", "-q")
    assert code == 2 and err.startswith("inspatio: error: size: ") and "32x64 or 48x64" in err


def test_missing_weights_are_told_at_once_and_all_of_them(capsys, tmp_path, monkeypatch):
    """Before any clip is opened, and once for a whole folder."""
    monkeypatch.setattr(checkpoints.table, "locate", lambda name: None)
    monkeypatch.setattr(checkpoints, "locate", lambda name: None)
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a", "b"):
        (clips / f"{name}.mp4").write_text("not a video")
    for source in ([clips / "a.mp4"], ["--input_dir", clips]):
        code, out, err = run(capsys, "render", *source, "--generator", "star", "-o", tmp_path / "out")
        assert code == 2 and err.count("\n") == 1
        for name in ("inspatio-world-1.3b", "wan2.1-vae", "umt5-xxl", "umt5-tokenizer"):
            assert err.count(f"{name} (") == 1, err
    code, out, err = run(capsys, "render", tmp_path / "none.mp4", "--generator", "star", "-o", tmp_path / "out")
    assert code == 2 and "none.mp4" in err, "a file that is not there is quicker to mend"


def test_one_bad_clip_of_a_folder_does_not_stop_the_others(capsys, arc, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a.mp4").write_text("not a video")
    make_video(clips / "b.mp4", frames=4)
    argv = ["--traj_txt_path", arc, "--output_folder", tmp_path / "out", "--size", "48x64", "--frames", 2]
    code, out, err = run(capsys, "render", "--input_dir", clips, *argv)
    assert code == 2
    assert [line for line in err.splitlines() if line.startswith("inspatio: error:")][0].count("a.mp4")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b"]
    make_video(clips / "b.mov", frames=4)
    code, out, err = run(capsys, "render", "--input_dir", clips, *argv)
    assert code == 2 and "two videos are called b" in err


def test_compatible_mode(capsys, scene, arc, tmp_path):
    argv = ["render", scene, "--traj_txt_path", arc, "--size", "48x64", "--depth", "none"]
    code, out, err = run(capsys, *argv, "-o", tmp_path / "o", "--compatible", "--fps", 30)
    assert code == 0, err
    assert "117 frames" in out and "at 30 fps" in out  # 121 frames are 31 latents, of which 30 fill whole blocks
    code, out, err = run(capsys, *argv, "-o", tmp_path / "p", "--compatible")
    assert "at 24 fps" in out


def test_given_poses_and_video_alone(capsys, scene, tmp_path):
    poses = tmp_path / "path.txt"
    poses.write_text("\n".join(f"1 0 0 {0.02 * i}  0 1 0 0  0 0 1 0" for i in range(6)))
    code, out, err = run(capsys, "render", scene, "--poses", poses, "-o", tmp_path / "clip.mp4", "--size", "48x64")
    assert code == 0, err
    assert frames_of(tmp_path / "clip.mp4") == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "path.txt"]


# ------------------------------------------------------------------------------------------------------ the other verbs


def test_prepare_then_render_then_info(capsys, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", frames=5, fps=12)
    code, out, err = run(capsys, "prepare", clip, "-o", tmp_path / "scene", "--fov", 70)
    assert code == 0, err
    assert str(tmp_path / "scene") in out
    code, out, err = run(capsys, "info", tmp_path / "scene", "--json")
    facts = json.loads(out)
    assert facts["kind"] == "scene" and facts["frames"] == 5 and facts["size"] == [48, 64] and facts["fps"] == 12
    assert facts["median_depth"] == pytest.approx(3, rel=0.2) and facts["depth_source"] and facts["pose_source"]
    assert isinstance(facts["notices"], list) and facts["metric"] is False
    argv = ["render", tmp_path / "scene", "-o", tmp_path / "out", "--size", "48x64", "--frames", 2]
    assert run(capsys, *argv)[0] == 0


def test_info_on_a_video_a_trajectory_and_poses(capsys, tmp_path, arc, scene):
    clip = make_video(tmp_path / "clip.mp4", frames=7, fps=12.5, size=(32, 48))
    facts = json.loads(run(capsys, "info", clip, "--json")[1])
    assert facts["kind"] == "video" and facts["frames"] == 7 and facts["size"] == [32, 48] and facts["fps"] == 12.5
    facts = json.loads(run(capsys, "info", arc, "--json")[1])
    assert facts["kind"] == "trajectory" and facts["yaw"] == [0, 6] and facts["displacement_keyframes"] == 2
    assert facts["total_angle"] == 12
    (tmp_path / "poses.txt").write_text("\n".join(f"1 0 0 {i}  0 1 0 0  0 0 1 0" for i in range(4)))
    facts = json.loads(run(capsys, "info", tmp_path / "poses.txt", "--json")[1])
    assert facts == {"kind": "poses", "path": str(tmp_path / "poses.txt"), "frames": 4, "length": 3.0}
    code, _, err = run(capsys, "render", scene, "--traj_txt_path", tmp_path / "poses.txt", "-o", tmp_path / "o")
    assert code == 2 and "--poses" in err  # twelve keyframes a line would be read without a murmur
    code, out, err = run(capsys, "info", scene)
    assert code == 0 and "12" in out and "48x64" in out


def test_info_on_a_trajectory_that_turns_for_ever(capsys, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("0 1e7\n0 0\n1 1\n")
    code, out, err = run(capsys, "info", path, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["adaptive_frames"][0] == 12_500_001 and "100000" in facts["notices"][0]
    path.write_text("0 1e300\n0 0\n1 1\n")
    code, out, err = run(capsys, "info", path)
    assert code == 2 and out == "" and "line 1" in err and len(err.splitlines()) == 1


def test_shipped_things_go_by_their_names(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pan").mkdir()  # as of an earlier render
    code, out, err = run(capsys, "scenes")
    assert code == 0
    names = {line.split()[1] for line in out.splitlines()}
    assert {"pan", "tilt", "x_y_circle_cycle", "zoom_out_in"} <= names
    assert set(assets.scenes()) <= names
    assert cli.find_trajectory("pan") == cli.find_trajectory("pan.txt") == cli.find_trajectory("./traj/pan.txt")
    facts = json.loads(run(capsys, "info", "x_y_circle_cycle", "--json")[1])
    assert facts["total_angle"] == 240 and facts["adaptive_frames"] == [301, 801]


def test_checkpoints_list(capsys):
    code, out, err = run(capsys, "checkpoints", "list")
    assert code == 0 and "fastdepth" in out and "MIT" in out


# ---------------------------------------------------------------------------------------------- verbs of other rooms


class _Greet:
    @staticmethod
    def add_parser(subparsers):
        parser = subparsers.add_parser("greet", help="say hello")
        parser.add_argument("name")
        parser.set_defaults(run=_Greet.run)

    @staticmethod
    def run(args):
        if args.name == "nobody":
            raise InputError("name: give somebody's")
        print(f"hello {args.name}")
        return 7


class _Entry:
    def __init__(self, name, value):
        self.name, self.value = name, value

    def load(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_other_rooms_add_verbs(capsys, monkeypatch):
    entries = [_Entry("greet", _Greet), _Entry("bag", ImportError("No module named 'rclpy'")), _Entry("render", _Greet)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    assert run(capsys, "greet", "you") == (7, "hello you\n", "")
    assert run(capsys, "greet", "nobody") == (2, "", "inspatio: error: name: give somebody's\n")
    help_text = build_parser().format_help()
    assert "say hello" in help_text and "bag (No module named 'rclpy')" in help_text
    assert verbs(build_parser())["render"].get_default("run") is cli.run_render


# ------------------------------------------------------------------------------------------------------ signals, pipes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_mid_render_leaves_nothing(capsys, scene, arc, tmp_path, monkeypatch, number):
    """Here with a second signal while the first is being answered, as of an impatient user."""
    write, frames, folders = VideoWriter.write, [], []

    def impatient(self, rgb):
        write(self, rgb)
        frames.append(1)
        if len(frames) == 5:
            folders.extend(tmp_path.glob("results/.out.partial-*/depth"))
            os.kill(os.getpid(), number)

    def close(self):
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(VideoWriter, "write", impatient)
    monkeypatch.setattr(VideoWriter, "close", close)
    out = tmp_path / "results" / "out"
    code, said, err = run(capsys, "render", scene, "--traj_txt_path", arc, "-o", out, "--size", "48x64")
    assert (code, said, err) == (128 + number, "", "inspatio: interrupted\n")
    assert len(folders) == 1 and len(frames) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["arc.txt"]
    assert signal.getsignal(number) is before


def test_ctrl_c_on_the_real_command(scene, tmp_path):
    poses = tmp_path / "path.txt"
    poses.write_text("\n".join("1 0 0 0  0 1 0 0  0 0 1 0" for _ in range(20_000)))
    process = command("render", scene, "--poses", poses, "-o", tmp_path / "out", "--size", "48x64", "--map")
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".out.partial-*/depth/000002.png")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said, err) == (130, "", "inspatio: interrupted\n")
    assert [p.name for p in tmp_path.iterdir()] == ["path.txt"]


def test_a_reader_that_leaves_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from inspatio_core.cli import main; sys.exit(main(['scenes']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""


def test_a_full_disk_or_device_is_told_in_one_line(capsys, monkeypatch):
    def fail(error):
        def verb(args):
            raise error

        monkeypatch.setattr(cli, "run_scenes", verb)
        return run(capsys, "scenes")

    class OutOfMemoryError(RuntimeError):
        pass

    assert fail(OSError(28, "No space left on device", "/data/o")) == (
        2, "", "inspatio: error: /data/o: No space left on device\n"
    )  # fmt: skip
    code, _, err = fail(OutOfMemoryError("CUDA out of memory\nmany lines"))
    assert code == 2 and err.count("\n") == 1 and "--size" in err
    with pytest.raises(RuntimeError, match="a defect"):
        fail(RuntimeError("a defect is not hidden"))
