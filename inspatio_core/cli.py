"""The ``inspatio`` command: one sub-command a verb.

Other rooms add verbs by the entry-point group ``inspatio.commands``: an object with ``add_parser(subparsers)`` whose
parser sets ``set_defaults(run=function)``, ``function(args) -> int | None`` (the exit code). Heavy modules are
imported inside the verbs, so that ``--help`` answers at once.

Exit codes: 0; 2 for bad input or usage, after one line ``inspatio: error: ...``; 130 for Ctrl-C (128 + the signal's
number for SIGTERM and SIGHUP).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from inspatio_core import __version__
from inspatio_core.bench.verb import add_parser as _add_bench
from inspatio_core.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
DEFAULT_TRAJECTORY = "pan"

WITHOUT_EFFECT = {
    "--da3_model_path": "DIR",
    "--florence_model_path": "DIR",
    "--render_backend": "NAME",
    "--num_samples": "N",
    "--step1_gpus": "IDS",
    "--step2_gpus": "IDS",
    "--step3_gpus": "IDS",
    "--step3_nproc": "N",
    "--master_port": "PORT",
    "--skip_step1": None,
    "--skip_step2": None,
    "--skip_step3": None,
}
"""Arguments of the released scripts that steer what is done otherwise here, or not at all."""

OF_THE_NETWORK = (
    "--checkpoint_path --model --config_path --codec --use_tae --tae_checkpoint_path --prompt --dtype --compile_dit "
    "--fp8 --random_weights"
).split()
"""Arguments that the geometric generator has no use for."""


class _Parser(argparse.ArgumentParser):
    """Usage errors in one line, as every other error."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise InputError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command, verbs of other rooms included."""
    parser = _Parser(
        prog="inspatio",
        description="One video in, a world out that a robot can drive through, in space and in time.",
    )
    parser.add_argument("--version", action="version", version=f"inspatio {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_render(verbs)
    _add_prepare(verbs)
    _add_info(verbs)
    _add_checkpoints(verbs)
    _add_scenes(verbs)
    _add_bench(verbs)
    _add_verbs_of_other_rooms(parser, verbs)
    return parser


def _add_verbs_of_other_rooms(parser: argparse.ArgumentParser, verbs) -> None:
    from importlib.metadata import entry_points

    absent = []
    for entry in sorted(entry_points(group="inspatio.commands"), key=lambda e: e.name):
        if entry.name in verbs.choices:
            continue
        try:
            entry.load().add_parser(verbs)
        except ImportError as error:
            absent.append(f"{entry.name} ({error})")
    if absent:
        parser.epilog = "Not available here: " + ", ".join(absent)


# ------------------------------------------------------------------------------------------------------ argument types


def _size(text: str):
    if text == "auto":
        return text
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH (such as 480x832) or auto")
    size = int(match[1]), int(match[2])
    if not all(16 <= n <= 4096 and n % 2 == 0 for n in size):
        raise argparse.ArgumentTypeError(f"'{text}': height and width must be even, from 16 to 4096")
    return size


def _number(kind: type, low: float, open_end: bool = False) -> Callable[[str], float]:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not (value > low if open_end else value >= low) or value == float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' is not {what} {'above' if open_end else 'of at least'} {low}")
        return value

    return parse


def _path_ending(*suffixes: str) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        if Path(text).suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"'{text}' does not end in {' or '.join(suffixes)}")
        return Path(text)

    return parse


# ------------------------------------------------------------------------------------------------------------- render


