#!/usr/bin/env python3
"""Render the sample scene `scenes/courtyard`: a walk through a sunny courtyard where a ball rolls, a crate slides and a
balloon rises, with exact depth, camera path and masks of what moves.

A small ray caster over boxes, spheres, cylinders, a ground plane and a sky dome with procedural textures. All shading
is diffuse (sun with a soft shadow, light from 16 fixed directions of the sky), so a point looks the same from every
side. Nothing is random: the same script writes the same pixels. Takes about eight minutes on two cores.

    python scripts/make_sample_scene.py                            # writes scenes/courtyard
    python scripts/make_sample_scene.py -o build/short --frames 5  # a short one, to look at

World: metres, x right, y down, z forward, the ground at y = 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numba import njit, prange
from tqdm import tqdm

from inspatio_core.reference.motion_mask import motion_masks
from inspatio_core.reference.scene import SceneWriter, read_depth, read_image

SIZE = (480, 832)
FPS = 24.0
FRAMES = 73
FOV_X = np.radians(66.0)
DEPTH_UNIT = 0.005  # half of it is the error of a depth; finer ones take more room
DOME = 60.0  # metres, radius of the sky
GRID = 4  # GRID x GRID samples a pixel; as many directions of sun and sky

BOX, SPHERE, CYLINDER, GROUND, SKY = range(5)
(
    TILES,
    BRICK,
    PLASTER,
    WOOD,
    STONE,
    ROOF,
    POSTER_A,
    POSTER_B,
    WINDOW,
    DOOR,
    BALL,
    LEAVES,
    CLAY,
    WATER,
    BALLOON,
    BENCH,
    AWNING,
) = range(17)

SUN = np.array([-0.52, -0.80, -0.32])  # towards the sun
SUN /= np.linalg.norm(SUN)
SUN_COLOUR = np.array([1.18, 1.08, 0.90])
SKY_COLOUR = np.array([0.52, 0.60, 0.74])


# ---- the things -----------------------------------------------------------------------------------------------------


def turn_y(angle: float) -> np.ndarray:
    """Rotation about the y axis (down)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def turn_z(angle: float) -> np.ndarray:
    """Rotation about the z axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def ease(x: float) -> float:
    """Smooth step from 0 to 1."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


class Things:
    """Arrays of all primitives: kind, material, moving, centre [P,3], size [P,3], world-to-thing rotation [P,3,3]."""

    def __init__(self):
        self.rows: list[tuple] = []

    def add(self, kind, material, centre, size, turn=None, moving=False):
        """Any thing; `turn` is its rotation in the world."""
        self.rows.append((kind, material, moving, centre, size, np.eye(3) if turn is None else turn.T))

    def box(self, material, x, y, z, turn=0.0, moving=False):
        """An upright box over the ranges x, y (up, metres above ground), z; turned about its own middle."""
        low, high = np.array([x[0], -y[1], z[0]]), np.array([x[1], -y[0], z[1]])
        self.add(BOX, material, (low + high) / 2, (high - low) / 2, turn_y(turn), moving)

    def column(self, material, x, z, radius, y):
        """An upright cylinder from y[0] to y[1] metres above ground."""
        self.add(CYLINDER, material, (x, -(y[0] + y[1]) / 2, z), (radius, (y[1] - y[0]) / 2, radius))

    def ball(self, material, centre, radius, turn=None, moving=False):
        """A sphere."""
        self.add(SPHERE, material, centre, (radius,) * 3, turn, moving)

    def arrays(self):
        """The arguments of `render` before K."""
        kind, material, moving, centre, size, turn = zip(*self.rows, strict=True)
        return (
            np.array(kind), np.array(material), np.array(moving),
            np.array(centre, float), np.array(size, float), np.array(turn, float),
        )  # fmt: skip


