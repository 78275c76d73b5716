"""Things that stand or move in worlds. Each hangs itself on a body at the origin and returns its radius and height."""

from __future__ import annotations

import colorsys
import math

from inspatio_core.training.data import textures as tx
from inspatio_core.training.data.cast import BALL, BOX, CAPSULE, CONE, CYLINDER, PYRAMID, WEDGE
from inspatio_core.training.data.stage import Stage


def crate(s: Stage, body: int):
    """A box or crate, perhaps with a smaller one on top."""
    d = s.dice
    side, high = d.between(0.2, 0.6), d.between(0.2, 0.6)
    if d.chance(0.6):
        m = s.material(tx.CRATE, 1.0, *s.timber(), amount=d.random())
    else:
        m = s.any_material(side)
    s.box(body, (-side, side), (0, 2 * high), (-side, side), (m, m if d.chance(0.5) else s.any_material(side)))
    if d.chance(0.3):
        k, a = side * d.between(0.4, 0.8), d.between(0, 1.5)
        s.box(body, (-k, k), (2 * high, 2 * high + 2 * k * 0.8), (-k, k), s.any_material(k), yaw=a)
    return side * 1.42, 2 * high


def table(s: Stage, body: int):
    """A table with things on it."""
    d = s.dice
    x, z, high, m = d.between(0.4, 0.9), d.between(0.3, 0.5), d.between(0.45, 0.8), s.wooden()
    legs = m if d.chance(0.5) else s.paint()
    if d.chance(0.3):
        z = x
        s.column(body, 0, 0, x, (high - 0.05, high), m)
        s.column(body, 0, 0, 0.06, (0, high - 0.05), legs)
        s.column(body, 0, 0, 0.3, (0, 0.04), legs)
    else:
        s.box(body, (-x, x), (high - 0.05, high), (-z, z), m)
        for i in (-1, 1):
            for j in (-1, 1):
                a, b = i * (x - 0.06), j * (z - 0.06)
                s.box(body, (a - 0.03, a + 0.03), (0, high - 0.05), (b - 0.03, b + 0.03), legs)
    for _ in range(d.count(0, 3)):
        small(s, body, d.between(-x, x) * 0.7, high, d.between(-z, z) * 0.6)
    return math.hypot(x, z), high


def small(s: Stage, body: int, x: float, y: float, z: float):
    """A little thing on top of something at height y."""
    d, r = s.dice, s.dice.between(0.06, 0.16)
    m, what = s.any_material(r * 2), s.dice.count(0, 4)
    if what == 0:
        s.solid(BALL, body, (x, -y - r, z), (r, r, r), m)
    elif what == 1:
        s.column(body, x, z, r * 0.7, (y, y + 2.5 * r), m)
    elif what == 2:
        s.column(body, x, z, r, (y, y + 2.2 * r), m, top=r * d.between(0.2, 0.7))
    elif what == 3:
        s.box(body, (x - r, x + r), (y, y + d.between(0.5, 3) * r), (z - r * 0.7, z + r * 0.7), m, yaw=d.between(0, 3))
    else:
        s.column(body, x, z, 0.03, (y, y + 0.3), s.paint())
        s.column(body, x, z, 0.14, (y + 0.28, y + 0.48), s.paint(s.colour((0.1, 0.4), (0.8, 1))), top=0.08)


def chair(s: Stage, body: int):
    """A chair."""
    d, m = s.dice, s.wooden()
    seat = m if d.chance(0.4) else s.any_material(0.4)
    w, h = d.between(0.19, 0.27), d.between(0.38, 0.5)
    s.box(body, (-w, w), (h - 0.05, h), (-w, w), seat)
    s.box(body, (-w, w), (h + 0.15, h + d.between(0.35, 0.6)), (-w, -w + 0.05), seat)
    for i in (-w, w - 0.04):
        s.box(body, (i, i + 0.04), (0, h - 0.05), (w - 0.04, w), m)
        s.box(body, (i, i + 0.04), (0, h + 0.5), (-w, -w + 0.04), m)
    return w * 1.42, h + 0.5


def sofa(s: Stage, body: int):
    """A sofa with cushions."""
    d, m = s.dice, s.any_material(0.6)
    x, z = d.between(0.5, 1.1), 0.42
    s.box(body, (-x, x), (0.05, 0.42), (-z, z), m)
    s.box(body, (-x, x), (0.42, 0.85), (-z, -z + 0.2), m)
    for i in (-x - 0.14, x):
        s.box(body, (i, i + 0.14), (0.0, 0.6), (-z, z), m)
    for _ in range(d.count(0, 2)):
        s.solid(BALL, body, (d.between(-x, x) * 0.7, -0.58, -0.1), (0.2, 0.17, 0.1), s.any_material(0.3), pitch=-0.3)
    return x + 0.1, 0.85


