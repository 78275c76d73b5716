"""Compiled CPU path of :mod:`inspatio_core.geometry.fill`: the same operations in the same order, same bytes.

It differs in what it leaves out: cells that no hole will ask for are not computed. The constants of both paths stand
here, since the cache of compiled code notices a change of this file only.
"""

from __future__ import annotations

import numpy as np
import torch

from inspatio_core.geometry.compiled import kernel, scratch, threads

BANK = 4
"""Width of the strip of known pixels beside a hole that it is filled from."""
ASIDE = 2
"""So many runs on either side are asked as well: a notch in a silhouette has near ends only."""
RAMP = (0.88, 0.98)
"""A source at this fraction of the farther end's depth weighs nothing, or all."""
RAMP_ASIDE = (0.5, 0.75)
"""The same for the farther ends of the runs aside: lenient, since depth may slope."""
LEAST = 1e-6  # weight of a rejected source: it counts only where there is no other
GREY = 128
TENT = (0.25, 0.75, 0.75, 0.25)

LOW, SLOPE = np.float32(RAMP[0]), np.float32(1 / (RAMP[1] - RAMP[0]))
LOW_ASIDE, SLOPE_ASIDE = np.float32(RAMP_ASIDE[0]), np.float32(1 / (RAMP_ASIDE[1] - RAMP_ASIDE[0]))
TENT_4X4 = np.outer(TENT, TENT).astype(np.float32)


@kernel
def _banks(depth, known, far, runs, weight):
    """Weigh the pixels beside the runs of holes of each row. Transposed views make it the columns."""
    H, W = known.shape
    count = 0
    for y in range(H):
        j = 0
        while j < W:
            if known[y, j]:
                far[y, j] = 0
                j += 1
                continue
            a = j
            while j < W and not known[y, j]:
                j += 1
            best = np.float32(0)
            for k in range(a - 1, max(a - 4, -1), -1):
                if not known[y, k]:
                    break
                best = max(best, depth[y, k])
            for k in range(j, min(j + 3, W)):
                if not known[y, k]:
                    break
                best = max(best, depth[y, k])
            for k in range(a, j):
                far[y, k] = best
            if j - a < W:
                runs[count, 0], runs[count, 1], runs[count, 2] = y, a, j
                count += 1
    for n in range(count):
        y, a, b = runs[n, 0], runs[n, 1], runs[n, 2]
        aside = _aside(far, y, a)
        for k in range(a - 1, max(a - 1 - BANK, -1), -1):
            if not known[y, k]:
                break
            weight[y, k] = min(weight[y, k], _worth(depth[y, k], far[y, a], aside))
        aside = _aside(far, y, b - 1)
        for k in range(b, min(b + BANK, W)):
            if not known[y, k]:
                break
            weight[y, k] = min(weight[y, k], _worth(depth[y, k], far[y, a], aside))


@kernel
def _aside(far, y, x):
    best = np.float32(0)
    for i in range(max(0, y - ASIDE), min(far.shape[0], y + ASIDE + 1)):
        best = max(best, far[i, x])
    return best


@kernel
def _worth(depth, far, aside):
    own = min(max((depth / far - LOW) * SLOPE, np.float32(LEAST)), np.float32(1))
    return min(own, min(max((depth / aside - LOW_ASIDE) * SLOPE_ASIDE, np.float32(LEAST)), np.float32(1)))


@kernel
def _mark(asks, cells):
    """Mark the cells within one cell of a pixel: those that read it when halving, and those it reads when doubling."""
    h, w = cells.shape
    cells[:] = False
    for y in range(asks.shape[0]):
        for x in range(asks.shape[1]):
            if asks[y, x]:
                i, j = y >> 1, x >> 1
                i1 = min(max(i + (y & 1) * 2 - 1, 0), h - 1)
                j1 = min(max(j + (x & 1) * 2 - 1, 0), w - 1)
                cells[i, j] = True
                cells[i, j1] = True
                cells[i1, j] = True
                cells[i1, j1] = True


