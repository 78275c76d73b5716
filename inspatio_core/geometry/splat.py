"""Forward warping: see a frame, or a cloud of points, from another camera.

Four functions, all pure:

* :func:`splat` warps RGB-D frames with a true z-test; an identity camera returns them bit for bit.
* :func:`splat_points` renders a world point cloud with a metric radius per point.
* :func:`warp_compatible` and :func:`render_points_compatible` repeat what the released scripts do.

How :func:`splat` works. Every source pixel is projected, and its target position is rounded to 1/256 pixel, so a
camera that did not move lands on exact integers whatever the rounding of its matrices was. It then covers a tent whose
radius is the local stretch of the surface (at least one pixel, at most ``MAX_RADIUS``), measured from the neighbours it
is connected to, so that magnified and slanted surfaces have no cracks.

1. *z pass*: the pixel claims the targets in the inner half of its tent (plus 1/16 pixel), its own cell; the smallest
   depth wins. Because the outer half claims nothing, a foreground does not grow over its background.
2. *colour pass*: all tents add weight, colour and depth to the targets whose winning depth they agree with.

Weights, colours and depths are summed as integers (a depth is the bit pattern of its float32, which orders and
averages like the depth itself), so the order of summation cannot matter: results are the same on every device, for
every batch, in every run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from inspatio_core.errors import InputError
from inspatio_core.geometry import _splat_numba
from inspatio_core.geometry._splat_numba import (
    DEPTH_TOLERANCE,
    FARTHEST,
    MAX_RADIUS,
    NEAR,
    ONE,
    OUTSIDE,
    POINT_RADIUS,
    SHRUNK,
    SHRUNK_SHIFT,
    SLACK,
    STRETCH,
    UNSEEN,
    point_coefficients,
    warp_coefficients,
)


class Splat(NamedTuple):
    """What was seen: ``rgb`` uint8 [B,h,w,3], ``depth`` float32 [B,h,w] in metres, ``known`` bool [B,h,w].

    Where ``known`` is false, ``rgb`` and ``depth`` are 0. :func:`splat_points` leaves out the leading B.
    """

    rgb: torch.Tensor
    depth: torch.Tensor
    known: torch.Tensor


def splat(
    rgb: torch.Tensor,
    depth: torch.Tensor,
    K_source: torch.Tensor,
    K_target: torch.Tensor,
    target_from_source: torch.Tensor,
    size: tuple[int, int] | None = None,
    backend: str = "auto",
) -> Splat:
    """Warp RGB-D frames into other cameras, with a z-test.

    Args:
        rgb: uint8 [B,H,W,3].
        depth: float32 [B,H,W], metres. Pixels with zero, negative, NaN or infinite depth are ignored.
        K_source, K_target: float64 [B,3,3], pixels, pixel centres at integers; of the source at (H,W) and of the
            target at ``size``.
        target_from_source: float64 [B,4,4], rigid.
        size: (h, w) of the target, default (H, W).
        backend: "numba" (CPU), "torch" (any device), or "auto": numba on the CPU, torch elsewhere. Same bytes.

    Returns:
        :class:`Splat` of batch B on the device of ``rgb``. Each row depends on its own inputs alone.
    """
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != torch.uint8 or depth.shape != rgb.shape[:3]:
        raise InputError(
            f"splat: rgb must be uint8 [B,H,W,3] and depth [B,H,W], got {tuple(rgb.shape)} {rgb.dtype} and "
            f"{tuple(depth.shape)}"
        )
    size = tuple(rgb.shape[1:3]) if size is None else (int(size[0]), int(size[1]))
    if _use_numba(backend, rgb.device):
        return Splat(*_splat_numba.splat(rgb, depth, K_source, K_target, target_from_source, size))
    return _splat_torch(rgb, depth, K_source, K_target, target_from_source, size)


def _use_numba(backend: str, device: torch.device) -> bool:
    if backend not in ("auto", "numba", "torch"):
        raise InputError(f"backend must be auto, numba or torch, not {backend!r}")
    if backend == "numba" and device.type != "cpu":
        raise InputError(f"backend numba works on the CPU, but the tensors are on {device}: use auto or torch")
    return backend != "torch" and device.type == "cpu"


def _splat_torch(rgb, depth, K_source, K_target, target_from_source, size) -> Splat:
    device = rgb.device
    B, H, W = depth.shape
    h, w = size
    depth = depth.to(torch.float32)
    ks, kt, T = (m.to(device, torch.float64) for m in (K_source, K_target, target_from_source))
    upper = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
    coefficients = warp_coefficients(
        *(ks[:, i, j] for i, j in upper), *(kt[:, i, j] for i, j in upper),
        *(T[:, i, j] for i in range(3) for j in range(4)),
    )  # fmt: skip
    (ax, bx, cx, tx, ay, by, cy, ty, az, bz, cz, tz, zoom) = (c.view(B, 1, 1) for c in coefficients)
    u = torch.arange(W, device=device, dtype=torch.float64)
    v = torch.arange(H, device=device, dtype=torch.float64)[:, None]

    def ray(a, b, c):
        return (a * u).float() + (b * v + c).float()

    z = depth * ray(az, bz, cz) + tz.float()
    x = (depth * ray(ax, bx, cx) + tx.float()) / z
    y = (depth * ray(ay, by, cy) + ty.float()) / z
    margin = MAX_RADIUS
    ok = (depth > 0) & (depth < FARTHEST) & (z > NEAR) & (z < FARTHEST)
    ok &= (x > -margin) & (x < w + margin) & (y > -margin) & (y < h + margin)

    def fixed(t):
        return torch.where(ok, torch.floor(torch.where(ok, t, 0.0) * ONE + 0.5), OUTSIDE).to(torch.int32)

    X, Y = fixed(x), fixed(y)

    # stretch of the surface, from the neighbours to the right and below that are on it: their depth differs by no
    # more than 3 %, or than a slope of 3 explains
    limit = (torch.clamp(3.0 / ks[:, 1, 1], min=0.03)).float().view(B, 1, 1)
    stretch_x = torch.zeros_like(X)
    stretch_y = torch.zeros_like(X)
    for here, there in (
        ((..., slice(0, W - 1)), (..., slice(1, W))),
        ((..., slice(0, H - 1), slice(None)), (..., slice(1, H), slice(None))),
    ):
        joined = ok[here] & ok[there] & ((depth[there] - depth[here]).abs() <= limit * depth[here])
        stretch_x[here] += torch.where(joined, (X[there] - X[here]).abs(), 0)
        stretch_y[here] += torch.where(joined, (Y[there] - Y[here]).abs(), 0)
    iso = torch.where(ok, depth / z * (zoom * ONE).float(), 0.0).clamp(max=MAX_RADIUS * ONE).to(torch.int32)
    shrunk = iso < SHRUNK
    radius_x, radius_y = (
        torch.where(r <= STRETCH, ONE, r.clamp(max=MAX_RADIUS * ONE))
        for r in (torch.maximum(stretch_x, iso), torch.maximum(stretch_y, iso))
    )

    bits = z.view(torch.int32)
    row = torch.arange(B, device=device).view(B, 1, 1).expand(B, H, W)
    wide = ok & ((radius_x > ONE) | (radius_y > ONE))
    groups = []
    for chosen in (ok & ~wide, wide):
        i = chosen.flatten().nonzero().squeeze(1)
        if len(i):
            fields = (t.flatten()[i] for t in (X, Y, radius_x, radius_y, bits, row, shrunk))
            groups.append((*(t.long() for t in fields), rgb.view(-1, 3)[i].long()))

    def taps(group):
        gx, gy, rx, ry, zb, b, small, colour = group
        reach = int(-(-max(int(rx.max()), int(ry.max())) // ONE))
        for oy in range(1 - reach, reach + 1):
            ty_ = (gy >> 8) + oy
            dy = (gy - ty_ * ONE).abs()
            for ox in range(1 - reach, reach + 1):
                tx_ = (gx >> 8) + ox
                dx = (gx - tx_ * ONE).abs()
                i = ((dx < rx) & (dy < ry) & (tx_ >= 0) & (tx_ < w) & (ty_ >= 0) & (ty_ < h)).nonzero().squeeze(1)
                yield (((b * h + ty_) * w + tx_)[i], dx[i], dy[i], rx[i], ry[i], zb[i], small[i], colour[i])

    zbuf = torch.full((B * h * w,), UNSEEN, dtype=torch.int32, device=device)
    for group in groups:
        for index, dx, dy, rx, ry, zb, _, _ in taps(group):
            own = ((dx <= (rx >> 1) + SLACK) & (dy <= (ry >> 1) + SLACK)).nonzero().squeeze(1)
            zbuf.scatter_reduce_(0, index[own], zb[own].to(torch.int32), "amin")

    total = torch.zeros((B * h * w, 5), dtype=torch.int64, device=device)  # r, g, b, depth step, weight
    for group in groups:
        for index, dx, dy, rx, ry, zb, small, colour in taps(group):
            wx = ONE - ((dx * (65536 // rx)) >> 8)
            wy = ONE - ((dy * (65536 // ry)) >> 8)
            step = zb - zbuf[index]
            i = (step.abs() <= DEPTH_TOLERANCE).nonzero().squeeze(1)
            weight = (wx * wy) >> 8
            weight = torch.where(small > 0, (weight >> SHRUNK_SHIFT).clamp(min=1), weight)[i, None]
            added = torch.cat((weight * colour[i], weight * step[i, None], weight), 1)
            total.index_add_(0, index[i], added)

    known = zbuf != UNSEEN
    inverse = 1.0 / torch.where(known, total[:, 4], 1).float()[:, None]
    mean = torch.floor(total[:, :4].float() * inverse + 0.5).to(torch.int32)
    out_rgb = torch.where(known[:, None], mean[:, :3], 0).to(torch.uint8)
    out_depth = torch.where(known, zbuf + mean[:, 3], 0).view(torch.float32)
    return Splat(out_rgb.view(B, h, w, 3), out_depth.view(B, h, w), known.view(B, h, w))


def splat_points(
    xyz: torch.Tensor,
    rgb: torch.Tensor,
    radius: torch.Tensor,
    K: torch.Tensor,
    world_from_camera: torch.Tensor,
    size: tuple[int, int],
    backend: str = "auto",
) -> Splat:
    """Render a world point cloud as z-tested discs.

    Args:
        xyz: float32 [P,3], world, metres. Points that are not finite are ignored.
        rgb: uint8 [P,3].
        radius: float32 [P], metres; on screen ``radius * focal / z``, kept within ``POINT_RADIUS`` pixels.
        K: float64 [3,3], pixels at ``size``, pixel centres at integers.
        world_from_camera: float64 [4,4].
        size: (h, w).
        backend: as for :func:`splat`.

    Returns:
        :class:`Splat` without the leading B. A pixel shows the nearest disc; among discs of about the same depth
        (1 to 2 %) the one centred nearest to the pixel, then the point that comes first.
    """
    if xyz.ndim != 2 or xyz.shape[1] != 3 or rgb.shape != xyz.shape or radius.shape != xyz.shape[:1]:
        raise InputError(
            f"splat_points: needs xyz [P,3], rgb [P,3], radius [P], got {tuple(xyz.shape)}, {tuple(rgb.shape)}, "
            f"{tuple(radius.shape)}"
        )
    size = (int(size[0]), int(size[1]))
    if _use_numba(backend, xyz.device):
        return Splat(*_splat_numba.splat_points(xyz, rgb, radius, K, world_from_camera, size))
    return _splat_points_torch(xyz, rgb, radius, K, world_from_camera, size)


def _splat_points_torch(xyz, rgb, radius, K, world_from_camera, size) -> Splat:
    h, w = size
    device = xyz.device
    K, T = K.double().cpu(), world_from_camera.double().cpu()
    coefficients = point_coefficients(
        *(float(K[i, j]) for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))),
        *(float(T[i, j]) for i in range(3) for j in range(4)),
    )
    rows = torch.tensor(coefficients, dtype=torch.float64, device=device).float().view(3, 4)
    px, py, pz = xyz.float().unbind(1)
    x, y, z = (r[0] * px + r[1] * py + r[2] * pz + r[3] for r in rows)
    seen = ((z > NEAR) & (z < FARTHEST)).nonzero().squeeze(1)
    x, y, z = x[seen], y[seen], z[seen]
    low, high = POINT_RADIUS
    focal = torch.tensor((float(K[0, 0]) + float(K[1, 1])) * 0.5, dtype=torch.float64).float().to(device)
    size_px = radius.float()[seen] * focal / z
    size_px = torch.where(size_px > low, torch.where(size_px < high, size_px, high), low)
    x, y = x / z, y / z
    inside = (x + size_px >= 0) & (x - size_px <= w - 1) & (y + size_px >= 0) & (y - size_px <= h - 1)
    inside = inside.nonzero().squeeze(1)
    seen, x, y, z, size_px = (t[inside] for t in (seen, x, y, z, size_px))

    key = torch.full((h * w,), 2**63 - 1, dtype=torch.int64, device=device)
    base = (z.view(torch.int32).long() >> 17) << 48
    first_x = torch.ceil(x - size_px).int().clamp(min=0)
    last_x = torch.floor(x + size_px).int().clamp(max=w - 1)
    first_y = torch.ceil(y - size_px).int().clamp(min=0)
    last_y = torch.floor(y + size_px).int().clamp(max=h - 1)
    reach_x = int((last_x - first_x).max()) + 1 if len(x) else 0
    reach_y = int((last_y - first_y).max()) + 1 if len(x) else 0
    limit = disc_limit(size_px)
    for oy in range(reach_y):
        for ox in range(reach_x):
            tx, ty = first_x + ox, first_y + oy
            dx, dy = tx.float() - x, ty.float() - y
            far = dx * dx + dy * dy
            i = ((tx <= last_x) & (ty <= last_y) & (far <= limit)).nonzero().squeeze(1)
            value = base[i] | ((far[i] * 256.0).long() << 32) | seen[i]
            key.scatter_reduce_(0, ty[i].long() * w + tx[i].long(), value, "amin")
    known = key != 2**63 - 1
    winner = torch.where(known, key & 0xFFFFFFFF, 0)
    order = torch.full((len(xyz) + 1,), 0, dtype=torch.float32, device=device)
    order[seen] = z
    out_depth = torch.where(known, order[winner], 0.0)
    if len(rgb) == 0:
        out_rgb = torch.zeros((h * w, 3), dtype=torch.uint8, device=device)
    else:
        out_rgb = torch.where(known[:, None], rgb[winner], 0)
    return Splat(out_rgb.view(h, w, 3), out_depth.view(h, w), known.view(h, w))


def disc_limit(size_px):
    """Squared distance up to which a disc covers pixel centres; at radius 1/2 its cell's corners belong to it."""
    return size_px * size_px + 0.25


