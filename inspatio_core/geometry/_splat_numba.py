"""Compiled CPU path of :mod:`inspatio_core.geometry.splat`: the same operations in the same order, same bytes."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit

from inspatio_core.geometry import splat as plain

NEAR = np.float32(plain.NEAR)
FARTHEST = np.float32(plain.FARTHEST)
MARGIN = plain.MAX_RADIUS
LARGEST = plain.MAX_RADIUS * plain.ONE
ONE, SLACK, STRETCH = plain.ONE, plain.SLACK, plain.STRETCH
DEPTH_TOLERANCE, UNSEEN, OUTSIDE = plain.DEPTH_TOLERANCE, plain.UNSEEN, plain.OUTSIDE
LOW, HIGH = np.float32(plain.POINT_RADIUS[0]), np.float32(plain.POINT_RADIUS[1])
EMPTY = 2**63 - 1

kernel = njit(cache=True, nogil=True, error_model="numpy")
warp_coefficients = kernel(plain.warp_coefficients)
point_coefficients = kernel(plain.point_coefficients)


@kernel
def _project_row(depth, colx, coly, colz, bx, by, bz, tx, ty, tz, w, h, X, Y, Z):
    low = np.float32(-MARGIN)
    right, bottom = np.float32(w + MARGIN), np.float32(h + MARGIN)
    one, half = np.float32(ONE), np.float32(0.5)
    for u in range(depth.shape[0]):
        d = depth[u]
        z = d * (colz[u] + bz) + tz
        x = (d * (colx[u] + bx) + tx) / z
        y = (d * (coly[u] + by) + ty) / z
        ok = (d > np.float32(0)) & (d < FARTHEST) & (z > NEAR) & (z < FARTHEST)
        ok &= (x > low) & (x < right) & (y > low) & (y < bottom)
        X[u] = np.int32(np.floor(x * one + half)) if ok else np.int32(OUTSIDE)
        Y[u] = np.int32(np.floor(y * one + half)) if ok else np.int32(OUTSIDE)
        Z[u] = z


@kernel
def _radius_row(d0, d1, X0, X1, Y0, Y1, Z, zoom, limit, last, RX, RY):
    W = d0.shape[0]
    outside, none = np.int32(OUTSIDE), np.int32(0)
    largest, one, stretch = np.int32(LARGEST), np.int32(ONE), np.int32(STRETCH)
    for u in range(W):
        d = d0[u]
        near = limit * d
        n = min(u + 1, W - 1)
        ok = X0[u] > outside
        right = ok & (X0[n] > outside) & (abs(d0[n] - d) <= near)
        below = ok & (not last) & (X1[u] > outside) & (abs(d1[u] - d) <= near)
        rx = (abs(X0[n] - X0[u]) if right else none) + (abs(X1[u] - X0[u]) if below else none)
        ry = (abs(Y0[n] - Y0[u]) if right else none) + (abs(Y1[u] - Y0[u]) if below else none)
        iso = np.int32(min(d / Z[u] * zoom, np.float32(LARGEST))) if ok else none
        rx = max(rx, iso)
        ry = max(ry, iso)
        RX[u] = one if rx <= stretch else min(rx, largest)
        RY[u] = one if ry <= stretch else min(ry, largest)


@kernel
def _claim(X, Y, Z, RX, RY, w, h, zbuf):
    for i in range(X.shape[0]):
        if X[i] == OUTSIDE:
            continue
        ex = (RX[i] >> 1) + SLACK
        ey = (RY[i] >> 1) + SLACK
        z = Z[i]
        for ty in range(max(0, (Y[i] - ey + 255) >> 8), min(h - 1, (Y[i] + ey) >> 8) + 1):
            for tx in range(max(0, (X[i] - ex + 255) >> 8), min(w - 1, (X[i] + ex) >> 8) + 1):
                t = ty * w + tx
                if z < zbuf[t]:
                    zbuf[t] = z


@kernel
def _gather(X, Y, Z, RX, RY, rgb, w, h, zbuf, total):
    for i in range(X.shape[0]):
        if X[i] == OUTSIDE:
            continue
        x, y = np.int64(X[i]), np.int64(Y[i])
        rx, ry = np.int64(RX[i]), np.int64(RY[i])
        z = np.int64(Z[i])
        r, g, b = np.int64(rgb[i, 0]), np.int64(rgb[i, 1]), np.int64(rgb[i, 2])
        ix = np.int64(ONE) if rx == ONE else 65536 // rx
        iy = np.int64(ONE) if ry == ONE else 65536 // ry
        for ty in range(max(0, ((y - ry) >> 8) + 1), min(h - 1, (y + ry - 1) >> 8) + 1):
            wy = ONE - ((abs(y - (ty << 8)) * iy) >> 8)
            for tx in range(max(0, ((x - rx) >> 8) + 1), min(w - 1, (x + rx - 1) >> 8) + 1):
                t = ty * w + tx
                step = z - zbuf[t]
                if abs(step) <= DEPTH_TOLERANCE:
                    weight = ((ONE - ((abs(x - (tx << 8)) * ix) >> 8)) * wy) >> 8
                    total[t, 0] += weight * r
                    total[t, 1] += weight * g
                    total[t, 2] += weight * b
                    total[t, 3] += weight * step
                    total[t, 4] += weight


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
            inverse = np.float32(1) / np.float32(total[t, 4])
            rgb[t, 0] = np.uint8(np.floor(np.float32(total[t, 0]) * inverse + half))
            rgb[t, 1] = np.uint8(np.floor(np.float32(total[t, 1]) * inverse + half))
            rgb[t, 2] = np.uint8(np.floor(np.float32(total[t, 2]) * inverse + half))
            depth_bits[t] = zbuf[t] + np.int32(np.floor(np.float32(total[t, 3]) * inverse + half))


@kernel
def _splat_rows(rgb, depth, Ks, Kt, T, h, w, X, Y, Z, Zbits, RX, RY, zbuf, total, out_rgb, out_bits, out_known):
    B, H, W = depth.shape
    colx, coly, colz = np.empty(W, np.float32), np.empty(W, np.float32), np.empty(W, np.float32)
    for b in range(B):
        k, q, m = Ks[b], Kt[b], T[b]
        ax, bx, cx, tx, ay, by, cy, ty, az, bz, cz, tz, zoom = warp_coefficients(
            k[0, 0], k[0, 1], k[0, 2], k[1, 1], k[1, 2], q[0, 0], q[0, 1], q[0, 2], q[1, 1], q[1, 2],
            m[0, 0], m[0, 1], m[0, 2], m[0, 3], m[1, 0], m[1, 1], m[1, 2], m[1, 3], m[2, 0], m[2, 1], m[2, 2], m[2, 3],
        )  # fmt: skip
        for u in range(W):
            colx[u] = ax * u
            coly[u] = ay * u
            colz[u] = az * u
        for v in range(H):
            _project_row(
                depth[b, v], colx, coly, colz,
                np.float32(bx * v + cx), np.float32(by * v + cy), np.float32(bz * v + cz),
                np.float32(tx), np.float32(ty), np.float32(tz), w, h, X[v], Y[v], Z[v],
            )  # fmt: skip
        limit = np.float32(max(0.03, 3.0 / k[1, 1]))
        scale = np.float32(zoom * ONE)
        zbuf[:] = UNSEEN
        for v in range(H):
            n = min(v + 1, H - 1)
            _radius_row(
                depth[b, v], depth[b, n], X[v], X[n], Y[v], Y[n], Z[v], scale, limit, v == H - 1, RX[v], RY[v]
            )
            _claim(X[v], Y[v], Zbits[v], RX[v], RY[v], w, h, zbuf)
        total[:] = 0
        for v in range(H):
            _gather(X[v], Y[v], Zbits[v], RX[v], RY[v], rgb[b, v], w, h, zbuf, total)
        _finish(zbuf, total, out_rgb[b], out_bits[b], out_known[b])


_local = threading.local()


def _scratch(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """This thread's reusable array: fresh pages for every frame would cost more than the warp itself."""
    arrays = _local.__dict__.setdefault("arrays", {})
    array = arrays.get(name)
    if array is None or array.shape != shape:
        array = arrays[name] = np.empty(shape, dtype)
    return array


