"""The warps of the released scripts."""

import torch

from inspatio_core.geometry.splat import render_points_compatible, warp_compatible

from .harness import Case, Tolerance, parametrize


@parametrize("warp")
def test_warp(case: Case) -> None:
    if "in.points" in case.tensors:
        points(case)
    else:
        frames(case)


def frames(case: Case) -> None:
    """Whole batch, then one by one: the depth weights are normalised by the largest depth of what is warped at once."""
    rgb, depth, source, target, K = (
        case.tensors[f"in.{name}"] for name in ("rgb", "depth", "source_w2c", "target_w2c", "K")
    )
    stable = case.tensors["out.stable"] if "out.stable" in case.tensors else None
    render, mask = warp_compatible(rgb, depth, source, target, K)
    case.check("out.render", render, where=stable)
    case.check("out.mask", mask, where=stable)
    if "out.render_one_by_one" in case.tensors:
        singles = [
            warp_compatible(rgb[i : i + 1], depth[i : i + 1], source[i : i + 1], target[i : i + 1], K[i : i + 1])
            for i in range(len(rgb))
        ]
        # `stable` was found on the whole batch; the same allowance is made here for pixels it does not know of
        for name, got in zip(("render", "mask"), zip(*singles, strict=True), strict=True):
            case.check(f"out.{name}_one_by_one", torch.cat(got), where=stable, outliers=0.01)


def points(case: Case) -> None:
    cameras = [name.removeprefix("in.c2w.") for name in case.tensors if name.startswith("in.c2w.")]
    assert cameras
    for camera in cameras:
        bgr, mask = render_points_compatible(
            case.tensors["in.points"],
            case.tensors["in.colors"],
            case.tensors["in.K"],
            case.tensors[f"in.c2w.{camera}"],
            case.meta["width"],
            case.meta["height"],
            case.meta["point_size"],
            case.meta["ss_ratio"],
        )
        stable = case.tensors[f"out.stable.{camera}"]
        one_level = Tolerance(1.0, 0.0)
        case.check(f"out.bgr.{camera}", bgr, tolerance=one_level, where=stable[..., None])
        case.check(f"out.mask.{camera}", mask, tolerance=Tolerance(0.0, 0.0), where=stable)
