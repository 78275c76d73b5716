"""Compiled inner loops of :mod:`inspatio_core.geometry.point_map` (the plain versions stand there, next to their use).

The hash is open-addressed with linear probing: ``table[i]`` is a row of the point arrays or -1, and ``key[row]`` is the
voxel's key. Deletion shifts followers back, so there are no tombstones and the cost of a look-up never degrades.
All arithmetic is float64 in a fixed order, which is what makes the plain version equal bit for bit.
"""

import math

import numpy as np
from numba import njit

# A voxel's key, from the high end: 6 bits level (biased), then 19 bits each of x, y and z (biased); never negative.
HALF_RANGE = 1 << 18
LEVEL_BIAS = 32
LEVEL_BITS_AT, X_BITS_AT, Y_BITS_AT = 57, 38, 19

# What a pixel of an inserted frame says.
NO_EVIDENCE, DEPTH_ONLY, INSERTABLE, COVERED = 0, 1, 2, 3


REACH = 2  # a point covers at most this many pixels around its own


@njit(cache=True, nogil=True, inline="always")
def _home(key, mask):
    k = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    k ^= k >> np.uint64(29)
    k *= np.uint64(0xBF58476D1CE4E5B9)
    return np.int64(k >> np.uint64(32)) & mask


@njit(cache=True, nogil=True)
def build_table(table, key, top):
    """Fill the hash from the keys of rows [0, top)."""
    table[:] = -1
    mask = np.int64(table.shape[0] - 1)
    for row in range(top):
        if key[row] >= 0:
            i = _home(key[row], mask)
            while table[i] >= 0:
                i = (i + 1) & mask
            table[i] = row


@njit(cache=True, nogil=True)
def _unlink(table, key, row):
    """Take ``row`` out of the hash, moving later entries of its run back over the gap."""
    mask = np.int64(table.shape[0] - 1)
    i = _home(key[row], mask)
    while table[i] != row:
        i = (i + 1) & mask
    j = i
    while True:
        j = (j + 1) & mask
        if table[j] < 0:
            break
        home = _home(key[table[j]], mask)
        if ((j - home) & mask) >= ((j - i) & mask):
            table[i] = table[j]
            i = j
    table[i] = -1


@njit(cache=True, nogil=True)
def remove(rows, table, key, free, counters, revision):
    """Free ``rows`` in the given order. counters = [top, free, revision, alive]."""
    for row in rows:
        _unlink(table, key, row)
        key[row] = -1
        free[counters[1]] = row
        counters[1] += 1
        counters[2] += 1
        counters[3] -= 1
        revision[row] = counters[2]


@njit(cache=True, nogil=True, inline="always")
def _see(row, stamp, min_views, last_seen, views, revision, counters):
    """Another look at a point; the one that makes it shown is a change."""
    if last_seen[row] != stamp:
        last_seen[row] = stamp
        views[row] = min(views[row] + 1, 255)
        if views[row] == min_views:
            counters[2] += 1
            revision[row] = counters[2]


@njit(cache=True, nogil=True)
def associate(
    status, depth, nearest, level, camera, K, carve_ratio, merge_ratio, frame_origin, frame_confidence, stamp, tick,
    min_views, key, xyz, radius, point_level, origin, confidence, last_seen, last_tick, views, revision, counters, drop,
):  # fmt: skip
    """Compare every point with the frame: mark seen points, cover their pixels, list points to drop. -> their number.

    status u8 [H,W]: 0 no evidence, 1 depth only, 2 insertable; becomes 3 where a point of the map covers the pixel.
    """
    height, width = depth.shape
    fx, skew, cx, fy, cy = K[0, 0], K[0, 1], K[0, 2], K[1, 1], K[1, 2]
    dropped = 0
    for row in range(counters[0]):
        if key[row] < 0:
            continue
        px, py, pz = np.float64(xyz[row, 0]), np.float64(xyz[row, 1]), np.float64(xyz[row, 2])
        z = camera[2, 0] * px + camera[2, 1] * py + camera[2, 2] * pz + camera[2, 3]
        if z <= 1e-6:
            continue
        x = camera[0, 0] * px + camera[0, 1] * py + camera[0, 2] * pz + camera[0, 3]
        y = camera[1, 0] * px + camera[1, 1] * py + camera[1, 2] * pz + camera[1, 3]
        u = np.floor((fx * x + skew * y) / z + cx + 0.5)
        v = np.floor(fy * y / z + cy + 0.5)
        if not (0 <= u < width and 0 <= v < height):
            continue
        ui, vi = np.int64(u), np.int64(v)
        code = status[vi, ui]
        if code == NO_EVIDENCE:
            continue
        if nearest[vi, ui] * (1.0 - carve_ratio) > z:
            if frame_origin <= origin[row]:
                drop[dropped] = row
                dropped += 1
            continue
        slack = radius[row] + merge_ratio * z
        if code < INSERTABLE or abs(z - depth[vi, ui]) > slack:
            continue
        if frame_origin < origin[row] or (
            frame_origin == origin[row]
            and (
                level[vi, ui] < point_level[row]
                or (level[vi, ui] == point_level[row] and frame_confidence[vi, ui] > confidence[row])
            )
        ):
            drop[dropped] = row
            dropped += 1
            continue
        last_tick[row] = tick
        _see(row, stamp, min_views, last_seen, views, revision, counters)
        reach = min(np.int64(radius[row] * fx / z + 0.5), REACH)
        for b in range(max(vi - reach, 0), min(vi + reach + 1, height)):
            for a in range(max(ui - reach, 0), min(ui + reach + 1, width)):
                if status[b, a] == INSERTABLE and abs(z - depth[b, a]) <= slack:
                    status[b, a] = COVERED
    return dropped


