"""Bad input gets one line and exit code 2, and nothing half-written stays behind."""

import json

import av
import cv2
import numpy as np
import pytest

from inspatio_core.reference.scene import TRANSFORMS
from tests.clips import make_scene, make_video, run

GOOD_PATH = "0 5\n0 10\n1 1\n"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def good_scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("good") / "scene", frames=4)


def refused(capsys, folder, *argv, says: str) -> None:
    """The command ends with code 2 and one line that has the words of `says`; `folder` is as it was."""
    before = sorted(folder.rglob("*"))
    code, out, err = run(capsys, *argv)
    lines = [line for line in err.splitlines() if not line.startswith("inspatio: note:")]
    assert code == 2, err
    assert out == ""
    assert len(lines) == 1 and lines[0].startswith("inspatio: error: "), err
    assert "Traceback" not in err
    for word in says.split("|"):
        assert word in lines[0], lines[0]
    assert sorted(folder.rglob("*")) == before


def render(source, tmp_path, *more):
    return ["render", source, "-o", tmp_path / "out", "--size", "48x64", *more]


# ------------------------------------------------------------------------------------------------------------- sources


def test_missing_file(capsys, tmp_path):
    refused(capsys, tmp_path, *render(tmp_path / "nowhere.mp4", tmp_path), says="nowhere.mp4")


def test_not_a_video(capsys, tmp_path):
    (tmp_path / "notes.mp4").write_text("this is not a video")
    refused(capsys, tmp_path, *render(tmp_path / "notes.mp4", tmp_path), says="notes.mp4")
    (tmp_path / "empty.mp4").touch()
    refused(capsys, tmp_path, *render(tmp_path / "empty.mp4", tmp_path), says="empty.mp4")
    (tmp_path / "notes.txt").write_text("this is not a video")
    refused(capsys, tmp_path, *render(tmp_path / "notes.txt", tmp_path), says="notes.txt")