def things_at(time: float) -> Things:
    """The courtyard at `time` seconds."""
    t = Things()
    t.add(GROUND, TILES, (0, 0, 0), (1, 1, 1))
    t.add(SKY, 0, (0, 0, 0), (DOME,) * 3)

    # Walls with a coping of roof tiles; the back one has a door, windows and a poster.
    t.box(BRICK, (-7.0, 7.4), (0, 3.55), (13.0, 13.5))
    t.box(PLASTER, (-7.5, -7.0), (0, 4.4), (-4, 13.5))
    t.box(BRICK, (7.4, 7.9), (0, 3.0), (-4, 13.5))
    t.box(ROOF, (-7.6, 8.0), (3.55, 3.85), (12.6, 13.7))
    t.box(ROOF, (-7.9, -6.55), (4.4, 4.7), (-4, 13.7))
    t.box(ROOF, (7.0, 8.2), (3.0, 3.3), (-4, 13.7))
    t.box(DOOR, (0.9, 2.5), (0, 2.5), (12.9, 13.02))
    t.box(STONE, (0.65, 2.75), (2.5, 2.78), (12.8, 13.02))
    t.box(WINDOW, (-4.9, -3.5), (1.4, 3.0), (12.92, 13.02))
    t.box(STONE, (-5.05, -3.35), (1.22, 1.4), (12.75, 13.02))
    t.box(WINDOW, (4.4, 5.8), (1.4, 3.0), (12.92, 13.02))
    t.box(STONE, (4.25, 5.95), (1.22, 1.4), (12.75, 13.02))
    t.box(POSTER_A, (-2.3, -0.7), (0.95, 3.0), (12.94, 13.02))
    t.box(POSTER_B, (7.3, 7.42), (0.9, 2.5), (6.2, 8.6))
    t.box(AWNING, (-5.3, -3.1), (3.06, 3.14), (12.0, 13.02))

    # A house behind the back wall and a tower behind the right one.
    t.box(PLASTER, (-5.4, 0.6), (0, 6.3), (19.0, 23.0))
    t.box(ROOF, (-5.8, 1.0), (6.3, 6.75), (18.6, 23.4))
    for x in (-4.6, -2.9, -1.2):
        t.box(WINDOW, (x, x + 0.9), (4.7, 5.8), (18.92, 19.02))
    t.box(BRICK, (6.2, 8.6), (0, 7.6), (20.0, 22.4))
    t.box(ROOF, (5.9, 8.9), (7.6, 8.05), (19.7, 22.7))

    # The arcade on the left.
    for z in (4.2, 7.2, 10.2):
        t.column(STONE, -4.6, z, 0.24, (0.3, 2.9))
        t.box(STONE, (-4.98, -4.22), (0, 0.3), (z - 0.38, z + 0.38))
        t.box(STONE, (-4.95, -4.25), (2.9, 3.12), (z - 0.35, z + 0.35))
    t.box(STONE, (-4.95, -4.25), (3.12, 3.5), (3.4, 11.0))

    # The fountain.
    t.column(STONE, 1.2, 8.6, 1.45, (0, 0.48))
    t.column(WATER, 1.2, 8.6, 1.25, (0.4, 0.50))
    t.column(STONE, 1.2, 8.6, 0.20, (0.4, 1.5))
    t.column(STONE, 1.2, 8.6, 0.62, (1.5, 1.64))
    t.ball(STONE, (1.2, -1.84, 8.6), 0.26)

    # Crates, pots with bushes, a bench.
    t.box(WOOD, (4.3, 5.4), (0, 1.1), (7.2, 8.3), 0.25)
    t.box(WOOD, (5.5, 6.5), (0, 1.0), (8.2, 9.2), -0.15)
    t.box(WOOD, (4.6, 5.4), (1.1, 1.9), (7.4, 8.2), -0.3)
    t.box(BENCH, (-3.4, -1.5), (0.40, 0.48), (10.6, 11.1))
    t.box(STONE, (-3.25, -3.0), (0, 0.40), (10.65, 11.05))
    t.box(STONE, (-1.9, -1.65), (0, 0.40), (10.65, 11.05))
    for x, z, r in ((3.2, 12.2, 0.34), (-0.1, 12.2, 0.34), (-2.9, 4.9, 0.30)):
        t.column(CLAY, x, z, r, (0, 0.62))
        t.ball(LEAVES, (x, -1.02, z), r * 1.5)

    # What moves: a ball rolls to the right, a crate slides to the left and stops, a balloon rises.
    radius = 0.38
    run = 5.2 * ease(0.08 + 0.86 * time / 3.0) - 3.0
    roll = turn_y(0.5) @ turn_z(run / radius) @ turn_y(0.4)
    t.ball(BALL, (run, -radius, 5.6 + 0.12 * run), radius, roll, moving=True)
    slide = 1.7 * ease(time / 2.9)
    t.box(WOOD, (3.6 - slide, 4.4 - slide), (0, 0.8), (6.1 + 0.5 * slide, 6.9 + 0.5 * slide), 0.45, moving=True)
    rise = 1.9 + 0.42 * time
    t.ball(BALLOON, (-2.55 + 0.12 * np.sin(2 * time), -rise, 8.0), 0.33, moving=True)
    return t


