"""Compiled CPU path of :mod:`inspatio_core.geometry.depth_completion`: same operations, same order, same bytes.

It differs in what it leaves out: costs, keys and planes are computed where a pixel without depth asks for them. The
constants of both paths stand here, since the cache of compiled code notices a change of this file only.
"""

from __future__ import annotations

import numpy as np
import torch

from inspatio_core.geometry.compiled import kernel, scratch, threads

# Costs are integers: sums in any order are the same, on any device.
STEP = 8
"""Cost of a step from a pixel to the next, of the same colour."""
COLOUR_SHIFT = 7
"""A step adds the squared differences of its colours, summed over 3 channels and 3x3 pixels, shifted right by this."""
NEARER = 700
"""What a known pixel pays to enter a hole whose background lies behind it: colours must speak for the foreground."""
NEARER_RAMP = (0.05, 0.25)
"""It pays nothing, or all of it, where its depth is less than the filled depth by this share of the filled one."""
FILLED = 8000
"""Distance at which the filled depth counts as a candidate."""
ROUNDS = 2
"""Passes along rows, then columns, that paths with bends are found by."""
BITS = 32
"""A key is the distance, above so many bits that hold the pixel it is measured from."""
FAR = 1 << 62  # key of what no known pixel reaches

TAPS = 2
STRIDE = 5
"""A plane is fitted to (2 TAPS + 1)**2 pixels around a known one, so many pixels apart."""
SAME = (0.05, 0.025)
"""A tap takes part if its inverse depth differs by at most the first share, and the second for each pixel away."""
OFF = 0.01
"""Taps off the plane through the pixel by more than the root mean square, and this share, are left out of a second fit:
beside a crease, those on the other side."""
RIDGE = 1.0
"""Pixels**2, keeps a plane whose taps lie in a line solvable: across the line it is flat."""
FEW = (3, 8)
"""A plane of so many taps counts for nothing, of so many fully."""
BENT = 0.03
"""A plane that its taps deviate from by this share of the inverse depth is believed by half."""
OFFSET = 0.05
"""A plane's value at its own pixel differs from the pixel's by at most this share."""
REACH = 2.0
"""Inverse depth on a plane is not continued beyond this factor of where it began."""

HALF = 512.0
"""Distance from known depth at which confidence is a half."""
AGREE = 0.1
"""Relative spread of the candidates at which confidence is halved again."""
LIMITS = (1e-6, 1e6)
"""Inverse depths, in and out, are kept within."""

_ZERO, _ONE = np.float32(0), np.float32(1)
_LOW, _SLOPE = np.float32(NEARER_RAMP[0]), np.float32(1 / (NEARER_RAMP[1] - NEARER_RAMP[0]))
_SAME = np.array(
    [
        [SAME[0] + SAME[1] * STRIDE * max(abs(i), abs(j)) for j in range(-TAPS, TAPS + 1)]
        for i in range(-TAPS, TAPS + 1)
    ],
    np.float32,
)
_RIDGE, _OFFSET, _REACH, _TO_REACH = (np.float32(x) for x in (RIDGE, OFFSET, REACH, 1 / REACH))
_PER_BENT, _PER_HALF, _PER_AGREE = (np.float32(x) for x in (1 / BENT**2, 1 / HALF, 1 / AGREE**2))
_OFF, _FEW, _PER_TAP = np.float32(OFF**2), np.float32(FEW[0]), np.float32(1 / (FEW[1] - FEW[0]))
_LEAST, _MOST = np.float32(LIMITS[0]), np.float32(LIMITS[1])
_NEARER, _FILLED = np.float32(NEARER), np.float32(FILLED)


@kernel
def _inverse(depth):
    return min(max(_ONE / depth, _LEAST), _MOST) if depth > _ZERO else _LEAST  # the latter for NaN, too


@kernel
def _prepare(depth, known, usable, q, spans, runs):
    """Inverse depths, where they are usable, the runs of pixels that are not, and the span of these in each row."""
    H, W = usable.shape
    count = 0
    for y in range(H):
        spans[y, 0], spans[y, 1] = W, 0
        for x in range(W):
            z = depth[y, x]
            ok = known[y, x] and z > _ZERO and z < np.inf
            usable[y, x] = ok
            q[y, x] = min(max(_ONE / z, _LEAST), _MOST) if ok else _ZERO
        x = 0
        while x < W:
            if usable[y, x]:
                x += 1
                continue
            a = x
            while x < W and not usable[y, x]:
                x += 1
            runs[count, 0], runs[count, 1], runs[count, 2] = y, a, x
            count += 1
            spans[y, 0], spans[y, 1] = min(spans[y, 0], a), x
    return count