def shelf(s: Stage, body: int):
    """A shelf full of books and boxes."""
    d, m = s.dice, s.wooden()
    x, high, deep, rows = d.between(0.4, 0.9), d.between(0.9, 2.1), 0.16, d.count(2, 4)
    for i in (-x, x - 0.04):
        s.box(body, (i, i + 0.04), (0, high), (-deep, deep), m)
    s.box(body, (-x, x), (0, high), (-deep, -deep + 0.03), m)
    for r in range(rows + 1):
        y = 0.06 + (high - 0.1) * r / rows
        s.box(body, (-x, x), (y, y + 0.035), (-deep, deep), m)
        if r < rows:
            room, at = (high - 0.1) / rows, -x + 0.08
            while at < x - 0.15 and d.chance(0.85):
                wide = min(d.between(0.05, 0.4), x - 0.08 - at)
                tall = room * d.between(0.4, 0.85)
                s.box(body, (at, at + wide), (y + 0.035, y + tall), (-deep + 0.04, deep * d.between(0.3, 0.9)),
                      s.any_material(0.2) if wide > 0.15 else s.paint())  # fmt: skip
                at += wide + d.between(0.005, 0.15)
    return x, high


def cabinet(s: Stage, body: int):
    """A cupboard or chest of drawers."""
    d, m = s.dice, s.wooden()
    x, high, z = d.between(0.3, 0.8), d.between(0.5, 1.9), d.between(0.2, 0.32)
    front = s.material(tx.PANELS, 1.0, *s.timber(), amount=d.random())
    s.box(body, (-x, x), (0.0, high), (-z, z), (m, m, m, m, front, m))
    if high < 1.2:
        for _ in range(d.count(0, 3)):
            small(s, body, d.between(-x, x) * 0.7, high, 0)
    return x, high


def plant(s: Stage, body: int):
    """A potted plant."""
    d, r = s.dice, s.dice.between(0.12, 0.25)
    pot = s.paint(s.colour((0.3, 0.8), (0.4, 0.9)))
    s.solid(CONE, body, (0, -r, 0), (r, r, r), pot, 1.0 if d.chance(0.3) else 0.7, roll=math.pi if d.chance(0.7) else 0)
    leaf = s.leaves(0.1)
    for _ in range(d.count(2, 5)):
        k = r * d.between(0.6, 1.4)
        at = (d.gauss(0, r * 0.5), -2 * r - k * d.between(0.6, 1.8), d.gauss(0, r * 0.5))
        s.solid(BALL, body, at, (k, k * d.between(0.7, 1.5), k), leaf)
    return r * 1.6, 4 * r


def floor_lamp(s: Stage, body: int):
    """A standing lamp."""
    d, high = s.dice, s.dice.between(1.2, 1.8)
    m = s.paint()
    s.column(body, 0, 0, 0.16, (0, 0.03), m)
    s.column(body, 0, 0, 0.02, (0, high), m)
    s.column(body, 0, 0, 0.22, (high - 0.1, high + 0.2), s.paint(s.colour((0.05, 0.4), (0.85, 1.0))), top=0.13)
    return 0.25, high + d.between(0, 0.1)


def barrel(s: Stage, body: int):
    """A drum with hoops."""
    d, r, h = s.dice, s.dice.between(0.22, 0.4), s.dice.between(0.6, 1.1)
    m = s.paint() if d.chance(0.5) else s.material(tx.STRIPES, 0.2, s.colour(), s.colour(), s.muted(), turned=True)
    s.column(body, 0, 0, r, (0, h), (m, s.paint()))
    for y in (0.0, h * 0.5, h - 0.05):
        s.column(body, 0, 0, r * 1.05, (y, y + 0.05), m)
    return r * 1.05, h


def pillar(s: Stage, body: int):
    """A column or pier, up to the ceiling."""
    d, r, h = s.dice, s.dice.between(0.14, 0.32), s.ceiling if s.ceiling < 6 else s.dice.between(2.5, 4)
    m = s.material(tx.MARBLE, d.between(0.3, 1), s.muted((0.6, 1)), s.muted((0.5, 0.9)), s.muted((0.3, 0.7)))
    if d.chance(0.5):
        s.column(body, 0, 0, r, (0, h), m)
    else:
        s.box(body, (-r, r), (0, h), (-r, r), s.wall())
    s.box(body, (-r * 1.3, r * 1.3), (0, 0.25), (-r * 1.3, r * 1.3), m)
    s.box(body, (-r * 1.3, r * 1.3), (h - 0.2, h), (-r * 1.3, r * 1.3), m)
    return r * 1.85, h


