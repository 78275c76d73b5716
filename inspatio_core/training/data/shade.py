"""From hits to colours: plain shading (domain S), or a sun or lamp with soft shadows, fog and a camera (domain R)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from inspatio_core.training.data import textures as tx
from inspatio_core.training.data.cast import (
    BALL,
    BOX,
    CAPSULE,
    CONE,
    CYLINDER,
    DOME,
    GROUND,
    PYRAMID,
    ROOM,
    WEDGE,
    Hits,
    Solids,
    openness,
    visibility,
)
from inspatio_core.training.data.stage import LOOK

_AT = {name: i for i, name in enumerate(LOOK)}
_LIFT = 4e-3  # metres off a surface where its shadow rays begin


@dataclass(frozen=True, eq=False)
class Paint:
    """How B worlds look, on one device.

    faces: int64 [B,P,6] into the materials; materials: float32 [WIDTH,M] of all worlds; look: float32 [B,len(LOOK)];
    kinds: the textures that occur. sky: whether any world has one.
    """

    faces: Tensor
    materials: Tensor
    look: Tensor
    kinds: tuple[int, ...]
    sky: bool

    def of(self, name: str, world: Tensor) -> Tensor:
        """A number of the look, [C,1,1]."""
        return self.look[world, _AT[name]][:, None, None]

    def colour(self, name: str, world: Tensor) -> list[Tensor]:
        """A colour of the look, three [C,1,1]."""
        return [self.of(f"{name}_{k}", world) for k in "rgb"]


@dataclass(frozen=True, eq=False)
class Points:
    """Surface points of C frames, [C,T,64] each unless said: place and unit normal in the world (three tensors each),
    footprint of a pixel on the surface and along it, in the solid's axes (three tensors, metres), the point there.

    `sky`: bool, the dome. face: int64 0..5, see `stage.World.faces`.
    """

    place: list[Tensor]
    normal: list[Tensor]
    local: list[Tensor]
    spread: list[Tensor]
    half: list[Tensor]
    kind: Tensor
    face: Tensor
    facing: Tensor
    sky: Tensor


def _apply(m, v):
    return [m[3 * i] * v[0] + m[3 * i + 1] * v[1] + m[3 * i + 2] * v[2] for i in range(3)]


def _apply_inverse(m, v):
    return [m[i] * v[0] + m[3 + i] * v[1] + m[6 + i] * v[2] for i in range(3)]


def surface_points(solids: Solids, world: Tensor, camera: Tensor, K: Tensor, hits: Hits) -> Points:
    """Where the rays of `hits` met what. camera [C,4,4], K [C,3,3]."""
    C, T, N = hits.depth.shape
    P = hits.local_origin.shape[1]
    pair = (torch.arange(C, device=camera.device)[:, None, None] * P + hits.solid).flatten()
    owner = (world[:, None, None] * P + hits.solid).flatten()

    def fetch(table, index):  # [rows,k] -> k tensors [C,T,64]
        return table.t().contiguous().index_select(1, index).view(-1, C, T, N).unbind(0)

    turn = fetch(hits.local_turn.reshape(C * P, 9), pair)
    origin = fetch(hits.local_origin.reshape(C * P, 3), pair)
    h = fetch(solids.half.flatten(0, 1), owner)
    kind = solids.kind.flatten().index_select(0, owner).view(C, T, N)
    param = solids.param.flatten().index_select(0, owner).view(C, T, N)

    z = hits.depth
    d = [turn[3 * i] * hits.x + turn[3 * i + 1] * hits.y + turn[3 * i + 2] for i in range(3)]
    local = [origin[i] + z * d[i] for i in range(3)]
    q = [local[i] / h[i] for i in range(3)]
    n, face = _normals(kind, param, q, solids.kinds)
    n = [n[i] / h[i] for i in range(3)]
    norm = (n[0] * n[0] + n[1] * n[1] + n[2] * n[2]).clamp_min(1e-20).rsqrt()
    n = [k * norm for k in n]

    # What one pixel to the right, and one below, moves the point on its tangent plane.
    facing = n[0] * d[0] + n[1] * d[1] + n[2] * d[2]
    length = (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt()
    slope = torch.where(facing < 0, -1.0, 1.0) / torch.maximum(facing.abs(), 0.03 * length)
    parts = []
    for axis in (0, 1):
        f = K[:, axis, axis].float()[:, None, None]
        e = [turn[3 * i + axis] for i in range(3)]
        k = (n[0] * e[0] + n[1] * e[1] + n[2] * e[2]) * slope
        parts.append([(z / f * (e[i] - k * d[i])).abs() for i in range(3)])
    spread = [a + b for a, b in zip(*parts)]

    R, position = camera[:, :3, :3].float(), camera[:, :3, 3].float()
    R = R.reshape(C, 9, 1, 1).unbind(1)
    ray = [hits.x, hits.y, torch.ones_like(z)]
    place = [p + z * r for p, r in zip(position[:, :, None, None].unbind(1), _apply(R, ray))]
    normal = _apply(R, _apply_inverse(turn, n))
    return Points(place, normal, local, spread, list(h), kind, face, -facing / length, kind == DOME)


def _normals(kind, param, q, kinds):
    """Outward gradients in canonical axes, and faces."""
    x, y, z = q
    normal = [x, y, z]
    face = torch.zeros_like(kind)

    def put(where, values, side):
        nonlocal face
        for i in range(3):
            normal[i] = torch.where(where, values[i], normal[i])
        face = torch.where(where, side, face)

    zero = torch.zeros_like(x)
    if BOX in kinds or ROOM in kinds:
        a, b, c = x.abs(), y.abs(), z.abs()
        on_x, on_y = (a >= b) & (a >= c), b >= c
        sides = [torch.where(on_x, x.sign(), zero), torch.where(~on_x & on_y, y.sign(), zero)]
        sides.append(torch.where(~on_x & ~on_y, z.sign(), zero))
        side = torch.where(on_x, (x < 0).long(), torch.where(on_y, 2 + (y < 0).long(), 4 + (z < 0).long()))
        put(kind == BOX, sides, side)
        if ROOM in kinds:
            put(kind == ROOM, [-s for s in sides], side)
    if DOME in kinds:
        put(kind == DOME, [-x, -y, -z], face)
    if GROUND in kinds:
        put(kind == GROUND, [zero, zero - 1, zero], zero.long() + 3)
    if CYLINDER in kinds or CONE in kinds:
        r = (x * x + z * z).sqrt()
        end = 2 + (y < 0).long()
        if CYLINDER in kinds:
            cap = y.abs() > r
            values = [torch.where(cap, zero, x), torch.where(cap, y.sign(), zero), torch.where(cap, zero, z)]
            put(kind == CYLINDER, values, torch.where(cap, end, 0))
        if CONE in kinds:
            m, g = (1 + param) / 2, (1 - param) / 2
            wide = m + g * y
            cap = y.abs() - 1 > r - wide
            values = [torch.where(cap, zero, x), torch.where(cap, y.sign(), -g * wide), torch.where(cap, zero, z)]
            put(kind == CONE, values, torch.where(cap, end, 0))
    if CAPSULE in kinds:
        put(kind == CAPSULE, [x, y - torch.minimum(torch.maximum(y, -param), param), z], 0 * face)
    if WEDGE in kinds or PYRAMID in kinds:
        right, left = 2 * x - (1 - param) * y - (1 + param), -2 * x - (1 + param) * y - (1 - param)
        tip = [x.abs() * 2 - y - 1, z.abs() * 2 - y - 1]
        below = y - 1
        if WEDGE in kinds:
            gable = z.abs() - 1
            slope = torch.maximum(right, left)
            on_gable, on_base = (gable >= below) & (gable * 2 >= slope), below * 2 >= slope
            nx, ny = torch.where(right > left, 2.0, -2.0), torch.where(right > left, param - 1, -1 - param)
            values = [
                torch.where(on_gable | on_base, zero, nx),
                torch.where(on_gable, zero, torch.where(on_base, 1.0, ny)),
                torch.where(on_gable, z.sign(), zero),
            ]
            put(kind == WEDGE, values, torch.where(on_gable, 4 + (z < 0).long(), torch.where(on_base, 2, 0)))
        if PYRAMID in kinds:
            on_base, on_x = below * 2 >= torch.maximum(*tip), tip[0] > tip[1]
            values = [
                torch.where(on_base | ~on_x, zero, 2 * x.sign()),
                torch.where(on_base, 1.0, zero - 1),
                torch.where(on_base | on_x, zero, 2 * z.sign()),
            ]
            put(kind == PYRAMID, values, torch.where(on_base, 2, 0))
    return normal, face


def albedo(paint: Paint, world: Tensor, hits: Hits, points: Points) -> tuple[Tensor, Tensor]:
    """Printed colours [3,C,T,64] and strength of highlights [C,T,64]; the sky's are left at zero."""
    C, T, N = hits.depth.shape
    P = hits.local_origin.shape[1]
    row = ((world[:, None, None] * P + hits.solid) * 6 + points.face).flatten()
    number = paint.faces.flatten().index_select(0, row)
    texture = paint.materials[0].index_select(0, number).to(torch.int8)
    texture = torch.where(points.sky.flatten(), -1, texture)

    # Coordinates along the face: of a flat one its two axes, of a round one the way around and the height.
    (x, y, z), (wx, wy, wz), (hx, hy, hz) = points.local, points.spread, points.half
    across, level = points.face < 2, (points.face == 2) | (points.face == 3)
    kind = points.kind
    bent = ((kind == BALL) | (kind == CYLINDER) | (kind == CONE) | (kind == CAPSULE)) & ~level
    u, v = torch.where(across, z, x), torch.where(level, z, y)
    du, dv = torch.where(across, wz, wx), torch.where(level, wz, wy)
    hu, hv = torch.where(across, hz, hx), torch.where(level, hz, hy)
    # A picture on a side must not be mirrored: u runs to the right for who looks at the face from outside.
    u = torch.where((points.face == 1) | (points.face == 4), -u, u)
    angle = torch.atan2(x, z)
    u, du = torch.where(bent, angle * hx, u), torch.where(bent, wx + wz, du)
    hu = torch.where(bent, hx * 3.14159265, hu)

    colour = torch.zeros(3, C * T * N, device=x.device)
    gloss = torch.zeros(C * T * N, device=x.device)
    flat = [k.flatten() for k in (u, v, du, dv, hu, hv, x, y, z)] + [torch.maximum(torch.maximum(wx, wy), wz).flatten()]
    for k in paint.kinds:
        at = (texture == k).nonzero().flatten()
        if not len(at):
            continue
        u, v, du, dv, hu, hv, x, y, z, w = (f.index_select(0, at) for f in flat)
        p = paint.materials.index_select(1, number.index_select(0, at))
        turned = p[16] > 0
        u, v, du, dv, hu, hv = (
            torch.where(turned, b, a) for a, b in ((u, v), (v, u), (du, dv), (dv, du), (hu, hv), (hv, hu))
        )
        s, t, ds, dt = (u / hu + 1) / 2, (v / hv + 1) / 2, du / hu / 2, dv / hv / 2
        shift = p[1] * 0.137  # no two materials begin their pattern at the same place
        c = tx.KINDS[k](tx.Surface(u + shift, v, du, dv, s, t, ds, dt, x, y, z, w, p))
        colour.index_copy_(1, at, c.clamp(0.0, 1.0))
        gloss.index_copy_(0, at, p[13])
    return colour.view(3, C, T, N), gloss.view(C, T, N)