def _add_render(verbs) -> None:
    parser = verbs.add_parser(
        "render",
        help="drive a camera path through a video, offline",
        description="Drive a camera path through a video and write video, poses and depth. The released scripts' "
        "argument names are accepted as they are.",
    )
    parser.set_defaults(run=run_render)
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="video, image, folder of images, scene folder, or the name of a shipped scene",
    )
    add("--input_dir", type=Path, metavar="DIR", help="render every video of this folder instead")

    add = parser.add_argument_group("camera path").add_argument
    add(
        "--traj_txt_path",
        metavar="FILE",
        help="trajectory file (keyframes of pitch, yaw, displacement) or the name of a shipped one "
        f"(default: {DEFAULT_TRAJECTORY})",
    )
    add(
        "--poses",
        type=Path,
        metavar="FILE",
        help="instead: world_from_camera poses, one an output frame, OpenCV axes (TUM, KITTI, .npy, transforms.json)",
    )
    add("--relative_to_source", action="store_true", help="let the path ride on the source camera's own motion")
    add("--rotation_only", action="store_true", help="turn only, do not move (tripod pan and tilt)")
    add(
        "--radius_ratio",
        type=_number(float, 0, True),
        metavar="R",
        help="multiply displacements by R times the nearest depth of the first frame (default: they are metres)",
    )
    add(
        "--compatible",
        action="store_true",
        help="number for number as released: smoothing spline, finished path played back and forth, whole blocks of 3 "
        "latents, 24 fps; with star also codec, prompt and rounding",
    )

    add = parser.add_argument_group("time").add_argument
    add(
        "--freeze_repeat",
        type=_number(int, 0),
        default=0,
        metavar="N",
        help="hold one source frame for N extra frames (default: 0)",
    )
    add(
        "--freeze_frame",
        type=_number(int, 0),
        metavar="I",
        help="which source frame to hold (default: the middle one)",
    )
    add(
        "--disable_adaptive_frame",
        action="store_true",
        help="keep the source's number of frames, however fast the camera turns",
    )
    add("--frames", type=_number(int, 1), metavar="N", help="stop after N frames")

    add = parser.add_argument_group("world").add_argument
    _add_reference_options(add)
    add(
        "--size",
        type=_size,
        default="auto",
        metavar="HxW",
        help="height x width, both even (default: auto, which is 480x832, or 832x480 for an upright source)",
    )
    add("--height", type=_number(int, 16), metavar="H", help="with --width, the same as --size HxW")
    add("--width", type=_number(int, 16), metavar="W", help="see --height")
    add(
        "--metres_per_unit",
        type=_number(float, 0, True),
        metavar="M",
        help="scale of a source without metric depth (default: such that the median depth is 3 m)",
    )
    add(
        "--generator",
        default="geometric",
        metavar="NAME",
        help="what makes the frames: geometric, which needs no network, or star, the diffusion transformer "
        "(default: geometric)",
    )
    add("--device", default="auto", metavar="NAME", help="auto, cpu or cuda:N (default: auto)")
    add(
        "--fps",
        type=_number(float, 0, True),
        metavar="FPS",
        help="frames per second of the video (default: the source's; with --compatible 24)",
    )
    add("--seed", type=int, default=0, help="seed of the generator's noise (default: 0)")
    add(
        "--latents_per_block",
        type=_number(int, 1),
        metavar="N",
        help="blocks of N latent frames, 4 N frames (default: the generator's; geometric: 1)",
    )
    add("--no_memory", action="store_true", help="do not let the point map fill what the current frame does not show")

    add = parser.add_argument_group("network of the star generator").add_argument
    add(
        "--checkpoint_path",
        metavar="PATH",
        help="its weights: a file, or a folder with config.json, star.safetensors and codec.safetensors "
        "(default: where `inspatio checkpoints list` says)",
    )
    add(
        "--model",
        metavar="NAME",
        help="its size: 1.3b, 14b, tiny, or a JSON file of its fields (default: what the weights are of; with "
        "--random_weights tiny)",
    )
    add(
        "--config_path",
        metavar="FILE",
        help="released name of --model, for a JSON file; the released YAML is not needed",
    )
    add(
        "--codec",
        choices=("auto", "wan", "tae"),
        default="auto",
        help="autoencoder: that of Wan 2.1, or TAEHV, which is fast (default: auto, what the model was made with)",
    )
    add("--use_tae", action="store_true", help="the same as --codec tae")
    add("--tae_checkpoint_path", metavar="FILE", help="weights of TAEHV")
    add(
        "--prompt",
        metavar="TEXT",
        help="what the video shows, for models that read text (default: the source's caption)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="what it computes in (default: auto, bfloat16 on a GPU, else float32)",
    )
    add("--compile_dit", action="store_true", help="compile it first: slower to start, faster then")
    add("--fp8", action="store_true", help="large products in 8 bits, on GPUs that can")
    add(
        "--random_weights",
        "--random-weights",
        action="store_true",
        help="make its weights up: the frames are noise, for tests and speed measurements",
    )

    add = parser.add_argument_group("output").add_argument
    add(
        "-o",
        "--output_folder",
        type=Path,
        metavar="OUT",
        help="folder, or a name ending in .mp4 for the video alone (default: output/SOURCE/TRAJECTORY); "
        "an earlier render there is replaced",
    )
    add(
        "--depth",
        choices=("png", "npz", "none"),
        default="png",
        help="depth maps: 16-bit PNG in millimetres, exact float32 metres, or none (default: png)",
    )
    add("--known", action="store_true", help="write the known masks (white: covered by the source or the memory)")
    add("--images", action="store_true", help="write every frame as PNG too, as readers of transforms.json want it")
    add("--pose_format", choices=("tum", "kitti"), default="tum", help="format of poses.txt (default: tum)")
    add(
        "--map",
        nargs="?",
        const=True,
        type=_path_ending(".ply", ".pcd"),
        metavar="FILE",
        help="write the point map, .ply or .pcd (without a name: map.ply in OUT)",
    )
    add(
        "--preview",
        nargs="?",
        const=True,
        type=_path_ending(".png", ".jpg"),
        metavar="FILE",
        help="write a picture of source, anchor, result, depth and map (without a name: preview.png in OUT)",
    )
    add(
        "--preview_frame",
        type=_number(int, 0),
        metavar="I",
        help="which output frame the picture shows (default: the one with the least known)",
    )
    add("-q", "--quiet", action="store_true", help="no progress bar, no notes, no summary")

    group = parser.add_argument_group("accepted, without effect", ", ".join(WITHOUT_EFFECT))
    for flag, metavar in WITHOUT_EFFECT.items():
        value = {"metavar": metavar} if metavar else {"action": "store_true"}
        group.add_argument(flag, help=argparse.SUPPRESS, **value)


