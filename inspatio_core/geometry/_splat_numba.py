"""Compiled CPU path of :mod:`inspatio_core.geometry.splat`: the same operations in the same order, same bytes.

The constants and formulas that both paths share stand here and not there: Numba's cache on disk notices a change of
this file only, and would go on with the old value of a constant imported from another.
"""

from __future__ import annotations

import numpy as np
import torch

from inspatio_core.geometry import compiled
from inspatio_core.geometry.compiled import kernel, scratch, threads

NEAR = 0.05
"""Points nearer to the target camera than this (metres) are dropped."""
MAX_RADIUS = 4
"""Largest tent radius in pixels: surfaces stretched more than this come out with holes."""
POINT_RADIUS = (0.5, 6.0)
"""Smallest and largest screen radius of a point in :func:`splat_points`, pixels."""

ONE = 256  # one pixel in fixed-point target coordinates
SLACK = ONE // 16  # claimed beyond the own cell, so that rounding opens no cracks
STRETCH = ONE + ONE // 8  # a stretch up to this is left at radius one: the slack covers it
SHRUNK, SHRUNK_SHIFT = ONE // 16, 6  # pixels seen smaller than 1/16 weigh 1/64: packed sums of many must not overflow
DEPTH_TOLERANCE = 1 << 18  # 1.6 to 3.1 %, in steps of float32 bit patterns
UNSEEN = 2**31 - 1  # z-buffer value of a target that nothing claimed
OUTSIDE = -(1 << 30)  # fixed-point coordinate of a dropped pixel
FARTHEST = 1e30

EMPTY = 2**63 - 1  # key of a target that no point covers
CHUNK = 2048  # points projected at a time
LARGEST = MAX_RADIUS * ONE
INVERSE = 65536 // np.arange(LARGEST + 1).clip(1)  # a table is faster than dividing

_NEAR, _FARTHEST = np.float32(NEAR), np.float32(FARTHEST)
_LOW, _HIGH = np.float32(POINT_RADIUS[0]), np.float32(POINT_RADIUS[1])


def warp_coefficients(k00, k01, k02, k11, k12, q00, q01, q02, q11, q12,
                      r00, r01, r02, t0, r10, r11, r12, t1, r20, r21, r22, t2):  # fmt: skip
    """Rows of ``A = Kt R Ks^-1`` and ``b = Kt t``, so that a pixel (u, v) at depth d goes to ``d A (u,v,1) + b``.

    ``k`` is the source and ``q`` the target camera matrix (upper triangular). Takes numbers or tensors, and spells
    every operation out, so that the compiled and the plain path round alike.
    """
    a0, a1, a2 = r00 / k00, r10 / k00, r20 / k00
    b0, b1, b2 = (r01 - k01 * a0) / k11, (r11 - k01 * a1) / k11, (r21 - k01 * a2) / k11
    c0 = r02 - k02 * a0 - k12 * b0
    c1 = r12 - k02 * a1 - k12 * b1
    c2 = r22 - k02 * a2 - k12 * b2
    magnification = (q00 + q11) / (k00 + k11)
    return (
        q00 * a0 + q01 * a1 + q02 * a2, q00 * b0 + q01 * b1 + q02 * b2, q00 * c0 + q01 * c1 + q02 * c2,
        q00 * t0 + q01 * t1 + q02 * t2,
        q11 * a1 + q12 * a2, q11 * b1 + q12 * b2, q11 * c1 + q12 * c2, q11 * t1 + q12 * t2,
        a2, b2, c2, t2, magnification,
    )  # fmt: skip