def test_folder_without_anything_to_show(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(capsys, tmp_path, *render(tmp_path / "empty", tmp_path), says="empty")
    refused(capsys, tmp_path, "render", "--input_dir", tmp_path / "empty", says="empty|no video")
    refused(capsys, tmp_path, "render", "--input_dir", tmp_path / "nowhere", says="nowhere|no such folder")


def test_zero_frames(capsys, tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    refused(capsys, tmp_path, *render(path, tmp_path), says="sound.mp4")


def test_truncated_video(capsys, tmp_path):
    path = make_video(tmp_path / "cut.mp4", frames=30)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # the index of an mp4 is at its end
    refused(capsys, tmp_path, *render(path, tmp_path), says="cut.mp4")


def test_one_frame_works(capsys, tmp_path):
    path = make_video(tmp_path / "one.mp4", frames=1)
    code, _, err = run(capsys, *render(path, tmp_path, "--frames", 3))
    assert code == 0, err
    with av.open(str(tmp_path / "out/video.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_one_pixel(capsys, tmp_path):
    cv2.imwrite(str(tmp_path / "pixel.png"), np.full((1, 1, 3), 99, np.uint8))
    refused(capsys, tmp_path, *render(tmp_path / "pixel.png", tmp_path), says="pixel.png|1x1 pixels")


# -------------------------------------------------------------------------------------------------------------- scenes


def name_depth_files(scene, suffix):
    transforms = json.loads((scene / TRANSFORMS).read_text())
    for frame in transforms["frames"]:
        frame["depth_file_path"] = frame["depth_file_path"].replace(".png", suffix)
    (scene / TRANSFORMS).write_text(json.dumps(transforms))


def test_depth_without_a_single_number(capsys, tmp_path):
    scene = make_scene(tmp_path / "scene", frames=3)
    for i in range(3):
        np.save(scene / f"depth/{i:06d}.npy", np.full((48, 64), np.nan, np.float32))
    name_depth_files(scene, ".npy")
    refused(capsys, tmp_path, *render(scene, tmp_path), says="depth")


def test_some_depth_missing_is_mended(capsys, tmp_path):
    scene = make_scene(tmp_path / "scene", frames=3)
    for i in range(3):
        depth = cv2.imread(str(scene / f"depth/{i:06d}.png"), cv2.IMREAD_UNCHANGED) * np.float32(1)
        depth[:5], depth[5:8], depth[8:10] = np.nan, np.inf, 0
        np.save(scene / f"depth/{i:06d}.npy", depth)
    name_depth_files(scene, ".npy")
    code, _, err = run(capsys, *render(scene, tmp_path, "--frames", 3, "--depth", "npz"))
    assert code == 0, err
    for i in range(3):
        depth = np.load(tmp_path / f"out/depth/{i:06d}.npz")["depth"]
        assert np.isfinite(depth).all() and depth.min() > 0.5 and depth.max() < 20


def test_non_rigid_source_poses(capsys, tmp_path):
    scene = make_scene(tmp_path / "scene", frames=3)
    transforms = json.loads((scene / TRANSFORMS).read_text())
    for bad in (2.0, float("nan")):
        transforms["frames"][1]["transform_matrix"][0][0] = bad
        (scene / TRANSFORMS).write_text(json.dumps(transforms))
        refused(capsys, tmp_path, *render(scene, tmp_path), says="frame 1|rigid")


def test_broken_scene_description(capsys, tmp_path):
    scene = make_scene(tmp_path / "scene", frames=3)
    (scene / TRANSFORMS).write_text("{")
    refused(capsys, tmp_path, *render(scene, tmp_path), says=TRANSFORMS)


# -------------------------------------------------------------------------------------------------------- camera paths


@pytest.mark.parametrize(
    "text, says",
    [
        ("0\n0 1\n1 1\n", "line 1|keyframe"),
        ("0 1\nleft right\n1 1\n", "line 2|left"),
        ("0 1\n0 nan\n1 1\n", "line 2"),
        ("0 1\n0 1\n", "line 3"),
        ("", "line 1"),
        ("0 1e300\n0 1\n1 1\n", "line 1|1e+09"),
        ("0 1\n0 -1e308 1e308\n1 1\n", "line 2|1e+09"),
        ("0 1e7\n0 1\n1 1\n", "1e+07 degrees|100000"),
        ("0 0\n0 90000\n1 1\n", "90000 degrees|100000"),
    ],
    ids=["one keyframe", "words", "nan", "two lines", "no lines", "huge", "overflow", "endless turn", "long turn"],
)
def test_bad_trajectory(capsys, tmp_path, good_scene, text, says):
    (tmp_path / "t.txt").write_text(text)
    refused(
        capsys, tmp_path, *render(good_scene, tmp_path, "--traj_txt_path", tmp_path / "t.txt"), says="t.txt|" + says
    )


@pytest.mark.parametrize("path", ["traj", "poses"])
def test_endless_freeze(capsys, tmp_path, good_scene, path):
    """Refused before room for the frames is asked for."""
    where = ["--traj_txt_path", tmp_path / "t.txt"] if path == "traj" else ["--poses", tmp_path / "p.txt"]
    (tmp_path / "t.txt").write_text(GOOD_PATH)
    (tmp_path / "p.txt").write_text("1 0 0 0  0 1 0 0  0 0 1 0\n")
    for repeat in (100_000, 10**8, 10**30):
        refused(
            capsys, tmp_path, *render(good_scene, tmp_path, *where, "--freeze_repeat", repeat), says="freeze|100000"
        )


def test_missing_trajectory(capsys, tmp_path, good_scene):
    refused(capsys, tmp_path, *render(good_scene, tmp_path, "--traj_txt_path", "nowhere.txt"), says="nowhere.txt|pan")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    refused(capsys, tmp_path, *render(good_scene, tmp_path, "--traj_txt_path", tmp_path / "binary.txt"), says="binary")
    refused(capsys, tmp_path, *render(good_scene, tmp_path, "--traj_txt_path", tmp_path), says=str(tmp_path))


@pytest.mark.parametrize(
    "row, says",
    [
        ("2 0 0 0  0 1 0 0  0 0 1 0", "rigid"),
        ("1 0 0 nan  0 1 0 0  0 0 1 0", "NaN"),
        ("1 0 0 0", "numbers"),
        ("straight on", "numbers"),
        ("", "no poses"),
    ],
)
def test_bad_poses(capsys, tmp_path, good_scene, row, says):
    (tmp_path / "p.txt").write_text(row + "\n")
    refused(capsys, tmp_path, *render(good_scene, tmp_path, "--poses", tmp_path / "p.txt"), says="p.txt|" + says)


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options, says",
    [
        (["--size", "47x64"], "--size|even"),
        (["--size", "big"], "--size|big"),
        (["--size", "1x1"], "--size"),
        (["--height", "48"], "--height|--width"),
        (["--fps", "0"], "--fps"),
        (["--fps", "nan"], "--fps"),
        (["--freeze_repeat", "-1"], "--freeze_repeat"),
        (["--frames", "0"], "--frames"),
        (["--metres_per_unit", "0"], "--metres_per_unit"),
        (["--device", "tpu"], "device|tpu"),
        (["--device", "cuda:99"], "device|cuda:99"),
        (["--generator", "dream"], "generator|dream"),
        (["--depth", "exr"], "--depth|exr"),
        (["--map", "map.txt"], "--map|.ply"),
        (["--preview", "p.tiff"], "--preview|.png"),
        (["--preview", "--preview_frame", "9999"], "preview_frame"),
        (["--poses", "a.txt", "--traj_txt_path", "b.txt"], "--poses|--traj_txt_path"),
        (["--input_dir", "x"], "SOURCE|--input_dir"),
        (["--unheard_of"], "--unheard_of"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_options(capsys, tmp_path, good_scene, options, says):
    refused(capsys, tmp_path, "render", good_scene, "-o", tmp_path / "out", *options, says=says)


def test_bad_places_to_write(capsys, tmp_path, good_scene):
    (tmp_path / "file").write_text("x")
    where = ["render", good_scene, "--size", "48x64", "-o"]
    refused(capsys, tmp_path, *where, tmp_path / "file", says="is a file")
    refused(capsys, tmp_path, *where, tmp_path / "file" / "out", says="file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    refused(capsys, tmp_path, *where, tmp_path / "mine", says="mine|not an earlier render")
    (tmp_path / "dir.mp4").mkdir()
    refused(capsys, tmp_path, *where, tmp_path / "dir.mp4", says="dir.mp4|is a folder")


def test_usage_errors_of_the_other_verbs(capsys, tmp_path):
    refused(capsys, tmp_path, "render", says="SOURCE")
    refused(capsys, tmp_path, "fly", says="fly")
    refused(capsys, tmp_path, "prepare", tmp_path / "nowhere.mp4", "-o", tmp_path / "scene", says="nowhere.mp4")
    refused(capsys, tmp_path, "prepare", tmp_path / "nowhere.mp4", says="-o")
    refused(capsys, tmp_path, "info", tmp_path / "nowhere", says="nowhere")
    refused(capsys, tmp_path, "checkpoints", says="ACTION")
    refused(capsys, tmp_path, "checkpoints", "download", "nothing", says="nothing")
