"""Clips: synchronised cameras in a random, moving world, everything known exactly; rendered in torch on any device.

A clip is a function of its seed and the options alone; the same bytes on the same device, alone or in a batch.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from inspatio_core.errors import InputError
from inspatio_core.training.data.cast import DOME, Solids, first_hits, untile, visibility
from inspatio_core.training.data.paths import Offsets, make_cameras
from inspatio_core.training.data.scene import make_world
from inspatio_core.training.data.shade import (
    Paint,
    photograph,
    shade_plain,
    shade_rich,
    surface_points,
)
from inspatio_core.training.data.stage import World

VALIDATION_SEEDS = range(10_000)
TRAIN_SEEDS = range(1_000_000, 1 << 62)
"""Seeds for choosing models and for training have nothing in common; those between are for tests and play."""

_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 22}  # rays at once: what fits the cache, or keeps the device busy


@dataclass(eq=False)
class Clip:
    """V synchronised cameras over F frames; all tensors on one device.

    rgb: uint8 [V,F,H,W,3]. depth: float32 [V,F,H,W], z in metres, finite everywhere (the sky is a dome). K: float64
    [V,3,3]. world_from_camera: float64 [V,F,4,4]. moving: bool [V,F,H,W], pixels of things that move at some time of
    the clip. world: its exact geometry, where it was rendered here.
    """

    rgb: Tensor
    depth: Tensor
    K: Tensor
    world_from_camera: Tensor
    moving: Tensor
    fps: float
    seed: int
    world: World | None = field(default=None, repr=False)

    def to(self, device) -> Clip:
        """The same on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})


@dataclass(frozen=True, eq=False)
class Script:
    """What is to be rendered: a world and its cameras, small and on the CPU; may be made in other processes."""

    world: World
    K: Tensor
    world_from_camera: Tensor


def make_script(
    seed: int,
    *,
    views: int = 2,
    frames: int = 33,
    size: tuple[int, int] = (128, 224),
    fps: float = 24.0,
    offsets: Offsets | None = None,
) -> Script:
    """World and cameras of a seed. See `render_clip`."""
    if views < 1 or frames < 1 or min(size) < 8:
        raise InputError(f"clip: need views and frames >= 1 and at least 8x8 pixels, got {views}, {frames}, {size}")
    world = make_world(seed, frames, fps)
    K, cameras = make_cameras(world, views, size, offsets or Offsets())
    return Script(world, K, cameras)


def _stack(rows: Sequence[Tensor], dim: int, fill=0) -> Tensor:
    """Stack, padding `dim` to the longest."""
    most = max(r.shape[dim] for r in rows)
    out = []
    for r in rows:
        shape = list(r.shape)
        shape[dim] = most - shape[dim]
        out.append(torch.cat([r, r.new_full(shape, fill)], dim))
    return torch.stack(out)


def _upload(worlds: Sequence[World], device) -> tuple[Solids, Paint, Tensor]:
    """The tables of worlds of equal length as one batch; and bool [B,P], what moves."""
    solids = Solids(
        kind=_stack([w.kind for w in worlds], 0, -1).to(device),
        param=_stack([w.param for w in worlds], 0).to(device),
        half=_stack([w.half for w in worlds], 0, 1.0).to(device),
        centre=_stack([w.centre for w in worlds], 1).to(device),
        turn=_stack([w.turn for w in worlds], 1).to(device),
        kinds=tuple(sorted({k for w in worlds for k in w.kind.tolist()})),
    )
    first, faces = 0, []
    for w in worlds:
        faces.append(w.faces + first)
        first += len(w.materials)
    materials = torch.cat([w.materials for w in worlds]).t().contiguous()
    paint = Paint(
        faces=_stack(faces, 0).to(device),
        materials=materials.to(device),
        look=torch.stack([w.look for w in worlds]).to(device),
        kinds=tuple(sorted({int(k) for k in materials[0].tolist()})),
        sky=any(DOME in w.kind for w in worlds),
    )
    return solids, paint, _stack([w.moving for w in worlds], 0).to(device)