def camera_at(frame: int, frames: int = FRAMES) -> np.ndarray:
    """world_from_camera [4,4] (OpenCV axes) of a frame: a walk to the right and forward, turning to the left."""
    s = ease(frame / (frames - 1)) * 0.5 + frame / (frames - 1) * 0.5
    position = np.array([-1.0 + 1.9 * s, -1.55 - 0.10 * np.sin(np.pi * s), 0.2 + 1.5 * s])
    yaw, pitch = np.radians(5.0 - 13.0 * s), np.radians(-4.5 + 2.0 * s)  # no roll: depth images stay small
    c, k = np.cos(pitch), np.sin(pitch)
    T = np.eye(4)
    T[:3, :3] = turn_y(yaw) @ np.array([[1, 0, 0], [0, c, -k], [0, k, c]])
    T[:3, 3] = position
    return T


def intrinsics(size: tuple[int, int]) -> np.ndarray:
    """K [3,3] with square pixels and pixel centres at integer coordinates."""
    focal = size[1] / 2 / np.tan(FOV_X / 2)
    return np.array([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1]])


# ---- textures -------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def lattice(x, y, seed):
    """A number in 0..1 for an integer cell."""
    n = np.int64(x) * 374761393 + np.int64(y) * 668265263 + np.int64(seed) * 2147483647
    n = (n ^ (n >> 13)) * 1274126177
    n = n ^ (n >> 16)
    return (n & 0xFFFFFF) / 16777215.0


@njit(cache=True, nogil=True)
def noise(x, y, seed):
    """Smooth value noise in 0..1."""
    i, j = np.floor(x), np.floor(y)
    a, b = x - i, y - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    top = lattice(i, j, seed) * (1 - a) + lattice(i + 1, j, seed) * a
    low = lattice(i, j + 1, seed) * (1 - a) + lattice(i + 1, j + 1, seed) * a
    return top * (1 - b) + low * b


@njit(cache=True, nogil=True)
def clouds(x, y, seed):
    """Four octaves of noise in 0..1."""
    total, weight = 0.0, 0.5
    for _ in range(4):
        total += weight * noise(x, y, seed)
        x, y, weight = x * 2.03 + 17.1, y * 2.03 + 3.7, weight / 2
    return total / 0.9375


