"""The offline pipeline: plans, what is written, and that nothing half-written stays."""

import json
import runpy
import weakref
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from inspatio_core import pipeline
from inspatio_core.errors import InputError
from inspatio_core.export import MANIFEST, VideoWriter, frame_rate, write_kitti, write_tum
from inspatio_core.generators import GeneratorOptions
from inspatio_core.geometry.trajectory import load_poses, parse_trajectory
from inspatio_core.latents import frame_counts
from inspatio_core.pipeline import frames_along, plan_poses, plan_trajectory, render_video, start_along
from inspatio_core.reference.scene import open_scene
from inspatio_core.world import World
from tests.clips import make_scene
from tests.fake_generator import FakeGenerator
from tests.synthetic import make_reference

ARC = parse_trajectory("0 4 0\n0 12 0\n2 2 2")
SIZE = (48, 64)


@pytest.fixture(scope="module")
def reference():
    return make_reference(frames=10, size=SIZE, fps=25.0)


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [f.to_ndarray(format="rgb24") for f in container.decode(stream)], float(stream.average_rate)


def test_exact_plan_shows_every_source_frame_and_hits_the_keyframes(reference):
    poses, indices = plan_trajectory(reference, ARC, adaptive=False)
    assert indices.tolist() == list(range(10))
    assert torch.allclose(poses[0], torch.eye(4, dtype=torch.float64), atol=1e-12)
    pivot = torch.tensor([0, 0, 2.0, 1], dtype=torch.float64)
    distance = (torch.linalg.inv(poses) @ pivot)[:, :3]
    assert torch.allclose(distance, torch.tensor([0, 0, 2.0], dtype=torch.float64).expand(10, 3), atol=1e-9)


def test_adaptive_rule_gives_a_turning_camera_more_frames(reference):
    poses, indices = plan_trajectory(reference, ARC)
    assert len(poses) == len(indices) == 121
    assert indices[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7]
    compatible, _ = plan_trajectory(reference, ARC, compatible=True)
    assert len(compatible) == frame_counts(121).output_frames
    # Released: the finished path runs back and forth with the source; here it runs once, slowly.
    assert torch.equal(compatible[:10], compatible[9:19].flip(0))
    assert not torch.allclose(poses[0], poses[18])


def test_compatible_plan_refuses_a_clip_shorter_than_a_block():
    short = make_reference(frames=5, size=SIZE)
    with pytest.raises(InputError, match="released block"):
        plan_trajectory(short, ARC, compatible=True, adaptive=False)
    assert len(plan_trajectory(short, ARC, adaptive=False)[0]) == 5


def test_relative_to_source_rides_on_the_source_camera(reference):
    alone, _ = plan_trajectory(reference, ARC, adaptive=False)
    riding, indices = plan_trajectory(reference, ARC, adaptive=False, relative_to_source=True)
    assert torch.allclose(riding, reference.world_from_camera[indices] @ alone, atol=1e-12)


def test_rotation_only_does_not_move(reference):
    poses, _ = plan_trajectory(reference, ARC, adaptive=False, rotation_only=True)
    assert float(poses[:, :3, 3].abs().max()) == 0
    assert not torch.allclose(poses[5], poses[0])


def test_radius_ratio_multiplies_by_the_nearest_depth(reference):
    plain, _ = plan_trajectory(reference, ARC, adaptive=False)
    scaled, _ = plan_trajectory(reference, ARC, adaptive=False, radius_ratio=0.5)
    near = float(np.quantile(reference.depth(0).numpy(), 0.01))
    assert torch.allclose(scaled[:, :3, 3], plain[:, :3, 3] * 0.5 * near, atol=1e-9)
    assert torch.equal(scaled[:, :3, :3], plain[:, :3, :3])


def test_freeze_holds_a_source_frame(reference):
    _, indices = plan_trajectory(reference, ARC, adaptive=False, freeze_repeat=3, freeze_frame=2)
    assert indices.tolist() == [0, 1, 2, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9]


def test_given_poses_bounce_through_the_source(reference):
    given = torch.eye(4, dtype=torch.float64).repeat(14, 1, 1)
    given[:, 0, 3] = torch.linspace(0, 0.2, 14)
    poses, indices = plan_poses(reference, given)
    assert torch.equal(poses, given)
    assert indices.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5]
    assert plan_poses(reference, given[:4])[1].tolist() == [0, 1, 2, 3]
    assert plan_poses(reference, given[:5], freeze_repeat=2, freeze_frame=1)[1].tolist() == [0, 1, 1, 1, 2]