def _add_reference_options(add: Callable) -> None:
    add(
        "--depth_from",
        default="auto",
        metavar="WHAT",
        help="auto (the source's own, else what fits the clip), fastdepth, sweep (moving cameras with poses), plane, "
        "or a DA3, Pi3 or scene folder of the same clip (default: auto)",
    )
    add(
        "--poses_from",
        default="auto",
        metavar="WHAT",
        help="the source camera's path: auto (the source's own, else what fits the clip), static, sfm, a file of "
        "world_from_camera poses, or a DA3, Pi3 or scene folder (default: auto)",
    )
    add(
        "--fov",
        type=_number(float, 1),
        metavar="DEGREES",
        help="horizontal angle of view of a source whose focal length is unknown (default: estimated, or 60)",
    )


def run_render(args: argparse.Namespace) -> int:
    """``inspatio render``: one render for each source; the exit code is 2 if any of them failed."""
    geometric = args.generator == "geometric"
    flags = [*(OF_THE_NETWORK if geometric else ()), *WITHOUT_EFFECT]
    ignored = [f for f in flags if getattr(args, f[2:]) not in (None, False, "auto")]
    if ignored:
        _say(args, f"note: no effect{' with the geometric generator' if geometric else ''}: {', '.join(ignored)}")
    if (args.height is None) != (args.width is None):
        raise InputError("--height and --width go together; or use --size HxW")
    if args.height is not None:
        args.size = _checked(_size, f"{args.height}x{args.width}", "--height, --width")
    if args.poses and (args.traj_txt_path or args.compatible):
        raise InputError("--poses gives the camera path itself; leave out --traj_txt_path and --compatible")
    if (args.source is None) == (args.input_dir is None):
        raise InputError("give one SOURCE, or --input_dir with a folder of videos (see inspatio render --help)")
    options = _generator_options(args)
    generator = functools.cache(lambda: _generator(args, options))
    if args.source is not None:
        _render_one(args, args.source, args.output_folder, generator, options)
        return 0

    clips = _clips(args.input_dir)
    for option in ("map", "preview"):
        if isinstance(getattr(args, option), Path) and len(clips) > 1:
            raise InputError(f"--{option}: one file cannot serve {len(clips)} videos; give --{option} without a name")
    base = args.output_folder or Path("output") / args.input_dir.resolve().name / _path_name(args)
    if base.suffix.lower() == ".mp4":
        raise InputError(f"-o {base}: with --input_dir give a folder")
    generator()
    failed = 0
    for clip in clips:
        try:
            _render_one(args, str(clip), base / clip.stem, generator, options)
        except InputError as error:
            failed += 1
            _complain(error)
    return 2 if failed else 0