@njit(cache=True, nogil=True)
def mix(a, b, t):
    """From colour a to colour b."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


@njit(cache=True, nogil=True)
def tint(c, f):
    """Colour c times f."""
    return c[0] * f, c[1] * f, c[2] * f


@njit(cache=True, nogil=True)
def poster(a, b, which):
    """A printed sheet, a and b in 0..1 from its upper left corner."""
    if min(a, 1 - a, b, 1 - b) < 0.035:
        return 0.93, 0.91, 0.86
    if which == POSTER_A:
        d = np.hypot((a - 0.5) * 0.78, b - 0.36)
        if d < 0.19:
            return (0.93, 0.36, 0.18) if int(d * 42) % 2 == 0 else (0.97, 0.72, 0.24)
        hill = 0.66 + 0.07 * np.sin(a * 9 + 1) + 0.03 * np.sin(a * 23)
        if b > hill:
            stripe = int((b - hill) * 26)
            return (0.10, 0.30, 0.36) if stripe % 2 == 0 else (0.16, 0.46, 0.48)
        return 0.94, 0.84, 0.66
    i, j = int(a * 6), int(b * 4)
    c = lattice(i, j, 5)
    u, v = a * 6 - i, b * 4 - j
    inside = u + v < 1 if lattice(i, j, 9) < 0.5 else u > v
    if c < 0.34:
        return (0.12, 0.25, 0.45) if inside else (0.93, 0.90, 0.82)
    if c < 0.67:
        return (0.86, 0.28, 0.22) if inside else (0.96, 0.76, 0.30)
    return (0.18, 0.52, 0.47) if inside else (0.93, 0.90, 0.82)


@njit(cache=True, nogil=True)
def wood(a, b, seed):
    """The face of a crate, a and b in 0..1."""
    grain = 0.80 + 0.25 * noise(a * 3 + seed, b * 55, seed) + 0.12 * noise(a * 9, b * 160, seed + 1)
    colour = tint((0.66, 0.44, 0.25), grain)
    border = min(a, 1 - a, b, 1 - b)
    brace = abs(a - b) / 1.414 < 0.055
    if border < 0.11 or brace:
        colour = tint((0.78, 0.55, 0.32), 0.82 + 0.25 * noise(a * 40, b * 40, seed + 2))
        if abs(border - 0.11) < 0.008 or (brace and border >= 0.11 and abs(abs(a - b) / 1.414 - 0.055) < 0.008):
            colour = tint(colour, 0.45)
        if border < 0.11 and np.hypot(min(a, 1 - a) - 0.055, min(b, 1 - b) - 0.055) < 0.022:
            colour = (0.25, 0.24, 0.24)
    elif (b * 5) % 1.0 < 0.05:
        colour = tint(colour, 0.4)
    return colour


@njit(cache=True, nogil=True)
def texture(material, p, n, half, w):
    """Albedo of a point: p and n in the thing's own frame (y down), half its size, w the point in the world."""
    if abs(n[1]) > 0.7:
        a, b, ha, hb = p[0], p[2], half[0], half[2]
    elif abs(n[0]) > abs(n[2]):
        a, b, ha, hb = p[2], p[1], half[2], half[1]
    else:
        a, b, ha, hb = p[0], p[1], half[0], half[1]
    u, v = 0.5 + 0.5 * a / ha, 0.5 + 0.5 * b / hb

    if material == TILES:
        x, z = w[0] / 0.8, w[2] / 0.8
        i, j = np.floor(x), np.floor(z)
        fx, fz = x - i, z - j
        edge = min(fx, 1 - fx, fz, 1 - fz)
        if edge < 0.022:
            return tint((0.42, 0.39, 0.35), 0.85 + 0.3 * noise(w[0] * 30, w[2] * 30, 3))
        if (int(i) + int(j)) % 2 == 0:
            base = mix((0.80, 0.70, 0.56), (0.72, 0.60, 0.47), lattice(i, j, 1))
        else:
            base = mix((0.62, 0.40, 0.29), (0.70, 0.47, 0.34), lattice(i, j, 2))
        if (int(i) % 4 == 0) and (int(j) % 4 == 0):
            d = abs(fx - 0.5) + abs(fz - 0.5)
            if d < 0.36:
                base = (0.23, 0.41, 0.50) if d > 0.26 or d < 0.12 else (0.88, 0.82, 0.68)
        grain = 0.84 + 0.2 * clouds(w[0] * 6, w[2] * 6, 4) + 0.12 * noise(w[0] * 45, w[2] * 45, 6)
        return tint(base, grain)
    if material == BRICK:
        row = np.floor(b / 0.16)
        x = a / 0.42 + (0.5 if int(row) % 2 else 0.0)
        i = np.floor(x)
        fx, fy = x - i, b / 0.16 - row
        if fx < 0.045 or fy < 0.11:
            return tint((0.70, 0.66, 0.60), 0.8 + 0.3 * noise(a * 40, b * 40, 7))
        base = mix((0.60, 0.29, 0.21), (0.76, 0.45, 0.32), lattice(i, row, 8))
        if lattice(i, row, 10) > 0.93:
            base = (0.42, 0.26, 0.22)
        return tint(base, 0.80 + 0.25 * clouds(a * 14, b * 14, 11) + 0.10 * noise(a * 60, b * 60, 12))
    if material == PLASTER:
        stain = clouds(a * 0.9, b * 0.9, 13)
        base = mix((0.90, 0.80, 0.62), (0.82, 0.66, 0.46), stain)
        base = tint(base, 0.90 + 0.16 * noise(a * 25, b * 25, 14))
        if clouds(a * 1.3 + 40, b * 1.3, 15) > 0.66:
            row = np.floor(b / 0.16)
            x = a / 0.42 + (0.5 if int(row) % 2 else 0.0)
            if x - np.floor(x) < 0.06 or b / 0.16 - row < 0.13:
                return 0.66, 0.60, 0.52
            return mix((0.62, 0.34, 0.25), (0.74, 0.46, 0.33), lattice(np.floor(x), row, 16))
        if v > 0.86:
            return tint((0.50, 0.36, 0.30), 0.85 + 0.3 * clouds(a * 6, b * 6, 17))
        return base
    if material == WOOD:
        return wood(u, v, int(half[0] * 100))
    if material == BENCH:
        return tint(
            (0.30, 0.42, 0.36), 0.35 if (p[2] * 8) % 1.0 < 0.08 else 0.85 + 0.3 * noise(p[0] * 4, p[2] * 60, 18)
        )
    if material == STONE:
        g = clouds(w[0] * 3.1 + w[2] * 2.3, w[1] * 3.1 + w[2], 19)
        speck = noise(w[0] * 38 + w[2] * 21, w[1] * 38 + w[2] * 17, 20)
        return tint(mix((0.86, 0.83, 0.76), (0.66, 0.62, 0.56), g), 0.84 + 0.26 * speck)
    if material == ROOF:
        if abs(n[1]) < 0.5:
            s = 0.5 + 0.5 * np.cos((a / 0.26) * 2 * np.pi)
            return tint((0.76, 0.36, 0.22), 0.45 + 0.6 * s + 0.2 * lattice(np.floor(a / 0.26), 0, 21))
        return tint((0.74, 0.38, 0.25), 0.7 + 0.4 * noise(a * 8, b * 8, 22))
    if material == POSTER_A or material == POSTER_B:
        return poster(u, v, material)
    if material == WINDOW:
        frame = min(u, 1 - u) < 0.07 or min(v, 1 - v) < 0.06 or abs(u - 0.5) < 0.03 or abs(v - 0.45) < 0.025
        if frame:
            return tint((0.30, 0.45, 0.42), 0.9 + 0.2 * noise(a * 30, b * 30, 23))
        if clouds(u * 2.5 + 9, v * 3.5, 24) > 0.52:
            return mix((0.50, 0.62, 0.72), (0.74, 0.82, 0.88), 1 - v)
        return mix((0.16, 0.20, 0.25), (0.34, 0.44, 0.54), 1 - v)
    if material == DOOR:
        plank = (u * 6) % 1.0
        base = tint((0.16, 0.37, 0.42), 0.85 + 0.3 * noise(a * 50, b * 2.5, 25))
        if plank < 0.06 or abs(u - 0.5) < 0.008:
            base = tint(base, 0.4)
        if abs(v - 0.25) < 0.025 or abs(v - 0.75) < 0.025:
            base = (0.17, 0.16, 0.16)
        if np.hypot((u - 0.56) * 1.6, (v - 0.55) * 2.6) < 0.06:
            base = (0.85, 0.68, 0.30)
        return base
    if material == BALL:
        angle = np.arctan2(p[2], p[0]) / (2 * np.pi) * 6 + 6
        if abs(p[1]) > 0.91 * half[0]:
            return 0.95, 0.95, 0.92
        k = int(angle) % 3
        return (0.92, 0.22, 0.18) if k == 0 else (0.96, 0.95, 0.90) if k == 1 else (0.13, 0.38, 0.75)
    if material == LEAVES:
        x, y = np.arctan2(p[2], p[0]) * 7, p[1] / half[0] * 9
        g = noise(x, y, 26) * 0.6 + noise(x * 2.7, y * 2.7, 27) * 0.4
        if noise(x * 1.7 + 5, y * 1.7, 28) > 0.86:
            return 0.93, 0.45, 0.55
        return mix((0.10, 0.24, 0.09), (0.45, 0.62, 0.22), g)
    if material == CLAY:
        return tint(
            (0.74, 0.42, 0.28),
            (0.7 if abs(v - 0.18) < 0.02 else 1.0) * (0.85 + 0.25 * noise(p[0] * 20 + p[2] * 20, p[1] * 30, 29)),
        )
    if material == WATER:
        ripple = 0.5 + 0.5 * np.sin(np.hypot(p[0], p[2]) * 34 + 2 * clouds(p[0] * 4, p[2] * 4, 30))
        return mix((0.22, 0.46, 0.54), (0.50, 0.72, 0.76), ripple)
    if material == BALLOON:
        return mix((0.96, 0.74, 0.16), (0.98, 0.86, 0.40), 0.5 + 0.5 * np.sin(np.arctan2(p[2], p[0]) * 8))
    if material == AWNING:
        return (0.90, 0.88, 0.80) if int(np.floor(p[0] / 0.22)) % 2 == 0 else (0.72, 0.20, 0.20)
    return 1.0, 0.0, 1.0


