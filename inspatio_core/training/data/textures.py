"""Procedural textures, filtered by the footprint of a pixel, so that far patterns fade instead of flickering.

A material is a row of `WIDTH` numbers (see `material`). Colours are in 0..1 as they would be printed, [3,n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

WIDTH = 18
_TABLE = 1 << 15


@dataclass(frozen=True, eq=False)
class Surface:
    """n surface points with what a texture may look at, all float32 [n].

    u, v: metres along the face (v downwards); du, dv: how much of them a pixel covers. s, t: the same in 0..1 over the
    whole face. x, y, z: metres in the solid's own axes, w: how much of them a pixel covers. p: material [WIDTH,n].
    """

    u: Tensor
    v: Tensor
    du: Tensor
    dv: Tensor
    s: Tensor
    t: Tensor
    ds: Tensor
    dt: Tensor
    x: Tensor
    y: Tensor
    z: Tensor
    w: Tensor
    p: Tensor

    @property
    def seed(self) -> Tensor:
        """Of the material."""
        return self.p[1]

    @property
    def scale(self) -> Tensor:
        """Size of the pattern, metres."""
        return self.p[2]

    @property
    def amount(self) -> Tensor:
        """Free parameter."""
        return self.p[3]

    @property
    def colours(self) -> tuple[Tensor, Tensor, Tensor]:
        """Three, [3,n] each."""
        return self.p[4:7], self.p[7:10], self.p[10:13]


def material(
    kind: int, seed: float, scale: float, a, b, c, *, amount=0.5, gloss=0.0, stretch=1.0, rough=0.1, turned=False
) -> list[float]:
    """A row: kind of texture, seed (0..999), size of its pattern in metres, three colours.

    amount: a free parameter of the kind. gloss: strength of highlights. stretch: width over height of the pattern.
    rough: strength of the fine grain. turned: u and v swapped.
    """
    return [float(kind), float(seed), scale, amount, *a, *b, *c, gloss, stretch, rough, float(turned), 0.0]


@cache
def _table(device: str) -> Tensor:
    generator = torch.Generator().manual_seed(20240229)
    return torch.rand(_TABLE, generator=generator).to(device)


def _look_up(index: Tensor) -> Tensor:
    return _table(str(index.device)).index_select(0, (index & (_TABLE - 1)).flatten()).view(index.shape)


def cell(i: Tensor, j: Tensor, seed: Tensor) -> Tensor:
    """A number in 0..1 for integer cells i, j (floats)."""
    i, j, seed = i.to(torch.int32), j.to(torch.int32), seed.to(torch.int32)
    return _look_up((i * 7919) ^ (j * 19937 + seed * 2741))


def noise(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Smooth noise in -0.5..0.5, repeating every 32."""
    i, j, k = x.floor(), y.floor(), z.floor()
    a, b, c = x - i, y - j, z - k
    a, b, c = a * a * (3 - 2 * a), b * b * (3 - 2 * b), c * c * (3 - 2 * c)
    i, j, k = (n.to(torch.int32) for n in (i, j, k))
    i0, i1, j0, j1, k0, k1 = (
        i & 31,
        (i + 1) & 31,
        (j & 31) << 5,
        ((j + 1) & 31) << 5,
        (k & 31) << 10,
        ((k + 1) & 31) << 10,
    )
    faces = []
    for kk in (k0, k1):
        top = torch.lerp(_look_up(kk + j0 + i0), _look_up(kk + j0 + i1), a)
        low = torch.lerp(_look_up(kk + j1 + i0), _look_up(kk + j1 + i1), a)
        faces.append(torch.lerp(top, low, b))
    return torch.lerp(faces[0], faces[1], c) - 0.5


def clouds(x: Tensor, y: Tensor, z: Tensor, w: Tensor, octaves: int = 3) -> Tensor:
    """Noise of some octaves, about -0.5..0.5; w: the footprint of a pixel in the units of x."""
    total, strength, frequency = 0.0, 1.0, 1.0
    for _ in range(octaves):
        fade = (1.6 - 2.0 * w * frequency).clamp(0.0, 1.0) * strength
        total = total + noise(x * frequency, y * frequency, z * frequency) * fade
        x, y, z = x + 17.3, y + 5.1, z + 9.7
        strength, frequency = strength * 0.55, frequency * 2.03
    return total