def point_coefficients(k00, k01, k02, k11, k12, r00, r01, r02, t0, r10, r11, r12, t1, r20, r21, r22, t2):
    """Rows of ``A = K R^T`` and ``b = -A t`` for a camera at world pose (R, t): X goes to ``A X + b``."""
    b0 = -(r00 * t0 + r10 * t1 + r20 * t2)
    b1 = -(r01 * t0 + r11 * t1 + r21 * t2)
    b2 = -(r02 * t0 + r12 * t1 + r22 * t2)
    return (
        k00 * r00 + k01 * r01 + k02 * r02, k00 * r10 + k01 * r11 + k02 * r12, k00 * r20 + k01 * r21 + k02 * r22,
        k00 * b0 + k01 * b1 + k02 * b2,
        k11 * r01 + k12 * r02, k11 * r11 + k12 * r12, k11 * r21 + k12 * r22, k11 * b1 + k12 * b2,
        r02, r12, r22, b2,
    )  # fmt: skip


_warp_coefficients = kernel(warp_coefficients)
_point_coefficients = kernel(point_coefficients)


@kernel
def _project_row(depth, colx, coly, colz, bx, by, bz, tx, ty, tz, w, h, D, X, Y, Z):
    low = np.float32(-MAX_RADIUS)
    right, bottom = np.float32(w + MAX_RADIUS), np.float32(h + MAX_RADIUS)
    one, half = np.float32(ONE), np.float32(0.5)
    for u in range(depth.shape[0]):
        d = depth[u]
        z = d * (colz[u] + bz) + tz
        x = (d * (colx[u] + bx) + tx) / z
        y = (d * (coly[u] + by) + ty) / z
        ok = (d > np.float32(0)) & (d < _FARTHEST) & (z > _NEAR) & (z < _FARTHEST)
        ok &= (x > low) & (x < right) & (y > low) & (y < bottom)
        X[u] = np.int32(np.floor(x * one + half)) if ok else np.int32(OUTSIDE)
        Y[u] = np.int32(np.floor(y * one + half)) if ok else np.int32(OUTSIDE)
        Z[u] = z
        D[u] = d


@kernel
def _radius_row(d0, right_d, below_d, X0, right_X, below_X, Y0, right_Y, below_Y, Z, zoom, limit, RX, RY):
    outside, none = np.int32(OUTSIDE), np.int32(0)
    largest, one, stretch, shrunk = np.int32(LARGEST), np.int32(ONE), np.int32(STRETCH), np.int32(SHRUNK)
    top = np.float32(LARGEST)
    for u in range(RX.shape[0]):
        d, x, y = d0[u], X0[u], Y0[u]
        near = limit * d
        ok = x > outside
        right = ok & (right_X[u] > outside) & (np.abs(right_d[u] - d) <= near)
        below = ok & (below_X[u] > outside) & (np.abs(below_d[u] - d) <= near)
        iso = d / Z[u] * zoom
        iso = np.int32(iso if iso < top else top) if ok else none
        rx = (np.abs(right_X[u] - x) if right else none) + (np.abs(below_X[u] - x) if below else none)
        ry = (np.abs(right_Y[u] - y) if right else none) + (np.abs(below_Y[u] - y) if below else none)
        rx = rx if rx > iso else iso
        ry = ry if ry > iso else iso
        rx = one if rx <= stretch else (rx if rx < largest else largest)
        RX[u] = rx if iso >= shrunk else -rx
        RY[u] = one if ry <= stretch else (ry if ry < largest else largest)


@kernel
def _claim(X, Y, Z, RX, RY, w, low, high, zbuf):
    """The z-test in target rows low .. high-1."""
    for i in range(X.shape[0]):
        if X[i] == OUTSIDE:
            continue
        x, y, z = np.int64(X[i]), np.int64(Y[i]), Z[i]
        ex, ey = (abs(np.int64(RX[i])) >> 1) + SLACK, (np.int64(RY[i]) >> 1) + SLACK
        x0, x1 = max(0, (x - ex + 255) >> 8), min(w - 1, (x + ex) >> 8)
        y0, y1 = max(low, (y - ey + 255) >> 8), min(high - 1, (y + ey) >> 8)
        if x0 == x1 and y0 == y1:
            t = np.uint64(y0 * w + x0)
            zbuf[t] = min(zbuf[t], z)
            continue
        for ty in range(y0, y1 + 1):
            for tx in range(x0, x1 + 1):
                t = np.uint64(ty * w + tx)
                zbuf[t] = min(zbuf[t], z)