@njit(cache=True, nogil=True)
def sky(dx, dy, dz):
    """Colour of the sky in a direction (unit, y down)."""
    up = max(0.0, -dy)
    base = mix((0.80, 0.87, 0.93), (0.28, 0.50, 0.80), min(1.0, up * 1.9) ** 0.7)
    x, z = dx / (up + 0.22), dz / (up + 0.22)
    cover = clouds(x * 1.5 + 3.2, z * 1.5 + 1.0, 31)
    return mix(base, (0.98, 0.97, 0.95), min(1.0, max(0.0, (cover - 0.50) * 4.0)) * min(1.0, up * 8))


# ---- rays -----------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def hit_thing(kind, centre, size, turn, o, d, limit, n):
    """Distance along the ray o + t d to a thing, or `limit`; writes the normal, in the thing's frame, into n."""
    if kind == GROUND:
        if d[1] > 1e-9 and o[1] < 0:
            t = -o[1] / d[1]
            if t < limit:
                n[0], n[1], n[2] = 0.0, -1.0, 0.0
                return t
        return limit
    px, py, pz = o[0] - centre[0], o[1] - centre[1], o[2] - centre[2]
    x = turn[0, 0] * px + turn[0, 1] * py + turn[0, 2] * pz
    y = turn[1, 0] * px + turn[1, 1] * py + turn[1, 2] * pz
    z = turn[2, 0] * px + turn[2, 1] * py + turn[2, 2] * pz
    dx = turn[0, 0] * d[0] + turn[0, 1] * d[1] + turn[0, 2] * d[2]
    dy = turn[1, 0] * d[0] + turn[1, 1] * d[1] + turn[1, 2] * d[2]
    dz = turn[2, 0] * d[0] + turn[2, 1] * d[1] + turn[2, 2] * d[2]
    if kind == BOX:
        near, far, axis = -1e30, 1e30, 0
        for k in range(3):
            ok = x if k == 0 else y if k == 1 else z
            dk = dx if k == 0 else dy if k == 1 else dz
            if abs(dk) < 1e-12:
                if abs(ok) > size[k]:
                    return limit
                continue
            a, b = (-size[k] - ok) / dk, (size[k] - ok) / dk
            if a > b:
                a, b = b, a
            if a > near:
                near, axis = a, k
            far = min(far, b)
        if near > far or near < 1e-4 or near >= limit:
            return limit
        n[0] = n[1] = n[2] = 0.0
        dk = dx if axis == 0 else dy if axis == 1 else dz
        n[axis] = -1.0 if dk > 0 else 1.0
        return near
    if kind == SPHERE or kind == SKY:
        a = dx * dx + dy * dy + dz * dz
        b = x * dx + y * dy + z * dz
        c = x * x + y * y + z * z - size[0] * size[0]
        root = b * b - a * c
        if root <= 0:
            return limit
        t = (-b + np.sqrt(root)) / a if kind == SKY else (-b - np.sqrt(root)) / a
        if t < 1e-4 or t >= limit:
            return limit
        n[0], n[1], n[2] = (x + t * dx) / size[0], (y + t * dy) / size[0], (z + t * dz) / size[0]
        return t
    best = limit
    a = dx * dx + dz * dz
    if a > 1e-12:
        b = x * dx + z * dz
        c = x * x + z * z - size[0] * size[0]
        root = b * b - a * c
        if root > 0:
            t = (-b - np.sqrt(root)) / a
            if 1e-4 < t < best and abs(y + t * dy) <= size[1]:
                best = t
                n[0], n[1], n[2] = (x + t * dx) / size[0], 0.0, (z + t * dz) / size[0]
    if abs(dy) > 1e-12:
        side = -1.0 if dy > 0 else 1.0
        t = (side * size[1] - y) / dy
        if 1e-4 < t < best and (x + t * dx) ** 2 + (z + t * dz) ** 2 <= size[0] * size[0]:
            best = t
            n[0], n[1], n[2] = 0.0, side, 0.0
    return best