@kernel
def _boxes(rgb, y, low, high, column, box):
    """Sums of the colours of 3x3 pixels in [low, high) of row y; beyond the border, the border's."""
    H, W = rgb.shape[0], rgb.shape[1]
    above, below = max(y - 1, 0), min(y + 1, H - 1)
    for x in range(max(low - 1, 0), min(high + 1, W)):
        for c in range(3):
            column[x, c] = np.int32(rgb[above, x, c]) + np.int32(rgb[y, x, c]) + np.int32(rgb[below, x, c])
    for x in range(low, high):
        left, right = max(x - 1, 0), min(x + 1, W - 1)
        for c in range(3):
            box[x, c] = column[left, c] + column[x, c] + column[right, c]


@kernel
def _step(a, b, q_a, q_b, filled_a, filled_b):
    """Cost between two neighbours with colours a, b and inverse depths q, 0 for what is to be found."""
    d0, d1, d2 = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    cost = np.int32(STEP) + ((d0 * d0 + d1 * d1 + d2 * d2) >> np.int32(COLOUR_SHIFT))
    if q_a > _ZERO and q_b == _ZERO:
        cost += _entry(q_a, filled_b)
    elif q_b > _ZERO and q_a == _ZERO:
        cost += _entry(q_b, filled_a)
    return cost


@kernel
def _entry(q, filled):
    behind = _ONE - _inverse(filled) / q
    return np.int32(min(max((behind - _LOW) * _SLOPE, _ZERO), _ONE) * _NEARER)


@kernel
def _costs(rgb, q, filled, spans, column, boxes, across, down):
    """Costs from the pixel to the left and from the one above, for the pixels in or beside a row's holes."""
    H, W = q.shape
    for y in range(H):
        low, high = W, 0
        for i in range(max(y - 1, 0), min(y + 2, H)):
            low, high = min(low, spans[i, 0]), max(high, spans[i, 1])
        if high == 0:
            continue
        low, high = max(low - 1, 0), min(high + 1, W)
        box, previous = boxes[y & 1], boxes[1 - (y & 1)]
        _boxes(rgb, y, low, high, column, box)
        if spans[y, 1]:
            for x in range(max(spans[y, 0], 1), min(spans[y, 1] + 1, W)):
                across[y, x] = _step(box[x - 1], box[x], q[y, x - 1], q[y, x], filled[y, x - 1], filled[y, x])
        if y > 0 and (spans[y, 1] or spans[y - 1, 1]):
            for x in range(min(spans[y - 1, 0], spans[y, 0]), max(spans[y - 1, 1], spans[y, 1])):
                down[y, x] = _step(previous[x], box[x], q[y - 1, x], q[y, x], filled[y - 1, x], filled[y, x])


@kernel
def _straight(usable, runs, across, down, keys):
    """Keys of the known pixels that a straight way from the left, right, above and below leads from: keys[1:5]."""
    H, W = usable.shape
    for n in range(len(runs)):
        y, a, b = runs[n, 0], runs[n, 1], runs[n, 2]
        key = np.int64(y * W + a - 1) if a > 0 else FAR
        for x in range(a, b):
            if key < FAR:
                key += np.int64(across[y, x]) << BITS
            keys[1, y, x] = key
        key = np.int64(y * W + b) if b < W else FAR
        for x in range(b - 1, a - 1, -1):
            if key < FAR:
                key += np.int64(across[y, x + 1]) << BITS
            keys[2, y, x] = key
        for x in range(a, b):
            key = FAR
            if y > 0:
                key = np.int64((y - 1) * W + x) if usable[y - 1, x] else keys[3, y - 1, x]
                if key < FAR:
                    key += np.int64(down[y, x]) << BITS
            keys[3, y, x] = key
    for n in range(len(runs) - 1, -1, -1):
        y, a, b = runs[n, 0], runs[n, 1], runs[n, 2]
        for x in range(a, b):
            key = FAR
            if y + 1 < H:
                key = np.int64((y + 1) * W + x) if usable[y + 1, x] else keys[4, y + 1, x]
                if key < FAR:
                    key += np.int64(down[y + 1, x]) << BITS
            keys[4, y, x] = key
            keys[0, y, x] = min(min(keys[1, y, x], keys[2, y, x]), min(keys[3, y, x], key))


