"""Camera paths through a world: filmed ones (pan, tilt, translation, arc, polyline, static) and those of a robot.

The V cameras of a clip look at overlapping content: camera 0 is the source; each other one is camera 0 turned and moved
aside by a controllable amount (constant, growing from nothing, or to and fro), or films the same subject on a path of
its own from a direction that differs by such an amount. No camera is ever inside a solid or near one.

Poses are world_from_camera [..,4,4] float64, OpenCV axes (x right, y down, z forward).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inspatio_core.training.data.cast import DOME, Solids, clearance, first_hits, rotate
from inspatio_core.training.data.stage import Dice, World, euler

MARGIN = 0.25  # metres between a camera and any surface, at least
KINDS = ("static", "pan", "tilt", "translate", "arc", "polyline")
_TRIES = 10


@dataclass(frozen=True)
class Offsets:
    """How far the other cameras are from the source.

    yaw: degrees, the range their largest turn is drawn from. travel: metres of translation per degree of that turn, at
    a middle distance of 4 m (in proportion elsewhere). pitch: typical degrees of tilt per degree of turn, if there is
    any. own_path: share of cameras that film on a path of their own.
    motion: "filmed", "robot" or "any". fov: degrees, horizontal, the range it is drawn from; one for all cameras.
    """

    yaw: tuple[float, float] = (4.0, 30.0)
    travel: tuple[float, float] = (0.0, 0.04)
    pitch: float = 0.15
    own_path: float = 0.2
    motion: str = "any"
    fov: tuple[float, float] = (45.0, 100.0)


def pose(position: Tensor, yaw: Tensor, pitch: Tensor, roll: Tensor | None = None) -> Tensor:
    """[..,4,4] at position [..,3], looking along +z turned by yaw (to the right) and pitch (up) in radians."""
    yaw, pitch = torch.broadcast_tensors(yaw, pitch)
    T = torch.zeros(*yaw.shape, 4, 4, dtype=torch.float64)
    T[..., :3, :3] = euler(yaw, pitch, torch.zeros_like(yaw) if roll is None else roll)
    T[..., :3, 3] = position
    T[..., 3, 3] = 1.0
    return T


def progress(frames: int, dice: Dice) -> Tensor:
    """0..1 over the frames [F]: half of the time at constant speed, else (1 - exp(-a s)) / (1 - exp(-a)), a of either
    sign (slowing down, or speeding up)."""
    s = torch.linspace(0, 1, frames, dtype=torch.float64) if frames > 1 else torch.zeros(1, dtype=torch.float64)
    if dice.chance(0.5):
        return s
    a = dice.sign() * dice.between(1.0, 5.0)
    return (1 - torch.exp(-a * s)) / (1 - math.exp(-a))


def _smooth(points: Tensor, s: Tensor) -> Tensor:
    """A Catmull-Rom curve through points [N,k] at s [F] in 0..1."""
    n = len(points) - 1
    k = (s * n).clamp(0, n - 1e-9)
    i = k.long()
    t = (k - i)[:, None]
    p = torch.cat([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def filmed(dice: Dice, frames: int, seconds: float, place, aim, kind: str | None = None) -> Tensor:
    """[F,4,4]: from `place`, first looking at `aim` (three numbers each), by one of `KINDS`.

    Over five seconds: pans 5-45 degrees, tilts 5-30, translations a quarter to all of the distance, arcs 15-75 degrees;
    in shorter clips accordingly less.
    """
    kind = kind or dice.pick(("static",) + KINDS[1:] * 2)
    s = progress(frames, dice) * min(1.0, max(0.35, seconds / 5.0))
    place = torch.tensor(place, dtype=torch.float64)
    way = torch.tensor(aim, dtype=torch.float64) - place
    far = max(0.5, float(way.norm()))
    yaw = torch.full((frames,), math.atan2(float(way[0]), float(way[2])), dtype=torch.float64)
    pitch = torch.full_like(yaw, math.asin(max(-0.9, min(0.9, -float(way[1]) / far))))
    position = place.expand(frames, 3)
    if kind == "pan":
        yaw = yaw + math.radians(dice.sign() * dice.between(5, 45)) * (s - s.mean())
    elif kind == "tilt":
        pitch = pitch + math.radians(dice.sign() * dice.between(5, 30)) * (s - s.mean())
    elif kind == "translate":
        forward, side = way / far, torch.stack([way[2], 0 * way[0], -way[0]]) / far
        up = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
        axis, most = dice.pick(((forward, 0.5), (-forward, 0.5), (side, 1.0), (-side, 1.0), (up, 0.4), (-up, 0.3)))
        position = position + axis * (dice.between(0.25, 1.0) * most * min(far, 6.0) * s)[:, None]
    elif kind == "arc":
        a = math.radians(dice.sign() * dice.between(15, 75)) * (s - s.mean())
        away = -way
        x, z = away[0] * a.cos() + away[2] * a.sin(), -away[0] * a.sin() + away[2] * a.cos()
        position = place + way + torch.stack([x, away[1].expand(frames), z], -1)
        yaw = yaw + a
    elif kind == "polyline":
        reach = min(far, 5.0) * 0.35
        knots = [[dice.gauss(0, reach), dice.gauss(0, reach * 0.25), dice.gauss(0, reach)] for _ in range(4)]
        knots = torch.tensor(knots, dtype=torch.float64)
        path = _smooth(knots - knots[0], s)
        position = place + path
        if dice.chance(0.6):  # keeps looking at the subject
            toward = torch.tensor(aim, dtype=torch.float64) - position
            yaw = torch.atan2(toward[:, 0], toward[:, 2])
            pitch = torch.asin((-toward[:, 1] / toward.norm(dim=-1).clamp_min(0.3)).clamp(-0.9, 0.9))
        else:
            turns = torch.tensor([[dice.gauss(0, 0.25), dice.gauss(0, 0.08)] for _ in range(4)], dtype=torch.float64)
            turns = _smooth(turns - turns[0], s)
            yaw, pitch = yaw + turns[:, 0], pitch + turns[:, 1]
    roll = math.radians(dice.gauss(0, 2.0)) if dice.chance(0.3) else 0.0
    return pose(position, yaw, pitch, torch.full_like(yaw, roll))


def robot(dice: Dice, frames: int, fps: float, place, heading: float) -> Tensor:
    """[F,4,4] of a camera on a robot that starts at `place` (x, y of the lens, z): arcs, straight ways, stops, turns in
    place, with limited acceleration; height and pitch stay."""
    pitch = math.radians(dice.between(-14, 6))
    speed, turn = [], []
    while len(speed) < frames:
        n = max(2, int(dice.between(0.4, 1.6) * fps))
        what = dice.random()
        if what < 0.15:
            v, w = 0.0, 0.0
        elif what < 0.35:
            v, w = 0.0, dice.sign() * dice.between(0.2, 1.0)
        elif what < 0.6:
            v, w = dice.between(0.2, 1.2), 0.0
        else:
            v, w = dice.between(0.2, 1.2), dice.sign() * dice.between(0.1, 0.7)
        if dice.chance(0.12):
            v = -0.5 * v
        speed += [v] * n
        turn += [w] * n
    width = max(1, int(0.25 * fps))
    rows = torch.tensor([speed[:frames], turn[:frames]], dtype=torch.float64)
    rows = torch.cat([rows[:, :1].expand(2, width), rows], 1).unfold(1, width, 1).mean(-1)[:, :frames] / fps
    done = torch.cumsum(rows, 1) - rows  # a pose holds until the next frame's command
    yaw = heading + done[1]
    middle = yaw + rows[1] / 2
    step = rows[0] * (1.0 if dice.chance(0.9) else 1.8)
    x = place[0] + torch.cumsum(step * middle.sin(), 0) - step * middle.sin()
    z = place[2] + torch.cumsum(step * middle.cos(), 0) - step * middle.cos()
    position = torch.stack([x, torch.full_like(x, place[1]), z], -1)
    return pose(position, yaw, torch.full_like(yaw, pitch))


def intrinsics(dice: Dice, size: tuple[int, int], fov: tuple[float, float]) -> Tensor:
    """K [3,3] float64 with a random horizontal field of view; pixel centres at integer coordinates."""
    focal = size[1] / 2 / math.tan(math.radians(dice.between(*fov)) / 2)
    return torch.tensor([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1]], dtype=torch.float64)


def _source(world: World, dice: Dice, offsets: Offsets) -> tuple[Tensor, tuple]:
    """A candidate for camera 0 and what it looks at."""
    x, high, z = world.open_to
    subjects = world.subjects.tolist()
    aim = list(dice.pick(subjects)) if subjects else [0.0, -1.0, 0.0]
    aim = [a + dice.gauss(0, k) for a, k in zip(aim, (0.3, 0.15, 0.3))]
    drives = offsets.motion == "robot" or (offsets.motion == "any" and dice.chance(0.35))
    tall = dice.between(0.25, 1.3) if drives else dice.between(0.5, min(2.4, high - 0.4))
    angle, far = dice.between(0, 6.283), dice.between(1.6, min(9.0, 1.3 * max(x, z)))
    place = [aim[0] - far * math.sin(angle), -tall, aim[2] - far * math.cos(angle)]
    place[0], place[2] = (max(-k + 0.35, min(k - 0.35, p)) for p, k in ((place[0], x), (place[2], z)))
    seconds = world.frames / world.fps
    if drives:
        heading = math.atan2(aim[0] - place[0], aim[2] - place[2]) + dice.gauss(0, 0.2)
        return robot(dice, world.frames, world.fps, place, heading), tuple(aim)
    return filmed(dice, world.frames, seconds, place, aim), tuple(aim)


def _beside(world: World, dice: Dice, offsets: Offsets, source: Tensor, aim, middle: float, shrink: float) -> Tensor:
    """A candidate for another camera."""
    F = world.frames
    yaw = dice.sign() * dice.between(*offsets.yaw)
    travel = abs(yaw) * dice.between(*offsets.travel) * min(3.0, max(0.3, middle / 4.0)) * shrink
    own = dice.chance(offsets.own_path) and shrink > 0
    if own:  # from another direction
        a = math.radians(yaw)
        start = source[0, :3, 3].tolist()
        away = [p - q for p, q in zip(start, aim)]
        place = [aim[0] + away[0] * math.cos(a) + away[2] * math.sin(a), start[1] + dice.gauss(0, 0.2),
                 aim[2] - away[0] * math.sin(a) + away[2] * math.cos(a)]  # fmt: skip
        return filmed(dice, F, F / world.fps, place, list(aim))
    s = torch.linspace(0, 1, F, dtype=torch.float64) if F > 1 else torch.ones(1, dtype=torch.float64)
    kind = dice.random()
    if kind < 0.35:
        s = torch.ones_like(s)
    elif kind < 0.8:  # departs from the source, as a session does
        end = dice.between(0.4, 1.0)
        s = (s / end).clamp_max(1.0)
        s = s * s * (3 - 2 * s)
    else:
        s = 0.5 - 0.5 * torch.cos(2 * math.pi * s * dice.between(0.5, 1.0))
    # Mostly sideways, to the side from which the turned camera sees the same things, sometimes to the other.
    side = -math.copysign(1.0, yaw) * (1.0 if dice.chance(0.7) else -1.0)
    direction = torch.tensor([side, dice.gauss(0, 0.25), dice.gauss(0, 0.4)], dtype=torch.float64)
    direction = direction / direction.norm()
    pitch = math.radians(dice.gauss(0, offsets.pitch * abs(yaw)) if dice.chance(0.4) else 0.0)
    T = source.clone()
    T[:, :3, 3] = source[:, :3, 3] + (source[:, :3, :3] * (direction * travel)[None, None]).sum(-1) * s[:, None]
    zero = torch.zeros_like(s)
    about_up = euler(math.radians(yaw) * s, zero, zero)  # about the world's upright, so the horizon stays level
    tilt = euler(zero, pitch * s, zero)
    turned = (about_up[:, :, :, None] * source[:, None, :3, :3]).sum(2)
    T[:, :3, :3] = (turned[:, :, :, None] * tilt[:, None]).sum(2)
    return T


def world_solids(world: World) -> Solids:
    """The solids of one world, on the CPU."""
    kinds = tuple(sorted(set(world.kind.tolist())))
    parts = (world.kind, world.param, world.half, world.centre, world.turn)
    return Solids(*(p[None] for p in parts), kinds)


def _safe(solids: Solids, paths: Tensor, open_to) -> Tensor:
    """Bool [N]: which paths [N,F,4,4] stay clear of every solid and inside the open."""
    F = paths.shape[1]
    places = paths[:, :, :3, 3]
    zero = torch.zeros(F, dtype=torch.int64)
    clear = clearance(solids, zero, torch.arange(F), places.transpose(0, 1)).amin(0)
    x, high, z = open_to
    inside = (places[..., 0].abs() < x + 1) & (places[..., 2].abs() < z + 1) & (places[..., 1] > -high)
    return (clear > MARGIN) & inside.all(1)


@dataclass(frozen=True)
class _Glance:
    """What N candidates see in 8x8 rays at their first, middle and last frame, [N] each unless said.

    least, middle: depth, the smallest of the three. sky: the largest share. number: how many things, on average.
    moving: share of what moves, on average. points: what the rays hit [N,3,64,3].
    """

    least: Tensor
    middle: Tensor
    sky: Tensor
    number: Tensor
    moving: Tensor
    points: Tensor


def _moments(frames: int) -> list[int]:
    return [0, frames // 2, frames - 1]


def _glance(world: World, solids: Solids, paths: Tensor, K: Tensor, size) -> _Glance:
    """Candidates [N,F,4,4]."""
    N, at = len(paths), _moments(paths.shape[1])
    small = K.clone()
    small[:2, 2] += 0.5
    small[0] *= 8 / size[1]
    small[1] *= 8 / size[0]
    small[:2, 2] -= 0.5
    poses, zero = paths[:, at].flatten(0, 1), torch.zeros(3 * N, dtype=torch.int64)
    hits = first_hits(solids, zero, torch.tensor(at).repeat(N), poses, small.expand(3 * N, 3, 3), (8, 8))
    depth, solid = hits.depth[:, 0].double(), hits.solid[:, 0]
    rays = torch.stack([hits.x[:, 0], hits.y[:, 0], torch.ones_like(hits.x[:, 0])], -1).double()
    points = rotate(poses[:, None, :3, :3], rays * depth[..., None]) + poses[:, None, :3, 3]
    number = (torch.diff(solid.sort(-1).values, dim=-1) > 0).sum(-1).double()
    return _Glance(
        least=depth.amin(-1).view(N, 3).amin(1),
        middle=depth.median(-1).values.view(N, 3).amin(1),
        sky=(world.kind[solid] == DOME).double().mean(-1).view(N, 3).amax(1),
        number=number.view(N, 3).mean(1),
        moving=world.moving[solid].double().mean(-1).view(N, 3).mean(1),
        points=points.view(N, 3, -1, 3),
    )


def _overlap(points: Tensor, source: Tensor, K: Tensor, size) -> Tensor:
    """Share [N] of points [N,3,64,3] inside the picture of the source [F,4,4], the smallest of the three moments."""
    poses = source[_moments(len(source))]
    x, y, z = rotate(poses[:, None, :3, :3].mT, points - poses[:, None, :3, 3]).unbind(-1)
    u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
    inside = (z > 0) & (u > -0.5) & (u < size[1] - 0.5) & (v > -0.5) & (v < size[0] - 0.5)
    return inside.double().mean(-1).amin(1)


def make_cameras(world: World, views: int, size: tuple[int, int], offsets: Offsets) -> tuple[Tensor, Tensor]:
    """K [V,3,3] and world_from_camera [V,F,4,4] of the cameras of a clip. Camera k is the same however many follow."""
    solids = world_solids(world)
    dice = Dice.keyed(world.seed, "camera")
    K = intrinsics(dice, size, offsets.fov)
    best, chosen = -1e9, None
    for _ in range(8):
        candidates = [_source(world, dice, offsets) for _ in range(_TRIES)]
        paths = torch.stack([path for path, _ in candidates])
        fine = _safe(solids, paths, world.open_to)
        if not fine.any():
            continue
        paths, kept = paths[fine], [c for c, ok in zip(candidates, fine.tolist()) if ok]
        saw = _glance(world, solids, paths, K, size)
        score = saw.number.clamp_max(9) + (50 * saw.moving).clamp_max(5)
        score = score - 6 * (saw.least < 0.4) - 6 * (saw.middle < 1.3) - 12 * (saw.sky - 0.5).clamp_min(0)
        k = int(score.argmax())
        if float(score[k]) > best:
            best, chosen = float(score[k]), (kept[k][0], kept[k][1], float(saw.middle[k]))
        if best >= 4:
            break
    if chosen is None:
        raise RuntimeError(f"world {world.seed}: no place for a camera")
    source, aim, middle = chosen
    cameras = [source]
    for view in range(1, views):
        dice = Dice.keyed(world.seed, "camera", view)
        # The last candidate turns on the spot where camera 0 is.
        paths = [_beside(world, dice, offsets, source, aim, middle, max(0.0, 1 - i / 7)) for i in range(8)]
        paths = torch.stack(paths)
        fine = _safe(solids, paths, world.open_to)
        saw = _glance(world, solids, paths, K, size)
        overlap = _overlap(saw.points, source, K, size)
        good = fine & (saw.least > 0.35) & (saw.middle > 0.5 * middle) & (overlap > 0.35)
        good = good if good.any() else fine & (overlap > 0.2)
        good = good if good.any() else fine
        cameras.append(paths[int(good.long().argmax())])
    return K.expand(views, 3, 3).clone(), torch.stack(cameras)