def _run(rgb, depth, Ks, Kt, T, h, w, out_rgb, out_bits, out_known):
    _, H, W = depth.shape
    X, Y, RX, RY = (_scratch(n, (H, W), np.int32) for n in ("X", "Y", "RX", "RY"))
    Z = _scratch("Z", (H, W), np.float32)
    zbuf, total = _scratch("zbuf", (h * w,), np.int32), _scratch("total", (h * w, 5), np.int64)
    _splat_rows(
        rgb, depth, Ks, Kt, T, h, w, X, Y, Z, Z.view(np.int32), RX, RY, zbuf, total, out_rgb, out_bits, out_known
    )


def splat(rgb, depth, K_source, K_target, target_from_source, size):
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
    threads.over_rows(B, B * max(H * W, h * w), lambda s: _run(*(a[s] for a in arrays), h, w, *(o[s] for o in outs)))
    return out_rgb, out_depth, out_known


class _Threads:
    """A few threads for the rows of a batch, made when first needed and made anew in a forked child."""

    def __init__(self):
        self._pool = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self):
        self._pool = None

    def over_rows(self, rows: int, pixels: int, work) -> None:
        """Call ``work(slice)`` on slices that cover all rows, side by side where that is worth a thread."""
        count = min(rows, torch.get_num_threads())
        if count < 2 or pixels < 100_000:
            work(slice(0, rows))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="splat")
        edges = [rows * i // count for i in range(count + 1)]
        jobs = [self._pool.submit(work, slice(a, b)) for a, b in zip(edges[1:-1], edges[2:], strict=True)]
        work(slice(edges[0], edges[1]))
        for job in jobs:
            job.result()


threads = _Threads()


@kernel
def _points(xyz, radius, k, m, h, w, zs, key):
    ax, bx, cx, tx, ay, by, cy, ty, az, bz, cz, tz = point_coefficients(
        k[0, 0], k[0, 1], k[0, 2], k[1, 1], k[1, 2],
        m[0, 0], m[0, 1], m[0, 2], m[0, 3], m[1, 0], m[1, 1], m[1, 2], m[1, 3], m[2, 0], m[2, 1], m[2, 2], m[2, 3],
    )  # fmt: skip
    ax, bx, cx, tx = np.float32(ax), np.float32(bx), np.float32(cx), np.float32(tx)
    ay, by, cy, ty = np.float32(ay), np.float32(by), np.float32(cy), np.float32(ty)
    az, bz, cz, tz = np.float32(az), np.float32(bz), np.float32(cz), np.float32(tz)
    focal = np.float32((k[0, 0] + k[1, 1]) * 0.5)
    zero, right, bottom = np.float32(0), np.float32(w - 1), np.float32(h - 1)
    bits = zs.view(np.int32)
    key[:] = EMPTY
    for i in range(xyz.shape[0]):
        px, py, pz = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        z = az * px + bz * py + cz * pz + tz
        if not (z > NEAR and z < FARTHEST):
            continue
        r = radius[i] * focal / z
        r = (r if r < HIGH else HIGH) if r > LOW else LOW
        x = (ax * px + bx * py + cx * pz + tx) / z
        y = (ay * px + by * py + cy * pz + ty) / z
        if not (x + r >= zero and x - r <= right and y + r >= zero and y - r <= bottom):
            continue
        zs[i] = z
        base = ((np.int64(bits[i]) >> 17) << 48) | i
        limit = r * r + np.float32(0.25)
        x0, x1 = max(0, np.int64(np.ceil(x - r))), min(w - 1, np.int64(np.floor(x + r)))
        for v in range(max(0, np.int64(np.ceil(y - r))), min(h - 1, np.int64(np.floor(y + r))) + 1):
            dy = np.float32(v) - y
            for u in range(x0, x1 + 1):
                dx = np.float32(u) - x
                far = dx * dx + dy * dy
                if far <= limit:
                    value = base | (np.int64(far * np.float32(256)) << 32)
                    t = v * w + u
                    if value < key[t]:
                        key[t] = value


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
    h, w = size
    out_rgb = torch.empty((h, w, 3), dtype=torch.uint8)
    out_depth = torch.empty((h, w), dtype=torch.float32)
    out_known = torch.empty((h, w), dtype=torch.bool)
    zs, key = _scratch("zs", (len(xyz),), np.float32), _scratch("key", (h * w,), np.int64)
    matrices = (m.to("cpu", torch.float64).contiguous().numpy() for m in (K, world_from_camera))
    _points(xyz.float().contiguous().numpy(), radius.float().contiguous().numpy(), *matrices, h, w, zs, key)
    _points_finish(
        key, zs, rgb.contiguous().numpy(),
        out_rgb.view(h * w, 3).numpy(), out_depth.view(h * w).numpy(), out_known.view(h * w).numpy(),
    )  # fmt: skip
    return out_rgb, out_depth, out_known
