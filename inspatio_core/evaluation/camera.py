"""Camera following: where was a generated frame seen from, and how far is that from where it should have been?

A pose is estimated from one frame alone: local features of the frame are matched to those of views whose depth and pose
are known (the source frame of that time, or any true render), which gives world points and where they lie in the frame;
RANSAC and PnP (OpenCV) give the pose.

Definitions, since papers differ:

- **Rot**: the angle of R_true^T R_estimated, degrees.
- **Trans**: the distance between the camera centres, in units of the scene (metres). **Trans, unit**: the same after
  both trajectories were put relative to their first pose that was found and divided by their largest distance from it.
- **Failure**: fewer than :data:`MIN_INLIERS` matches agree with the pose. Its errors are missing (NaN), and counted.
- **Floor**: the same estimate on the true frames of the same cameras, through the same masks. What the estimator gets
  wrong there is not the generator's fault: report both, over the frames where both succeeded (:func:`beside_floor`).

Poses are world_from_camera [4, 4] float64, K [3, 3] in pixels with centres at integers and without skew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.evaluation.metrics import check_frames, check_mask, summary
from inspatio_core.geometry.camera import invert_pose

MIN_INLIERS = 30

RATIO = 0.8
"""A match counts only if its descriptor is this much nearer than the second nearest (Lowe 2004)."""

INLIER_PX = 2.0
"""How far from its feature a point may project to agree with a pose."""

SMOOTH = 0.05
"""How much depth may differ, relatively, among the four pixels around a feature: at edges it belongs to no surface."""


@dataclass(frozen=True)
class View:
    """What the geometry is known of.

    rgb uint8 [H, W, 3]; depth float [H, W], z in metres, not finite or <= 0 where unknown; K [3, 3];
    world_from_camera [4, 4]; mask bool [H, W] or None: pixels that may be used (without moving things, say).
    """

    rgb: Tensor
    depth: Tensor
    K: Tensor
    world_from_camera: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class PoseEstimate:
    """A pose found by PnP.

    world_from_camera: float64 [4, 4], or None on failure. matches: features of the frame that were matched; inliers:
    those that agree with the pose; error_px: their root mean square distance from where they should project, None on
    failure.
    """

    world_from_camera: Tensor | None
    matches: int
    inliers: int
    error_px: float | None


def _features(rgb: Tensor, mask: np.ndarray | None, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions [M, 2] (x, y) and descriptors [M, D] of features at least their own size inside the mask."""
    if kind == "sift":
        # A low threshold: frames are small and soft. Without precise upscaling all lie a quarter of a pixel off.
        detector = cv2.SIFT_create(nfeatures=4000, contrastThreshold=0.01, enable_precise_upscale=True)
    else:
        detector = cv2.ORB_create(nfeatures=4000, fastThreshold=5, edgeThreshold=15, patchSize=15)
    grey = cv2.cvtColor(np.ascontiguousarray(rgb.cpu().numpy()), cv2.COLOR_RGB2GRAY)
    points, descriptors = detector.detectAndCompute(grey, None)
    at = np.array([p.pt for p in points], dtype=np.float64).reshape(-1, 2)
    if mask is None or not len(at):
        return at, descriptors
    # Beyond the frame nothing needs to be inside.
    room = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    x, y = np.rint(at).astype(int).T
    reach = np.array([p.size for p in points]) if kind == "sift" else 1.0
    keep = room[y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1)] > reach
    return at[keep], descriptors[keep]


def _match(a: np.ndarray | None, b: np.ndarray | None, kind: str) -> np.ndarray:
    """Pairs [M, 2] of indices into the descriptors a and b: nearest both ways, and clearly so."""
    none = np.zeros((0, 2), dtype=int)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return none
    matcher = cv2.BFMatcher(cv2.NORM_L2 if kind == "sift" else cv2.NORM_HAMMING)
    back = {m.queryIdx: m.trainIdx for m in matcher.match(b, a)}
    pairs = [
        (first.queryIdx, first.trainIdx)
        for first, second in matcher.knnMatch(a, b, k=2)
        if first.distance < RATIO * second.distance and back[first.trainIdx] == first.queryIdx
    ]
    return np.array(pairs, dtype=int) if pairs else none