def plinth(s: Stage, body: int):
    """A form on a pedestal."""
    d, r, h = s.dice, s.dice.between(0.2, 0.4), s.dice.between(0.5, 1.1)
    s.box(body, (-r, r), (0, h), (-r, r), s.wall() if d.chance(0.5) else s.paint(s.muted((0.6, 1))))
    k = shape(s, body, size=r, base=h)
    return r * 1.42, h + k[1]


def shape(s: Stage, body: int, size: float | None = None, base: float = 0.0):
    """One pure form."""
    d = s.dice
    r = size or d.between(0.2, 0.7)
    m, kind = s.any_material(r), d.pick((BALL, BOX, CYLINDER, CONE, CAPSULE, WEDGE, PYRAMID, BALL))
    tall = r * d.between(0.6, 1.6)
    if kind == BALL:
        tall = r
        s.solid(BALL, body, (0, -base - r, 0), (r, r, r), m)
    elif kind == CAPSULE:
        k = r * 0.5
        s.solid(CAPSULE, body, (0, -base - k * 2, 0), (k, k, k), m, 1.0)
        tall = 2 * k
    else:
        param = d.between(-0.8, 0.8) if kind == WEDGE else d.between(0, 0.6)
        s.solid(kind, body, (0, -base - tall, 0), (r, tall, r), (m, s.any_material(r)), param, yaw=d.between(0, 3))
    return r * 1.42, 2 * tall


def tree(s: Stage, body: int):
    """A fir or a leafy tree."""
    d, h = s.dice, s.dice.between(1.2, 2.6)
    trunk, leaf, r = s.material(tx.WOOD, 0.08, *s.timber(), gloss=0.0), s.leaves(0.25), h * d.between(0.4, 0.75)
    s.column(body, 0, 0, 0.06 * h + 0.05, (0, h * 1.15), trunk, top=0.03 * h + 0.02)
    if d.chance(0.4):
        for i in range(3):
            k = r * (1.1 - 0.25 * i)
            s.column(body, 0, 0, k, (h * (0.4 + 0.4 * i), h * (1.1 + 0.45 * i)), leaf, top=0.0)
    else:
        for _ in range(d.count(2, 4)):
            k = r * d.between(0.6, 1.0)
            at = (d.gauss(0, r * 0.45), -h - k * d.between(0.2, 0.9), d.gauss(0, r * 0.45))
            s.solid(BALL, body, at, (k, k * d.between(0.7, 1.1), k), leaf)
    return max(0.5, r * 0.7), 2 * h


def bush(s: Stage, body: int):
    """A bush."""
    d, r = s.dice, s.dice.between(0.25, 0.6)
    m = s.leaves(0.15)
    for _ in range(d.count(1, 3)):
        k = r * d.between(0.6, 1.0)
        s.solid(BALL, body, (d.gauss(0, r * 0.4), -k * 0.6, d.gauss(0, r * 0.4)), (k, k, k), m)
    return r * 1.4, r


def rock(s: Stage, body: int):
    """A stone."""
    d = s.dice
    a, b, c = (d.between(0.15, 0.7) for _ in range(3))
    grey = s.muted((0.4, 0.75))
    m = s.material(tx.EARTH, 0.3, grey, tuple(k * 0.7 for k in grey), s.muted(), amount=1.0, rough=0.4, gloss=0.0)
    s.solid(BALL, body, (0, -b * 0.5, 0), (a, b, c), m, pitch=d.between(-0.4, 0.4), roll=d.between(-0.4, 0.4))
    return max(a, c), b


def bench(s: Stage, body: int):
    """A park bench."""
    d, m = s.dice, s.wooden()
    x = d.between(0.5, 0.9)
    s.box(body, (-x, x), (0.4, 0.46), (-0.2, 0.2), m)
    s.box(body, (-x, x), (0.55, 0.85), (-0.24, -0.2), m)
    for i in (-x + 0.08, x - 0.16):
        s.box(body, (i, i + 0.08), (0, 0.85), (-0.24, -0.18), m)
        s.box(body, (i, i + 0.08), (0, 0.4), (0.12, 0.2), m)
    return x, 0.8