@njit(cache=True, nogil=True)
def insert(
    start, status, rgb, depth, level, rays, camera_centre, frame_origin, frame_confidence, stamp, tick, radius_factor,
    min_views, table, key, xyz, color, radius, point_level, origin, confidence, last_seen, last_tick, views, revision,
    free, counters, first_new,
):  # fmt: skip
    """Insert the insertable pixels from flat index ``start`` on; -> the index where storage ran out, or H*W.

    rays f64 [3,3] = R K^-1: a pixel's world direction at depth 1. ``first_new``: revision before this frame; a row with
    a later one was made by this frame, and keeps the pixel nearest to its voxel's centre.
    """
    height, width = depth.shape
    mask = np.int64(table.shape[0] - 1)
    for index in range(start, height * width):
        v = index // width
        u = index - v * width
        if status[v, u] != INSERTABLE:
            continue
        d = np.float64(depth[v, u])
        x = np.float32((rays[0, 0] * u + rays[0, 1] * v + rays[0, 2]) * d + camera_centre[0])
        y = np.float32((rays[1, 0] * u + rays[1, 1] * v + rays[1, 2]) * d + camera_centre[1])
        z = np.float32((rays[2, 0] * u + rays[2, 1] * v + rays[2, 2]) * d + camera_centre[2])
        lev = np.int64(level[v, u])
        while True:
            per_edge = math.ldexp(1.0, -lev)
            sx, sy, sz = np.float64(x) * per_edge, np.float64(y) * per_edge, np.float64(z) * per_edge
            fx, fy, fz = np.floor(sx), np.floor(sy), np.floor(sz)
            if max(abs(fx), abs(fy), abs(fz)) < HALF_RANGE:
                break
            lev += 1
        voxel = (
            ((lev + LEVEL_BIAS) << LEVEL_BITS_AT)
            | ((np.int64(fx) + HALF_RANGE) << X_BITS_AT)
            | ((np.int64(fy) + HALF_RANGE) << Y_BITS_AT)
            | (np.int64(fz) + HALF_RANGE)
        )
        i = _home(voxel, mask)
        row = np.int64(table[i])
        while row >= 0 and key[row] != voxel:
            i = (i + 1) & mask
            row = np.int64(table[i])
        if row < 0:
            if counters[1] > 0:
                counters[1] -= 1
                row = np.int64(free[counters[1]])
            elif counters[0] < key.shape[0]:
                row = counters[0]
                counters[0] += 1
            else:
                return index
            table[i] = row
            key[row] = voxel
            counters[3] += 1
            views[row] = 1
        else:
            last_tick[row] = tick
            if revision[row] > first_new:
                old = (
                    (np.float64(xyz[row, 0]) * per_edge - fx - 0.5) ** 2
                    + (np.float64(xyz[row, 1]) * per_edge - fy - 0.5) ** 2
                    + (np.float64(xyz[row, 2]) * per_edge - fz - 0.5) ** 2
                )
                new = (sx - fx - 0.5) ** 2 + (sy - fy - 0.5) ** 2 + (sz - fz - 0.5) ** 2
                if new >= old:
                    continue
            else:
                _see(row, stamp, min_views, last_seen, views, revision, counters)
                if frame_origin > origin[row] or (
                    frame_origin == origin[row] and frame_confidence[v, u] <= confidence[row]
                ):
                    continue
        xyz[row, 0], xyz[row, 1], xyz[row, 2] = x, y, z
        color[row, 0], color[row, 1], color[row, 2] = rgb[v, u, 0], rgb[v, u, 1], rgb[v, u, 2]
        radius[row] = np.float32(radius_factor * math.ldexp(1.0, lev))
        point_level[row] = lev
        origin[row] = frame_origin
        confidence[row] = frame_confidence[v, u]
        last_seen[row] = stamp
        last_tick[row] = tick
        counters[2] += 1
        revision[row] = counters[2]
    return height * width