@njit(cache=True, nogil=True)
def apart(kind, centre, radius, o, d, dd, reach):
    """Whether the ray o + t d, 0 < t < reach, surely misses the sphere around a thing; dd = d.d."""
    if kind == GROUND or kind == SKY:
        return False
    x, y, z = centre[0] - o[0], centre[1] - o[1], centre[2] - o[2]
    along = x * d[0] + y * d[1] + z * d[2]
    square = x * x + y * y + z * z
    if square <= radius * radius:
        return False
    return along <= 0 or square - along * along / dd > radius * radius or along / dd - radius / np.sqrt(dd) > reach


@njit(cache=True, nogil=True)
def first_hit(kind, centre, size, turn, radius, o, d, n, normal):
    """Index and distance of the nearest thing along a ray; its normal in n. `normal` is scratch."""
    best, which = 1e30, -1
    dd = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    for i in range(len(kind)):
        if apart(kind[i], centre[i], radius[i], o, d, dd, best):
            continue
        t = hit_thing(kind[i], centre[i], size[i], turn[i], o, d, best, normal)
        if t < best:
            best, which = t, i
            n[0], n[1], n[2] = normal[0], normal[1], normal[2]
    return which, best


@njit(cache=True, nogil=True)
def blocked(kind, centre, size, turn, radius, o, d, reach, normal):
    """Whether anything lies within `reach` metres along the unit vector d. `normal` is scratch."""
    for i in range(len(kind)):
        if kind[i] == SKY or kind[i] == GROUND or apart(kind[i], centre[i], radius[i], o, d, 1.0, reach):
            continue
        if hit_thing(kind[i], centre[i], size[i], turn[i], o, d, reach, normal) < reach:
            return True
    return False


