"""What worlds are built on: bodies with poses over time, solids that hang on them, materials, and the finished tables.

Metres, x right, y down, z forward, the ground at y = 0.
"""

from __future__ import annotations

import colorsys
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inspatio_core.training.data import textures as tx
from inspatio_core.training.data.cast import BOX, CONE, CYLINDER

Colour = tuple[float, float, float]


class Dice(random.Random):
    """Random numbers keyed by text: equal on every machine and for every Python."""

    @classmethod
    def keyed(cls, *key) -> Dice:
        """Dice of their own for every key."""
        return cls("/".join(str(k) for k in key))

    def between(self, low: float, high: float) -> float:
        """Uniform."""
        return low + (high - low) * self.random()

    def pick(self, items):
        """One of them."""
        return items[int(self.random() * len(items))]

    def count(self, low: int, high: int) -> int:
        """low..high, both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.random() < p

    def sign(self) -> float:
        """1 or -1."""
        return 1.0 if self.random() < 0.5 else -1.0


LOOK = (
    "light_x light_y light_z light_r light_g light_b softness sky_r sky_g sky_b earth_r earth_g earth_b "
    "fog_r fog_g fog_b fog zenith_r zenith_g zenith_b horizon_r horizon_g horizon_b clouds cloud_seed cloud_size "
    "exposure contrast saturation tint_r tint_g tint_b vignette grain blur bounce sun_disc lamp"
).split()
"""Names of the numbers that say how a world is lit and photographed. The light is a point in metres, the sun being far
away; lamp: the distance at which a lamp's light has halved, 0 for the sun."""


@dataclass(frozen=True, eq=False)
class World:
    """One world over F frames; P solids, M materials.

    kind int64 [P], param float32 [P], half float32 [P,3], centre float64 [F,P,3], turn float64 [F,P,3,3] world from
    solid: see `cast.Solids`. faces: int64 [P,6], the material of the sides +x -x +y -y +z -z (round shapes: the first;
    their flat ends +y, -y). moving: bool [P]. materials: float32 [M,textures.WIDTH]. look: the numbers of `LOOK`.
    subjects: points [S,3] worth looking at; open_to: how far (metres) cameras may stray from the middle in x, y, z.
    """

    seed: int
    family: str
    fps: float
    kind: Tensor
    param: Tensor
    half: Tensor
    centre: Tensor
    turn: Tensor
    faces: Tensor
    moving: Tensor
    materials: Tensor
    look: Tensor
    subjects: Tensor
    open_to: tuple[float, float, float]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.centre)