def _generator_options(args: argparse.Namespace):
    """What the arguments ask of the generator."""
    from inspatio_core.generators import GeneratorOptions

    model, codec = args.model, args.codec
    if args.config_path and args.generator != "geometric":
        if args.config_path.endswith(".json"):
            if model not in (None, args.config_path):
                raise InputError("--model and --config_path: both are given; leave one out")
            model = args.config_path
        else:
            _say(args, f"note: --config_path {args.config_path}: not needed, the model's own sizes are taken")
    if args.use_tae:
        if codec == "wan":
            raise InputError("--use_tae and --codec wan: one says the contrary of the other; leave one out")
        codec = "tae"
    return GeneratorOptions(
        checkpoint_path=args.checkpoint_path or "",
        model=model or "auto",
        codec=codec,
        tae_checkpoint_path=args.tae_checkpoint_path or "",
        prompt=args.prompt,
        random_weights=args.random_weights,
        dtype=args.dtype,
        compile=args.compile_dit,
        fp8=args.fp8,
        compatible=args.compatible,
        latents_per_block=args.latents_per_block,
    )


def _generator(args: argparse.Namespace, options):
    """The generator, ready to run; what it has to say is said even if nothing else shall be."""
    from inspatio_core.generators import check_size, make_generator
    from inspatio_core.world import choose_device

    device, size = choose_device(args.device), None if args.size == "auto" else args.size
    generator = make_generator(args.generator, options=options, device=device, size=size)
    if size is not None:
        check_size(generator.spec, size)
    for notice in getattr(generator, "notices", ()):
        print(f"inspatio: warning: {notice}", file=sys.stderr, flush=True)
    if args.prompt is not None and args.generator != "geometric" and "text" not in generator.spec.needs:
        _say(args, "note: no effect: --prompt, since this model reads no text")
    return generator


def _checked(parse: Callable, text: str, option: str):
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{option}: {error}") from None


def _clips(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"--input_dir {folder}: no such folder")
    clips = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
    if not clips:
        raise InputError(f"--input_dir {folder}: holds no video ({', '.join(VIDEO_SUFFIXES)})")
    stems = [p.stem for p in clips]
    for clip in clips:
        if stems.count(clip.stem) > 1:
            raise InputError(f"--input_dir {folder}: two videos are called {clip.stem}; rename one")
    return clips


def _path_name(args: argparse.Namespace) -> str:
    return (args.poses or Path(args.traj_txt_path or DEFAULT_TRAJECTORY)).stem


def _trajectory(name: str):
    """The trajectory of a file or a shipped name; poses are told apart, since three of their rows read as keyframes."""
    from inspatio_core.geometry.trajectory import load_poses, load_trajectory

    path = find_trajectory(name)
    try:
        load_poses(path)
    except InputError:
        return load_trajectory(path)
    raise InputError(f"--traj_txt_path {path}: is a file of camera poses, not of keyframes; give it as --poses")