@njit(cache=True, nogil=True, parallel=True)
def render(kind, material, moving, centre, size, turn, K, camera, shape, suns, skies):
    """RGB float [H,W,3] in linear light, exact depth [H,W] and moving [H,W] (both of the pixel's centre)."""
    H, W = shape
    rgb, depth, mask = np.zeros((H, W, 3)), np.zeros((H, W)), np.zeros((H, W), np.bool_)
    radius = np.sqrt((size * size).sum(axis=1))
    grid = int(np.sqrt(len(suns)))
    for v in prange(H):
        o, d, n, p, local = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
        out, scratch, s = np.empty(3), np.empty(3), np.empty(3)  # out: the normal in the world
        for i in range(3):
            o[i] = camera[i, 3]
        for u in range(W):
            for k in range(len(suns) + 1):
                centre_ray = k == len(suns)
                su = 0.0 if centre_ray else (k % grid + 0.5) / grid - 0.5
                sv = 0.0 if centre_ray else (k // grid + 0.5) / grid - 0.5
                x, y = (u + su - K[0, 2]) / K[0, 0], (v + sv - K[1, 2]) / K[1, 1]
                for i in range(3):
                    d[i] = camera[i, 0] * x + camera[i, 1] * y + camera[i, 2]
                which, t = first_hit(kind, centre, size, turn, radius, o, d, n, scratch)
                if centre_ray:
                    depth[v, u], mask[v, u] = t, moving[which]
                    continue
                if kind[which] == SKY:
                    length = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
                    c = sky(d[0] / length, d[1] / length, d[2] / length)
                    for i in range(3):
                        rgb[v, u, i] += c[i]
                    continue
                R = turn[which]
                for i in range(3):
                    p[i] = o[i] + t * d[i]
                for i in range(3):
                    local[i] = 0.0
                    out[i] = R[0, i] * n[0] + R[1, i] * n[1] + R[2, i] * n[2]
                    for j in range(3):
                        local[i] += R[i, j] * (p[j] - centre[which, j])
                c = texture(material[which], local, n, size[which], p)
                facing, below = 0.0, 0.0
                for i in range(3):
                    p[i] += out[i] * 2e-4
                    facing += out[i] * suns[k, i]
                    below += out[i] * skies[k, i]
                if facing <= 0 or blocked(kind, centre, size, turn, radius, p, suns[k], 1e9, scratch):
                    facing = 0.0
                for i in range(3):  # directions into the surface are mirrored out of it
                    s[i] = skies[k, i] if below > 0 else skies[k, i] - 2 * below * out[i]
                open_sky = 0.30 if blocked(kind, centre, size, turn, radius, p, s, 2.5, scratch) else 1.0
                open_sky *= 0.62 - (0.38 if out[1] < 0 else 0.2) * out[1]
                for i in range(3):
                    rgb[v, u, i] += c[i] * (SUN_COLOUR[i] * facing + SKY_COLOUR[i] * open_sky)
            for i in range(3):
                rgb[v, u, i] /= len(suns)
    return rgb, depth, mask


def light_directions() -> tuple[np.ndarray, np.ndarray]:
    """[GRID**2,3] directions to points of the sun's (large, soft) disc, and [GRID**2,3] over the hemisphere above."""
    k = np.arange(GRID * GRID)
    k = (k * 7) % (GRID * GRID)  # neighbouring samples look in different directions
    radius, angle = np.sqrt((k + 0.5) / len(k)), k * 2.399963
    side = np.cross(SUN, [0, 0, 1.0])
    side /= np.linalg.norm(side)
    other = np.cross(SUN, side)
    suns = SUN + 0.035 * radius[:, None] * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other)
    up = np.sqrt(1 - radius**2)
    skies = np.stack([radius * np.cos(angle), -up, radius * np.sin(angle)], -1)
    return suns / np.linalg.norm(suns, axis=-1, keepdims=True), skies