@kernel
def _gather(X, Y, Z, RX, RY, rgb, w, low, high, zbuf, total):
    """Add to ``total`` [h*w, 3], in target rows low .. high-1: red and green, blue and weight (two 32-bit fields
    each), depth step."""
    for i in range(X.shape[0]):
        if X[i] == OUTSIDE:
            continue
        x, y = np.int64(X[i]), np.int64(Y[i])
        rx, ry = np.int64(RX[i]), np.int64(RY[i])
        z = np.int64(Z[i])
        red_green = np.int64(rgb[i, 0]) << 32 | np.int64(rgb[i, 1])
        blue_one = np.int64(rgb[i, 2]) << 32 | 1
        x0, y0 = x >> 8, y >> 8
        if rx == ONE and ry == ONE and x0 >= 0 and y0 >= low and x0 < w - 1 and y0 < high - 1:
            fx, fy = x & 255, y & 255
            t = y0 * w + x0
            for weight, to in (
                ((ONE - fx) * (ONE - fy), t), (fx * (ONE - fy), t + 1), ((ONE - fx) * fy, t + w), (fx * fy, t + w + 1),
            ):  # fmt: skip
                weight >>= 8
                to = np.uint64(to)
                step = z - zbuf[to]
                if abs(step) <= DEPTH_TOLERANCE:
                    total[to, 0] += weight * red_green
                    total[to, 1] += weight * blue_one
                    total[to, 2] += weight * step
            continue
        shift = 0
        if rx < 0:
            rx, shift = -rx, SHRUNK_SHIFT
        ix, iy = INVERSE[rx], INVERSE[ry]
        for ty in range(max(low, ((y - ry) >> 8) + 1), min(high - 1, (y + ry - 1) >> 8) + 1):
            wy = ONE - ((abs(y - (ty << 8)) * iy) >> 8)
            for tx in range(max(0, ((x - rx) >> 8) + 1), min(w - 1, (x + rx - 1) >> 8) + 1):
                t = np.uint64(ty * w + tx)
                step = z - zbuf[t]
                if abs(step) <= DEPTH_TOLERANCE:
                    weight = ((ONE - ((abs(x - (tx << 8)) * ix) >> 8)) * wy) >> 8
                    if shift:
                        weight = max(1, weight >> shift)
                    total[t, 0] += weight * red_green
                    total[t, 1] += weight * blue_one
                    total[t, 2] += weight * step


@kernel
def _finish(zbuf, total, rgb, depth_bits, known):
    half = np.float32(0.5)
    for t in range(zbuf.shape[0]):
        if zbuf[t] == UNSEEN:
            known[t] = False
            rgb[t, 0] = 0
            rgb[t, 1] = 0
            rgb[t, 2] = 0
            depth_bits[t] = 0
        else:
            known[t] = True
            red_green, blue_weight = total[t, 0], total[t, 1]
            inverse = np.float32(1) / np.float32(blue_weight & 0xFFFFFFFF)
            rgb[t, 0] = np.uint8(np.floor(np.float32((red_green >> 32) & 0xFFFFFFFF) * inverse + half))
            rgb[t, 1] = np.uint8(np.floor(np.float32(red_green & 0xFFFFFFFF) * inverse + half))
            rgb[t, 2] = np.uint8(np.floor(np.float32((blue_weight >> 32) & 0xFFFFFFFF) * inverse + half))
            depth_bits[t] = zbuf[t] + np.int32(np.floor(np.float32(total[t, 2]) * inverse + half))


@kernel
def _frame_coefficients(k, q, m):
    return _warp_coefficients(
        k[0, 0], k[0, 1], k[0, 2], k[1, 1], k[1, 2], q[0, 0], q[0, 1], q[0, 2], q[1, 1], q[1, 2],
        m[0, 0], m[0, 1], m[0, 2], m[0, 3], m[1, 0], m[1, 1], m[1, 2], m[1, 3], m[2, 0], m[2, 1], m[2, 2], m[2, 3],
    )  # fmt: skip


