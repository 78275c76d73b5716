"""Compiled CPU path of :mod:`inspatio_core.geometry.fill`: the same operations in the same order, same bytes.

It differs in what it leaves out: cells that no hole will ask for are not computed.
"""

from __future__ import annotations

import numpy as np
import torch

from inspatio_core.geometry import fill as plain
from inspatio_core.geometry._splat_numba import _scratch, kernel, threads

BANK = plain.BANK
LOW, SLOPE = np.float32(plain.RAMP[0]), np.float32(1 / (plain.RAMP[1] - plain.RAMP[0]))
LEAST = np.float32(plain.LEAST)
GREY = np.uint8(plain.GREY)


@kernel
def _run_banks(depth, known, weight, a, b):
    """The hole is [a, b) of this row or column: weigh the pixels beside it."""
    n = known.shape[0]
    far = np.float32(0)
    for k in range(1, 4):
        if a - k < 0 or not known[a - k]:
            break
        far = max(far, depth[a - k])
    for k in range(3):
        if b + k >= n or not known[b + k]:
            break
        far = max(far, depth[b + k])
    for k in range(1, BANK + 1):
        if a - k < 0 or not known[a - k]:
            break
        own = min(max((depth[a - k] / far - LOW) * SLOPE, LEAST), np.float32(1))
        weight[a - k] = min(weight[a - k], own)
    for k in range(BANK):
        if b + k >= n or not known[b + k]:
            break
        own = min(max((depth[b + k] / far - LOW) * SLOPE, LEAST), np.float32(1))
        weight[b + k] = min(weight[b + k], own)


@kernel
def _banks(depth, known, weight):
    n = known.shape[0]
    j = 0
    while j < n:
        if known[j]:
            j += 1
            continue
        a = j
        while j < n and not known[j]:
            j += 1
        if j - a < n:
            _run_banks(depth, known, weight, a, j)


@kernel
def _push_first(rgb, depth, weight, value, total):
    H, W = weight.shape
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            sum_ = np.float32(0)
            r, g, b, z = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for y in range(2 * i, min(2 * i + 2, H)):
                for x in range(2 * j, min(2 * j + 2, W)):
                    w = weight[y, x]
                    if w <= np.float32(1):
                        sum_ += w
                        r += np.float32(rgb[y, x, 0]) * w
                        g += np.float32(rgb[y, x, 1]) * w
                        b += np.float32(rgb[y, x, 2]) * w
                        z += depth[y, x] * w
            inverse = np.float32(1) / sum_ if sum_ > 0 else np.float32(0)
            value[i, j, 0] = r * inverse
            value[i, j, 1] = g * inverse
            value[i, j, 2] = b * inverse
            value[i, j, 3] = z * inverse
            total[i, j] = min(sum_, np.float32(1))


@kernel
def _push(fine, weight, value, total):
    H, W = weight.shape
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            sum_ = np.float32(0)
            r, g, b, z = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for y in range(2 * i, min(2 * i + 2, H)):
                for x in range(2 * j, min(2 * j + 2, W)):
                    w = weight[y, x]
                    sum_ += w
                    r += fine[y, x, 0] * w
                    g += fine[y, x, 1] * w
                    b += fine[y, x, 2] * w
                    z += fine[y, x, 3] * w
            inverse = np.float32(1) / sum_ if sum_ > 0 else np.float32(0)
            value[i, j, 0] = r * inverse
            value[i, j, 1] = g * inverse
            value[i, j, 2] = b * inverse
            value[i, j, 3] = z * inverse
            total[i, j] = min(sum_, np.float32(1))


@kernel
def _above(field, y, x, c):
    h, w = field.shape[0], field.shape[1]
    y0, x0 = y >> 1, x >> 1
    y1 = min(max(y0 + (y & 1) * 2 - 1, 0), h - 1)
    x1 = min(max(x0 + (x & 1) * 2 - 1, 0), w - 1)
    a, b, d = np.float32(0.5625), np.float32(0.1875), np.float32(0.0625)
    return ((field[y0, x0, c] * a + field[y0, x1, c] * b) + field[y1, x0, c] * b) + field[y1, x1, c] * d


@kernel
def _pull(field, value, total, wanted):
    """Complete ``value`` in place from the level above, where ``wanted`` (an empty mask: everywhere)."""
    everywhere = wanted.shape[0] == 0
    for y in range(total.shape[0]):
        for x in range(total.shape[1]):
            w = total[y, x]
            if w == np.float32(1) or not (everywhere or wanted[y, x]):
                continue
            rest = np.float32(1) - w
            for c in range(4):
                value[y, x, c] = value[y, x, c] * w + _above(field, y, x, c) * rest