def _render_one(args: argparse.Namespace, source: str, out: Path | None, generator: Callable[[], Any], options) -> None:
    from inspatio_core.export import check_replaceable
    from inspatio_core.geometry.trajectory import load_poses
    from inspatio_core.pipeline import RELEASED_FPS, plan_poses, plan_trajectory, render_video

    out = out or Path("output") / Path(source).resolve().stem / _path_name(args)
    video_only = out.suffix.lower() == ".mp4"
    if not video_only:
        check_replaceable(out)
    trajectory = None if args.poses else _trajectory(args.traj_txt_path or DEFAULT_TRAJECTORY)
    given = load_poses(args.poses) if args.poses else None

    if find_source(source).exists():
        generator()  # what is missing for it is told before a clip is prepared for minutes
    reference = open_source(args, source)
    if trajectory is not None:
        poses, indices = plan_trajectory(
            reference,
            trajectory,
            relative_to_source=args.relative_to_source,
            rotation_only=args.rotation_only,
            radius_ratio=args.radius_ratio,
            freeze_repeat=args.freeze_repeat,
            freeze_frame=args.freeze_frame,
            adaptive=not args.disable_adaptive_frame,
            compatible=args.compatible,
        )
    else:
        poses, indices = plan_poses(
            reference,
            given,
            relative_to_source=args.relative_to_source,
            rotation_only=args.rotation_only,
            freeze_repeat=args.freeze_repeat,
            freeze_frame=args.freeze_frame,
        )
    if args.frames:
        poses, indices = poses[: args.frames], indices[: args.frames]

    with _bar(args, f"render {reference.name}", len(poses), "frame") as bar:
        result = render_video(
            reference,
            poses,
            indices,
            out,
            generator=generator(),
            options=options,
            device=args.device,
            fps=args.fps or (RELEASED_FPS if args.compatible else None),
            seed=args.seed,
            memory=not args.no_memory,
            depth=args.depth,
            known=args.known,
            images=args.images,
            pose_format=args.pose_format,
            map_path=args.map,
            preview_path=args.preview,
            preview_frame=args.preview_frame,
            progress=lambda done: bar.update(done - bar.n),
        )
    if not args.quiet:
        height, width = result.size
        held = f": {', '.join(result.files)}" if result.files else ""
        print(
            f"{result.path}: {result.frames} frames of {height}x{width} at {result.fps:g} fps, "
            f"{result.known:.1%} known{held}"
        )


# ------------------------------------------------------------------------------------------- prepare, info, checkpoints


def _add_prepare(verbs) -> None:
    parser = verbs.add_parser(
        "prepare",
        help="turn a video into a scene folder",
        description="Recover depth and camera path of a video and write a scene folder, which opens at once from then "
        "on and which other tools read (nerfstudio transforms.json, 16-bit depth).",
    )
    parser.set_defaults(run=run_prepare)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="video, image, folder of images, DA3 folder, or scene folder to prepare anew")
    add("-o", "--output", type=Path, required=True, metavar="SCENE", help="the scene folder to write")
    _add_reference_options(add)
    add("--longest_side", type=_number(int, 64), default=1280, metavar="PIXELS", help="of the frames (default: 1280)")
    add("--caption", metavar="TEXT", help="what the video shows, for generators that read it")
    add("--no_masks", action="store_true", help="do not look for moving things")
    add("-q", "--quiet", action="store_true", help="no progress bar, no notes, no summary")


def run_prepare(args: argparse.Namespace) -> int:
    """``inspatio prepare``."""
    from inspatio_core.reference import open_reference, prepare

    with _stages(args) as progress:
        scene = prepare(
            args.source,
            args.output,
            depth=args.depth_from,
            poses=args.poses_from,
            fov=args.fov,
            longest_side=args.longest_side,
            caption=args.caption,
            masks=not args.no_masks,
            progress=progress,
        )
    reference = open_reference(scene)
    _note_notices(args, reference)
    if not args.quiet:
        height, width = reference.size
        print(
            f"{scene}: {reference.frame_count} frames of {height}x{width} at {reference.fps:g} fps, "
            f"depth: {reference.depth_source}, camera: {reference.pose_source}"
        )
    return 0