@kernel
def _bend(usable, runs, across, down, key):
    """Let ``key`` spread through the holes: along rows, then along columns."""
    H = usable.shape[0]
    for n in range(len(runs)):
        y, a, b = runs[n, 0], runs[n, 1], runs[n, 2]
        for x in range(a + 1, b):
            key[y, x] = min(key[y, x], key[y, x - 1] + (np.int64(across[y, x]) << BITS))
        for x in range(b - 2, a - 1, -1):
            key[y, x] = min(key[y, x], key[y, x + 1] + (np.int64(across[y, x + 1]) << BITS))
    for n in range(len(runs)):
        y, a, b = runs[n, 0], runs[n, 1], runs[n, 2]
        if y > 0:
            for x in range(a, b):
                if not usable[y - 1, x]:
                    key[y, x] = min(key[y, x], key[y - 1, x] + (np.int64(down[y, x]) << BITS))
    for n in range(len(runs) - 1, -1, -1):
        y, a, b = runs[n, 0], runs[n, 1], runs[n, 2]
        if y + 1 < H:
            for x in range(a, b):
                if not usable[y + 1, x]:
                    key[y, x] = min(key[y, x], key[y + 1, x] + (np.int64(down[y + 1, x]) << BITS))


@kernel
def _planes(usable, runs, q, planes):
    """Planes of the known pixels beside holes: value, and growth per pixel to the right and down."""
    H, W = usable.shape
    for y in range(H):
        for x in range(W):
            planes[y, x, 0] = _ZERO
    for n in range(len(runs)):
        y, a, b = runs[n, 0], runs[n, 1], runs[n, 2]
        if a > 0:
            _plane(usable, q, y, a - 1, planes)
        if b < W:
            _plane(usable, q, y, b, planes)
        for x in range(a, b):
            if y > 0 and usable[y - 1, x]:
                _plane(usable, q, y - 1, x, planes)
            if y + 1 < H and usable[y + 1, x]:
                _plane(usable, q, y + 1, x, planes)


@kernel
def _plane(usable, q, y, x, planes):
    if planes[y, x, 0] > _ZERO:
        return
    n, rest, offset, gx, gy = _fit(usable, q, y, x, _ZERO, _ZERO, np.float32(np.inf))
    n, rest, offset, gx, gy = _fit(usable, q, y, x, gx, gy, max(rest, _OFF))
    belief = min(max((n - _FEW) * _PER_TAP, _ZERO), _ONE) / (_ONE + rest * _PER_BENT)
    offset = min(max(offset, -_OFFSET), _OFFSET)
    own = q[y, x]
    planes[y, x, 0] = own * (_ONE + belief * offset)
    planes[y, x, 1] = own * (belief * gx)
    planes[y, x, 2] = own * (belief * gy)


@kernel
def _fit(usable, q, y, x, slope_x, slope_y, limit):
    """Least squares over the taps whose squared distance from the plane through the pixel is at most ``limit``.

    All relative to the pixel's inverse depth: number of taps, mean square of what the plane leaves, its value at the
    pixel less 1, its growth per pixel to the right and down.
    """
    H, W = usable.shape
    own = q[y, x]
    n, sx, sy, sv, svv = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    sxx, sxy, syy, sxv, syv = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for i in range(-TAPS, TAPS + 1):
        for j in range(-TAPS, TAPS + 1):
            r, c = y + STRIDE * i, x + STRIDE * j
            if r < 0 or r >= H or c < 0 or c >= W or not usable[r, c]:
                continue
            dx, dy = np.float32(STRIDE * j), np.float32(STRIDE * i)
            v = q[r, c] / own - _ONE
            off = v - slope_x * dx - slope_y * dy
            if not (abs(v) <= _SAME[i + TAPS, j + TAPS] and off * off <= limit):
                continue
            n += _ONE
            sx += dx
            sy += dy
            sv += v
            sxx += dx * dx
            sxy += dx * dy
            syy += dy * dy
            sxv += dx * v
            syv += dy * v
            svv += v * v
    per = _ONE / n
    mx, my, mv = sx * per, sy * per, sv * per
    xx, xy, yy = sxx - sx * mx + _RIDGE, sxy - sx * my, syy - sy * my + _RIDGE
    xv, yv, vv = sxv - sx * mv, syv - sy * mv, svv - sv * mv
    scale = _ONE / (xx * yy - xy * xy)
    gx, gy = (xv * yy - yv * xy) * scale, (yv * xx - xv * xy) * scale
    rest = max((vv - gx * xv - gy * yv) * per, _ZERO)
    return n, rest, mv - gx * mx - gy * my, gx, gy