def sky_colours(paint: Paint, world: Tensor, points: Points, K: Tensor, rich: bool) -> Tensor:
    """Colours [3,C,T,64] of the dome, printed on it: the same from wherever it is seen."""
    x, y, z = (p / h for p, h in zip(points.local, points.half))
    up = (-y).clamp_min(0.0)
    zenith, horizon = paint.colour("zenith", world), paint.colour("horizon", world)
    k = (up * 1.6).clamp(0.0, 1.0).sqrt()
    size = paint.of("cloud_size", world) * 2
    a, b = x / (up + 0.3) * size, z / (up + 0.3) * size
    seed = paint.of("cloud_seed", world)
    w = size / (up + 0.3) / K[:, 0, 0].float()[:, None, None]
    cover = tx.clouds(a + seed, b - seed, seed + 0 * a, w, 4 if rich else 2)
    cover = ((cover + paint.of("clouds", world)) * 3).clamp(0.0, 1.0) * (up * 6).clamp(0.0, 1.0)
    light = [paint.of(f"light_{k}", world) for k in "xyz"]
    length = (light[0] ** 2 + light[1] ** 2 + light[2] ** 2).sqrt()
    towards = ((x * light[0] + y * light[1] + z * light[2]) / length).clamp_min(0.0)
    glow = paint.of("sun_disc", world) * (0.25 * towards**8 + (0.5 * towards**256 if rich else 0.0))
    out = []
    for i in range(3):
        base = torch.lerp(horizon[i].expand_as(k), zenith[i].expand_as(k), k)
        out.append(torch.lerp(base, 0.35 * base + 0.62, cover * 0.9) + glow)
    return torch.stack(out).clamp(0.0, 1.0)