def _add_info(verbs) -> None:
    parser = verbs.add_parser(
        "info",
        help="say what a video, scene folder or trajectory holds",
        description="Say what a video, scene folder or trajectory file holds.",
    )
    parser.set_defaults(run=run_info)
    parser.add_argument(
        "path", metavar="PATH", help="video, image, scene folder, trajectory file, or a shipped one's name"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run_info(args: argparse.Namespace) -> int:
    """``inspatio info``."""
    facts = describe(args.path)
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    for key, value in facts.items():
        if isinstance(value, list):
            value = "x".join(map(str, value)) if key == "size" else ", ".join(map(str, value)) or "none"
        elif isinstance(value, float):
            value = f"{value:.6g}"
        print(f"{key + ':':17} {value}")
    return 0


def describe(name: str) -> dict:
    """What ``inspatio info`` knows of a path or a shipped name: a dict that JSON can hold, ``kind`` first.

    A video is looked at, not prepared: depth and camera path are known of scene folders only.
    """
    path = find_source(name)
    if path.is_dir():
        from inspatio_core.reference.video import list_images

        return _describe_clip(path) if list_images(path) else _describe_scene(path)
    if path.suffix in (".txt", ".json", ".npy") or name in [p.stem for p in shipped_trajectories()]:
        return _describe_path(name)
    return _describe_clip(path)


def _describe_clip(path: Path) -> dict:
    from inspatio_core.reference.video import Images, open_clip

    clip = open_clip(path, longest_side=1 << 16)
    return {
        "kind": "images" if isinstance(clip, Images) else "video",
        "path": str(path),
        "size": list(clip.size),
        "frames": clip.expected_frames,
        "fps": clip.fps,
        "duration": clip.expected_frames / clip.fps,
        "notices": list(clip.notices),
    }


def _describe_scene(path: Path) -> dict:
    from inspatio_core.reference import open_reference

    reference = open_reference(path)
    centres = reference.world_from_camera[:, :3, 3]
    return {
        "kind": "scene",
        "path": str(path),
        "name": reference.name,
        "size": list(reference.size),
        "frames": reference.frame_count,
        "fps": reference.fps,
        "duration": reference.frame_count / reference.fps,
        "depth_source": reference.depth_source,
        "pose_source": reference.pose_source,
        "metric": reference.metric,
        "metres_per_unit": reference.metres_per_unit,
        "median_depth": reference.median_depth,
        "length": float((centres[1:] - centres[:-1]).norm(dim=-1).sum()),
        "caption": reference.caption,
        "notices": list(reference.notices),
    }


def _describe_path(name: str) -> dict:
    from inspatio_core.geometry.frame_plan import MAX_PLANNED_FRAMES, adaptive_bounds, total_angle
    from inspatio_core.geometry.trajectory import load_poses, load_trajectory

    path = find_trajectory(name)
    try:
        poses = load_poses(path)
    except InputError:
        if path.suffix != ".txt":
            raise
        trajectory = load_trajectory(path)
    else:
        steps = (poses[1:, :3, 3] - poses[:-1, :3, 3]).norm(dim=-1)
        return {"kind": "poses", "path": str(path), "frames": len(poses), "length": float(steps.sum())}
    angle = total_angle(trajectory)
    curves = {"pitch": trajectory.pitch, "yaw": trajectory.yaw, "displacement": trajectory.displacement}
    facts = {"kind": "trajectory", "path": str(path)}
    for what, keys in curves.items():
        facts[what] = [float(keys.min()), float(keys.max())]
        facts[f"{what}_keyframes"] = len(keys)
    facts["total_angle"] = angle
    if angle > 1e-3:
        facts["adaptive_frames"] = list(adaptive_bounds(angle, 1))
        if facts["adaptive_frames"][0] > MAX_PLANNED_FRAMES:
            notice = f"too long to render: at most {MAX_PLANNED_FRAMES} frames (or --disable_adaptive_frame)"
            facts["notices"] = [notice]
    return facts


def _add_checkpoints(verbs) -> None:
    about = "List, fetch, check or convert network weights."
    parser = verbs.add_parser("checkpoints", help="list, fetch, check or convert network weights", description=about)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", help="what there is, and whether it is here", description="List the known weights."
    )
    listing.set_defaults(run=run_checkpoints_list)
    download = actions.add_parser("download", help="fetch one of them", description="Fetch weights into the cache.")
    download.set_defaults(run=run_checkpoints_download)
    download.add_argument("name", metavar="NAME", help="a name that `inspatio checkpoints list` shows")
    verify = actions.add_parser(
        "verify",
        help="check a file's keys and shapes",
        description="Check a file of weights, safetensors or PyTorch, by its headers: every key there, none too many, "
        "every shape right. No tensor is read, and no code in a pickle is run.",
    )
    verify.set_defaults(run=run_checkpoints_verify)
    verify.add_argument("file", type=Path, metavar="FILE", help="the file")
    _add_kind(verify)
    convert = actions.add_parser(
        "convert",
        help="write a file anew as safetensors",
        description="Write a file of weights anew as safetensors, without prefixes, after checking it as verify does.",
    )
    convert.set_defaults(run=run_checkpoints_convert)
    convert.add_argument("file", type=Path, metavar="FILE", help="the file, safetensors or PyTorch")
    convert.add_argument("out", type=Path, metavar="OUT", help="the file to write, ending in .safetensors")
    convert.add_argument("--dtype", choices=["bf16", "f16", "f32"], help="cast to this (default: as in FILE)")
    convert.add_argument(
        "--to",
        choices=["same", "diffusers", "transformers"],
        default="same",
        help="whose names for the keys (default: same, as in FILE)",
    )
    _add_kind(convert)


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kind", metavar="NAME", help="what the file must be, as `inspatio checkpoints list` names it (default: guess)"
    )


