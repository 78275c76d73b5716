"""Offline: a reference and a camera path in, a folder with video, poses and depth out.

Two stages. Opening the reference (depth, poses) keeps its result in the cache and is never repeated; rendering
streams block by block from the session into the encoder, so memory stays flat for any number of frames, and its
folder appears only when complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.export import (
    MANIFEST,
    VideoWriter,
    atomic_file,
    atomic_folder,
    check_replaceable,
    write_depth_png,
    write_kitti,
    write_mask_png,
    write_tum,
)
from inspatio_core.generators import Generator, GeneratorOptions
from inspatio_core.geometry.camera import is_rigid
from inspatio_core.geometry.frame_plan import bounce, freeze, plan_frames
from inspatio_core.geometry.motion import Motion
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.geometry.trajectory import Trajectory, sample, target_poses
from inspatio_core.latents import frame_counts
from inspatio_core.reference import Reference
from inspatio_core.reference.scene import MILLIMETRE, OPENGL, TRANSFORMS, write_image
from inspatio_core.session import Session
from inspatio_core.world import World

RELEASED_FPS = 24.0


@dataclass
class Frame:
    """One rendered frame, on the CPU.

    rgb uint8 [H, W, 3]; depth float32 [H, W] metres, everywhere > 0; known bool [H, W]; anchor_rgb uint8 [H, W, 3]
    (what was known before filling, black elsewhere) or None; world_from_camera float64 [4, 4]; K float64 [3, 3];
    stamp in seconds; source_index: the source frame it shows.
    """

    rgb: Tensor
    depth: Tensor
    known: Tensor
    anchor_rgb: Tensor | None
    world_from_camera: Tensor
    K: Tensor
    stamp: float
    source_index: int


@dataclass(frozen=True)
class RenderResult:
    """What a render wrote: ``path`` (a folder, or the mp4), ``files`` by name inside the folder, ``frames``, ``fps``,
    ``size`` (height, width), and ``known``, the mean share of pixels that the reference or the memory covered."""

    path: Path
    files: tuple[str, ...]
    frames: int
    fps: float
    size: tuple[int, int]
    known: float


def plan_trajectory(
    reference: Reference,
    trajectory: Trajectory,
    *,
    relative_to_source: bool = False,
    rotation_only: bool = False,
    radius_ratio: float | None = None,
    freeze_repeat: int = 0,
    freeze_frame: int | None = None,
    adaptive: bool = True,
    compatible: bool = False,
) -> tuple[Tensor, Tensor]:
    """Where the camera is and which source frame is shown, for each frame of a clip along a trajectory file.

    Args:
        relative_to_source: the path rides on the source camera instead of starting at the first one.
        rotation_only: turn on the spot (a trajectory without any turn keeps its displacement).
        radius_ratio: displacements are multiplied by this and by the nearest depth of the first frame; None: metres.
        freeze_repeat: hold ``freeze_frame`` (default: the middle one) for so many extra frames.
        adaptive: choose the number of frames by how far the path turns (`geometry.frame_plan`).
        compatible: everything as released, number for number: smoothing spline, the finished path played back and
            forth, whole blocks of three latents.

    Returns:
        poses float64 [n, 4, 4] (world_from_camera) and source indices int64 [n].

    Raises:
        InputError: in compatible mode, a clip too short for one block.
    """
    mode = "compatible" if compatible else "exact"
    plan = plan_frames(
        reference.frame_count,
        trajectory,
        adaptive=adaptive,
        freeze_repeat=freeze_repeat,
        freeze_frame=freeze_frame,
        mode=mode,
    )
    scales = {}
    if radius_ratio is not None:
        depth = reference.depth(0)
        near = float(depth.min() if compatible else np.quantile(depth.numpy(), 0.01))
        scales = {"radius_scale": radius_ratio * near, "zoom_scale": near if compatible else radius_ratio * near}
    path = sample(trajectory, plan.render_count, mode, **scales)[plan.render_indices]
    source = reference.world_from_camera[plan.source_indices]
    poses = target_poses(source, path, relative_to_source, rotation_only, compatible)
    count = len(poses)
    if compatible:
        count = frame_counts(count).output_frames
        if count < 1:
            raise InputError(f"{reference.name}: {len(poses)} frames make no released block; leave out --compatible")
    return poses[:count], plan.source_indices[:count]


def plan_poses(
    reference: Reference,
    poses: Tensor,
    *,
    relative_to_source: bool = False,
    rotation_only: bool = False,
    freeze_repeat: int = 0,
    freeze_frame: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same for poses that are already there, one for each output frame: float64 [n, 4, 4], world_from_camera.

    The source plays frame by frame, with its frozen frames, and bounces at its ends where there are more poses.
    """
    order = freeze(reference.frame_count, freeze_repeat, freeze_frame)
    indices = order[: len(poses)] if len(poses) <= len(order) else order[bounce(len(order), len(poses))]
    target = target_poses(reference.world_from_camera[indices], poses, relative_to_source, rotation_only)
    return target, indices