@kernel
def _push_first(rgb, depth, weight, active, value, total):
    H, W = weight.shape
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            sum_ = np.float32(0)
            r, g, b, z = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            if active[i, j]:
                for y in range(max(0, 2 * i - 1), min(2 * i + 3, H)):
                    for x in range(max(0, 2 * j - 1), min(2 * j + 3, W)):
                        w = weight[y, x]
                        if w <= np.float32(1):
                            w *= TENT_4X4[y - 2 * i + 1, x - 2 * j + 1]
                            sum_ += w
                            r += np.float32(rgb[y, x, 0]) * w
                            g += np.float32(rgb[y, x, 1]) * w
                            b += np.float32(rgb[y, x, 2]) * w
                            z += depth[y, x] * w
            _store(value, total, i, j, r, g, b, z, sum_)


@kernel
def _push(fine, weight, value, total):
    H, W = weight.shape
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            sum_ = np.float32(0)
            r, g, b, z = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for y in range(max(0, 2 * i - 1), min(2 * i + 3, H)):
                for x in range(max(0, 2 * j - 1), min(2 * j + 3, W)):
                    w = weight[y, x]
                    if w > np.float32(0):
                        w *= TENT_4X4[y - 2 * i + 1, x - 2 * j + 1]
                        sum_ += w
                        r += fine[y, x, 0] * w
                        g += fine[y, x, 1] * w
                        b += fine[y, x, 2] * w
                        z += fine[y, x, 3] * w
            _store(value, total, i, j, r, g, b, z, sum_)


@kernel
def _store(value, total, i, j, r, g, b, z, sum_):
    inverse = np.float32(1) / sum_ if sum_ > np.float32(0) else np.float32(0)
    value[i, j, 0] = r * inverse
    value[i, j, 1] = g * inverse
    value[i, j, 2] = b * inverse
    value[i, j, 3] = z * inverse
    worth = sum_ + sum_ * sum_ * np.float32(0.5)
    total[i, j] = worth / (np.float32(1) + worth)


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
            if not (everywhere or wanted[y, x]):
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
def _fill_rows(rgb, depth, known, default_depth, far, runs, weight, pool, totals, cells, out_rgb, out_depth):
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
        _banks(depth[b], known[b], far, runs, weight)
        _banks(depth[b].T, known[b].T, far.T, runs, weight.T)
        for k in range(levels):
            h, w, s = heights[k], widths[k], starts[k]
            value, total = pool[s : s + h * w].reshape((h, w, 4)), totals[s : s + h * w].reshape((h, w))
            if k == 0:
                _mark(weight <= np.float32(1), cells)
                _push_first(rgb[b], depth[b], weight, cells, value, total)
            else:
                h, w, s = heights[k - 1], widths[k - 1], starts[k - 1]
                _push(pool[s : s + h * w].reshape((h, w, 4)), totals[s : s + h * w].reshape((h, w)), value, total)
        _mark(~known[b], cells)
        h, w, s = heights[levels - 1], widths[levels - 1], starts[levels - 1]
        field = pool[s : s + h * w].reshape((h, w, 4))
        for k in range(levels - 2, -1, -1):
            h, w, s = heights[k], widths[k], starts[k]
            value, total = pool[s : s + h * w].reshape((h, w, 4)), totals[s : s + h * w].reshape((h, w))
            _pull(field, value, total, cells if k == 0 else everywhere)
            field = value
        _pull_last(field, known[b], out_rgb[b], out_depth[b])


def fill(rgb, depth, known, default_depth):
    """`fill.fill` of frames on the CPU, checked there: complete (rgb, depth), both new."""
    B, H, W = known.shape
    out_rgb, out_depth = torch.empty_like(rgb), torch.empty((B, H, W), dtype=torch.float32)
    ins = [
        rgb.contiguous().numpy(), depth.to(torch.float32).contiguous().numpy(), known.contiguous().numpy(),
        default_depth.contiguous().numpy(),
    ]  # fmt: skip
    outs = [out_rgb.numpy(), out_depth.numpy()]
    count, h, w = 0, H, W
    while h > 1 or w > 1:
        h, w = (h + 1) >> 1, (w + 1) >> 1
        count += h * w

    def work(rows):
        _fill_rows(
            *(t[rows] for t in ins),
            scratch("far", (H, W), np.float32),
            scratch("runs", (H * W // 2 + H + W, 3), np.int32),
            scratch("weight", (H, W), np.float32),
            scratch("pool", (count, 4), np.float32),
            scratch("totals", (count,), np.float32),
            scratch("cells", ((H + 1) >> 1, (W + 1) >> 1), np.bool_),
            *(t[rows] for t in outs),
        )

    threads.over_rows(B, B * H * W, work)
    return out_rgb, out_depth