def sign(s: Stage, body: int):
    """A board on a post."""
    d, h = s.dice, s.dice.between(1.2, 2.2)
    w = d.between(0.25, 0.6)
    s.column(body, 0, 0, 0.035, (0, h), s.paint())
    side = s.paint()
    s.box(body, (-w, w), (h - d.between(0.3, 0.8), h + 0.1), (0.03, 0.07), (side, side, side, side, s.sheet(), side))
    return w, h


def street_lamp(s: Stage, body: int):
    """A street lamp."""
    h, m = s.dice.between(2.6, 4.2), s.paint(s.muted((0.1, 0.5)))
    s.column(body, 0, 0, 0.12, (0, 0.5), m, top=0.07)
    s.column(body, 0, 0, 0.05, (0, h), m)
    s.box(body, (-0.05, 0.7), (h - 0.05, h + 0.03), (-0.05, 0.05), m)
    s.solid(BALL, body, (0.6, -h + 0.1, 0), (0.2, 0.12, 0.14), s.paint((1.0, 0.97, 0.85)))
    return 0.2, h


def house(s: Stage, body: int):
    """A house with a gable roof."""
    d, x, z, h = s.dice, s.dice.between(1.5, 3), s.dice.between(1.5, 3), s.dice.between(2.2, 4.5)
    front = s.material(tx.FACADE, d.between(1.1, 1.8), s.muted((0.5, 0.95)), s.colour((0.2, 0.6), (0.15, 0.5)),
                       s.muted((0.5, 1)), amount=d.between(0.35, 0.55), stretch=d.between(0.8, 1.4))  # fmt: skip
    roof = s.material(
        tx.BRICKS, 0.25, *(colorsys.hsv_to_rgb(d.between(0, 0.1), 0.55, v) for v in (0.7, 0.5, 0.3)), amount=0.5
    )
    s.box(body, (-x, x), (0, h), (-z, z), (front, roof))
    k = d.between(0.5, 1.1)
    s.solid(WEDGE, body, (0, -h - k, 0), (x + 0.3, k, z + 0.3), (roof, roof, roof, roof, front, front), 0.0)
    side = s.paint()
    s.box(body, (-0.5, 0.5), (0, 2.0), (-z - 0.04, z + 0.04), (side, side, side, side,
          s.material(tx.PANELS, 1.0, *s.timber(), amount=0.3), s.sheet()))  # fmt: skip
    if d.chance(0.5):
        s.box(body, (x * 0.3, x * 0.3 + 0.5), (h, h + 2 * k), (-0.3, 0.3), roof)
    return math.hypot(x, z) + 0.2, h


def person(s: Stage, body: int, root=None, phase=None):
    """With `root` (x, z, yaw over time) and phase the limbs swing."""
    d = s.dice
    h = d.between(0.8, 1.12)
    skin = s.paint(colorsys.hsv_to_rgb(d.between(0.03, 0.09), d.between(0.3, 0.65), d.between(0.35, 0.95)))
    shirt, legs, hair = (
        s.any_material(0.3),
        s.paint(s.colour((0.1, 0.7), (0.15, 0.6))),
        s.paint(s.colour((0.1, 0.6), (0.05, 0.5))),
    )
    s.solid(CAPSULE, body, (0, -1.15 * h, 0), (0.17 * h, 0.17 * h, 0.17 * h), shirt, 1.2)
    s.solid(BALL, body, (0, -1.62 * h, 0), (0.11 * h, 0.14 * h, 0.12 * h), skin)
    s.solid(BALL, body, (0, -1.68 * h, -0.02), (0.12 * h, 0.11 * h, 0.12 * h), hair)
    for side in (-1.0, 1.0):
        for top, reach, thick, m, out, swing in (
            (0.85, 0.8, 0.075, legs, 0.09, 0.55),
            (1.38, 0.55, 0.05, shirt, 0.23, -0.45),
        ):
            limb, at, r = body, (side * out * h, -top * h, 0.0), thick * h
            if root is not None:
                x, z, yaw = root
                ox = side * out * h
                limb = s.body(
                    x + ox * yaw.cos(), -top * h, z - ox * yaw.sin(), yaw, side * swing * phase.sin(), moving=True
                )
                at = (0.0, 0.0, 0.0)
            half = reach * h / 2 / r - 1
            s.solid(CAPSULE, limb, (at[0], at[1] + reach * h / 2, at[2]), (r, r, r), m, half)
    return 0.35, 1.7 * h