@kernel
def _weight(best, distance):
    r = best / distance
    r = r * r
    return r * r * r


@kernel
def _combine(runs, keys, q, planes, filled, out, confidence):
    W = q.shape[1]
    mask = np.int64((1 << BITS) - 1)
    values, weights = np.empty(6, np.float32), np.empty(6, np.float32)
    for n in range(len(runs)):
        y = runs[n, 0]
        for x in range(runs[n, 1], runs[n, 2]):
            background = _inverse(filled[y, x])
            if keys[0, y, x] >= FAR:
                out[y, x] = filled[y, x] if _ZERO < filled[y, x] < np.inf else _ONE / _LEAST
                confidence[y, x] = _ZERO
                continue
            distance = np.float32(keys[0, y, x] >> BITS)
            best = min(distance, _FILLED)
            values[5], weights[5] = background, _weight(best, _FILLED)
            for k in range(5):
                key = keys[k, y, x]
                if key >= FAR:
                    values[k], weights[k] = _ZERO, _ZERO
                    continue
                at = key & mask
                r, c = at // W, at % W
                own = q[r, c]
                dx, dy = np.float32(x - c), np.float32(y - r)
                value = planes[r, c, 0] + planes[r, c, 1] * dx + planes[r, c, 2] * dy
                values[k] = min(max(value, own * _TO_REACH), own * _REACH)
                weights[k] = _weight(best, np.float32(key >> BITS))
            total, mean = _ZERO, _ZERO
            for k in range(6):
                total += weights[k]
                mean += weights[k] * values[k]
            mean = mean / total
            spread = _ZERO
            for k in range(6):
                off = values[k] / mean - _ONE
                spread += weights[k] * (off * off)
            spread = spread / total
            share = distance * _PER_HALF
            out[y, x] = _ONE / min(max(mean, _LEAST), _MOST)
            confidence[y, x] = _ONE / ((_ONE + share * share) * (_ONE + spread * _PER_AGREE))


@kernel
def _complete_rows(
    rgb, depth, known, filled, usable, q, spans, runs, column, boxes, across, down, keys, planes, out, confidence
):
    for b in range(len(known)):
        count = _prepare(depth[b], known[b], usable, q, spans, runs)
        out[b] = depth[b]
        confidence[b] = _ONE
        if count == 0:
            continue
        holes = runs[:count]
        _costs(rgb[b], q, filled[b], spans, column, boxes, across, down)
        _straight(usable, holes, across, down, keys)
        for _ in range(ROUNDS):
            _bend(usable, holes, across, down, keys[0])
        _planes(usable, holes, q, planes)
        _combine(holes, keys, q, planes, filled[b], out[b], confidence[b])


def complete_depth(rgb, depth, known, filled_depth):
    """`depth_completion.complete_depth` of frames on the CPU, checked there: (depth, confidence), both new."""
    N, H, W = known.shape
    out, confidence = torch.empty((N, H, W)), torch.empty((N, H, W))
    ins = [
        rgb.contiguous().numpy(), depth.to(torch.float32).contiguous().numpy(), known.contiguous().numpy(),
        filled_depth.to(torch.float32).contiguous().numpy(),
    ]  # fmt: skip
    outs = [out.numpy(), confidence.numpy()]

    def work(rows):
        _complete_rows(
            *(t[rows] for t in ins),
            scratch("usable", (H, W), np.bool_),
            scratch("inverse", (H, W), np.float32),
            scratch("spans", (H, 2), np.int32),
            scratch("holes", (H * (W // 2 + 1), 3), np.int32),
            scratch("column", (W, 3), np.int32),
            scratch("boxes", (2, W, 3), np.int32),
            scratch("across", (H, W), np.int32),
            scratch("down", (H, W), np.int32),
            scratch("keys", (5, H, W), np.int64),
            scratch("planes", (H, W, 3), np.float32),
            *(t[rows] for t in outs),
        )

    threads.over_rows(N, N * H * W, work)
    return out, confidence