def shade_plain(paint: Paint, world: Tensor, hits: Hits, points: Points, K: Tensor) -> Tensor:
    """Domain S: rgb [3,C,T,64] in 0..1; matte, one light without shadows, so a point looks the same from everywhere."""
    colour, _ = albedo(paint, world, hits, points)
    light = [paint.of(f"light_{k}", world) for k in "xyz"]
    length = (light[0] ** 2 + light[1] ** 2 + light[2] ** 2).sqrt()
    n = points.normal
    lit = (n[0] * light[0] + n[1] * light[1] + n[2] * light[2]) / length
    lit = 0.74 + 0.2 * lit - 0.08 * n[1] + 0.06 * n[0]
    out = colour * lit
    if paint.sky:
        out = torch.where(points.sky, sky_colours(paint, world, points, K, False), out)
    return out.clamp(0.0, 1.0)


def shade_rich(
    paint: Paint, solids: Solids, world: Tensor, time: Tensor, hits: Hits, points: Points, camera: Tensor, K: Tensor
) -> Tensor:
    """Domain R: linear light [3,C,T,64], before the camera's response."""
    colour, gloss = albedo(paint, world, hits, points)
    colour = colour.square() * (0.55 + 0.45 * colour)  # about the printed colour to the power 2.4
    n, place = points.normal, points.place
    lifted = [p + (_LIFT + 2e-4 * hits.depth) * k for p, k in zip(place, n)]
    light = torch.stack([paint.look[world, _AT[f"light_{k}"]] for k in "xyz"], -1)
    way = [light[:, i, None, None] - lifted[i] for i in range(3)]
    distance = (way[0] ** 2 + way[1] ** 2 + way[2] ** 2).sqrt()
    way = [k / distance for k in way]
    lit = (n[0] * way[0] + n[1] * way[1] + n[2] * way[2]).clamp_min(0.0)
    lamp = paint.of("lamp", world)
    lit = torch.where(lamp > 0, lit * 2.2 / (1 + (distance / lamp.clamp_min(0.1)).square()), lit)
    needs = (lit > 0) & ~points.sky
    softness = paint.look[world, _AT["softness"]]
    lit = lit * visibility(solids, world, time, lifted, needs, light, softness)
    ground = ~points.sky
    near = openness(solids, world, time, place, n, ground, 0.35)
    wide = openness(solids, world, time, place, n, ground, 1.1)
    ambient = (0.3 + 0.7 * near) * (0.55 + 0.45 * wide)

    up = 0.5 - 0.5 * n[1]
    sky, earth, sun = (paint.colour(k, world) for k in ("sky", "earth", "light"))
    bounce = paint.of("bounce", world)
    eye = [camera[:, i, 3].float()[:, None, None] - place[i] for i in range(3)]
    reach = (eye[0] ** 2 + eye[1] ** 2 + eye[2] ** 2).sqrt()
    half = [e / reach + k for e, k in zip(eye, way)]
    shine = (n[0] * half[0] + n[1] * half[1] + n[2] * half[2]).clamp_min(0.0)
    shine = shine / (half[0] ** 2 + half[1] ** 2 + half[2] ** 2).sqrt().clamp_min(1e-6)
    shine = shine.square().square().square().square().square() * gloss * (lit > 0) * lit
    heaven = sky_colours(paint, world, points, K, True) if paint.sky else colour
    fog = paint.colour("fog", world)
    haze = 1 - torch.exp(-paint.of("fog", world) * hits.depth)
    out = []
    for i in range(3):
        around = ambient * (earth[i] + (sky[i] - earth[i]) * up + bounce * 0.25 * (1 - up) * sun[i])
        c = colour[i] * (sun[i] * lit + around) + sun[i] * shine
        c = torch.lerp(c, fog[i].square().expand_as(c), haze)
        out.append(torch.where(points.sky, torch.lerp(heaven[i], fog[i].expand_as(c), 0.6 * haze).square(), c))
    return torch.stack(out)