def start_along(world: World, poses: Tensor, indices: Sequence[int], seed: int = 0) -> Session:
    """A session of one slot that is on a camera path from its first frame on, for ``frames_along``.

    Args:
        world: with the reference that ``indices`` are of.
        poses: float64 [n, 4, 4], world_from_camera of each frame.
        indices: n source frame indices.
        seed: of the generator's noise.
    """
    spec = world.generator.spec
    rows = _rows(0, spec.first_frames + spec.look_ahead, len(poses))
    return world.start(seeds=seed, start_poses=poses[rows][None], start_indices=[[int(indices[i]) for i in rows]])


def frames_along(session: Session, poses: Tensor, indices: Sequence[int]) -> Iterator[Frame]:
    """Drive slot 0 of a session that ``start_along`` has begun along a camera path, frame by frame.

    The last block is generated whole and cut; frames that a block commits past the path's end stand still.

    Args:
        poses: float64 [n, 4, 4], world_from_camera of each frame.
        indices: n source frame indices.
    """
    spec = session.world.generator.spec
    block, shown, committed = session.first, 0, spec.first_frames + spec.look_ahead
    while True:
        wanted = min(block.frames, len(poses) - shown)
        yield from _frames(block, wanted, shown, session.world.fps)
        shown += wanted
        if shown == len(poses):
            return
        rows = _rows(committed, spec.frames, len(poses))
        block = session.step(Motion.path(poses[rows]), PlayheadCommand(indices=[int(indices[i]) for i in rows]))
        committed += spec.frames


def _rows(start: int, count: int, length: int) -> Tensor:
    """``count`` rows of a path from ``start`` on; past its end the last one."""
    return torch.arange(start, start + count).clamp(max=length - 1)


def _frames(block, wanted: int, shown: int, fps: float) -> Iterator[Frame]:
    for j in range(wanted):
        anchor_rgb = None if block.anchor is None else block.anchor.rgb[j].cpu()
        yield Frame(
            block.rgb[0, j].cpu(),
            block.depth[0, j].cpu(),
            block.known[0, j].cpu(),
            anchor_rgb,
            block.world_from_camera[0, j],
            block.K[0, j],
            (shown + j) / fps,
            int(block.source_index[0, j]),
        )