def _world_points(view: View, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World points [M, 3] of positions [M, 2] in the view, and which of them lie on a surface of known depth."""
    depth = view.depth.double().cpu().numpy()
    height, width = depth.shape
    x, y = at.T
    x0 = np.floor(x).astype(int).clip(0, width - 2)
    y0 = np.floor(y).astype(int).clip(0, height - 2)
    corners = np.stack([depth[y0, x0], depth[y0, x0 + 1], depth[y0 + 1, x0], depth[y0 + 1, x0 + 1]])
    good = (np.isfinite(corners) & (corners > 0.0)).all(0)
    corners = np.where(good, corners, 1.0)
    good &= corners.max(0) <= (1.0 + SMOOTH) * corners.min(0)
    fx, fy = (x - x0).clip(0, 1), (y - y0).clip(0, 1)
    # On a plane it is inverse depth that is linear in pixels.
    weights = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])
    z = 1.0 / (weights / corners).sum(0)
    K, pose = view.K.double().cpu().numpy(), view.world_from_camera.double().cpu().numpy()
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], 1)
    return (rays * z[:, None]) @ pose[:3, :3].T + pose[:3, 3], good


def _distances(world: np.ndarray, at: np.ndarray, K: np.ndarray, turn: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Distance in pixels [M] between where points project and where they were found; infinite behind the camera."""
    camera = world @ cv2.Rodrigues(turn)[0].T + move.reshape(3)
    ahead = camera[:, 2] > 1e-6
    uv = camera / np.where(ahead, camera[:, 2], 1.0)[:, None] @ K.T
    return np.where(ahead, np.linalg.norm(uv[:, :2] - at, axis=1), np.inf)


def _pnp(world: np.ndarray, at: np.ndarray, K: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """camera_from_world [4, 4] or None, and distances [M] in pixels; the same for the same input."""
    nothing = None, np.full(len(world), np.inf)
    if len(world) < 6:
        return nothing
    found, turn, move, _ = cv2.solvePnPRansac(
        world,
        at,
        K,
        None,
        iterationsCount=2000,
        reprojectionError=INLIER_PX,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not found:
        return nothing
    for _ in range(3):  # the pose of all that agree, then of all that agree with that
        agree = _distances(world, at, K, turn, move) <= INLIER_PX
        if agree.sum() < 6:
            return nothing
        turn, move = cv2.solvePnPRefineLM(world[agree], at[agree], K, None, turn, move)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], move.reshape(3)
    return pose, _distances(world, at, K, turn, move)


def estimate_pose(
    rgb: Tensor, K: Tensor, views: Sequence[View], mask: Tensor | None = None, kind: str = "sift"
) -> PoseEstimate:
    """Where a frame was seen from, by PnP on matches to views of known geometry.

    Args:
        rgb: uint8 [H, W, 3]. K: [3, 3], its own.
        views: matched one by one, their matches used together.
        mask: bool [H, W]: only features of the frame that lie inside by at least their own size count. With the
            generated pixels as mask, and views that show the truth there, it tells whether what was invented stands
            where it should. Descriptors look somewhat beyond.
        kind: "sift" or "orb" (faster, fewer matches on soft frames).

    Raises:
        InputError: shapes that do not fit, no view, an unknown kind.
    """
    if kind not in ("sift", "orb"):
        raise InputError(f"features: need sift or orb, got {kind!r}")
    if not views:
        raise InputError("pose estimation needs at least one view of known geometry")
    check_frames(("frame", rgb[None]))
    if mask is not None:
        check_mask("mask", mask[None], rgb[None])
    at, descriptors = _features(rgb, None if mask is None else mask.cpu().numpy(), kind)
    world, image = [], []
    for view in views:
        check_frames(("view", view.rgb[None]))
        if view.depth.shape != view.rgb.shape[:2]:
            raise InputError(f"view: depth {list(view.depth.shape)} does not fit rgb {list(view.rgb.shape)}")
        if view.mask is not None:
            check_mask("view mask", view.mask[None], view.rgb[None])
        view_at, view_descriptors = _features(view.rgb, None if view.mask is None else view.mask.cpu().numpy(), kind)
        pairs = _match(descriptors, view_descriptors, kind)
        points, good = _world_points(view, view_at[pairs[:, 1]])
        world.append(points[good])
        image.append(at[pairs[:, 0]][good])
    world, image = np.concatenate(world), np.concatenate(image)
    pose, distances = _pnp(world, image, K.double().cpu().numpy())
    agree = distances <= INLIER_PX
    # A feature counts once, though it may match in several views, or have several orientations.
    matches, inliers = len(np.unique(image, axis=0)), len(np.unique(image[agree], axis=0))
    if pose is None or inliers < MIN_INLIERS:
        return PoseEstimate(None, matches, inliers, None)
    error = float(np.sqrt(np.mean(distances[agree] ** 2)))
    return PoseEstimate(invert_pose(torch.from_numpy(pose)), matches, inliers, error)


def rotation_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Angle in degrees [..] between rotations a and b [.., 3, 3] (of poses [.., 4, 4], too): that of b^T a.

    From the chord, not the trace: exact for small angles.
    """
    chord = (a[..., :3, :3].double() - b[..., :3, :3].double()).square().sum((-2, -1)).sqrt()
    return torch.rad2deg(2.0 * torch.asin((chord / (2.0 * math.sqrt(2.0))).clamp(max=1.0)))


@dataclass(frozen=True)
class Following:
    """How frames follow their cameras: one entry a frame.

    rotation: degrees, translation: metres, unit: see the module's Trans, unit; all float64 [N], NaN on failure (unit
    also where nothing moves). inliers: int64 [N].
    """

    rotation: Tensor
    translation: Tensor
    unit: Tensor
    inliers: Tensor

    @property
    def failed(self) -> Tensor:
        """Bool [N]: no pose was found."""
        return self.rotation.isnan()

    def summary(self, where: Tensor | None = None) -> dict[str, float | int | None]:
        """Means over the frames that did not fail, of those in ``where`` bool [N] if given; frames and failures."""
        where = torch.ones_like(self.failed) if where is None else where
        return {
            "rotation_deg": summary(self.rotation[where])["mean"],
            "translation_m": summary(self.translation[where])["mean"],
            "translation_unit": summary(self.unit[where])["mean"],
            "inliers": summary(self.inliers[where].double())["mean"],
            "frames": int(where.sum()),
            "failures": int((self.failed & where).sum()),
        }


def camera_following(
    frames: Tensor,
    K: Tensor,
    world_from_camera: Tensor,
    views: Sequence[Sequence[View]],
    mask: Tensor | None = None,
    kind: str = "sift",
) -> Following:
    """Pose errors of frames against the cameras they were asked for.

    Args:
        frames: uint8 [N, H, W, 3]. K: [N, 3, 3]. world_from_camera: [N, 4, 4], as commanded.
        views: for each frame the views of known geometry of its time, in the same world.
        mask: bool [N, H, W] or None, kind: see :func:`estimate_pose`.

    Raises:
        InputError: shapes that do not fit.
    """
    check_frames(("frames", frames))
    n = len(frames)
    if not len(K) == len(world_from_camera) == len(views) == n:
        raise InputError(f"{n} frames against {len(K)} K, {len(world_from_camera)} poses and {len(views)} views")
    if mask is not None:
        check_mask("mask", mask, frames)
    found = [estimate_pose(frames[i], K[i], views[i], None if mask is None else mask[i], kind) for i in range(n)]
    missing = torch.full((4, 4), math.nan, dtype=torch.float64)
    poses = [missing if f.world_from_camera is None else f.world_from_camera for f in found]
    poses = torch.stack(poses) if n else torch.zeros(0, 4, 4, dtype=torch.float64)
    rotation, translation, unit = trajectory_errors(poses, world_from_camera)
    return Following(rotation, translation, unit, torch.tensor([f.inliers for f in found], dtype=torch.long))


def beside_floor(generated: Following, floor: Following) -> dict[str, dict[str, float | int | None]]:
    """Summaries of a generator and of the estimator's floor, fit to stand beside each other.

    "generated" and "floor" are over the frames where both have a pose ("frames" says how many): frames that a generator
    makes unrecognisable would flatter it otherwise. Their "failures" are of all frames.
    """
    both = ~generated.failed & ~floor.failed
    return {
        name: {**following.summary(both), "failures": int(following.failed.sum())}
        for name, following in (("generated", generated), ("floor", floor))
    }


def trajectory_errors(estimated: Tensor, true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rot in degrees, Trans in metres, and Trans, unit (see the module), each float64 [N].

    estimated, true: world_from_camera [N, 4, 4] in one world; an estimated pose of NaN is missing. To compare
    trajectories whose worlds differ, :func:`align_trajectory` first.
    """
    if estimated.shape != true.shape or true.dim() != 3 or true.shape[1:] != (4, 4):
        raise InputError(f"trajectories: need two [N, 4, 4], got {list(estimated.shape)} and {list(true.shape)}")
    estimated, true = estimated.double().cpu(), true.double().cpu()
    rotation = rotation_degrees(estimated, true)
    translation = (estimated[:, :3, 3] - true[:, :3, 3]).norm(dim=1)
    unit = torch.full_like(translation, math.nan)
    found = ~translation.isnan()
    if found.any():
        # Centres in the axes of the first pose that was found, over the same frames for both.
        a, b = ((p[:, :3, 3] - p[:1, :3, 3]) @ p[0, :3, :3] for p in (estimated[found], true[found]))
        size_a, size_b = a.norm(dim=1).max(), b.norm(dim=1).max()
        if size_a > 1e-6 and size_b > 1e-6:
            unit[found] = (a / size_a - b / size_b).norm(dim=1)
    return rotation, translation, unit


def align_trajectory(estimated: Tensor, true: Tensor, scale: bool = True) -> Tensor:
    """Estimated poses [N, 4, 4] moved as a whole onto the true ones, float64.

    The similarity (or, without ``scale``, rigid motion) that brings the camera centres nearest in the sense of least
    squares (Umeyama 1991); rotations turn with it. For poses of unknown world and scale, as structure from motion
    gives them. Missing poses (NaN) do not take part and stay missing.

    Raises:
        InputError: shapes that do not fit; fewer than 3 poses, or centres on one line: they determine no rotation.
    """
    if estimated.shape != true.shape or true.dim() != 3 or true.shape[1:] != (4, 4):
        raise InputError(f"trajectories: need two [N, 4, 4], got {list(estimated.shape)} and {list(true.shape)}")
    estimated, true = estimated.double().cpu(), true.double().cpu()
    found = ~estimated[:, 0, 0].isnan()
    a, b = estimated[found, :3, 3], true[found, :3, 3]
    if len(a) < 3:
        raise InputError(f"aligning trajectories needs at least 3 poses, got {len(a)}")
    middle_a, middle_b = a.mean(0), b.mean(0)
    a, b = a - middle_a, b - middle_b
    U, D, Vt = torch.linalg.svd(b.T @ a)
    if D[1] <= 1e-9 * D[0]:
        raise InputError("aligning trajectories: the camera centres lie on one line and determine no rotation")
    sign = torch.ones(3, dtype=torch.float64)
    sign[2] = torch.sign(torch.linalg.det(U) * torch.linalg.det(Vt))
    R = U @ torch.diag(sign) @ Vt
    s = float((D * sign).sum() / a.square().sum()) if scale else 1.0
    out = estimated.clone()
    out[:, :3, :3] = R @ estimated[:, :3, :3]
    out[:, :3, 3] = s * (estimated[:, :3, 3] - middle_a) @ R.T + middle_b
    return out