@kernel
def _pull_last(field, known, rgb, depth):
    half = np.float32(0.5)
    for y in range(known.shape[0]):
        for x in range(known.shape[1]):
            if not known[y, x]:
                for c in range(3):
                    rgb[y, x, c] = np.uint8(np.floor(_above(field, y, x, c) + half))
                depth[y, x] = _above(field, y, x, 3)


@kernel
def _wanted(known, wanted):
    """Cells of the first level that a hole pixel reads: those within one cell of it."""
    h, w = wanted.shape
    wanted[:] = False
    for y in range(known.shape[0]):
        for x in range(known.shape[1]):
            if not known[y, x]:
                i, j = y >> 1, x >> 1
                i1 = min(max(i + (y & 1) * 2 - 1, 0), h - 1)
                j1 = min(max(j + (x & 1) * 2 - 1, 0), w - 1)
                wanted[i, j] = True
                wanted[i, j1] = True
                wanted[i1, j] = True
                wanted[i1, j1] = True


@kernel
def _fill_rows(rgb, depth, known, default_depth, weight, pool, totals, wanted, out_rgb, out_depth):
    B, H, W = known.shape
    everywhere = np.empty((0, 0), np.bool_)
    heights, widths, starts = np.empty(32, np.int64), np.empty(32, np.int64), np.empty(32, np.int64)
    levels = 0
    h, w, start = H, W, 0
    while h > 1 or w > 1:
        h, w = (h + 1) >> 1, (w + 1) >> 1
        heights[levels], widths[levels], starts[levels] = h, w, start
        start += h * w
        levels += 1
    for b in range(B):
        out_rgb[b] = rgb[b]
        out_depth[b] = depth[b]
        count = known[b].sum()
        if count == H * W:
            continue
        if count == 0:
            out_rgb[b] = GREY
            out_depth[b] = np.float32(default_depth[b])
            continue
        weight[:] = np.float32(2)
        for y in range(H):
            _banks(depth[b, y], known[b, y], weight[y])
        for x in range(W):
            _banks(depth[b, :, x], known[b, :, x], weight[:, x])
        for k in range(levels):
            h, w, s = heights[k], widths[k], starts[k]
            value, total = pool[s : s + h * w].reshape((h, w, 4)), totals[s : s + h * w].reshape((h, w))
            if k == 0:
                _push_first(rgb[b], depth[b], weight, value, total)
            else:
                h, w, s = heights[k - 1], widths[k - 1], starts[k - 1]
                _push(pool[s : s + h * w].reshape((h, w, 4)), totals[s : s + h * w].reshape((h, w)), value, total)
        _wanted(known[b], wanted)
        h, w, s = heights[levels - 1], widths[levels - 1], starts[levels - 1]
        field = pool[s : s + h * w].reshape((h, w, 4))
        for k in range(levels - 2, -1, -1):
            h, w, s = heights[k], widths[k], starts[k]
            value, total = pool[s : s + h * w].reshape((h, w, 4)), totals[s : s + h * w].reshape((h, w))
            _pull(field, value, total, wanted if k == 0 else everywhere)
            field = value
        _pull_last(field, known[b], out_rgb[b], out_depth[b])


def fill(rgb, depth, known, default_depth):
    B, H, W = known.shape
    out_rgb, out_depth = torch.empty_like(rgb), torch.empty((B, H, W), dtype=torch.float32)
    ins = [
        rgb.contiguous().numpy(), depth.to(torch.float32).contiguous().numpy(), known.contiguous().numpy(),
        default_depth.contiguous().numpy(),
    ]  # fmt: skip
    outs = [out_rgb.numpy(), out_depth.numpy()]
    cells, h, w = 0, H, W
    while h > 1 or w > 1:
        h, w = (h + 1) >> 1, (w + 1) >> 1
        cells += h * w

    def work(rows):
        _fill_rows(
            *(t[rows] for t in ins),
            _scratch("weight", (H, W), np.float32),
            _scratch("pool", (cells, 4), np.float32),
            _scratch("totals", (cells,), np.float32),
            _scratch("wanted", ((H + 1) >> 1, (W + 1) >> 1), np.bool_),
            *(t[rows] for t in outs),
        )

    threads.over_rows(B, B * H * W, work)
    return out_rgb, out_depth