def render_video(
    reference: Reference,
    poses: Tensor,
    indices: Sequence[int],
    out: str | Path,
    *,
    generator: str | Generator = "geometric",
    options: GeneratorOptions | None = None,
    device: str = "auto",
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    seed: int = 0,
    memory: bool = True,
    depth: str = "png",
    known: bool = False,
    images: bool = False,
    pose_format: str = "tum",
    map_path: str | Path | bool | None = None,
    preview_path: str | Path | bool | None = None,
    preview_frame: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> RenderResult:
    """Render ``reference`` along a camera path into ``out``, which appears only when it is complete.

    ``out`` is a folder with ``video.mp4``, ``poses.txt``, ``transforms.json``, ``render.json``, and by option
    ``depth/``, ``known/``, ``images/``; or, when its name ends in ``.mp4``, the video alone. An earlier render at
    ``out`` is replaced at the end.

    Args:
        poses: float64 [n, 4, 4], world_from_camera (OpenCV axes, metres, world = first source camera).
        indices: n source frame indices.
        generator: its name, or one that is made already.
        options: how to make it, or how it was made; written into ``render.json``.
        size: (height, width), both even; default the reference's.
        fps: of the video and of the stamps; default the source's, so that one frame for one frame keeps its speed.
        depth: "png" (16 bit, millimetres), "npz" (float32 metres, exact) or "none".
        known: write the known masks (PNG).
        images: write each frame as lossless PNG too, which other tools of transforms.json want.
        pose_format: "tum" or "kitti".
        map_path: where the point map goes, .ply or .pcd; True: ``map.ply`` in (or beside) ``out``.
        preview_path: where the contact sheet goes; True: ``preview.png`` in (or beside) ``out``.
        preview_frame: which frame it shows (default: the one with the least known, where most had to be added).
        progress: called with the number of frames done.

    Raises:
        InputError: poses that are not rigid, indices outside the clip, an ``out`` that holds other files.
    """
    out = Path(out)
    video_only = out.suffix.lower() == ".mp4"
    poses = torch.as_tensor(poses, dtype=torch.float64)
    count = len(poses)
    if count < 1 or poses.shape != (count, 4, 4) or len(indices) != count:
        raise InputError(f"poses: expected [n, 4, 4] with one source index each, got {list(poses.shape)}")
    if not bool(is_rigid(poses).all()):
        raise InputError("poses: not all of them are rigid (a finite rotation and translation)")
    if any(not 0 <= int(i) < reference.frame_count for i in indices):
        raise InputError(f"indices: {reference.name} has the frames 0 to {reference.frame_count - 1}")
    if depth not in ("png", "npz", "none") or pose_format not in ("tum", "kitti"):
        raise InputError(f"depth '{depth}', pose_format '{pose_format}': use png, npz or none, and tum or kitti")
    if preview_frame is not None and not 0 <= preview_frame < count:
        raise InputError(f"preview_frame: {preview_frame} is not one of the {count} frames")
    if not video_only:
        check_replaceable(out)
    map_path, preview_path = map_path or None, preview_path or None
    size = tuple(size or reference.size)
    fps = float(fps or reference.fps)
    world = World(
        reference,
        generator,
        size=size,
        device=device,
        fps=fps,
        memory=memory,
        keep_anchor=preview_path is not None,
        options=options,
    )

    with ExitStack() as stack:
        video_path = stack.enter_context(atomic_file(out)) if video_only else None
        folder = None if video_only else stack.enter_context(atomic_folder(out))
        writer = stack.enter_context(VideoWriter(video_path or folder / "video.mp4", world.size, fps))
        session = start_along(world, poses, indices, seed)
        stack.callback(session.close)
        per_frame = {} if video_only else _per_frame_writers(folder, depth, known, images)
        log, known_sum, shown = [], 0.0, None
        for n, frame in enumerate(frames_along(session, poses, indices)):
            writer.write(frame.rgb.numpy())
            for name, (write, suffix) in per_frame.items():
                write(folder / name / f"{n:06d}{suffix}", frame)
            share = float(frame.known.float().mean())
            known_sum += share
            log.append((frame.stamp, frame.world_from_camera, frame.K, frame.source_index))
            if preview_path is not None:
                wanted = n == preview_frame if preview_frame is not None else shown is None or share < shown[0]
                if wanted:
                    shown = (share, n, frame)
            if progress is not None:
                progress(n + 1)
        session.wait()
        writer.close()
        if map_path is not None:
            session.maps[0].save(_place(map_path, folder, out, "map.ply"))
        if preview_path is not None:
            from inspatio_core.preview import contact_sheet

            _, number, frame = shown
            sheet = contact_sheet(
                session.references[0], frame, session.maps[0], torch.stack([p for _, p, _, _ in log]), number
            )
            with atomic_file(_place(preview_path, folder, out, "preview.png")) as partial:
                write_image(partial, sheet)
        files: tuple[str, ...] = ()
        if not video_only:
            stamps, path = [s for s, *_ in log], torch.stack([p for _, p, _, _ in log]).numpy()
            if pose_format == "tum":
                write_tum(folder / "poses.txt", stamps, path)
            else:
                write_kitti(folder / "poses.txt", path)
            _write_transforms(folder / TRANSFORMS, reference, log, world.size, fps, depth, known, images)
            files = tuple(sorted(p.name for p in folder.iterdir()))
            manifest = {
                "files": list(files),
                "source": reference.name,
                "frames": count,
                "fps": fps,
                "height": world.size[0],
                "width": world.size[1],
                "generator": world.generator.spec.name,
                "generator_options": _options(world.generator, options or GeneratorOptions(), reference),
                "seed": seed,
                "memory": memory,
                "known": round(known_sum / count, 6),
                "metric": reference.metric,
                "metres_per_unit": reference.metres_per_unit,
                "depth_source": reference.depth_source,
                "pose_source": reference.pose_source,
                "notices": [*getattr(world.generator, "notices", ()), *reference.notices],
            }
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return RenderResult(out, files, count, fps, world.size, known_sum / count)


def _options(generator: Generator, options: GeneratorOptions, reference: Reference) -> dict | None:
    """What made the generator, with the prompt that it follows; None where there is no network to make."""
    if not generator.spec.generates:
        return None
    prompt = (reference.caption or "") if options.prompt is None else options.prompt
    return asdict(options) | {"prompt": prompt if "text" in generator.spec.needs else None}


def _place(choice: str | Path | bool, folder: Path | None, out: Path, name: str) -> Path:
    if choice is not True:
        return Path(choice)
    return out.with_suffix(Path(name).suffix) if folder is None else folder / name


def _per_frame_writers(folder: Path, depth: str, known: bool, images: bool) -> dict:
    """What is written for each frame: name of the sub-folder -> (function of path and frame, suffix)."""

    def write_npz(path: Path, frame: Frame) -> None:
        np.savez_compressed(path, depth=frame.depth.numpy())

    writers = {}
    if depth == "png":
        writers["depth"] = (lambda path, frame: write_depth_png(path, frame.depth.numpy()), ".png")
    if depth == "npz":
        writers["depth"] = (write_npz, ".npz")
    if known:
        writers["known"] = (lambda path, frame: write_mask_png(path, frame.known.numpy()), ".png")
    if images:
        writers["images"] = (lambda path, frame: write_image(path, frame.rgb.numpy()), ".png")
    for name in writers:
        (folder / name).mkdir()
    return writers


def _write_transforms(
    path: Path,
    reference: Reference,
    log: list,
    size: tuple[int, int],
    fps: float,
    depth: str,
    known: bool,
    images: bool,
) -> None:
    """nerfstudio's transforms.json: OpenGL camera axes (y up, z backward), pixel centres at half integers."""
    frames = []
    for n, (stamp, pose, K, index) in enumerate(log):
        entry = {"transform_matrix": (pose.numpy() @ OPENGL).tolist(), "time": stamp, "source_index": index}
        if images:
            entry["file_path"] = f"images/{n:06d}.png"
        if depth == "png":
            entry["depth_file_path"] = f"depth/{n:06d}.png"
        if known:
            entry["mask_path"] = f"known/{n:06d}.png"
        if not torch.equal(K, log[0][2]):
            entry |= _intrinsics(K)
        frames.append(entry)
    data = {
        "camera_model": "OPENCV",
        "w": size[1],
        "h": size[0],
        **_intrinsics(log[0][2]),
        "fps": fps,
        "metric": reference.metric,
        "metres_per_unit": 1.0,
        "depth_unit_scale_factor": MILLIMETRE,
        "frames": frames,
    }
    path.write_text(json.dumps(data, indent=1) + "\n")


def _intrinsics(K: Tensor) -> dict:
    return {"fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]), "cx": float(K[0, 2]) + 0.5, "cy": float(K[1, 2]) + 0.5}