def bars(x: Tensor, w: Tensor, share) -> Tensor:
    """Mean over x - w/2 .. x + w/2 of a pattern that is 1 in [k, k + share] for every integer k, else 0."""
    w = w.clamp_min(1e-4)

    def integral(x):
        k = x.floor()
        rest = x - k
        return k * share + (torch.minimum(rest, share) if torch.is_tensor(share) else rest.clamp_max(share))

    return (integral(x + w / 2) - integral(x - w / 2)) / w


def step(x: Tensor, w: Tensor) -> Tensor:
    """0 for x < 0, 1 for x > 0, smoothed over a pixel's footprint w."""
    return (x / w.clamp_min(1e-4) + 0.5).clamp(0.0, 1.0)


def mix(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """From colour a [3,n] to b [3,n] by t [n]."""
    return a + (b - a) * t


def _fade(w: Tensor) -> Tensor:
    """Weight of what differs from cell to cell when a pixel covers w cells."""
    return (1.5 - w).clamp(0.0, 1.0)


def _grain(s: Surface, size: float = 0.12) -> Tensor:
    """Factor around 1: fine and coarse unevenness."""
    k = s.seed * 0.37
    fine = clouds(s.x / size + k, s.y / size, s.z / size + 0.5 * k, s.w / size, 2)
    return 1 + s.p[15] * 2 * fine


def plain(s: Surface) -> Tensor:
    """Colour a with stains of b."""
    a, b, _ = s.colours
    k = s.seed * 0.61
    stain = clouds(s.x * 0.9 / s.scale + k, s.y * 0.9 / s.scale, s.z * 0.9 / s.scale - k, s.w / s.scale, 3)
    return mix(a, b, (stain * s.amount + 0.3).clamp(0.0, 1.0)) * _grain(s)


def checker(s: Surface) -> Tensor:
    """Squares."""
    a, b, _ = s.colours
    u, v, du, dv = s.u / s.scale, s.v / s.scale, s.du / s.scale, s.dv / s.scale
    p, q = 2 * bars(u / 2, du / 2, 0.5) - 1, 2 * bars(v / 2, dv / 2, 0.5) - 1
    each = (cell(u.floor(), v.floor(), s.seed) - 0.5) * _fade(du + dv)
    return mix(a, b, 0.5 - 0.5 * p * q) * (1 + 0.25 * each) * _grain(s)


def bricks(s: Surface) -> Tensor:
    """Rows of bricks or tiles in colours a..b with joints c; amount: shift of every other row."""
    a, b, c = s.colours
    high, wide = s.scale, s.scale * s.p[14]
    row = (s.v / high).floor()
    u = s.u / wide + s.amount * (row.to(torch.int32) & 1)
    du, dv = s.du / wide, s.dv / high
    joint = 0.05 + 0.03 * cell(s.seed, s.seed, s.seed)
    body = (1 - bars(u, du, joint / s.p[14].clamp_min(1.0))) * (1 - bars(s.v / high, dv, joint))
    each = (cell(u.floor(), row, s.seed) - 0.5) * _fade(du + dv)
    return mix(c, mix(a, b, 0.5 + each) * (1 + 0.3 * each), body) * _grain(s)


def planks(s: Surface) -> Tensor:
    """Boards with grain along u."""
    a, b, c = s.colours
    row = (s.v / s.scale).floor()
    wide = s.scale * 8
    u = s.u / wide + cell(row, row, s.seed) * 5
    dv = s.dv / s.scale
    joint = (1 - bars(s.v / s.scale, dv, 0.06)) * (1 - bars(u, s.du / wide, 0.008))
    each = (cell(u.floor(), row, s.seed) - 0.5) * _fade(dv)
    k = s.seed * 0.73 + each * 9
    veins = clouds(s.u / s.scale * 0.5 + k, s.v / s.scale * 7.0, k, s.dv / s.scale * 7, 2)
    return mix(c, mix(a, b, (0.5 + each + 0.9 * veins).clamp(0.0, 1.0)), joint) * _grain(s, 0.05)


def wood(s: Surface) -> Tensor:
    """Solid wood: rings around an axis, bent by noise."""
    a, b, _ = s.colours
    k = s.seed * 0.29
    bend = noise(s.x * 1.5 + k, s.y * 1.5, s.z * 1.5 + k)
    r = ((s.x + 0.4).square() + (s.z + 0.3 + 0.1 * s.y).square()).sqrt() / s.scale + 1.6 * bend
    w = s.w / s.scale
    ring = torch.sin(6.2832 * r) * (1.4 - 2 * w).clamp(0.0, 1.0)
    veins = clouds(s.x * 30 + k, s.y * 2, s.z * 30, s.w * 30, 1)
    return mix(a, b, (0.5 + 0.35 * ring + 0.4 * veins).clamp(0.0, 1.0)) * _grain(s)


def marble(s: Surface) -> Tensor:
    """Stone a..b with veins c."""
    a, b, c = s.colours
    k = s.seed * 0.41
    w = s.w / s.scale
    bend = clouds(s.x / s.scale + k, s.y / s.scale, s.z / s.scale - k, w, 4)
    vein = torch.sin((s.x + 0.7 * s.y + 0.5 * s.z) / s.scale * 3 + bend * 9 + k).abs()
    base = mix(a, b, (0.5 + bend).clamp(0.0, 1.0))
    return mix(c, base, (vein * (2.5 - s.amount)).clamp(0.0, 1.0) * 0.8 + 0.2) * _grain(s)


def earth(s: Surface) -> Tensor:
    """Grass, soil, gravel, plaster: three colours by noise of two sizes."""
    a, b, c = s.colours
    k = s.seed * 0.53
    big = clouds(s.x / s.scale * 0.3 + k, s.y / s.scale * 0.3, s.z / s.scale * 0.3 - k, s.w / s.scale * 0.3, 3)
    small = clouds(s.x / s.scale * 3 - k, s.y / s.scale * 3, s.z / s.scale * 3 + k, s.w / s.scale * 3, 3)
    base = mix(a, b, (0.5 + 1.6 * big).clamp(0.0, 1.0))
    return mix(base, c, (s.amount * (0.2 + 2.2 * small)).clamp(0.0, 1.0)) * (1 + 1.2 * s.p[15] * small)


def stripes(s: Surface) -> Tensor:
    """Stripes across u; amount: share of b."""
    a, b, c = s.colours
    u, du = s.u / s.scale, s.du / s.scale
    first = bars(u, du, s.amount)
    second = bars(u * 0.5 + 0.13, du * 0.5, 0.12)
    return mix(mix(a, b, first), c, second) * _grain(s)


def dots(s: Surface) -> Tensor:
    """Spots in b and c on a."""
    a, b, c = s.colours
    u, v = s.u / s.scale, s.v / s.scale
    v = v + 0.5 * (u.floor().to(torch.int32) & 1)
    w = (s.du + s.dv) / s.scale
    r = ((u - u.floor() - 0.5).square() + (v - v.floor() - 0.5).square()).sqrt()
    each = cell(u.floor(), v.floor(), s.seed)
    spot = step(0.16 + 0.26 * s.amount - r, w)
    share = 3.14 * (0.16 + 0.26 * s.amount).square()
    spot = torch.lerp(share, spot, _fade(w))
    return mix(a, mix(b, c, (each > 0.6).float()), spot) * _grain(s)


def glyphs(s: Surface) -> Tensor:
    """Lines of made-up letters in words, with a headline: print b on a, the headline in c."""
    a, b, c = s.colours
    head = s.t < 0.26
    size = s.scale * torch.where(head, 2.2, 1.0)
    u, v = s.u / size, s.v / (size * 1.5)
    w = (s.du / size + s.dv / (size * 1.5)) * 5
    i, j = u.floor(), v.floor()
    x, y = (u - i) * 6, (v - j) * 8  # a letter: 4x5 dots in a field of 6x8
    ink = cell(i * 6 + x.floor(), j * 8 + y.floor(), s.seed) > 0.42
    ink &= (x < 4) & (y < 5.0) & (cell(i, j, s.seed + 1) > 0.16)
    inside = (torch.minimum(s.s, 1 - s.s) > 0.07) & (torch.minimum(s.t, 1 - s.t) > 0.06)
    ink &= inside
    shade = torch.lerp(0.25 * inside.float(), ink.float(), _fade(w * 0.7))
    return mix(a, torch.where(head, c, b), shade) * _grain(s)


def poster(s: Surface) -> Tensor:
    """A printed picture: a gradient, discs, a hill line, a frame."""
    a, b, c = s.colours
    u, v, w = s.s, s.t, s.ds + s.dt
    picture = mix(a, b, v)
    for n in range(3):
        f = s.seed * 0 + n
        x, y = cell(f, f, s.seed), cell(f, f + 7, s.seed) * 0.7
        r = 0.08 + 0.25 * cell(f + 3, f, s.seed)
        d = ((u - x).square() + (v - y).square()).sqrt()
        rings = torch.lerp(bars(d * 14, w * 14, 0.5), torch.ones_like(d), (cell(f, f + 2, s.seed) > 0.4).float())
        tint = torch.roll(c, n, 0) if n else c
        picture = mix(picture, tint, step(r - d, w) * rings)
    hill = 0.62 + 0.1 * torch.sin(u * 7 + s.seed) + 0.05 * torch.sin(u * 19 + 2 * s.seed)
    picture = mix(picture, mix(b, a, v) * 0.55, step(v - hill, w))
    edge = torch.minimum(torch.minimum(u, 1 - u), torch.minimum(v, 1 - v))
    return mix(0.25 * c + 0.1, picture, step(edge - 0.04, w))


def facade(s: Surface) -> Tensor:
    """A wall a with rows of windows b in frames c; amount: share of a cell that is window."""
    a, b, c = s.colours
    wide, high = s.scale * s.p[14], s.scale
    u, v = s.u / wide, s.v / high
    du, dv = s.du / wide, s.dv / high
    i, j = u.floor(), v.floor()

    def pane(grow):
        share = s.amount + grow
        return bars(u + share / 2 - 0.5, du, share) * bars(v + share / 2 - 0.5, dv, share)

    each = (cell(i, j, s.seed) - 0.5) * _fade(du + dv)
    glass = b * (0.9 + 0.7 * each) + 0.12 * (1 - (v - j)) * _fade(dv)
    cross = bars(u + 0.52, du, 0.04) * _fade(du * 3)
    k = s.seed * 0.17
    wall = mix(a, a * 0.75, (0.4 + clouds(s.x * 0.6 + k, s.y * 0.6, s.z * 0.6, s.w, 3)).clamp(0.0, 1.0))
    base = mix(wall * _grain(s), c, pane(0.1))
    return mix(base, mix(glass, c, cross), pane(0.0))


def crate(s: Surface) -> Tensor:
    """The boarded side of a crate: border, a brace, nails."""
    a, b, c = s.colours
    border = torch.minimum(torch.minimum(s.s, 1 - s.s), torch.minimum(s.t, 1 - s.t))
    w = s.ds + s.dt
    brace = (torch.where(s.amount > 0.5, s.s - s.t, s.s + s.t - 1)).abs() / 1.414
    boards = 1 - bars(s.t * 5, s.dt * 5, 0.08)
    k = s.seed * 0.3
    veins = clouds(s.s * 2 + k, s.t * 30, k, s.dt * 30, 2)
    wood = mix(a, b, (0.5 + 0.8 * veins).clamp(0.0, 1.0))
    over = torch.maximum(step(0.12 - border, w), step(0.07 - brace, w))
    rim = over * (1 - torch.maximum(step(0.1 - border, w), step(0.05 - brace, w)))
    return mix(mix(c, wood, boards), mix(b * 1.1, c, rim), over) * _grain(s)


def cobbles(s: Surface) -> Tensor:
    """Round stones a..b in joints c."""
    a, b, c = s.colours
    u, v, w = s.u / s.scale, s.v / s.scale, (s.du + s.dv) / s.scale
    i, j = u.floor(), v.floor()
    first = torch.full_like(u, 9.0)
    second, which = first, first
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            ci, cj = i + di, j + dj
            r = cell(ci, cj, s.seed)
            other = cell(cj, ci, s.seed + 3)
            d = (ci + 0.15 + 0.7 * r - u).square() + (cj + 0.15 + 0.7 * other - v).square()
            nearer = d < first
            second = torch.where(nearer, first, torch.minimum(second, d))
            which = torch.where(nearer, r, which)
            first = torch.minimum(first, d)
    gap = second.sqrt() - first.sqrt()
    stone = torch.lerp(torch.full_like(u, 0.85), step(gap - 0.12, w + 0.08), _fade(w))
    each = (which - 0.5) * _fade(w)
    return mix(c, mix(a, b, 0.5 + each) * (1 + 0.3 * each), stone) * _grain(s)


def waves(s: Surface) -> Tensor:
    """A smooth pattern of a few waves in three colours, as on cloth."""
    a, b, c = s.colours
    k, w = s.seed, s.w / s.scale
    x, y, z = s.x / s.scale, s.y / s.scale, s.z / s.scale
    p = torch.sin(x * 3 + 1.7 * y + k) + torch.sin(y * 4.3 - 2.1 * z + 1.3 * k)
    q = torch.sin(z * 5.1 + 2.9 * x + 0.7 * k + p) * (1.6 - 2 * w).clamp(0.0, 1.0)
    return mix(mix(a, b, 0.5 + 0.25 * p), c, (q - 0.2).clamp(0.0, 1.0)) * _grain(s)


def panels(s: Surface) -> Tensor:
    """Doors, drawers, screens: one field a with an inner field b in a frame c, parted by amount."""
    a, b, c = s.colours
    w = s.ds + s.dt
    rows = 1 + (s.amount * 4).floor()
    t = s.t * rows
    t = t - t.floor().clamp_max(rows - 1)
    border = torch.minimum(torch.minimum(s.s, 1 - s.s) * 1.2, torch.minimum(t, 1 - t))
    base = mix(c, a, step(border - 0.05, w * rows))
    inner = mix(a, b, 0.6 + 0.4 * t)
    base = mix(base, inner, step(border - 0.17, w * rows))
    knob = ((s.s - 0.88).square() + (s.t - 0.5).square()).sqrt()
    return mix(base, c * 0.5, step(0.035 - knob, w)) * _grain(s)


def road(s: Surface) -> Tensor:
    """Asphalt a along z = v with edge lines and a dashed middle line b; the ground beside it c. scale: its width."""
    a, b, c = s.colours
    x = s.x / s.scale
    dx = s.du / s.scale
    k = s.seed * 0.31
    speck = clouds(s.x * 9 + k, s.y * 9, s.z * 9, s.w * 9, 3)
    patch = clouds(s.x * 0.4 + k, s.y * 0.4, s.z * 0.4, s.w * 0.4, 2)
    lane = (step(0.012 - x.abs(), dx) * bars(s.v / 3, s.dv / 3, 0.5)).clamp(0.0, 1.0)
    lane = torch.maximum(lane, step(0.012 - (x.abs() - 0.46).abs(), dx))
    tar = mix(a * (1 + 0.5 * speck + 0.5 * patch), b, lane * (0.8 + 0.6 * speck).clamp(0.0, 1.0))
    kerb = bars(s.v / 0.8, s.dv / 0.8, 0.06) * step(x.abs() - 0.5, dx) * (1 - step(x.abs() - 0.8, dx))
    side = c * (1 + 0.6 * speck + 0.5 * patch) * (1 - 0.4 * kerb)
    return mix(tar, side, step(x.abs() - 0.5, dx))


KINDS: tuple[Callable[[Surface], Tensor], ...] = (
    plain, checker, bricks, planks, wood, marble, earth, stripes, dots, glyphs, poster, facade, crate, cobbles, waves,
    panels, road,
)  # fmt: skip
(
    PLAIN, CHECKER, BRICKS, PLANKS, WOOD, MARBLE, EARTH, STRIPES, DOTS, GLYPHS, POSTER, FACADE, CRATE, COBBLES, WAVES,
    PANELS, ROAD,
) = range(len(KINDS))  # fmt: skip