def _kind(args: argparse.Namespace) -> str | None:
    """The kind that ``--kind`` means, by its own name or by that of the weights."""
    from inspatio_core import checkpoints

    if args.kind is None or args.kind in checkpoints.KINDS:
        return args.kind
    entry = checkpoints.CHECKPOINTS.get(args.kind)
    if entry is None or not entry.kind:
        names = [c.name for c in checkpoints.CHECKPOINTS.values() if c.kind]
        raise InputError(f"--kind {args.kind}: is not one of {', '.join([*names, *checkpoints.KINDS])}")
    return entry.kind


def run_checkpoints_list(args: argparse.Namespace) -> int:
    """``inspatio checkpoints list``."""
    from inspatio_core import checkpoints

    for name, entry in checkpoints.CHECKPOINTS.items():
        here = checkpoints.locate(name)
        print(f"{name}: {entry.purpose}")
        print(f"  {entry.file}, {entry.size_text}, from {entry.source}; {entry.licence}")
        print(f"  needed by {entry.needed_by}")
        print(f"  here: {here}" if here else f"  not here: {entry.command}")
    return 0


def run_checkpoints_download(args: argparse.Namespace) -> int:
    """``inspatio checkpoints download``."""
    from inspatio_core import checkpoints

    checkpoints.download(args.name)
    return 0


def run_checkpoints_verify(args: argparse.Namespace) -> int:
    """``inspatio checkpoints verify``."""
    from inspatio_core import checkpoints

    print(f"ok: {args.file}: {_in_words(checkpoints.verify(args.file, _kind(args)))}")
    return 0