def warp_compatible(
    rgb: torch.Tensor,
    depth: torch.Tensor,
    source_w2c: torch.Tensor,
    target_w2c: torch.Tensor,
    K: torch.Tensor,
    normaliser: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The warp of the released scripts: bilinear forward splatting with exponential depth weights, all float32.

    Args:
        rgb: float [B,3,H,W] in [-1,1].  depth: float [B,1,H,W].
        source_w2c, target_w2c: [B,4,4].  K: [B,3,3].
        normaliser: the M of the weight ``exp(-50 ln(1+z) / M)``. None takes the largest ln(1+z) of the batch, as the
            released scripts do: then a frame's pixels depend on the other frames of the batch, and one NaN depth
            blanks all of it. A constant such as ``math.log(201)`` makes frames independent.

    Returns:
        ``render`` [B,3,H,W] in [-1,1], -1 where unknown, and ``mask`` [B,1,H,W], 1 where any weight arrived.
    """
    B, _, H, W = rgb.shape
    device = rgb.device
    rgb, depth, K = rgb.float(), depth.float(), K.to(device).float()
    source_w2c, target_w2c = source_w2c.to(device).float(), target_w2c.to(device).float()
    v, u = torch.meshgrid(
        torch.arange(H, device=device, dtype=torch.float32),
        torch.arange(W, device=device, dtype=torch.float32),
        indexing="ij",
    )
    pixels = torch.stack((u, v, torch.ones_like(u)), 0).view(1, 3, H * W)
    points = depth.view(B, 1, H * W) * (torch.linalg.inv(K) @ pixels)
    move = target_w2c @ torch.linalg.inv(source_w2c)
    q = K @ (move[:, :3, :3] @ points + move[:, :3, 3:])
    z = q[:, 2]
    # shifted by one: a border of one pixel collects everything outside
    x, y = q[:, 0] / z + 1, q[:, 1] / z + 1
    log_depth = torch.log(1 + z.clamp(0, 1000))
    largest = log_depth.max() if normaliser is None else normaliser
    weight = (z >= 0).float() / torch.exp(log_depth / largest * 50)

    total = torch.zeros((B * (H + 2) * (W + 2), 4), device=device)
    row = torch.arange(B, device=device)[:, None] * ((H + 2) * (W + 2))
    values = torch.cat((rgb.flatten(2), torch.ones((B, 1, H * W), device=device)), 1).permute(0, 2, 1)

    def border(t, last):
        return torch.nan_to_num(t, nan=0.0, posinf=last, neginf=0.0).clamp(0, last)

    for iy in (border(torch.floor(y), H + 1), border(torch.ceil(y), H + 1)):
        for ix in (border(torch.floor(x), W + 1), border(torch.ceil(x), W + 1)):
            near = (1 - (y - iy).abs()) * (1 - (x - ix).abs()) * weight
            index = row + iy.long() * (W + 2) + ix.long()
            total.index_add_(0, index.flatten(), (values * near[..., None]).reshape(-1, 4))
    total = total.view(B, H + 2, W + 2, 4)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
    mask = total[:, 3:] > 0
    render = torch.where(mask, total[:, :3] / total[:, 3:], -1.0).clamp(-1, 1)
    return render, mask.float()


def render_points_compatible(
    points: torch.Tensor,
    colors: torch.Tensor,
    K: torch.Tensor,
    c2w: torch.Tensor,
    width: int,
    height: int,
    point_size: float = 2,
    ss_ratio: float = 2.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The point renderer of the released scripts: square splats, supersampled, reduced by area.

    Args:
        points: [P,3] world.  colors: [P,3] in [0,1].  K: [3,3].  c2w: [4,4].
        point_size: splats have the odd side ``int(point_size * 2) | 1`` in supersampled pixels.
        ss_ratio: supersampling, a whole number.

    Returns:
        ``bgr`` uint8 [height,width,3], blue first, black where nothing is, and ``mask`` uint8 [height,width], 0 or 255.
        Of the points within 1e-4 of the nearest one in a pixel, the last shows (the released code leaves it open).
    """
    device = points.device
    w, h = int(width * ss_ratio), int(height * ss_ratio)
    world_to_camera = torch.linalg.inv(c2w.to(device).float())
    camera = points.float() @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    z = camera[:, 2]
    K = K.to(device).float() * ss_ratio
    x = torch.round(camera[:, 0] / z * K[0, 0] + K[0, 2])
    y = torch.round(camera[:, 1] / z * K[1, 1] + K[1, 2])
    reach = (int(point_size * 2) | 1) // 2
    visible = (z > 0.1) & (x >= -reach) & (x < w + reach) & (y >= -reach) & (y < h + reach)
    order = visible.nonzero().squeeze(1)
    x, y, z = x[order].long(), y[order].long(), z[order]

    def taps():
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                i = ((x + dx >= 0) & (x + dx < w) & (y + dy >= 0) & (y + dy < h)).nonzero().squeeze(1)
                yield i, (y[i] + dy) * w + x[i] + dx

    zbuf = torch.full((h * w,), math.inf, device=device)
    for i, index in taps():
        zbuf.scatter_reduce_(0, index, z[i], "amin")
    shown = torch.full((h * w,), -1, dtype=torch.int64, device=device)
    for i, index in taps():
        front = z[i] <= zbuf[index] + 1e-4
        shown.scatter_reduce_(0, index[front], order[i[front]], "amax")
    hit = (shown >= 0).view(1, 1, h, w).float()
    bytes_ = torch.floor(colors.float().clamp(0, 1) * 255 + 0.5)
    image = torch.zeros((h * w, 3), device=device)
    image[shown >= 0] = bytes_[shown[shown >= 0]]
    image = F.adaptive_avg_pool2d(image.T.reshape(1, 3, h, w), (height, width))[0].permute(1, 2, 0)
    mask = F.interpolate(hit, (height, width), mode="nearest")[0, 0] * 255
    return torch.floor(image.flip(-1) + 0.5).to(torch.uint8), mask.to(torch.uint8)
