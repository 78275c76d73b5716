"""Random little worlds: rooms, corridors, halls, galleries, streets, parks, yards, squares, with things that move.

A world is a function of (seed, frames, fps) alone and lives on the CPU as small tables.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import torch
from torch import Tensor

from inspatio_core.training.data import textures as tx
from inspatio_core.training.data.cast import BALL, DOME, GROUND, PYRAMID, ROOM, WEDGE
from inspatio_core.training.data.stage import Dice, Stage, World
from inspatio_core.training.data.things import (
    animal,
    barrel,
    bench,
    bush,
    cabinet,
    car,
    cart,
    chair,
    crate,
    drone,
    floor_lamp,
    house,
    person,
    pillar,
    plant,
    plinth,
    rock,
    shape,
    shelf,
    sign,
    small,
    sofa,
    street_lamp,
    table,
    toy_ball,
    tree,
)

INSIDE = (crate, table, table, chair, chair, plant, floor_lamp, plinth, shape, shape, barrel, pillar, cart, person)
AT_WALLS = (shelf, shelf, cabinet, cabinet, sofa, table, bench)
OUTSIDE = (tree, tree, bush, rock, bench, sign, crate, shape, shape, barrel, person, street_lamp, car, plinth)


# ---- what moves -----------------------------------------------------------------------------------------------------


def _travel(s: Stage, radius: float, speed: float, bend: float = 0.0):
    """A free way over the ground: x, z, yaw [F] and the distance gone [F]; None where none was found."""
    d, t = s.dice, s.time
    total = float(t[-1])
    lead = d.chance(0.4)
    for attempt in range(14):
        slow = speed * (0.6 if attempt > 8 else 1.0)
        gone = slow * t
        if lead and total > 0:  # speeds up, or comes to rest
            k = t / total
            gone = slow * total * (k * k if attempt % 2 else k * (2 - k)) * 0.75
        start, curve = d.between(0, 6.283), d.gauss(0, bend)
        yaw = start + curve * gone
        step = torch.diff(gone, prepend=gone[:1])
        x = torch.cumsum(step * yaw.sin(), 0)
        z = torch.cumsum(step * yaw.cos(), 0)
        x0, z0 = (d.between(-a, a) * 0.8 for a in s.area)
        x, z = x + x0 - x.mean(), z + z0 - z.mean()
        spots = [(float(x[i]), float(z[i])) for i in range(0, len(t), max(1, len(t) // 6))] + [
            (float(x[-1]), float(z[-1]))
        ]
        if all(s.free(a, b, radius) for a, b in spots):
            s.taken += [(a, b, radius) for a, b in spots]
            s.subjects.append((sum(a for a, _ in spots) / len(spots), -0.6, sum(b for _, b in spots) / len(spots)))
            return x, z, yaw, gone
    return None


def _place(s: Stage, radius: float):
    for _ in range(12):
        x, z = (s.dice.between(-a, a) * 0.85 for a in s.area)
        if s.free(x, z, radius):
            s.taken.append((x, z, radius))
            s.subjects.append((x, -0.7, z))
            return x, z
    return None


def _walker(s: Stage, item) -> None:
    way = _travel(s, 0.5, s.dice.between(0.5, 1.7), 0.25)
    if way:
        x, z, yaw, gone = way
        phase = gone * s.dice.between(3.5, 5) + s.dice.between(0, 6)
        item(s, s.body(x, -0.03 * phase.sin().abs(), z, yaw, moving=True), (x, z, yaw), phase)


def _driver(s: Stage, item, speed) -> None:
    way = _travel(s, 1.2 if item is car else 0.6, s.dice.between(*speed), 0.15)
    if way:
        item(s, s.body(way[0], 0.0, way[1], way[2], moving=True))


def _roller(s: Stage) -> None:
    way = _travel(s, 0.5, s.dice.between(0.4, 2.0))
    if way:
        body = s.body()
        r, _ = toy_ball(s, body)
        x, z, yaw, gone = way
        y = -r
        if s.dice.chance(0.4):  # bounces on
            y = -r - s.dice.between(0.3, 1.0) * _bounce(s, s.time)
        s.bodies[body] = (x, y, z, yaw, -gone / r, 0.0, True)


def _bounce(s: Stage, t: Tensor) -> Tensor:
    """0..1 in parabolas."""
    k = t / s.dice.between(0.5, 1.1) + s.dice.random()
    k = k - k.floor()
    return 4 * k * (1 - k)


def _slider(s: Stage) -> None:
    """A crate pushed to and fro, or once."""
    way = _travel(s, 0.85, s.dice.between(0.3, 1.2))
    if way:
        crate(s, s.body(way[0], 0.0, way[1], s.dice.between(0, 3), moving=True))


def _dancer(s: Stage) -> None:
    """A form that turns, hops, rocks or circles where it is."""
    d, t = s.dice, s.time
    size = d.between(0.2, 0.55)
    circle = d.between(0.4, 1.2) if d.chance(0.4) else 0.0
    spot = _place(s, size * 1.42 + circle)
    if not spot:
        return
    a = d.between(0, 6.3) + d.sign() * d.between(0.6, 2.2) * t
    hop = -d.between(0.2, 1.1) * _bounce(s, t) if d.chance(0.4) else 0.0
    yaw = d.between(0, 6) + d.sign() * d.between(0.5, 3) * t
    body = s.body(spot[0] + circle * a.sin(), hop, spot[1] + circle * a.cos(), yaw, moving=True)
    shape(s, body, size)


def _floater(s: Stage) -> None:
    """A drone or a form in the air, on a loop."""
    d, t = s.dice, s.time
    height, r = d.between(1.0, min(2.6, s.ceiling - 0.5)), d.between(0.2, 1.0)
    x, z = (d.between(-a, a) * 0.5 for a in s.area)
    w = d.sign() * d.between(0.6, 1.8)
    a = w * t + d.between(0, 6)
    x, z, y = x + r * a.sin(), z + r * a.cos(), -height + 0.15 * (2.1 * a).sin()
    s.subjects.append((float(x.mean()), -height, float(z.mean())))
    if d.chance(0.5):
        drone(s, s.body(x, y, z, a, 0.12 * a.sin(), 0.1 * a.cos(), moving=True))
    else:
        shape(s, s.body(x, y, z, 1.3 * a, 0.9 * a, 0.4 * a, moving=True), size=d.between(0.15, 0.35), base=-0.3)


def _pendulum(s: Stage) -> None:
    """Something heavy on a rod under the ceiling."""
    d = s.dice
    spot = _place(s, 0.5)
    if spot:
        top = min(s.ceiling, 4.0)
        long, r = top - d.between(0.9, 1.6), d.between(0.15, 0.3)
        swing = d.between(0.2, 0.6) * (s.time * math.sqrt(9.8 / long) + d.between(0, 6)).sin()
        body = s.body(spot[0], -top, spot[1], d.between(0, 6), swing, moving=True)
        s.column(body, 0, 0, 0.02, (-long, 0), s.paint())
        s.solid(BALL, body, (0, long, 0), (r, r, r), s.any_material(r))


def movers(s: Stage, outdoors: bool, count: int) -> None:
    """Things that move."""
    kinds = [lambda: _walker(s, person)] * 3 + [lambda: _walker(s, animal), lambda: _roller(s), lambda: _roller(s)]
    kinds += [lambda: _slider(s), lambda: _dancer(s), lambda: _dancer(s), lambda: _floater(s)]
    kinds += [lambda: _driver(s, cart, (0.3, 1.2))]
    kinds += [lambda: _driver(s, car, (1.0, 4.0))] * 2 if outdoors else [lambda: _pendulum(s)]
    for _ in range(count):
        known = len(s.subjects)
        s.dice.pick(kinds)()
        s.subjects += 3 * s.subjects[known:]  # cameras look at them more often


# ---- places ---------------------------------------------------------------------------------------------------------


def _shell(s: Stage, x: float, z: float, high: float) -> None:
    """A room of these half extents, with walls, baseboards, doors, windows, pictures, lamps."""
    d = s.dice
    floor, ceiling = s.floor(), s.paint(s.muted((0.75, 1.0)), gloss=0.0)
    first, second = s.wall(), s.wall()
    walls = (
        first,
        first if d.chance(0.6) else second,
        first if d.chance(0.6) else second,
        second if d.chance(0.3) else first,
    )
    still = s.body()
    s.solid(ROOM, still, (0, -high / 2, 0), (x, high / 2, z), (walls[0], walls[1], floor, ceiling, walls[2], walls[3]))
    s.area, s.ceiling = (x - 0.1, z - 0.1), high
    if d.chance(0.6):
        m, k = s.paint(s.muted()), d.between(0.06, 0.16)
        s.box(still, (-x, x), (0, k), (z - 0.02, z), m)
        s.box(still, (-x, x), (0, k), (-z, -z + 0.02), m)
        s.box(still, (x - 0.02, x), (0, k), (-z, z), m)
        s.box(still, (-x, -x + 0.02), (0, k), (-z, z), m)
    for side in range(4):  # what hangs on each wall, from left to right
        wide = x if side < 2 else z
        back = z if side < 2 else x
        yaw = (math.pi, 0.0, -math.pi / 2, math.pi / 2)[side]  # +z of the body points into the room
        at = -wide + d.between(0.3, 1.2)
        while at < wide - 0.8 and d.chance(0.85):
            w = d.between(0.3, 0.8)
            middle = at + w
            if middle + w > wide - 0.1:
                break
            place = {0: (middle, back), 1: (middle, -back), 2: (back, middle), 3: (-back, middle)}[side]
            body = s.body(place[0], 0.0, place[1], yaw)
            what, rim = d.random(), s.paint(s.muted())
            if what < 0.25:  # door
                k = min(2.1, high - 0.2)
                s.box(body, (-0.5, 0.5), (0, k), (0, 0.03), rim)
                s.box(
                    body,
                    (-0.43, 0.43),
                    (0, k - 0.07),
                    (0, 0.045),
                    s.material(tx.PANELS, 1, *s.timber(), amount=d.random()),
                )
            elif what < 0.5:  # window onto something bright
                y = d.between(0.7, 1.0)
                k = min(high - 0.3, y + d.between(0.8, 1.4))
                s.box(body, (-w, w), (y, k), (0, 0.05), rim)
                above, below = s.colour((0.2, 0.5), (0.85, 1), 0.58), s.colour((0.1, 0.3), (0.85, 1), 0.6)
                view = s.material(tx.POSTER, 1, above, below, s.colour((0.3, 0.6), (0.5, 0.9)), rough=0.0)
                panes = d.count(1, 3)
                for i in range(panes):
                    a, b = (-w + 0.06 + (2 * w - 0.06) * i / panes, -w + (2 * w - 0.06) * (i + 1) / panes)
                    s.box(body, (a, b), (y + 0.06, k - 0.06), (0, 0.055), view)
                s.box(body, (-w - 0.05, w + 0.05), (y - 0.04, y), (0, 0.15), rim)
            elif what < 0.85:  # picture
                y, k = d.between(0.9, 1.4), d.between(0.3, 0.9)
                s.box(body, (-w, w), (y, min(high - 0.2, y + k)), (0, 0.04), (rim, rim, rim, rim, s.sheet(), rim))
            elif what < 0.95:  # board with things on it
                y = d.between(1.1, 1.6)
                s.box(body, (-w, w), (y, y + 0.04), (0, 0.22), s.wooden())
                for _ in range(d.count(1, 3)):
                    small(s, body, d.between(-w, w) * 0.8, y + 0.04, 0.11)
            at += 2 * w + d.between(0.2, 1.5)
    for _ in range(d.count(0, 3)):  # lamps under the ceiling
        a, b = d.between(-x, x) * 0.7, d.between(-z, z) * 0.7
        if d.chance(0.5):
            s.box(
                still, (a - 0.5, a + 0.5), (high - 0.06, high), (b - 0.15, b + 0.15), s.paint((1, 1, 0.95), gloss=0.0)
            )
        else:
            k = d.between(0.2, min(0.9, high - 2.0))
            s.column(still, a, b, 0.012, (high - k, high), s.paint((0.1, 0.1, 0.1)))
            s.column(still, a, b, 0.22, (high - k - 0.18, high - k), s.paint(), top=0.06)


def _along_walls(s: Stage, x: float, z: float, count: int) -> None:
    for _ in range(count):
        mark = len(s.solids), len(s.bodies)
        body = s.body()
        radius, height = s.dice.pick(AT_WALLS)(s, body)
        for _ in range(10):
            side = s.dice.count(0, 3)
            wide, back, yaw = (x, z, (math.pi, 0.0)) if side < 2 else (z, x, (-math.pi / 2, math.pi / 2))
            if wide < radius + 0.2:
                continue
            along, gap = s.dice.between(-1, 1) * (wide - radius - 0.1), s.dice.between(0.3, 0.5) + 0.06
            across = (back - gap) * (1 if side % 2 == 0 else -1)
            a, b = (along, across) if side < 2 else (across, along)
            if all((a - i) ** 2 + (b - j) ** 2 > (radius + r) ** 2 for i, j, r in s.taken):
                s.bodies[body] = (a, 0.0, b, yaw[side % 2], 0.0, 0.0, False)
                s.taken.append((a, b, radius))
                s.subjects.append((a, -height * 0.6, b))
                break
        else:
            del s.solids[mark[0] :], s.bodies[mark[1] :]


def _rug(s: Stage) -> None:
    d, (x, z) = s.dice, s.area
    a, b = d.between(0.6, 1.4), d.between(0.5, 1.2)
    body = s.body(d.between(-x, x) * 0.4, 0.0, d.between(-z, z) * 0.4, d.pick((0.0, 0.0, d.between(0, 3))))
    edge = s.paint()
    if d.chance(0.3):
        s.column(body, 0, 0, a, (0, 0.012), (edge, s.any_material(1.2)))
    else:
        top = s.sheet() if d.chance(0.3) else s.any_material(1.2)
        s.box(body, (-a, a), (0, 0.012), (-b, b), (edge, top))


def room(s: Stage):
    """A furnished room."""
    d = s.dice
    x, z, high = d.between(2.0, 4.5), d.between(2.0, 5.0), d.between(2.3, 3.6)
    _shell(s, x, z, high)
    if d.chance(0.5):
        _rug(s)
    _along_walls(s, x, z, d.count(1, 5))
    movers(s, False, d.count(1, 3))
    for _ in range(d.count(2, 6)):
        s.put(d.pick(INSIDE))
    return (x, high, z)


def corridor(s: Stage):
    """A long corridor, perhaps with arches."""
    d = s.dice
    x, z, high = d.between(1.2, 2.0), d.between(6.0, 12.0), d.between(2.3, 3.2)
    _shell(s, x, z, high)
    still = s.body()
    for k in range(d.count(0, 3)):  # arches across
        at, m = -z + 2 * z * (k + 1) / 4 + d.between(-0.5, 0.5), s.wall()
        w, h = d.between(0.6, 0.8) * x, d.between(0.75, 0.9) * high
        s.box(still, (-x, -w), (0, high), (at - 0.12, at + 0.12), m)
        s.box(still, (w, x), (0, high), (at - 0.12, at + 0.12), m)
        s.box(still, (-w, w), (h, high), (at - 0.12, at + 0.12), m)
    movers(s, False, d.count(1, 2))
    for _ in range(d.count(3, 8)):
        s.put(d.pick((crate, plant, chair, barrel, shape, bench, cart, person)))
    return (x, high, z)


def hall(s: Stage):
    """A large hall with racks."""
    d = s.dice
    x, z, high = d.between(5, 9), d.between(6, 11), d.between(4, 7)
    _shell(s, x, z, high)
    s.area = (x * 0.75, z * 0.75)
    m = s.paint()
    for _ in range(d.count(1, 4)):  # racks with crates

        def rack(s, body):
            w, h = d.between(0.8, 1.6), d.between(1.5, 3.2)
            for i in (-w, w - 0.06):
                for j in (-0.4, 0.34):
                    s.box(body, (i, i + 0.06), (0, h), (j, j + 0.06), m)
            for y in (0.15, h * 0.5, h - 0.1):
                s.box(body, (-w, w), (y, y + 0.06), (-0.4, 0.4), m)
                for _ in range(d.count(0, 3)):
                    k, a = d.between(0.15, 0.32), d.between(-w + 0.4, w - 0.4)
                    boarded = d.chance(0.4)
                    side = s.material(tx.CRATE, 1, *s.timber(), amount=d.random()) if boarded else s.any_material(0.3)
                    s.box(body, (a - k, a + k), (y + 0.06, y + 0.06 + 1.5 * k), (-k, k), side)
            return w, h

        s.put(rack, yaw=d.pick((0.0, math.pi / 2)))
    movers(s, False, d.count(2, 4))
    for _ in range(d.count(5, 10)):
        s.put(d.pick((crate, crate, barrel, pillar, cart, person, shape, plinth, table)))
    return (x, high, z)


def gallery(s: Stage):
    """Pictures and pedestals."""
    d = s.dice
    x, z, high = d.between(3, 6), d.between(3, 7), d.between(3, 4.5)
    _shell(s, x, z, high)
    for _ in range(d.count(1, 2)):  # free walls with pictures

        def screen(s, body):
            w, m = d.between(0.6, 1.3), s.wall()
            s.box(body, (-w, w), (0, d.between(1.8, 2.6)), (-0.08, 0.08), m)
            for side in (-1, 1):
                k, h = d.between(0.4, 0.8) * w, d.between(0.25, 0.5)
                s.box(body, (-k, k), (1.3 - h, 1.3 + h), (0.0, 0.1) if side > 0 else (-0.1, 0.0), s.sheet())
            return w, 2

        s.put(screen, yaw=d.pick((0.0, math.pi / 2, d.between(0, 3))))
    movers(s, False, d.count(1, 3))
    for _ in range(d.count(3, 8)):
        s.put(d.pick((plinth, plinth, plinth, shape, pillar, bench, person)))
    return (x, high, z)


def _sky(s: Stage, ground: int, hills: bool = True) -> None:
    d, still = s.dice, s.body()
    s.solid(DOME, still, (0, 0, 0), (70.0, 70.0, 70.0), 0)
    s.solid(GROUND, still, (0, 0, 0), (1, 1, 1), ground)
    s.ceiling = 30.0
    if hills:
        for _ in range(d.count(0, 6)):
            a, far, r = d.between(0, 6.283), d.between(32, 56), d.between(6, 16)
            m, high = s.floor(True), d.between(0.15, 0.8) * r
            at = (far * math.sin(a), high * 0.15, far * math.cos(a))
            if d.chance(0.75):
                s.solid(BALL, still, at, (r, high, r * d.between(0.7, 1.2)), m)
            else:
                s.solid(PYRAMID, still, (at[0], -high, at[2]), (r, high, r), m, yaw=a)
    for _ in range(d.count(0, 8)):  # far trees
        a, far = d.between(0, 6.283), d.between(16, 34)
        body = s.body(far * math.sin(a), 0.0, far * math.cos(a))
        tree(s, body)


def street(s: Stage):
    """A street between houses."""
    d = s.dice
    wide = d.between(5, 9)
    tar, side = s.muted((0.22, 0.5)), s.muted((0.45, 0.8))
    _sky(s, s.material(tx.ROAD, wide, tar, (0.85, 0.85, 0.8), side, gloss=0.0, rough=0.1), hills=d.chance(0.5))
    still, far = s.body(), wide / 2 + d.between(1.2, 2.5)
    for sign_ in (-1, 1):
        z = d.between(-28, -22)
        while z < 28:
            long, high, deep = d.between(3, 8), d.between(3, 10), d.between(3, 6)
            front, glass = s.muted((0.4, 0.95)), s.colour((0.1, 0.6), (0.1, 0.5))
            m = s.material(tx.FACADE, d.between(1.6, 3.0), front, glass, s.muted(), amount=d.between(0.35, 0.65),
                           stretch=d.between(0.6, 1.3))  # fmt: skip
            back, top = d.between(0, 1.0), s.paint(s.muted((0.2, 0.7)))
            a, b = sorted((sign_ * (far + back), sign_ * (far + back + deep)))
            s.box(still, (a, b), (0, high), (z, z + long), (m, top))
            if d.chance(0.4):
                s.solid(
                    WEDGE,
                    still,
                    ((a + b) / 2, -high - 0.7, z + long / 2),
                    ((b - a) / 2 + 0.2, 0.7, long / 2 + 0.1),
                    top,
                )
            if d.chance(0.6):  # shop front
                edge = sign_ * (far + back)
                k = sorted((edge - sign_ * 0.05, edge))
                s.box(still, k, (0.2, 2.4), (z + 0.4, z + long - 0.4), s.sheet())
                if d.chance(0.6):
                    k = sorted((edge - sign_ * d.between(0.5, 0.9), edge))
                    cloth = s.material(tx.STRIPES, 0.4, s.colour(), (0.9, 0.9, 0.85), s.colour(), turned=True)
                    s.box(still, k, (2.45, 2.55), (z + 0.3, z + long - 0.3), cloth)
            z += long + (d.between(0.5, 2.5) if d.chance(0.25) else 0.0)
    s.area = (far - 0.2, 11.0)
    for _ in range(d.count(2, 6)):
        s.put(d.pick((car, tree, sign, street_lamp, person, bench, barrel, crate)), yaw=d.pick((0.0, 3.14, 1.57)))
    movers(s, True, d.count(2, 5))
    return (far - 0.3, 6.0, 15.0)


def park(s: Stage):
    """Trees, bushes, rocks on open ground."""
    d = s.dice
    _sky(s, s.floor(True))
    s.area = (d.between(6, 12),) * 2
    movers(s, True, d.count(1, 4))
    for _ in range(d.count(8, 18)):
        s.put(d.pick((tree, tree, tree, bush, bush, rock, rock, bench, sign, house, person, street_lamp)))
    return (s.area[0] + 3, 5.0, s.area[1] + 3)


def yard(s: Stage):
    """A walled yard under the sky."""
    d = s.dice
    _sky(s, s.floor(True))
    x, z, high = d.between(4, 8), d.between(4, 8), d.between(1.5, 3.5)
    still, m, top = s.body(), s.wall(), s.paint(s.muted())
    for wall_ in range(4):
        if d.chance(0.85):
            a, b, c, e = ((-x, x, z, z + 0.3), (-x, x, -z - 0.3, -z), (x, x + 0.3, -z, z), (-x - 0.3, -x, -z, z))[wall_]
            m = m if d.chance(0.6) else s.wall()
            h = high * d.between(0.7, 1.3)
            s.box(still, (a, b), (0, h), (c, e), (m, top))
            if d.chance(0.5):
                s.box(still, (a - 0.08, b + 0.08), (h, h + 0.12), (c - 0.08, e + 0.08), top)
    for _ in range(d.count(0, 3)):  # houses beyond
        a = d.between(0, 6.3)
        house(s, s.body(16 * math.sin(a), 0.0, 16 * math.cos(a), d.between(0, 6)))
    s.area = (x - 0.2, z - 0.2)
    movers(s, True, d.count(1, 4))
    for _ in range(d.count(4, 10)):
        s.put(d.pick(OUTSIDE))
    return (x, 4.0, z)


def square(s: Stage):
    """An open place with forms of all kinds."""
    d = s.dice
    _sky(s, s.floor(True))
    s.area = (d.between(4, 9),) * 2
    movers(s, True, d.count(2, 5))
    for _ in range(d.count(6, 16)):
        s.put(d.pick((shape, shape, shape, crate, plinth, pillar, barrel, tree, sign, house)))
    return (s.area[0] + 2, 5.0, s.area[1] + 2)


FAMILIES: dict[str, tuple[Callable, bool, float]] = {  # builder, indoors, share
    "room": (room, True, 0.26),
    "corridor": (corridor, True, 0.07),
    "hall": (hall, True, 0.12),
    "gallery": (gallery, True, 0.10),
    "street": (street, False, 0.12),
    "park": (park, False, 0.11),
    "yard": (yard, False, 0.12),
    "square": (square, False, 0.10),
}


def _look(s: Stage, indoors: bool, open_to) -> dict[str, float]:
    """Light, sky and camera of a world."""
    d = s.dice
    look: dict[str, float] = {}

    def colour(name, rgb, strength=1.0):
        look.update({f"{name}_{k}": v * strength for k, v in zip("rgb", rgb)})

    warm = d.between(-1, 1)
    if indoors:
        x, high, z = open_to
        look.update(light_x=d.between(-x, x) * 0.6, light_y=-high + 0.35, light_z=d.between(-z, z) * 0.6,
                    lamp=d.between(0.5, 0.8) * max(2.5, min(x, z), high))  # fmt: skip
        colour("light", (1 + 0.12 * warm, 1.0, 1 - 0.2 * warm), d.between(0.9, 1.7))
        colour("sky", (0.95 + 0.1 * warm, 0.97, 1 - 0.1 * warm), d.between(0.25, 0.6))
        colour("earth", (0.9, 0.82, 0.74), d.between(0.15, 0.35))
        look.update(softness=d.between(0.08, 0.3), fog=0.0 if d.chance(0.7) else d.between(0.005, 0.03), sun_disc=0.0)
    else:
        azimuth, height = d.between(0, 6.283), d.between(0.3, 1.2)
        k = 200.0
        look.update(light_x=k * math.cos(height) * math.sin(azimuth), light_y=-k * math.sin(height),
                    light_z=k * math.cos(height) * math.cos(azimuth), lamp=0.0)  # fmt: skip
        overcast = d.random() ** 2
        low = max(0.0, 0.8 - height)
        colour("light", (1.0, 0.96 - 0.3 * low, 0.88 - 0.6 * low), d.between(1.0, 1.6) * (1 - 0.75 * overcast))
        colour("sky", (0.62 + 0.25 * overcast, 0.75 + 0.1 * overcast, 0.95), d.between(0.35, 0.6) + 0.3 * overcast)
        colour("earth", (0.5, 0.46, 0.4), d.between(0.2, 0.4))
        look.update(softness=d.between(0.01, 0.05) + 0.3 * overcast, fog=d.random() ** 3 * 0.035, sun_disc=1 - overcast)
    blue = d.between(0.52, 0.64)
    if d.chance(0.2):  # evening
        colour("zenith", colorsys.hsv_to_rgb(blue + 0.1, d.between(0.3, 0.6), d.between(0.35, 0.7)))
        colour("horizon", colorsys.hsv_to_rgb(d.between(0.02, 0.12), d.between(0.3, 0.7), d.between(0.8, 1.0)))
    else:
        colour("zenith", colorsys.hsv_to_rgb(blue, d.between(0.25, 0.8), d.between(0.55, 0.95)))
        colour("horizon", colorsys.hsv_to_rgb(blue, d.between(0.0, 0.3), d.between(0.8, 1.0)))
    colour("fog", (0.75, 0.78, 0.82) if indoors else tuple(look[f"horizon_{k}"] for k in "rgb"))
    colour("tint", (1 + d.gauss(0, 0.04), 1 + d.gauss(0, 0.02), 1 + d.gauss(0, 0.04)))
    look.update(
        clouds=d.between(-0.2, 0.35),
        cloud_seed=d.between(0, 30),
        cloud_size=d.between(0.8, 2.2),
        exposure=d.between(0.8, 1.25),
        contrast=d.between(0.85, 1.25),
        saturation=d.between(0.6, 1.25),
        vignette=d.between(0, 0.35),
        grain=d.between(0, 0.02),
        blur=d.between(0, 0.6),
        bounce=d.between(0.1, 0.4),
    )
    return look


def _taste(dice: Dice) -> float:
    """The main hue: warm or blue more often than not."""
    return dice.pick((dice.between(-0.03, 0.14), dice.between(0.5, 0.66), dice.random()))


def make_world(seed: int, frames: int, fps: float) -> World:
    """The world of a seed over `frames` frames at `fps`."""
    dice = Dice.keyed(seed, "world")
    stage = Stage(dice, torch.arange(frames, dtype=torch.float64) / fps, hue=_taste(dice))
    family = dice.choices(list(FAMILIES), [share for _, _, share in FAMILIES.values()])[0]
    build, indoors, _ = FAMILIES[family]
    open_to = build(stage)
    return stage.world(seed, family, fps, _look(stage, indoors, open_to), open_to)