@kernel
def _project_rows(depth, k, q, m, h, w, first, last, D, X, Y, Z):
    """Source rows first .. last-1 of one frame into target coordinates."""
    W = depth.shape[1]
    colx, coly, colz = np.empty(W, np.float32), np.empty(W, np.float32), np.empty(W, np.float32)
    ax, bx, cx, tx, ay, by, cy, ty, az, bz, cz, tz, _ = _frame_coefficients(k, q, m)
    for u in range(W):
        colx[u] = ax * u
        coly[u] = ay * u
        colz[u] = az * u
    for v in range(first, last):
        _project_row(
            depth[v], colx, coly, colz,
            np.float32(bx * v + cx), np.float32(by * v + cy), np.float32(bz * v + cz),
            np.float32(tx), np.float32(ty), np.float32(tz), w, h, D[v], X[v], Y[v], Z[v],
        )  # fmt: skip
        X[v, W] = OUTSIDE  # right of the last column there is no neighbour, nor below the last row
    if last == depth.shape[0]:
        X[last] = OUTSIDE


@kernel
def _radius_rows(k, q, m, first, last, D, X, Y, Z, RX, RY, reach):
    """Tent radii of source rows first .. last-1, and ``reach`` [H, 2]: the lowest and highest target y of each row."""
    W = RX.shape[1]
    zoom = _frame_coefficients(k, q, m)[12]
    limit = np.float32(max(0.03, 3.0 / k[1, 1]))
    scale = np.float32(zoom * ONE)
    for v in range(first, last):
        _radius_row(
            D[v], D[v, 1:], D[v + 1], X[v], X[v, 1:], X[v + 1], Y[v], Y[v, 1:], Y[v + 1],
            Z[v], scale, limit, RX[v], RY[v],
        )  # fmt: skip
        lowest, highest = -OUTSIDE, OUTSIDE
        for u in range(W):
            y = np.int64(Y[v, u])
            lowest = min(lowest, y if y != OUTSIDE else lowest)
            highest = max(highest, y)
        reach[v, 0] = (lowest >> 8) - MAX_RADIUS
        reach[v, 1] = (highest >> 8) + MAX_RADIUS + 1


@kernel
def _band(X, Y, Z, RX, RY, reach, rgb, w, low, high, zbuf, total, out_rgb, out_bits, out_known):
    """Target rows low .. high-1 of one frame. Bands do not depend on each other: sums are of integers."""
    H, W = RX.shape
    a, b = low * w, high * w
    zbuf[a:b] = UNSEEN
    for v in range(H):
        if reach[v, 1] >= low and reach[v, 0] < high:
            _claim(X[v, :W], Y[v, :W], Z[v], RX[v], RY[v], w, low, high, zbuf)
    total[a:b] = 0
    for v in range(H):
        if reach[v, 1] >= low and reach[v, 0] < high:
            _gather(X[v, :W], Y[v, :W], Z[v], RX[v], RY[v], rgb[v], w, low, high, zbuf, total)
    _finish(zbuf[a:b], total[a:b], out_rgb[a:b], out_bits[a:b], out_known[a:b])


@kernel
def _splat_rows(
    rgb, depth, Ks, Kt, T, h, w, D, X, Y, Z, Zbits, RX, RY, reach, zbuf, total, out_rgb, out_bits, out_known
):
    B, H, W = depth.shape
    for b in range(B):
        _project_rows(depth[b], Ks[b], Kt[b], T[b], h, w, 0, H, D, X, Y, Z)
        _radius_rows(Ks[b], Kt[b], T[b], 0, H, D, X, Y, Z, RX, RY, reach)
        _band(X, Y, Zbits, RX, RY, reach, rgb[b], w, 0, h, zbuf, total, out_rgb[b], out_bits[b], out_known[b])