def photograph(paint: Paint, world: Tensor, view: Tensor, time: Tensor, seeds: Tensor, rgb: Tensor) -> Tensor:
    """The camera's part of domain R: linear [C,3,H,W] to 0..1: exposure, lens, grading, grain."""
    C, _, H, W = rgb.shape
    device = rgb.device

    def of(name):
        return paint.of(name, world)[:, None]

    tint = torch.stack(paint.colour("tint", world), 1)
    x = rgb * of("exposure") * tint
    a = of("blur") * 0.5  # weight of the neighbours, together
    padded = pad(x, (1, 1, 1, 1), mode="replicate")
    soft = avg_pool2d(padded, 3, 1)
    x = x + (soft - x) * a
    v = (torch.arange(H, device=device) / H - 0.5)[:, None]
    u = (torch.arange(W, device=device) / W - 0.5)[None]
    x = x * (1 - of("vignette") * 1.6 * (u * u + v * v))
    x = x.clamp_min(0.0)
    x = x * (1 + 0.15 * x) / (1 + 0.45 * x)  # a soft shoulder
    x = x.clamp_min(1e-6).pow(1 / 2.0) * 1.1
    x = 0.5 + (x - 0.5) * of("contrast")
    grey = (0.3 * x[:, 0] + 0.59 * x[:, 1] + 0.11 * x[:, 2])[:, None]
    x = grey + (x - grey) * of("saturation")
    # Grain by a hash of seed, view, frame and pixel: no generator, so nothing else in the batch matters.
    pixel = torch.arange(H * W, device=device).view(H, W)
    key = (seeds * 1000003 + view * 7919 + time * 104729)[:, None, None] + pixel * 2654435761
    key = (key ^ (key >> 15)) * 2246822519 & 0xFFFFFFFF
    key = (key ^ (key >> 13)) * 3266489917 & 0xFFFFFFFF
    grain = ((key & 0xFFFF) + (key >> 16)).float() / 65536 - 1
    return (x + of("grain") * 1.5 * grain[:, None]).clamp(0.0, 1.0)