def euler(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """Rotations [..,3,3] about y by yaw, of a rotation about x by pitch, of one about z by roll (radians)."""
    cy, sy, cp, sp, cr, sr = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin(), roll.cos(), roll.sin()
    rows = [
        cy * cr + sy * sp * sr, sy * sp * cr - cy * sr, sy * cp,
        cp * sr, cp * cr, -sp,
        cy * sp * sr - sy * cr, sy * sr + cy * sp * cr, cy * cp,
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


@dataclass
class Stage:
    """What a world is built on: solids hang on bodies, bodies have poses over time (numbers, or tensors [F])."""

    dice: Dice
    time: Tensor
    solids: list[tuple] = field(default_factory=list)
    bodies: list[tuple] = field(default_factory=list)
    materials: list[list[float]] = field(default_factory=list)
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # x, z, radius on the ground
    subjects: list[tuple[float, float, float]] = field(default_factory=list)
    area: tuple[float, float] = (4.0, 4.0)  # half extents in x and z of the ground where things stand
    ceiling: float = 3.0
    hue: float = 0.0

    # -- colours and materials

    def colour(self, s=(0.3, 0.9), v=(0.35, 0.95), hue: float | None = None) -> Colour:
        """A colour of this world's taste: mostly around two opposite hues."""
        dice = self.dice
        if hue is None:
            hue = self.hue + dice.pick((0.0, 0.0, 0.5, 0.08, 0.42, dice.random())) + dice.gauss(0, 0.035)
        return colorsys.hsv_to_rgb(hue % 1.0, dice.between(*s), dice.between(*v))

    def muted(self, v=(0.4, 0.9)) -> Colour:
        """A colour of little saturation, for walls and grounds."""
        hue = self.dice.between(0.04, 0.14) if self.dice.chance(0.5) else None
        return self.colour((0.02, 0.3), v, hue)

    def timber(self) -> tuple[Colour, Colour, Colour]:
        """Three browns."""
        h, s, v = self.dice.between(0.05, 0.1), self.dice.between(0.25, 0.65), self.dice.between(0.4, 0.85)
        return tuple(colorsys.hsv_to_rgb(h, s, v * k) for k in (1.0, 0.72, 0.4))

    def material(self, kind: int, scale: float, a: Colour, b: Colour, c: Colour, **options) -> int:
        """Add a material with this texture; options: see `textures.material`."""
        options.setdefault("rough", self.dice.between(0.03, 0.22))
        if "gloss" not in options and self.dice.chance(0.2):
            options["gloss"] = self.dice.between(0.1, 0.5)
        self.materials.append(tx.material(kind, self.dice.count(0, 999), scale, a, b, c, **options))
        return len(self.materials) - 1

    def paint(self, colour: Colour | None = None, **options) -> int:
        """Nearly one colour."""
        a = colour or self.colour()
        b = tuple(min(1.0, k * self.dice.between(0.6, 1.1)) for k in a)
        return self.material(tx.PLAIN, self.dice.between(0.2, 1.5), a, b, b, **options)

    def wooden(self) -> int:
        """Some wood."""
        kind, scale = self.dice.pick(((tx.WOOD, 0.08), (tx.WOOD, 0.15), (tx.PLANKS, 0.12)))
        return self.material(kind, scale, *self.timber(), turned=self.dice.chance(0.5))

    def any_material(self, size: float = 1.0) -> int:
        """Something for a thing of about `size` metres."""
        dice = self.dice
        if dice.chance(0.25):
            return self.paint()
        if dice.chance(0.25):
            return self.wooden()
        kind = dice.pick((tx.CHECKER, tx.BRICKS, tx.MARBLE, tx.STRIPES, tx.DOTS, tx.WAVES, tx.EARTH, tx.COBBLES))
        scale = size * dice.between(0.12, 0.45)
        a, b, c = self.colour(), self.colour(), self.colour()
        if dice.chance(0.5):
            a = self.muted()
        return self.material(kind, scale, a, b, c, amount=dice.between(0.2, 0.8), stretch=dice.between(1, 2.5),
                             turned=dice.chance(0.5))  # fmt: skip

    def wall(self) -> int:
        """Something for a wall of metres."""
        dice, a = self.dice, self.muted((0.5, 0.95))
        kind = dice.pick((tx.PLAIN, tx.PLAIN, tx.EARTH, tx.BRICKS, tx.BRICKS, tx.STRIPES, tx.PLANKS, tx.DOTS, tx.WAVES))
        if kind == tx.BRICKS:
            if dice.chance(0.6):
                h = dice.between(0.0, 0.08)
                a, b = (colorsys.hsv_to_rgb(h, dice.between(0.3, 0.65), v) for v in (0.75, 0.5))
            else:
                b = self.muted()
            joint, stretch, shift = self.muted((0.4, 0.9)), dice.between(1, 3.2), dice.pick((0.0, 0.5))
            return self.material(kind, dice.between(0.07, 0.3), a, b, joint, stretch=stretch, amount=shift)
        if kind == tx.PLANKS:
            return self.material(kind, dice.between(0.1, 0.3), *self.timber(), turned=dice.chance(0.5))
        near = tuple(k * dice.between(0.7, 1.0) for k in a)
        if kind == tx.STRIPES:
            return self.material(kind, dice.between(0.15, 0.6), a, near, near, amount=dice.between(0.3, 0.7), gloss=0.0)
        if kind in (tx.DOTS, tx.WAVES):
            return self.material(
                kind, dice.between(0.2, 0.7), a, near, self.muted(), amount=dice.between(0, 0.5), gloss=0.0
            )
        return self.material(kind, dice.between(0.3, 2.0), a, near, near, amount=dice.between(0.4, 1.3), gloss=0.0)

    def floor(self, outdoors: bool = False) -> int:
        """Something to stand on."""
        dice = self.dice
        if outdoors:
            kind = dice.pick((tx.EARTH, tx.EARTH, tx.EARTH, tx.BRICKS, tx.COBBLES, tx.CHECKER))
        else:
            kind = dice.pick((tx.PLANKS, tx.PLANKS, tx.CHECKER, tx.BRICKS, tx.EARTH, tx.WAVES, tx.MARBLE))
        a, b, c = self.muted((0.35, 0.85)), self.muted((0.3, 0.8)), self.muted((0.25, 0.6))
        if kind == tx.PLANKS:
            return self.material(kind, dice.between(0.08, 0.22), *self.timber(), turned=dice.chance(0.5))
        if kind == tx.EARTH:
            if outdoors and dice.chance(0.6):  # grass
                h = dice.between(0.18, 0.33)
                a, b, c = (colorsys.hsv_to_rgb(h + dice.between(-0.04, 0.04), dice.between(0.4, 0.75), v)
                           for v in (0.5, 0.36, 0.62))  # fmt: skip
            return self.material(kind, dice.between(0.4, 2.0), a, b, c, amount=dice.between(0.3, 1.2), gloss=0.0,
                                 rough=dice.between(0.2, 0.6))  # fmt: skip
        if kind == tx.CHECKER:
            return self.material(kind, dice.between(0.25, 1.0), a, b, c)
        if kind == tx.COBBLES:
            return self.material(kind, dice.between(0.2, 0.7), a, b, c, gloss=0.0)
        if kind == tx.BRICKS:
            return self.material(kind, dice.between(0.15, 0.8), a, b, c, stretch=dice.pick((1.0, 1.0, 2.0)),
                                 amount=dice.pick((0.0, 0.5)))  # fmt: skip
        return self.material(kind, dice.between(0.3, 1.2), a, b, c)

    def sheet(self) -> int:
        """Something printed or pictured, for a flat side."""
        dice = self.dice
        kind = dice.pick((tx.POSTER, tx.POSTER, tx.GLYPHS, tx.PANELS))
        if kind == tx.GLYPHS:
            a, b = self.colour((0.0, 0.25), (0.8, 1.0)), self.colour((0.2, 1.0), (0.05, 0.35))
            if dice.chance(0.3):
                a, b = b, a
            return self.material(kind, dice.between(0.05, 0.16), a, b, self.colour((0.6, 1.0)), gloss=0.0, rough=0.02)
        return self.material(kind, 1.0, self.colour(), self.colour(), self.colour(), amount=dice.random(), rough=0.02)

    def leaves(self, size: float) -> int:
        """Foliage."""
        d = self.dice
        h = d.between(0.2, 0.38) if d.chance(0.85) else d.between(0.0, 0.15)
        a, b, c = (colorsys.hsv_to_rgb(h + d.between(-0.03, 0.03), d.between(0.4, 0.8), v) for v in (0.5, 0.3, 0.68))
        return self.material(tx.EARTH, size, a, b, c, amount=1.2, rough=0.5, gloss=0.0)

    # -- solids and bodies

    def body(self, x=0.0, y=0.0, z=0.0, yaw=0.0, pitch=0.0, roll=0.0, moving=False) -> int:
        """Add a body."""
        self.bodies.append((x, y, z, yaw, pitch, roll, moving))
        return len(self.bodies) - 1

    def solid(self, kind, body, centre, half, faces, param=0.0, yaw=0.0, pitch=0.0, roll=0.0) -> None:
        """Hang a solid on a body. faces: one material, (round or side, ends), or six."""
        if isinstance(faces, int):
            faces = (faces,) * 6
        elif len(faces) == 2:
            faces = (faces[0], faces[0], faces[1], faces[1], faces[0], faces[0])
        self.solids.append((kind, body, centre, half, faces, param, yaw, pitch, roll))

    def box(self, body, x, y, z, faces, yaw=0.0) -> None:
        """Over the ranges x, y (heights), z."""
        centre = ((x[0] + x[1]) / 2, -(y[0] + y[1]) / 2, (z[0] + z[1]) / 2)
        self.solid(BOX, body, centre, ((x[1] - x[0]) / 2, (y[1] - y[0]) / 2, (z[1] - z[0]) / 2), faces, yaw=yaw)

    def column(self, body, x, z, radius, y, faces, top=None) -> None:
        """Upright, over the heights y; with `top` a cone of that radius up there."""
        half = (radius, (y[1] - y[0]) / 2, radius)
        kind, param = (CYLINDER, 0.0) if top is None else (CONE, top / radius)
        self.solid(kind, body, (x, -(y[0] + y[1]) / 2, z), half, faces, param)

    # -- places

    def free(self, x: float, z: float, radius: float) -> bool:
        """Whether a disc of the ground is inside the area and not taken."""
        if abs(x) + radius > self.area[0] or abs(z) + radius > self.area[1]:
            return False
        return all((x - a) ** 2 + (z - b) ** 2 > (radius + r) ** 2 for a, b, r in self.taken)

    def put(self, item: Callable[[Stage, int], tuple[float, float]], tries: int = 12, yaw: float | None = None) -> bool:
        """A thing somewhere on free ground. `item` hangs its solids on a body and returns its radius and height."""
        mark = len(self.solids), len(self.bodies)
        body = self.body()
        radius, height = item(self, body)
        for _ in range(tries):
            x, z = (self.dice.between(-a, a) for a in self.area)
            if self.free(x, z, radius):
                self.bodies[body] = (x, 0.0, z, self.dice.between(0, 6.3) if yaw is None else yaw, 0.0, 0.0, False)
                self.taken.append((x, z, radius))
                self.subjects.append((x, -height * 0.6, z))
                return True
        del self.solids[mark[0] :], self.bodies[mark[1] :]
        return False

    # -- the finished tables

    def world(self, seed: int, family: str, fps: float, look: dict, open_to) -> World:
        """Everything as tensors."""
        F, double = len(self.time), torch.float64
        rows = [[torch.as_tensor(k, dtype=double).expand(F) for k in body[:6]] for body in self.bodies]
        pose = torch.stack([torch.stack(row) for row in rows])  # [N,6,F]
        turn = euler(pose[:, 3], pose[:, 4], pose[:, 5])  # [N,F,3,3]
        kind, body, centre, half, faces, param, *angles = zip(*self.solids)
        body, angles = torch.tensor(body), torch.tensor(angles, dtype=double)
        carrier = turn[body].transpose(0, 1)  # [F,P,3,3]
        local = torch.tensor(centre, dtype=double)
        place = pose[body, :3].permute(2, 0, 1)
        centre = place + (carrier * local[None, :, None, :]).sum(-1)
        turn = (carrier[..., :, :, None] * euler(*angles)[None, :, None]).sum(-2)
        moving = torch.tensor([self.bodies[b][6] for b in body.tolist()])
        return World(
            seed=seed,
            family=family,
            fps=fps,
            kind=torch.tensor(kind),
            param=torch.tensor(param, dtype=torch.float32),
            half=torch.tensor(half, dtype=torch.float32),
            centre=centre,
            turn=turn,
            faces=torch.tensor(faces),
            moving=moving,
            materials=torch.tensor(self.materials, dtype=torch.float32),
            look=torch.tensor([float(look[name]) for name in LOOK]),
            subjects=torch.tensor(self.subjects, dtype=double).reshape(-1, 3),
            open_to=open_to,
        )