def _buffers(H, W, h, w):
    """D, X, Y, Z, Z's bits, RX, RY, reach, zbuf, total of one frame."""
    Z = scratch("Z", (H, W), np.float32)
    return (
        scratch("D", (H + 1, W + 1), np.float32), scratch("X", (H + 1, W + 1), np.int32),
        scratch("Y", (H + 1, W + 1), np.int32), Z, Z.view(np.int32),
        scratch("RX", (H, W), np.int32), scratch("RY", (H, W), np.int32), scratch("reach", (H, 2), np.int64),
        scratch("zbuf", (h * w,), np.int32), scratch("total", (h * w, 3), np.int64),
    )  # fmt: skip


def _run(rgb, depth, Ks, Kt, T, h, w, out_rgb, out_bits, out_known):
    """Frames one after another in this thread."""
    _splat_rows(rgb, depth, Ks, Kt, T, h, w, *_buffers(*depth.shape[1:], h, w), out_rgb, out_bits, out_known)


def _run_together(rgb, depth, Ks, Kt, T, h, w, out_rgb, out_bits, out_known):
    """One frame by several threads: source rows are shared out first, then bands of the target."""
    H, W = depth.shape
    D, X, Y, Z, bits, RX, RY, reach, zbuf, total = _buffers(H, W, h, w)
    threads.over_rows(H, H * W, lambda s: _project_rows(depth, Ks, Kt, T, h, w, s.start, s.stop, D, X, Y, Z))
    threads.over_rows(H, H * W, lambda s: _radius_rows(Ks, Kt, T, s.start, s.stop, D, X, Y, Z, RX, RY, reach))
    threads.over_rows(
        h,
        H * W,
        lambda s: _band(X, Y, bits, RX, RY, reach, rgb, w, s.start, s.stop, zbuf, total, out_rgb, out_bits, out_known),
    )


def splat(rgb, depth, K_source, K_target, target_from_source, size):
    """`splat.splat` of frames on the CPU, checked there: (rgb, depth, known) [B,h,w,..] as of its `Splat`."""
    B, H, W = depth.shape
    h, w = size
    out_rgb = torch.empty((B, h, w, 3), dtype=torch.uint8)
    out_depth = torch.empty((B, h, w), dtype=torch.float32)
    out_known = torch.empty((B, h, w), dtype=torch.bool)
    arrays = [
        rgb.contiguous().numpy(), depth.to(torch.float32).contiguous().numpy(),
        *(m.to("cpu", torch.float64).contiguous().numpy() for m in (K_source, K_target, target_from_source)),
    ]  # fmt: skip
    outs = [
        out_rgb.view(B, h * w, 3).numpy(),
        out_depth.view(B, h * w).numpy().view(np.int32),
        out_known.view(B, h * w).numpy(),
    ]
    if B < torch.get_num_threads() and H * W >= compiled.WORTH_A_THREAD:
        for b in range(B):
            _run_together(*(a[b] for a in arrays), h, w, *(o[b] for o in outs))
    else:
        work = B * max(H * W, h * w)
        threads.over_rows(B, work, lambda s: _run(*(a[s] for a in arrays), h, w, *(o[s] for o in outs)))
    return out_rgb, out_depth, out_known


