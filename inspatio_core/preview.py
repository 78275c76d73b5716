"""The contact sheet: source, anchor, result, depth and map (from behind, from above) of one frame, on one picture."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from inspatio_core.geometry.camera import invert_pose
from inspatio_core.geometry.splat import splat_points

BACKGROUND, INK, FAINT = (17, 20, 26), (240, 242, 246), (150, 158, 172)
MAP, PATH, VIEW = (58, 65, 77), (255, 176, 59), (77, 208, 225)
TILE_WIDTH, GAP, LABEL = 640, 16, 44


def contact_sheet(reference, frame, point_map, path: Tensor, number: int) -> np.ndarray:
    """Draw what led to one frame and what came of it.

    Args:
        reference: the Reference, at the size of the frame.
        frame: a `pipeline.Frame` with its anchor.
        point_map: the PointMap of the slot.
        path: float64 [n, 4, 4], world_from_camera of all frames, drawn into the map.
        number: which of them ``frame`` is.

    Returns:
        uint8 [h, w, 3].
    """
    height, width = frame.rgb.shape[:2]
    tile = (TILE_WIDTH, round(TILE_WIDTH * height / width))
    if height > width:
        tile = (round(TILE_WIDTH * 0.62), round(TILE_WIDTH * 0.62 * height / width))
    source = reference.rgb(frame.source_index).numpy()
    share = float(frame.known.float().mean())
    near, far = (float(x) for x in np.quantile(frame.depth.numpy(), [0.01, 0.99]))
    behind = _map(frame, point_map, path, tile, pitch=38, zoom=1.1)
    above = _map(frame, point_map, path, tile, pitch=90, zoom=5, ruler=True)
    unit = "metres" if reference.metric else "metres, scale assumed"
    tiles = [
        (0, 0, "source", f"frame {frame.source_index} of {reference.frame_count}", _fit(source, tile)),
        (0, 1, "anchor", f"{share:.0%} known from the source and the memory", _fit(_anchor(frame), tile)),
        (0, 2, "result", f"frame {number} of {len(path)}, {frame.stamp:.1f} s", _fit(frame.rgb.numpy(), tile)),
        (1, 0, "depth", unit, _fit(_depth(frame, near, far), tile)),
        (1, 1, "map", f"{len(point_map)} points; orange: camera path, blue: this view", behind),
        (1, 2, "map", "from above", above),
    ]
    canvas = np.full((2 * (tile[1] + LABEL + GAP) + GAP // 2, 3 * (tile[0] + GAP) + GAP, 3), BACKGROUND, np.uint8)
    for row, column, title, note, image in tiles:
        x, y = GAP + column * (tile[0] + GAP), row * (tile[1] + LABEL + GAP)
        canvas[y + LABEL : y + LABEL + image.shape[0], x : x + image.shape[1]] = image
        end = _text(canvas, (x, y + LABEL - 11), title, 25, INK, bold=True)
        _text(canvas, (end + 12, y + LABEL - 11), note, 17, FAINT)
    _scale_bar(canvas, GAP + 14, tile[1] + 2 * LABEL + GAP + tile[1] - 14, near, far)
    return canvas


def _text(image: np.ndarray, at: tuple[int, int], text: str, size: int, colour, bold: bool = False) -> int:
    """Write on ``image`` with the baseline's left end at ``at``; returns where the text ends, in pixels."""
    if hasattr(cv2, "FontFace"):  # OpenCV 5 carries a real typeface
        return cv2.putText(image, text, at, colour, cv2.FontFace("sans"), size, 600 if bold else 400)[0][0]
    scale, width = size / 32, 2 if bold else 1
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, width, cv2.LINE_AA)
    return at[0] + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, width)[0][0]


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrink = image.shape[1] > size[0]
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def _anchor(frame) -> np.ndarray:
    """What was known, over a faint checkerboard."""
    height, width = frame.known.shape
    rows, columns = np.mgrid[:height, :width] // max(4, height // 40)
    board = np.where((rows + columns) % 2, 44, 34)[..., None].astype(np.uint8).repeat(3, -1)
    return np.where(frame.known.numpy()[..., None], frame.anchor_rgb.numpy(), board)


def _depth(frame, near: float, far: float) -> np.ndarray:
    """Near is warm, far is cold, even in log depth."""
    span = max(math.log(far / near), 1e-6)
    level = 1 - np.clip(np.log(frame.depth.numpy() / near) / span, 0, 1)
    return cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]