def develop(rgb: np.ndarray) -> np.ndarray:
    """Linear light to uint8: a little more saturation, a soft shoulder, gamma."""
    grey = rgb @ np.array([0.30, 0.59, 0.11])
    x = np.maximum(grey[..., None] + 1.28 * (rgb - grey[..., None]), 0) * 0.94
    x = x * (1 + x / 2.2) / (1 + 0.72 * x)
    return np.rint(np.clip(x ** (1 / 1.75), 0, 1) * 255).astype(np.uint8)


def write_masks(writer: SceneWriter, K: np.ndarray, poses: np.ndarray) -> None:
    """The masks that a prepared video gets, found in the pictures; the exact ones lie in true_moving."""
    writer.flush()
    found = motion_masks(
        lambda i: read_image(writer.file("images", i)),
        lambda i: read_depth(writer.file("depth", i), DEPTH_UNIT),
        np.tile(K, (len(poses), 1, 1)),
        poses,
        range(len(poses)),
    )
    for i, moving in enumerate(found):
        writer.mask(i, moving)


def main() -> None:
    """Render and write the scene folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("-o", "--out", type=Path, default=here / "scenes" / "courtyard")
    parser.add_argument("--frames", type=int, default=FRAMES, help="write only so many, spread over the path")
    parser.add_argument("--quality", type=int, default=75, help="of the WebP images")
    args = parser.parse_args()

    K, poses = intrinsics(SIZE), []
    suns, skies = light_directions()
    with SceneWriter(args.out, image_suffix=".webp", quality=args.quality, png_level=9) as writer:
        for i, frame in enumerate(tqdm(np.unique(np.linspace(0, FRAMES - 1, args.frames).round().astype(int)))):
            camera = camera_at(frame)
            rgb, depth, moving = render(*things_at(frame / FPS).arrays(), K, camera, SIZE, suns, skies)
            writer.image(i, develop(rgb))
            writer.depth(i, depth, DEPTH_UNIT)
            writer.true_moving(i, moving)
            poses.append(camera)
        poses = np.stack(poses)
        write_masks(writer, K, poses)
        writer.finish(
            K,
            poses,
            size=SIZE,
            fps=FPS,
            name="courtyard",
            caption="A sunny courtyard with a tiled floor, brick walls, a stone fountain and an arcade; a striped ball "
            "rolls across, a wooden crate slides, and a yellow balloon rises.",
            metric=True,
            metres_per_unit=1.0,
            depth_unit_scale_factor=DEPTH_UNIT,
            depth_source="exact (ray caster)",
            pose_source="exact (ray caster)",
            focal_source="given",
        )


if __name__ == "__main__":
    main()