def _chunks(count: int, rays: int, device) -> Iterator[slice]:
    most = max(1, _CHUNK.get(torch.device(device).type, 1 << 20) // rays)
    for i in range(0, count, most):
        yield slice(i, min(count, i + most))


def _finer(K: Tensor, factor: int) -> Tensor:
    """Intrinsics of the same picture with `factor` times as many pixels each way."""
    K = K.clone()
    K[..., :2, 2] += 0.5
    K[..., :2, :] *= factor
    K[..., :2, 2] -= 0.5
    return K


@torch.no_grad()
def render(
    scripts: Sequence[Script],
    *,
    size: tuple[int, int] = (128, 224),
    domain: str = "S",
    device="cpu",
    supersample: int = 1,
) -> list[Clip]:
    """Render scripts with equal numbers of views and frames, all at once. See `render_clip`."""
    if domain not in ("S", "R"):
        raise InputError(f"domain: need S or R, got {domain}")
    shapes = {tuple(s.world_from_camera.shape) for s in scripts}
    if len(shapes) != 1:
        raise InputError(f"clips: need equal numbers of views and frames, got {sorted(shapes)}")
    B, (V, F) = len(scripts), next(iter(shapes))[:2]
    solids, paint, moves = _upload([s.world for s in scripts], device)
    cameras = torch.stack([s.world_from_camera for s in scripts]).to(device)
    K = torch.stack([s.K for s in scripts]).to(device)
    seeds = torch.tensor([s.world.seed & 0xFFFFFFFF for s in scripts], device=device)
    grid = torch.arange(B * V * F, device=device)
    worlds, views, times = grid // (V * F), grid // F % V, grid % F
    poses, Ks = cameras.flatten(0, 2), K[worlds, views]
    H, W = size
    rgb = torch.empty(B * V * F, H, W, 3, dtype=torch.uint8, device=device)
    depth = torch.empty(B * V * F, H, W, device=device)
    moving = torch.empty(B * V * F, H, W, dtype=torch.bool, device=device)
    fine = (H * supersample, W * supersample)
    for part in _chunks(B * V * F, fine[0] * fine[1], device):
        world, time, pose = worlds[part], times[part], poses[part]
        k = _finer(Ks[part], supersample)
        hits = first_hits(solids, world, time, pose, k, fine)
        points = surface_points(solids, world, pose, k, hits)
        if domain == "S":
            colour = shade_plain(paint, world, hits, points, k)
        else:
            colour = shade_rich(paint, solids, world, time, hits, points, pose, k)
        colour = untile(colour.permute(1, 2, 3, 0), fine).permute(0, 3, 1, 2)
        if supersample > 1:
            colour = avg_pool2d(colour, supersample)
            if supersample % 2 == 0:  # no sample at a pixel's centre
                hits = first_hits(solids, world, time, pose, Ks[part], size)
        z, what = hits.depth, moves[world[:, None, None], hits.solid]
        if supersample % 2 == 0:
            z, what = untile(z, size), untile(what, size)
        else:
            middle = slice(supersample // 2, None, supersample)
            z, what = (untile(x, fine)[:, middle, middle] for x in (z, what))
        if domain == "R":
            colour = photograph(paint, world, views[part], time, seeds[world], colour)
        rgb[part] = (colour * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        depth[part], moving[part] = z, what
    shape = (B, V, F)
    rgb, depth, moving = rgb.unflatten(0, shape), depth.unflatten(0, shape), moving.unflatten(0, shape)
    return [
        Clip(rgb[i], depth[i], K[i], cameras[i], moving[i], s.world.fps, s.world.seed, s.world)
        for i, s in enumerate(scripts)
    ]


def render_clip(
    seed: int,
    *,
    views: int = 2,
    frames: int = 33,
    size: tuple[int, int] = (128, 224),
    domain: str = "S",
    device="cpu",
    supersample: int = 1,
    fps: float = 24.0,
    offsets: Offsets | None = None,
) -> Clip:
    """The clip of a seed.

    size: (height, width). domain: "S" plain shading, matte and without shadows; "R" richer: sun or lamp with soft
    shadows, ambient darkening, fog, highlights, exposure, colour grading, grain. Both show the same world through the
    same cameras. supersample: colours are means over so many times so many rays a pixel; depth and masks are those of
    its centre. offsets: how far apart the cameras are, see `Offsets`. Camera k is the same however many there are.

    Raises `InputError` on impossible options.
    """
    script = make_script(seed, views=views, frames=frames, size=size, fps=fps, offsets=offsets)
    return render([script], size=size, domain=domain, device=device, supersample=supersample)[0]


def _pickled_script(seed: int, options: dict) -> bytes:
    """For other processes: plain bytes, so that no tensor is shared between them."""
    torch.set_num_threads(1)
    return pickle.dumps(make_script(seed, **options))


def stream(
    first: int = TRAIN_SEEDS.start,
    *,
    batch: int = 1,
    workers: int = 0,
    domain: str = "S",
    device="cpu",
    supersample: int = 1,
    **options,
) -> Iterator[list[Clip]]:
    """Endless batches of clips of the seeds first, first + 1, ...; options: those of `make_script`.

    workers: processes that make worlds and camera paths ahead of the rendering (they start anew, so a program that uses
    them needs the usual ``if __name__ == "__main__"``); they end with the iterator. The clips are the same.
    """
    look = {"size": options.get("size", (128, 224)), "domain": domain, "device": device, "supersample": supersample}
    if not workers:
        for seed in itertools.count(first, batch):
            yield render([make_script(seed + i, **options) for i in range(batch)], **look)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        seeds, ahead = itertools.count(first), deque()
        while True:
            while len(ahead) < 2 * batch + 2 * workers:
                ahead.append(pool.submit(_pickled_script, next(seeds), options))
            yield render([pickle.loads(ahead.popleft().result()) for _ in range(batch)], **look)
    finally:
        pool.shutdown(cancel_futures=True)


@torch.no_grad()
def disoccluded(clip: Clip, source: int, target: int) -> Tensor:
    """Bool [F,H,W]: pixels of camera `target` showing what camera `source` does not see at the same time.

    Exact: a way is cast from every surface point of the target's picture to the source camera; unseen is also what
    faces away from the source, or lies outside its picture. Raises `InputError` for clips without their geometry.
    """
    if clip.world is None:
        raise InputError("disoccluded: only for rendered clips; this one has no exact geometry")
    device, (F, H, W) = clip.rgb.device, clip.depth.shape[1:]
    solids, _, _ = _upload([clip.world], device)
    out = torch.empty(F, H, W, dtype=torch.bool, device=device)
    for part in _chunks(F, H * W, device):
        time = torch.arange(F, device=device)[part]
        world = torch.zeros_like(time)
        pose, K = clip.world_from_camera[target, part], clip.K[target].expand(len(time), 3, 3)
        hits = first_hits(solids, world, time, pose, K, (H, W))
        points = surface_points(solids, world, pose, K, hits)
        from_source = clip.world_from_camera[source, part]
        R, centre = from_source[:, :3, :3].float(), from_source[:, :3, 3].float()
        away = [p - centre[:, i, None, None] for i, p in enumerate(points.place)]
        x, y, z = (sum(R[:, i, j, None, None] * away[i] for i in range(3)) for j in range(3))
        k = clip.K[source].float()
        u, v = k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]
        seen = (z > 1e-3) & (u >= -0.5) & (u <= W - 0.5) & (v >= -0.5) & (v <= H - 0.5)
        seen &= sum(n * a for n, a in zip(points.normal, away)) < 0
        lifted = [p + 1e-3 * n for p, n in zip(points.place, points.normal)]
        seen &= visibility(solids, world, time, lifted, seen, centre) > 0.5
        out[part] = untile(~seen, (H, W))
    return out