def animal(s: Stage, body: int, root=None, phase=None):
    """Four legs; with `root` and phase they swing, as in `person`."""
    d = s.dice
    h, m = d.between(0.3, 0.7), s.paint() if s.dice.chance(0.6) else s.any_material(0.3)
    r, long = h * 0.28, d.between(0.6, 1.0) * h
    s.solid(CAPSULE, body, (0, -h, 0), (r, r, r), m, long / r, pitch=math.pi / 2)
    s.solid(BALL, body, (0, -h - 1.2 * r, long + 1.1 * r), (r * 0.7, r * 0.75, r), m)
    for side in (-1.0, 1.0):
        for end in (-0.8, 0.8):
            limb, at, t = body, (side * r * 0.6, -h, end * long), h * 0.07
            if root is not None:
                x, z, yaw = root
                ox, oz = side * r * 0.6, end * long
                limb = s.body(x + ox * yaw.cos() + oz * yaw.sin(), -h, z - ox * yaw.sin() + oz * yaw.cos(), yaw,
                              0.5 * (phase * 1.4 + side * end * 2).sin(), moving=True)  # fmt: skip
                at = (0.0, 0.0, 0.0)
            s.solid(CAPSULE, limb, (at[0], at[1] + h / 2, at[2]), (t, t, t), m, h / 2 / t - 1)
    return long + r, h * 1.5


def car(s: Stage, body: int):
    """A car."""
    d, k = s.dice, s.dice.between(0.55, 1.0)
    paint, glass, tyre = s.paint(gloss=0.6), s.paint(s.muted((0.1, 0.35)), gloss=0.8), s.paint((0.08, 0.08, 0.09))
    x, z = 0.8 * k, d.between(1.5, 2.1) * k
    s.box(body, (-x, x), (0.25 * k, 0.8 * k), (-z, z), paint)
    if d.chance(0.7):
        s.solid(CONE, body, (0, -1.05 * k, -0.1 * z), (x * 1.15, 0.27 * k, z * 0.62), (glass, paint), 0.75)
    else:
        s.box(body, (-x, x), (0.8 * k, 1.6 * k), (-z, z * 0.4), (glass, paint, paint, paint, glass, paint))
    for i in (-1, 1):
        for j in (-0.62, 0.62):
            s.solid(CYLINDER, body, (i * x, -0.3 * k, j * z), (0.3 * k, 0.12 * k, 0.3 * k), tyre, roll=math.pi / 2)
    return z, 1.3 * k


def cart(s: Stage, body: int):
    """A little robot on wheels."""
    d, k = s.dice, s.dice.between(0.3, 0.6)
    m = s.paint()
    if d.chance(0.5):
        s.box(body, (-0.5 * k, 0.5 * k), (0.2 * k, 0.8 * k), (-0.6 * k, 0.6 * k), (m, s.any_material(0.3)))
    else:
        s.column(body, 0, 0, 0.55 * k, (0.1 * k, 0.6 * k), (m, s.any_material(0.3)))
    s.column(body, 0, 0, 0.06 * k, (0.5 * k, 1.6 * k), s.paint())
    s.solid(BALL, body, (0, -1.7 * k, 0), (0.2 * k,) * 3, s.any_material(0.2))
    for i in (-1, 1):
        s.solid(CYLINDER, body, (i * 0.5 * k, -0.22 * k, 0), (0.22 * k, 0.07 * k, 0.22 * k), s.paint((0.1, 0.1, 0.1)),
                roll=math.pi / 2)  # fmt: skip
    return 0.75 * k, 1.8 * k


def toy_ball(s: Stage, body: int):
    """Sits with its middle at the body: for rolling."""
    r = s.dice.between(0.15, 0.5)
    kind = s.dice.pick((tx.STRIPES, tx.CHECKER, tx.WAVES, tx.DOTS))
    m = s.material(kind, r * s.dice.between(0.5, 0.9), s.colour(), s.colour(), s.colour(), amount=0.5)
    s.solid(BALL, body, (0, 0, 0), (r, r, r), m)
    return r, r


def drone(s: Stage, body: int):
    """A drone, its middle at the body."""
    m, dark = s.paint(), s.paint((0.12, 0.12, 0.14))
    s.solid(BALL, body, (0, 0, 0), (0.22, 0.1, 0.22), m)
    for a in (0.8, 2.37, 3.94, 5.5):
        s.solid(CAPSULE, body, (0.22 * math.sin(a), 0, 0.22 * math.cos(a)), (0.03,) * 3, dark, 6.0, yaw=a, pitch=1.5708)
        s.column(body, 0.4 * math.sin(a), 0.4 * math.cos(a), 0.17, (0.05, 0.07), dark)
    return 0.6, 0.3