def test_everything_written_is_what_the_session_showed(reference, tmp_path):
    """Seven frames (1 + 4 + half a block) against a session driven by hand."""
    poses, indices = plan_trajectory(reference, ARC, adaptive=False)
    poses, indices = poses[:7], [0, 3, 3, 2, 1, 9, 4]
    seen = []
    out = tmp_path / "deep" / "er"
    result = render_video(
        reference, poses, indices, out, known=True, images=True, map_path=True, preview_path=True, progress=seen.append
    )
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert result.frames == 7 and result.fps == 25.0 and result.size == SIZE
    names = ["depth", "images", "known", "map.ply", "poses.txt", "preview.png", "transforms.json", "video.mp4"]
    assert list(result.files) == names
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, MANIFEST])

    session = World(reference, size=SIZE, fps=25.0).start(start_poses=poses[0], start_indices=0)
    expected = [session.first]
    for rows in ([1, 2, 3, 4], [5, 6, 6, 6]):
        command = pipeline.PlayheadCommand(indices=[indices[i] for i in rows])
        expected.append(session.step(pipeline.Motion.path(poses[rows]), command))
    rgb = torch.cat([b.rgb[0] for b in expected])[:7].numpy()
    depth = torch.cat([b.depth[0] for b in expected])[:7].numpy()
    known = torch.cat([b.known[0] for b in expected])[:7].numpy()
    session.close()

    frames, rate = read_video(out / "video.mp4")
    assert len(frames) == 7 and rate == 25.0
    for i in range(7):
        assert np.array_equal(cv2.imread(str(out / f"images/{i:06d}.png"))[..., ::-1], rgb[i])
        assert np.abs((frames[i] - rgb[i].astype(float)) @ (0.21, 0.72, 0.07)).mean() < 3  # chroma is subsampled
        millimetres = cv2.imread(str(out / f"depth/{i:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert millimetres.dtype == np.uint16 and np.abs(millimetres / 1000 - depth[i]).max() <= 0.000501
        assert np.array_equal(cv2.imread(str(out / f"known/{i:06d}.png"), cv2.IMREAD_GRAYSCALE) > 127, known[i])
    assert result.known == pytest.approx(known.mean(), abs=1e-6)

    assert torch.allclose(load_poses(out / "poses.txt"), poses, atol=1e-7)
    assert torch.allclose(load_poses(out / "transforms.json"), poses, atol=1e-12)
    transforms = json.loads((out / "transforms.json").read_text())
    assert [f["source_index"] for f in transforms["frames"]] == indices
    assert [f["time"] for f in transforms["frames"]] == pytest.approx([i / 25 for i in range(7)])
    assert transforms["cx"] == float(reference.K[0, 0, 2]) + 0.5


def test_a_render_with_images_opens_as_a_scene(reference, tmp_path):
    poses, indices = plan_trajectory(reference, ARC, adaptive=False)
    render_video(reference, poses, indices, tmp_path / "out", images=True)
    scene = open_scene(tmp_path / "out")
    assert scene.frame_count == 10 and scene.fps == 25.0 and scene.metric
    assert torch.allclose(scene.world_from_camera, torch.linalg.inv(poses[0]) @ poses, atol=1e-9)
    assert torch.allclose(scene.K[0], reference.K[0], atol=1e-9)


def test_a_name_ending_in_mp4_gets_the_video_alone(reference, tmp_path):
    poses, indices = plan_trajectory(reference, ARC, adaptive=False)
    out = tmp_path / "clip.mp4"
    result = render_video(reference, poses[:3], indices[:3], out, fps=12, preview_path=True, map_path=True)
    assert result.files == () and result.path == out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "clip.ply", "clip.png"]
    assert len(read_video(out)[0]) == 3 and read_video(out)[1] == 12.0


def test_exact_depth_and_kitti_poses(reference, tmp_path):
    poses, indices = plan_trajectory(reference, ARC, adaptive=False)
    render_video(reference, poses[:2], indices[:2], tmp_path / "o", depth="npz", pose_format="kitti")
    depth = np.load(tmp_path / "o/depth/000001.npz")["depth"]
    assert depth.dtype == np.float32 and depth.shape == SIZE and (depth > 0).all()
    assert len((tmp_path / "o/poses.txt").read_text().split()) == 24
    assert torch.allclose(load_poses(tmp_path / "o/poses.txt"), poses[:2], atol=1e-10)
    render_video(reference, poses[:2], indices[:2], tmp_path / "p", depth="none")
    assert not (tmp_path / "p/depth").exists()


def test_a_failure_leaves_nothing_and_spares_the_earlier_render(reference, tmp_path):
    poses, indices = plan_trajectory(reference, ARC, adaptive=False)

    def stop(done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_video(reference, poses, indices, tmp_path / "a/b/out", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        render_video(reference, poses, indices, tmp_path / "clip.mp4", progress=stop)
    assert list(tmp_path.iterdir()) == []

    out = tmp_path / "out"
    render_video(reference, poses[:5], indices[:5], out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(KeyboardInterrupt):
        render_video(reference, poses, indices, out, progress=stop)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert list(tmp_path.iterdir()) == [out]

    render_video(reference, poses[:2], indices[:2], out, depth="none")
    assert len(read_video(out / "video.mp4")[0]) == 2 and not (out / "depth").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_other_peoples_files_are_never_replaced(reference, tmp_path):
    poses, indices = plan_trajectory(reference, ARC, adaptive=False)
    notes = tmp_path / "out"
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an earlier render"):
        render_video(reference, poses[:2], indices[:2], notes)
    (notes / "notes.txt").unlink()
    render_video(reference, poses[:2], indices[:2], notes)
    (notes / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        render_video(reference, poses[:2], indices[:2], notes)
    assert (notes / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="is a file"):
        render_video(reference, poses[:2], indices[:2], notes / "notes.txt")


@pytest.mark.parametrize("latents, look_ahead, count", [(1, 0, 1), (1, 3, 6), (3, 0, 5), (3, 0, 21), (2, 3, 10)])
def test_every_frame_is_where_the_path_says_whatever_a_block_commits(reference, latents, look_ahead, count):
    """First blocks of several frames and frames committed ahead: none is passed over, none comes late."""
    poses, _ = plan_trajectory(reference, ARC)
    indices = [(3 * i) % 10 for i in range(count)]
    world = World(reference, FakeGenerator(look_ahead, latents), size=SIZE, device="cpu")
    with start_along(world, poses[:count], indices) as session:
        shown = list(frames_along(session, poses[:count], indices))
        blocks = int(session.blocks)
    assert [f.source_index for f in shown] == indices
    assert torch.equal(torch.stack([f.world_from_camera for f in shown]), poses[:count])
    assert [f.stamp for f in shown] == [i / world.fps for i in range(count)]
    first = 4 * latents - 3
    assert blocks == 1 + max(0, -(-(count - first) // (4 * latents))), "no block more than it takes"


def test_the_manifest_tells_what_made_the_frames(reference, tmp_path):
    def manifest(generator, options=None):
        poses, indices = plan_trajectory(reference, ARC, adaptive=False)
        render_video(reference, poses[:2], indices[:2], tmp_path / "o", generator=generator, options=options)
        return json.loads((tmp_path / "o" / MANIFEST).read_text())

    told = manifest("geometric", GeneratorOptions(prompt="a wall", model="14b"))
    assert told["generator"] == "geometric" and told["generator_options"] is None and told["notices"] == []
    generator = FakeGenerator(generates=True)
    generator.notices = ("made up",)
    told = manifest(generator, GeneratorOptions(prompt="a wall", model="14b", random_weights=True))
    assert told["generator"] == "fake" and told["notices"] == ["made up"]
    options = GeneratorOptions.parse(told["generator_options"])
    assert options == GeneratorOptions(prompt="a wall", model="14b", random_weights=True)
    assert manifest(generator)["generator_options"]["prompt"] == "", "the caption, of which there is none"
    deaf = FakeGenerator(generates=True, needs=frozenset({"anchor"}))
    assert manifest(deaf, GeneratorOptions(prompt="a wall"))["generator_options"]["prompt"] is None


def test_frames_are_not_kept(reference, tmp_path, monkeypatch):
    """However long the clip, only the frame at hand (and the preview's) stays in memory."""
    alive, most = weakref.WeakSet(), []
    frames_along = pipeline.frames_along

    def watched(*args):
        for frame in frames_along(*args):
            alive.add(frame.rgb)
            most.append(len(alive))
            yield frame

    monkeypatch.setattr(pipeline, "frames_along", watched)
    poses = torch.eye(4, dtype=torch.float64).repeat(60, 1, 1)
    render_video(reference, poses, [i % 10 for i in range(60)], tmp_path / "o", preview_path=True, depth="none")
    assert len(most) == 60 and max(most) <= 8


def test_bad_requests_are_refused(reference, tmp_path):
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    for bad, what in (
        (dict(indices=[0, 1]), "one source index each"),
        (dict(indices=[0, 1, 10]), "frames 0 to 9"),
        (dict(depth="exr"), "depth 'exr'"),
        (dict(preview_frame=3), "preview_frame"),
        (dict(size=(47, 64)), "even"),
        (dict(poses=poses * 2), "rigid"),
        (dict(fps=-1), "fps"),
    ):
        arguments = dict(poses=poses, indices=[0, 1, 2]) | bad
        with pytest.raises(InputError, match=what):
            render_video(reference, arguments.pop("poses"), arguments.pop("indices"), tmp_path / "o", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_preview_shows_the_chosen_frame(reference, tmp_path):
    poses, indices = plan_trajectory(reference, ARC, adaptive=False)
    render_video(
        reference, poses, indices, tmp_path / "o", images=True, preview_path=tmp_path / "p.png", preview_frame=6
    )
    sheet = cv2.imread(str(tmp_path / "p.png"))
    assert sheet.shape[1] == 3 * 640 + 4 * 16 and sheet.shape[2] == 3
    result = cv2.resize(cv2.imread(str(tmp_path / "o/images/000006.png")), (640, 480), interpolation=cv2.INTER_CUBIC)
    left = 16 + 2 * (640 + 16)
    assert np.array_equal(sheet[44 : 44 + 480, left : left + 640], result)
    upright = make_reference(frames=3, size=(64, 48))
    render_video(upright, poses[:3], [0, 1, 2], tmp_path / "q", preview_path=tmp_path / "q.jpg")
    assert cv2.imread(str(tmp_path / "q.jpg")) is not None


def test_video_keeps_colours_and_rate(tmp_path):
    colours = [(200, 30, 40), (20, 180, 60), (10, 20, 240), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
    with VideoWriter(tmp_path / "a.mp4", (32, 48), 29.97) as writer:
        for colour in colours:
            writer.write(np.full((32, 48, 3), colour, np.uint8))
    frames, rate = read_video(tmp_path / "a.mp4")
    assert len(frames) == 6 and rate == pytest.approx(30000 / 1001)
    for frame, colour in zip(frames, colours, strict=True):
        assert np.abs(frame[16, 24].astype(int) - colour).max() <= 4
    with pytest.raises(InputError, match="even"):
        VideoWriter(tmp_path / "b.mp4", (31, 48), 24)


def test_frame_rates_are_the_fractions_that_are_meant():
    assert [str(frame_rate(f)) for f in (24, 23.976, 29.97, 59.94, 12.5, 24.0001)] == [
        "24", "24000/1001", "30000/1001", "60000/1001", "25/2", "24"
    ]  # fmt: skip


def test_pose_files_survive_a_turn_past_half_a_circle(tmp_path):
    angle = torch.linspace(0, 6.0, 30, dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(30, 1, 1)
    poses[:, 0, 0], poses[:, 0, 2], poses[:, 2, 0], poses[:, 2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    write_tum(tmp_path / "tum.txt", angle.tolist(), poses.numpy())
    write_kitti(tmp_path / "kitti.txt", poses.numpy())
    assert torch.allclose(load_poses(tmp_path / "tum.txt"), poses, atol=1e-8)
    assert torch.allclose(load_poses(tmp_path / "kitti.txt"), poses, atol=1e-11)
    quaternions = np.loadtxt(tmp_path / "tum.txt")[:, 4:]
    assert (np.sum(quaternions[1:] * quaternions[:-1], 1) > 0).all()


def test_the_python_example_runs(tmp_path, capsys):
    main = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "python_api.py"))["main"]
    main(str(make_scene(tmp_path / "scene", frames=6)), str(tmp_path / "drive.mp4"))
    assert len(read_video(tmp_path / "drive.mp4")[0]) == 4 * 24
    assert (tmp_path / "drive.ply").stat().st_size > 1000
    assert "home" in capsys.readouterr().out