def run_checkpoints_convert(args: argparse.Namespace) -> int:
    """``inspatio checkpoints convert``."""
    from inspatio_core import checkpoints

    report = checkpoints.convert(args.file, args.out, kind=_kind(args), dtype=args.dtype, to=args.to)
    print(f"{args.out}: {_in_words(report)}, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


def _in_words(report) -> str:
    names = f" under the names of {report.library}" if report.library else ""
    trimmed = "".join(f", only the last {rows} rows of {key}" for key, rows in report.trimmed.items())
    return (
        f"{report.kind}{names}, {len(report.keys)} keys, {report.parameters} parameters, "
        f"{' and '.join(report.dtypes)}{trimmed}"
    )


def _add_scenes(verbs) -> None:
    parser = verbs.add_parser(
        "scenes",
        help="list the shipped scenes and trajectories",
        description="List what ships; each name can be given to render and info.",
    )
    parser.set_defaults(run=run_scenes)


def run_scenes(args: argparse.Namespace) -> int:
    """``inspatio scenes``."""
    from inspatio_core import assets

    for name in assets.scenes():
        print(f"scene       {name:24} {assets.find(f'scenes/{name}')}")
    for path in shipped_trajectories():
        print(f"trajectory  {path.stem:24} {path}")
    return 0


# ------------------------------------------------------------------------------------------------------------- lookups


def shipped_trajectories() -> list[Path]:
    """The trajectory files that ship, by name."""
    from inspatio_core import assets

    found: dict[str, Path] = {}
    for root in assets.roots():
        for path in sorted(root.glob("traj/*.txt")):
            found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


def find_trajectory(name: str) -> Path:
    """A trajectory file by path, or a shipped one by its name, with or without folder and suffix."""
    path = Path(name)
    if path.is_file():
        return path
    for shipped in shipped_trajectories():
        if name in (shipped.stem, shipped.name) or (path.parent.name == "traj" and path.name == shipped.name):
            return shipped
    if path.is_dir():
        raise InputError(f"{name}: is a folder; give a trajectory file")
    names = ", ".join(p.stem for p in shipped_trajectories())
    raise InputError(f"{name}: no such trajectory file; give a file, or one of the shipped names: {names}")


def find_source(name: str) -> Path:
    """A source by path, or a shipped scene by its name."""
    from inspatio_core import assets

    if not Path(name).exists() and name in assets.scenes():
        return assets.find(f"scenes/{name}")
    return Path(name)


def open_source(args: argparse.Namespace, source: str):
    """The Reference of a source, prepared if need be; its notices go to stderr."""
    from inspatio_core.reference import open_reference

    with _stages(args) as progress:
        reference = open_reference(
            source,
            args.size,
            depth=args.depth_from,
            poses=args.poses_from,
            fov=args.fov,
            metres_per_unit=args.metres_per_unit,
            progress=progress,
        )
    _note_notices(args, reference)
    return reference


def _note_notices(args: argparse.Namespace, reference) -> None:
    for notice in reference.notices:
        _say(args, f"note: {notice}")


# ---------------------------------------------------------------------------------------------------------------- talk


def _say(args: argparse.Namespace, text: str) -> None:
    if not getattr(args, "quiet", False):
        print(f"inspatio: {text}", file=sys.stderr, flush=True)


def _complain(error: object) -> None:
    print("inspatio: error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)


@contextmanager
def _bar(args: argparse.Namespace, label: str, total: float, unit: str) -> Iterator:
    """A progress bar on stderr; silent with --quiet and where stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=label,
        unit=unit,
        file=sys.stderr,
        disable=True if args.quiet else None,
        leave=False,
        dynamic_ncols=True,
    ) as bar:
        yield bar


@contextmanager
def _stages(args: argparse.Namespace) -> Iterator[Callable[[str, float], None]]:
    """A progress bar a stage, for functions that tell (stage, share done)."""
    with ExitStack() as stack:
        bars: dict = {}

        def tell(stage: str, share: float) -> None:
            if stage not in bars:
                stack.close()
                bars[stage] = stack.enter_context(_bar(args, stage, 1.0, ""))
                bars[stage].bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            bars[stage].update(share - bars[stage].n)

        yield tell


# ---------------------------------------------------------------------------------------------------------------- main


class _Stopped(KeyboardInterrupt):
    """A signal that ends the program in order; carries its number."""


@contextmanager
def _orderly_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise once, so that temporary files go; repeats while that happens are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

    def stop(number, _):
        for s in signals:
            signal.signal(s, signal.SIG_IGN)
        raise _Stopped(number)

    before = {s: signal.signal(s, stop) for s in signals if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (the console script passes it to ``sys.exit``)."""
    # Read when torch loads. Waiting compute threads sleep: spinning, they keep the last one from its core for a time
    # slice at every step as soon as anything else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _orderly_signals():
            parser = build_parser()
            args = parser.parse_args(argv)
            if not hasattr(args, "run"):
                parser.print_help(sys.stderr)
                return 2
            code = args.run(args) or 0
            sys.stdout.flush()
            return code
    except InputError as error:
        _complain(error)
        return 2
    except BrokenPipeError:
        # The reader has left (`inspatio info x | head`); keep the interpreter from flushing into it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as stopped:
        print("inspatio: interrupted", file=sys.stderr, flush=True)
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else error)
        return 2
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _complain("the device is out of memory; choose a smaller --size, or --device cpu")
        return 2


if __name__ == "__main__":
    sys.exit(main())