def _scale_bar(image: np.ndarray, x: int, y: int, near: float, far: float) -> None:
    """A colour bar between its two ends in metres; (x, y) is the lower left corner."""
    ramp = cv2.applyColorMap(np.linspace(255, 0, 140).astype(np.uint8)[None], cv2.COLORMAP_TURBO)[:, :, ::-1]
    box = image[y - 30 : y, x : x + 280]
    box[:] = BACKGROUND
    end = _text(box, (10, 21), f"{near:.2g} m", 16, INK) + 10
    box[9:21, end : end + 140] = ramp
    _text(box, (end + 150, 21), f"{far:.2g} m", 16, INK)


def _map(frame, point_map, path: Tensor, size: tuple[int, int], pitch: float, zoom: float, ruler: bool = False):
    """The point map seen from behind and above, with the camera path and the frame's view frustum."""
    width, height = size
    if len(point_map) == 0:
        return np.full((height, width, 3), MAP, np.uint8)
    points = point_map.points()
    K, eye, distance = _overview(points.xyz.double().cpu(), path, frame, size, pitch, zoom)
    # Points are sized for the views they came from; from above a floor that was seen at a slant would have gaps.
    seen = splat_points(points.xyz, points.rgb, points.radius * 3, K, eye, (height, width))
    image = torch.where(seen.known[..., None], seen.rgb, torch.tensor(MAP, dtype=torch.uint8)).cpu().numpy()
    image = np.ascontiguousarray(image)
    _line(image, path[:, :3, 3], K, eye, PATH, 3)
    corners = _frustum(frame)
    for a, b in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)):
        _line(image, torch.stack([corners[a], corners[b]]), K, eye, VIEW, 2)
    if ruler:
        metre = float(K[0, 0]) / distance
        length = 10.0 ** math.floor(math.log10(0.4 * width / metre))
        end = 20 + round(length * metre)
        cv2.line(image, (20, height - 20), (end, height - 20), INK, 2, cv2.LINE_AA)
        _text(image, (end + 10, height - 15), f"{length:g} m", 16, INK)
    return image


def _frustum(frame) -> Tensor:
    """Camera centre and the four corners of its image plane, a third of the way into the scene; world [5, 3]."""
    depth = float(frame.depth.median()) / 3
    height, width = frame.known.shape
    pixels = torch.tensor([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=torch.float64)
    rays = pixels @ torch.linalg.inv(frame.K).T * depth
    points = torch.cat([torch.zeros(1, 3, dtype=torch.float64), rays])
    return points @ frame.world_from_camera[:3, :3].T + frame.world_from_camera[:3, 3]


def _overview(
    xyz: Tensor, path: Tensor, frame, size: tuple[int, int], pitch: float, zoom: float
) -> tuple[Tensor, Tensor, float]:
    """A camera that looks down by ``pitch`` degrees on nearly all points and on the camera path.

    Returns its intrinsics, its pose and its distance from the middle of what it shows.
    """
    width, height = size
    sample = xyz[:: max(1, len(xyz) // 20_000)]
    low, high = torch.quantile(sample, 0.05, 0), torch.quantile(sample, 0.95, 0)
    inside = sample[((sample >= low) & (sample <= high)).all(1)]
    wanted = torch.cat([inside, path[:, :3, 3], _frustum(frame)])
    a = math.radians(pitch)
    rotation = torch.tensor(
        [[1, 0, 0], [0, math.cos(a), math.sin(a)], [0, -math.sin(a), math.cos(a)]], dtype=torch.float64
    )
    focal = zoom * width
    K = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype=torch.float64)
    local = wanted @ rotation
    centre = (local.amin(0) + local.amax(0)) / 2
    offset = local - centre
    reach = torch.maximum(offset[:, 0].abs() / width, offset[:, 1].abs() / height) * 2 * focal - offset[:, 2]
    distance = 1.03 * float(reach.max())
    eye = torch.eye(4, dtype=torch.float64)
    eye[:3, :3] = rotation
    eye[:3, 3] = rotation @ (centre - torch.tensor([0.0, 0.0, distance], dtype=torch.float64))
    return K, eye, distance


def _line(image: np.ndarray, points: Tensor, K: Tensor, eye: Tensor, colour: tuple[int, int, int], width: int) -> None:
    world_to_eye = invert_pose(eye)
    local = points.double() @ world_to_eye[:3, :3].T + world_to_eye[:3, 3]
    local = local[local[:, 2] > 1e-3]
    if len(local) > 1:
        pixels = (local @ K.T)[:, :2] / local[:, 2:]
        cv2.polylines(image, [np.rint(pixels.numpy() * 8).astype(np.int32)], False, colour, width, cv2.LINE_AA, 3)