@kernel
def _points(xyz, radius, k, m, h, w, zs, key):
    ax, bx, cx, tx, ay, by, cy, ty, az, bz, cz, tz = _point_coefficients(
        k[0, 0], k[0, 1], k[0, 2], k[1, 1], k[1, 2],
        m[0, 0], m[0, 1], m[0, 2], m[0, 3], m[1, 0], m[1, 1], m[1, 2], m[1, 3], m[2, 0], m[2, 1], m[2, 2], m[2, 3],
    )  # fmt: skip
    ax, bx, cx, tx = np.float32(ax), np.float32(bx), np.float32(cx), np.float32(tx)
    ay, by, cy, ty = np.float32(ay), np.float32(by), np.float32(cy), np.float32(ty)
    az, bz, cz, tz = np.float32(az), np.float32(bz), np.float32(cz), np.float32(tz)
    focal = np.float32((k[0, 0] + k[1, 1]) * 0.5)
    zero, right, bottom = np.float32(0), np.float32(w - 1), np.float32(h - 1)
    P = xyz.shape[0]
    X, Y, R = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    inside = np.empty(CHUNK, np.bool_)
    chosen = np.empty(CHUNK, np.int64)
    bits = zs.view(np.int32)
    key[:] = EMPTY
    for start in range(0, P, CHUNK):
        size = min(CHUNK, P - start)
        for j in range(size):  # without branches, so that it is vectorised
            i = start + j
            px, py, pz = xyz[i, 0], xyz[i, 1], xyz[i, 2]
            z = az * px + bz * py + cz * pz + tz
            r = radius[i] * focal / z
            r = (r if r < _HIGH else _HIGH) if r > _LOW else _LOW
            x = (ax * px + bx * py + cx * pz + tx) / z
            y = (ay * px + by * py + cy * pz + ty) / z
            ok = (z > _NEAR) & (z < _FARTHEST) & (x + r >= zero) & (x - r <= right)
            inside[j] = ok & (y + r >= zero) & (y - r <= bottom)
            zs[i], X[j], Y[j], R[j] = z, x, y, r
        count = 0
        for j in range(size):
            chosen[count] = j
            count += inside[j]
        for n in range(count):
            j = chosen[n]
            i = start + j
            x, y, r = X[j], Y[j], R[j]
            base = ((np.int64(bits[i]) >> 17) << 48) | i
            limit = r * r + np.float32(0.25)
            x0, x1 = max(0, np.int64(np.ceil(x - r))), min(w - 1, np.int64(np.floor(x + r)))
            y0, y1 = max(0, np.int64(np.ceil(y - r))), min(h - 1, np.int64(np.floor(y + r)))
            for v in range(y0, y1 + 1):
                dy = np.float32(v) - y
                for u in range(x0, x1 + 1):
                    dx = np.float32(u) - x
                    far = dx * dx + dy * dy
                    value = base | (np.int64(far * np.float32(256)) << 32)
                    t = np.uint64(v * w + u)
                    key[t] = min(key[t], value if far <= limit else EMPTY)


@kernel
def _points_finish(key, zs, colours, rgb, depth, known):
    for t in range(key.shape[0]):
        if key[t] == EMPTY:
            known[t] = False
            rgb[t, 0] = 0
            rgb[t, 1] = 0
            rgb[t, 2] = 0
            depth[t] = 0
        else:
            i = key[t] & 0xFFFFFFFF
            known[t] = True
            rgb[t, 0] = colours[i, 0]
            rgb[t, 1] = colours[i, 1]
            rgb[t, 2] = colours[i, 2]
            depth[t] = zs[i]


def splat_points(xyz, rgb, radius, K, world_from_camera, size):
    """`splat.splat_points` of a cloud on the CPU, checked there: (rgb, depth, known) [h,w,..] as of its `Splat`."""
    h, w = size
    out_rgb = torch.empty((h, w, 3), dtype=torch.uint8)
    out_depth = torch.empty((h, w), dtype=torch.float32)
    out_known = torch.empty((h, w), dtype=torch.bool)
    zs, key = scratch("zs", (len(xyz),), np.float32), scratch("key", (h * w,), np.int64)
    matrices = (m.to("cpu", torch.float64).contiguous().numpy() for m in (K, world_from_camera))
    _points(xyz.float().contiguous().numpy(), radius.float().contiguous().numpy(), *matrices, h, w, zs, key)
    _points_finish(
        key, zs, rgb.contiguous().numpy(),
        out_rgb.view(h * w, 3).numpy(), out_depth.view(h * w).numpy(), out_known.view(h * w).numpy(),
    )  # fmt: skip
    return out_rgb, out_depth, out_known
