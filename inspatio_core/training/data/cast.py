"""Rays against many simple solids, in torch: nearest hits, visibility between points, distances.

A solid is a rotated, stretched canonical shape. Rays come in tiles of 8x8 neighbouring pixels: a tile is tested only
against the solids whose bounding sphere it can touch, and all (tile, solid) pairs of one kind are cast at once. Nothing
depends on how many tiles, frames or worlds share a call, nor on the order of execution: same rays, same bytes.

Canonical shapes, y pointing down like the world's: BOX [-1,1]^3; BALL of radius 1; CYLINDER of radius 1, |y| <= 1;
CONE with radius 1 at y = 1 and `param` (0..1) at y = -1; CAPSULE of radius 1 around |y| <= `param`; WEDGE, a triangle
with base (-1..1, y = 1) and tip (`param`, y = -1), along |z| <= 1; PYRAMID with its tip at y = -1. ROOM and DOME are
seen from inside, a box and a ball; GROUND is the plane y = 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BOX, BALL, CYLINDER, CONE, CAPSULE, WEDGE, PYRAMID, ROOM, DOME, GROUND = range(10)
SURROUNDINGS = (ROOM, DOME, GROUND)  # hit by every ray, between no two points that a camera can be at or see
TILE = 8
NEAR = 1e-3  # metres in front of a camera where rays begin
_BIG = 1e9


@dataclass(frozen=True, eq=False)
class Solids:
    """The solids of B worlds at F times, on one device.

    kind: int64 [B,P], -1 where a world has fewer. param: float32 [B,P]. half: float32 [B,P,3], half extents in metres.
    centre: float64 [B,F,P,3]. turn: float64 [B,F,P,3,3], world from solid. kinds: those that occur.
    """

    kind: Tensor
    param: Tensor
    half: Tensor
    centre: Tensor
    turn: Tensor
    kinds: tuple[int, ...]

    @property
    def radius(self) -> Tensor:
        """float32 [B,P] of bounding spheres; endless for surroundings, negative where there is no solid."""
        reach = self.half
        capsule = self.kind == CAPSULE
        reach = torch.where(capsule[..., None], self.half[..., :1] * (1 + self.param[..., None]) / 3**0.5, reach)
        radius = reach.square().sum(-1).sqrt()
        for kind in SURROUNDINGS:
            radius = torch.where(self.kind == kind, _BIG, radius)
        return torch.where(self.kind < 0, -_BIG, radius)


@dataclass(frozen=True, eq=False)
class Hits:
    """What the rays of C frames in T tiles hit: depth z [C,T,64] metres and solid [C,T,64] (int64, index in the world).

    x, y [C,T,64]: the rays (x, y, 1) in camera axes. local_origin [C,P,3] and local_turn [C,P,3,3], float32: the
    camera in each solid's axes, in metres.
    """

    depth: Tensor
    solid: Tensor
    x: Tensor
    y: Tensor
    local_origin: Tensor
    local_turn: Tensor


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def rotate(R: Tensor, v: Tensor) -> Tensor:
    """R [..,3,3] times v [..,3], summed in a fixed order whatever the batch."""
    return R[..., 0] * v[..., None, 0] + R[..., 1] * v[..., None, 1] + R[..., 2] * v[..., None, 2]


def compose(A: Tensor, B: Tensor) -> Tensor:
    """A [..,3,3] times B [..,3,3], summed in a fixed order whatever the batch."""
    return A[..., :, 0:1] * B[..., 0:1, :] + A[..., :, 1:2] * B[..., 1:2, :] + A[..., :, 2:3] * B[..., 2:3, :]


# ---- one ray, one shape: where it enters and leaves -----------------------------------------------------------------


def _safe(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-12, 1e-12, x)


def _slab(o, d):
    inverse = 1.0 / _safe(d)
    middle, half = -o * inverse, inverse.abs()
    return middle - half, middle + half


def _round(a, b, squared_miss):
    """Interval of a circle or ball of radius 1: a = d.d, b = o.d, and the squared distance of the line from it."""
    half = ((1.0 - squared_miss).clamp_min(0.0) / a).sqrt()
    middle = -b / a
    missed = squared_miss >= 1.0
    return torch.where(missed, _BIG, middle - half), torch.where(missed, -_BIG, middle + half)


def _tube(o, d):
    a = (d[0] * d[0] + d[2] * d[2]).clamp_min(1e-12)
    b = o[0] * d[0] + o[2] * d[2]
    s = b / a
    x, z = o[0] - s * d[0], o[2] - s * d[2]
    return _round(a, b, x * x + z * z)


def _ball(o, d):
    a, b = _dot(d, d).clamp_min(1e-12), _dot(o, d)
    s = b / a
    x, y, z = o[0] - s * d[0], o[1] - s * d[1], o[2] - s * d[2]
    return _round(a, b, x * x + y * y + z * z)


def _planes(planes, o, d, near, far):
    """Cut an interval by half-spaces n.x + c <= 0."""
    for nx, ny, nz, c in planes:
        value, slope = nx * o[0] + ny * o[1] + nz * o[2] + c, nx * d[0] + ny * d[1] + nz * d[2]
        slope = _safe(slope)
        t = -value / slope
        near = torch.where(slope < 0, torch.maximum(near, t), near)
        far = torch.where(slope > 0, torch.minimum(far, t), far)
    return near, far


_TOWER = ((2.0, -1.0, 0.0, -1.0), (-2.0, -1.0, 0.0, -1.0), (0.0, -1.0, 2.0, -1.0), (0.0, -1.0, -2.0, -1.0))


def _gable(p):
    return (2.0, -(1 - p), 0.0, -(1 + p)), (-2.0, -(1 + p), 0.0, -(1 - p))


def interval(kind: int, o, d, param: Tensor) -> tuple[Tensor, Tensor]:
    """Where lines o + t d are inside a canonical shape: from `near` to `far` (near > far: never).

    o, d: three tensors each, broadcastable to [Q,64]; param [Q,1].
    """
    if kind in (BOX, ROOM):
        x, y, z = _slab(o[0], d[0]), _slab(o[1], d[1]), _slab(o[2], d[2])
        near = torch.maximum(torch.maximum(x[0], y[0]), z[0])
        return near, torch.minimum(torch.minimum(x[1], y[1]), z[1])
    if kind in (BALL, DOME):
        return _ball(o, d)
    if kind == GROUND:
        t = -o[1] / _safe(d[1])
        t = torch.where(t > 0, t, _BIG)
        return t, t
    if kind == CYLINDER:
        r, y = _tube(o, d), _slab(o[1], d[1])
        return torch.maximum(r[0], y[0]), torch.minimum(r[1], y[1])
    if kind == CONE:
        m, g = (1 + param) / 2, (1 - param) / 2
        r0, r1 = m + g * o[1], g * d[1]
        a = d[0] * d[0] + d[2] * d[2] - r1 * r1
        b = o[0] * d[0] + o[2] * d[2] - r1 * r0
        c = o[0] * o[0] + o[2] * o[2] - r0 * r0
        a = _safe(a)
        root = b * b - a * c
        half = root.clamp_min(0.0).sqrt() / a.abs()
        low, high = -b / a - half, -b / a + half
        # Steeper than the mantle (a < 0), a line is inside beyond one root: the one on the side where the cone widens.
        steep = a < 0
        missed = (root <= 0) & ~steep
        near = torch.where(steep, torch.where(r1 > 0, high, -_BIG), low)
        far = torch.where(steep, torch.where(r1 > 0, _BIG, low), high)
        y = _slab(o[1], d[1])
        return torch.where(missed, _BIG, torch.maximum(near, y[0])), torch.minimum(far, y[1])
    if kind == CAPSULE:
        r, inverse = _tube(o, d), 1.0 / _safe(d[1])
        middle, half = -o[1] * inverse, (param * inverse).abs()
        near, far = torch.maximum(r[0], middle - half), torch.minimum(r[1], middle + half)
        missed = near > far
        near, far = torch.where(missed, _BIG, near), torch.where(missed, -_BIG, far)
        for end in (param, -param):
            ball = _ball((o[0], o[1] - end, o[2]), d)
            near, far = torch.minimum(near, ball[0]), torch.maximum(far, ball[1])
        return near, far
    y = _slab(o[1], d[1])
    if kind == WEDGE:
        z = _slab(o[2], d[2])
        return _planes(_gable(param), o, d, torch.maximum(y[0], z[0]), torch.minimum(y[1], z[1]))
    return _planes(_TOWER, o, d, *y)


# ---- tiles ----------------------------------------------------------------------------------------------------------


def tile_pixels(size: tuple[int, int], device) -> tuple[Tensor, Tensor]:
    """Column and row [T,64] of the pixels of every tile; the last tiles of a row or column may overhang the picture."""
    rows, columns = -(-size[0] // TILE), -(-size[1] // TILE)
    k = torch.arange(TILE * TILE, device=device)
    tile = torch.arange(rows * columns, device=device)[:, None]
    return tile % columns * TILE + k % TILE, tile // columns * TILE + k // TILE


def untile(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[C,T,64,...] as pictures [C,H,W,...]."""
    rows, columns = -(-size[0] // TILE), -(-size[1] // TILE)
    x = x.unflatten(2, (TILE, TILE)).unflatten(1, (rows, columns)).transpose(2, 3)
    return x.flatten(1, 2).flatten(2, 3)[:, : size[0], : size[1]]


def _view_cones(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit axis [C,T,3], and cosine and sine [C,T], of cones around the rays of the tiles."""
    corners = [0, TILE - 1, TILE * TILE - TILE, TILE * TILE - 1]
    rays = torch.stack([x[..., corners], y[..., corners], torch.ones_like(x[..., corners])], -1)
    axis = rays.sum(-2)
    axis = axis / axis.square().sum(-1, keepdim=True).sqrt()
    cos = ((rays * axis[..., None, :]).sum(-1) / rays.square().sum(-1).sqrt()).amin(-1)
    cos = cos.clamp(-1.0, 1.0)
    return axis, cos, (1 - cos * cos).sqrt()


def _pairs(keep: Tensor, kind: Tensor, kinds) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Per kind: frame, tile and solid of the pairs to cast, from keep [C,T,P] and kind [C,P]."""
    frame, tile, solid = keep.nonzero().unbind(1)
    of = kind[frame, solid]
    for k in kinds:
        chosen = (of == k).nonzero().flatten()
        if len(chosen):
            yield k, frame[chosen], tile[chosen], solid[chosen]


def first_hits(solids: Solids, world: Tensor, time: Tensor, camera: Tensor, K: Tensor, size: tuple[int, int]) -> Hits:
    """The nearest solid on the ray of every pixel of C pictures.

    world, time: int64 [C], which world and which of its F times each picture shows. camera [C,4,4] float64,
    world_from_camera; K [C,3,3] float64; size (height, width).
    """
    C, device = len(world), camera.device
    column, row = tile_pixels(size, device)
    T = len(column)
    ray = [(column - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None]]
    ray += [(row - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None]]
    x, y = (r.float() for r in ray)

    kind, param, half, radius = solids.kind[world], solids.param[world], solids.half[world], solids.radius[world]
    turn, centre = solids.turn[world, time], solids.centre[world, time]
    R, position = camera[:, :3, :3], camera[:, :3, 3]
    away = position[:, None] - centre
    local_origin = rotate(turn.mT, away).float()
    local_turn = compose(turn.mT, R[:, None]).float()
    seen = -rotate(R.mT[:, None], away).float()  # [C,P,3], centres in camera axes

    axis, cos, sin = (a[:, :, None] for a in _view_cones(x, y))
    along = axis[..., 0] * seen[:, None, :, 0] + axis[..., 1] * seen[:, None, :, 1] + axis[..., 2] * seen[:, None, :, 2]
    aside = (seen.square().sum(-1)[:, None] - along * along).clamp_min(0.0).sqrt()
    reach = radius[:, None] * 1.001 + 0.02
    keep = (aside * cos - along * sin <= reach) & (along >= -reach)

    depth = torch.full((C * T, TILE * TILE), _BIG, device=device)
    cast = []
    scale = 1.0 / half
    origin = (local_origin * scale).flatten(0, 1)
    matrix = (local_turn * scale[..., None]).flatten(0, 1)
    flat_x, flat_y = x.flatten(0, 1), y.flatten(0, 1)
    P = kind.shape[1]
    for k, frame, tile, solid in _pairs(keep, kind, solids.kinds):
        pair, index = frame * P + solid, frame * T + tile
        m = matrix.index_select(0, pair)[..., None]
        px, py = flat_x.index_select(0, index), flat_y.index_select(0, index)
        d = [torch.addcmul(torch.addcmul(m[:, i, 2], m[:, i, 0], px), m[:, i, 1], py) for i in range(3)]
        o = origin.index_select(0, pair)[..., None].unbind(1)
        near, far = interval(k, o, d, param[frame, solid][:, None])
        t = far if k in (ROOM, DOME) else torch.where((near <= far) & (near > NEAR), near, _BIG)
        depth.scatter_reduce_(0, index[:, None].expand_as(t), t, "amin")
        cast.append((index, solid, t))
    winner = torch.full_like(depth, float(P))
    for index, solid, t in cast:  # where two are equally near, the first in the world's list
        number = torch.where(t <= depth.index_select(0, index), solid[:, None].float(), float(P))
        winner.scatter_reduce_(0, index[:, None].expand_as(number), number, "amin")
    shape = (C, T, TILE * TILE)
    solid = winner.clamp_max(P - 1).long().view(shape)
    return Hits(depth.view(shape), solid, x, y, local_origin, local_turn)


def visibility(
    solids: Solids,
    world: Tensor,
    time: Tensor,
    points,
    valid: Tensor,
    target: Tensor,
    softness: Tensor | None = None,
) -> Tensor:
    """How free the way is from surface points to one target per picture: float32 [C,T,64] in 0..1.

    points: three tensors [C,T,64], world, a little off their surface. valid [C,T,64]: others may come back as anything.
    target: float32 [C,3]. softness [C]: how wide the source of light is seen from a point (radians); solids in whose
    silhouette the way runs that close let part of the light through. None: 0 or 1 exactly.
    """
    kind, param, half, radius = solids.kind[world], solids.param[world], solids.half[world], solids.radius[world]
    centre = solids.centre[world, time]
    free = torch.ones_like(points[0])
    T, P = free.shape[1], kind.shape[1]
    # The points of a tile lie in a ball; what blocks their ways lies near the segment from its middle to the target.
    low = [torch.where(valid, p, _BIG).amin(-1) for p in points]
    high = [torch.where(valid, p, -_BIG).amax(-1) for p in points]
    middle = torch.stack([(a + b) / 2 for a, b in zip(low, high)], -1)
    spread = torch.stack([b - a for a, b in zip(low, high)], -1).clamp_min(0.0).square().sum(-1).sqrt() / 2
    way = target[:, None] - middle
    length = way.square().sum(-1).clamp_min(1e-12)
    off = centre.float()[:, None] - middle[:, :, None]
    along = (off * way[:, :, None]).sum(-1) / length[..., None]
    nearest = off - along.clamp(0.0, 1.0)[..., None] * way[:, :, None]
    aside = nearest.square().sum(-1).sqrt()
    solid_ones = (radius > 0) & (radius < _BIG / 2)
    keep = (aside <= radius[:, None] * 1.001 + spread[..., None] + 0.02) & solid_ones[:, None]
    keep &= valid.any(-1)[..., None]

    turn = solids.turn[world, time].float()
    matrix = turn.mT / half[..., None]
    shift = rotate(matrix, centre.float()).flatten(0, 1)
    goal = (rotate(matrix, target[:, None].expand_as(centre)) - shift.unflatten(0, centre.shape[:2])).flatten(0, 1)
    flat = [p.flatten(0, 1) for p in points]
    matrix, free = matrix.flatten(0, 1), free.flatten(0, 1)
    kinds = [k for k in solids.kinds if k not in SURROUNDINGS]
    for k, frame, tile, solid in _pairs(keep, kind, kinds):
        pair, index = frame * P + solid, frame * T + tile
        m, s, g = (a.index_select(0, pair)[..., None] for a in (matrix, shift, goal))
        px, py, pz = (p.index_select(0, index) for p in flat)
        o = [m[:, i, 0] * px + m[:, i, 1] * py + m[:, i, 2] * pz - s[:, i] for i in range(3)]
        d = [g[:, i] - o[i] for i in range(3)]
        near, far = interval(k, o, d, param[frame, solid][:, None])
        near = near.clamp_min(0.0)
        inside = far.clamp_max(1.0) - near
        if softness is None:
            light = (inside <= 0).float()
        else:
            # A short way through a solid means close to its outline. Both are parts of the whole way to the target.
            thickness = half[frame, solid].amin(-1, keepdim=True) / length[frame, tile, None].sqrt()
            blur = torch.minimum(2 * softness[frame, None] * near + 1e-5, thickness)
            light = 1 - (inside / blur.clamp_min(1e-6)).clamp(0.0, 1.0)
        free.scatter_reduce_(0, index[:, None].expand_as(light), light, "amin")
    return free.view(valid.shape)


def distance(kind: int, q, half, param: Tensor) -> Tensor:
    """Distance in metres of points q (three tensors, metres, in a solid's axes) to its surface, negative inside.

    Exact for boxes, cylinders, capsules and balls, a lower bound for the pointed shapes, close for ellipsoids. For
    ROOM, positive means inside the room.
    """
    x, y, z = q
    hx, hy, hz = half
    if kind == ROOM:
        return torch.minimum(torch.minimum(hx - x.abs(), hy - y.abs()), hz - z.abs())
    if kind == DOME:
        return hx - (x * x + y * y + z * z).sqrt()
    if kind == GROUND:
        return -y
    if kind == BOX:
        a, b, c = x.abs() - hx, y.abs() - hy, z.abs() - hz
        outside = (a.clamp_min(0.0).square() + b.clamp_min(0.0).square() + c.clamp_min(0.0).square()).sqrt()
        return outside + torch.maximum(torch.maximum(a, b), c).clamp_max(0.0)
    if kind == BALL:
        x, y, z = x / hx, y / hy, z / hz
        r = (x * x + y * y + z * z).sqrt()
        slope = ((x / hx).square() + (y / hy).square() + (z / hz).square()).sqrt()
        return r * (r - 1) / slope.clamp_min(1e-9)
    if kind == CAPSULE:
        end = param * hx
        y = y - torch.minimum(torch.maximum(y, -end), end)
        return (x * x + y * y + z * z).sqrt() - hx
    if kind in (CYLINDER, CONE):
        r = (x * x + z * z * (hx / hz).square()).sqrt()
        taper = 0.0 if kind == CYLINDER else hx * (1 - param) / 2
        a = r - hx if kind == CYLINDER else r - hx * (1 + param) / 2 - taper * (y / hy).clamp(-1.0, 1.0)
        if kind == CONE:
            a = a * hy / (hy * hy + taper * taper).sqrt()
        b = y.abs() - hy
        outside = (a.clamp_min(0.0).square() + b.clamp_min(0.0).square()).sqrt()
        return outside + torch.maximum(a, b).clamp_max(0.0)
    best = y.abs() - hy
    if kind == WEDGE:
        best = torch.maximum(best, z.abs() - hz)
    for nx, ny, nz, c in _gable(param) if kind == WEDGE else _TOWER:
        nx, ny, nz = nx / hx, ny / hy, nz / hz
        best = torch.maximum(best, (nx * x + ny * y + nz * z + c) / (nx * nx + ny * ny + nz * nz).sqrt())
    return best


def clearance(solids: Solids, world: Tensor, time: Tensor, points: Tensor) -> Tensor:
    """Distance float32 [C,N] from points [C,N,3] to the nearest solid of each picture's world and time; < 0 inside."""
    kind, param, half = solids.kind[world], solids.param[world], solids.half[world]
    away = points.double()[:, :, None] - solids.centre[world, time][:, None]
    local = rotate(solids.turn[world, time].mT[:, None], away).float()
    out = torch.full(local.shape[:-1], _BIG, device=local.device)
    for k in solids.kinds:
        frame, solid = (kind == k).nonzero().unbind(1)
        q = local[frame, :, solid].unbind(-1)
        h = half[frame, solid][:, None].unbind(-1)
        out[frame, :, solid] = distance(k, q, h, param[frame, solid][:, None])
    return out.amin(-1)


def openness(solids: Solids, world: Tensor, time: Tensor, points, normal, valid: Tensor, reach: float) -> Tensor:
    """How much room there is `reach` metres above surface points, in 0..1: darkness in corners and under things.

    points, normal: three tensors each [C,T,64], world.
    """
    kind, param, half, radius = solids.kind[world], solids.param[world], solids.half[world], solids.radius[world]
    centre, turn = solids.centre[world, time].float(), solids.turn[world, time].float()
    lifted = [p + reach * n for p, n in zip(points, normal)]
    low = [torch.where(valid, p, _BIG).amin(-1) for p in lifted]
    high = [torch.where(valid, p, -_BIG).amax(-1) for p in lifted]
    off = torch.stack([c[:, None] - (a + b)[..., None] / 2 for a, b, c in zip(low, high, centre.unbind(-1))], -1)
    spread = torch.stack([b - a for a, b in zip(low, high)], -1).clamp_min(0.0).square().sum(-1).sqrt() / 2
    keep = off.square().sum(-1).sqrt() <= radius[:, None] * 1.001 + spread[..., None] + reach
    keep &= valid.any(-1)[..., None]
    free = torch.full_like(points[0], reach).flatten(0, 1)
    T, P = valid.shape[1], kind.shape[1]
    shift = rotate(turn.mT, centre).flatten(0, 1)
    matrix = turn.mT.flatten(0, 1)
    flat = [p.flatten(0, 1) for p in lifted]
    kinds = [k for k in solids.kinds if k != DOME]
    for k, frame, tile, solid in _pairs(keep, kind, kinds):
        pair, index = frame * P + solid, frame * T + tile
        m, s = matrix.index_select(0, pair)[..., None], shift.index_select(0, pair)[..., None]
        px, py, pz = (p.index_select(0, index) for p in flat)
        q = [m[:, i, 0] * px + m[:, i, 1] * py + m[:, i, 2] * pz - s[:, i] for i in range(3)]
        d = distance(k, q, half[frame, solid][:, None].unbind(-1), param[frame, solid][:, None])
        free.scatter_reduce_(0, index[:, None].expand_as(d), d, "amin")
    return (free.view(valid.shape) / reach).clamp(0.0, 1.0)
