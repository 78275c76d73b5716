"""What a frame sees through: against points placed by hand, and the compiled path against the plain one."""

import numpy as np
import pytest
import torch

from inspatio_core.geometry.camera import intrinsics_from_fov
from inspatio_core.geometry.motion import se3_exp
from inspatio_core.geometry.visibility import seen_through

SIZE = (30, 40)
K = intrinsics_from_fov(SIZE, 60.0)
ALL = torch.ones(SIZE, dtype=torch.bool)
BACKENDS = ["numba", "torch"]


def seen(depth, source_from_target, source_depth, backend, candidates=ALL):
    return seen_through(depth, candidates, K, K, source_from_target, source_depth, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_the_source_camera_only_points_in_front_are_seen_through(backend):
    wall, eye = torch.full(SIZE, 4.0), torch.eye(4, dtype=torch.float64)
    assert seen(torch.full(SIZE, 2.0), eye, wall, backend).all()
    assert not seen(torch.full(SIZE, 3.9), eye, wall, backend).any(), "within the margin: on the wall"
    assert not seen(torch.full(SIZE, 8.0), eye, wall, backend).any(), "behind the wall: hidden, not contradicted"


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_outside_the_source_image_or_behind_it_are_not_judged(backend):
    wall, near = torch.full(SIZE, 4.0), torch.full(SIZE, 2.0)
    aside = torch.eye(4, dtype=torch.float64)
    aside[0, 3] = 10.0
    behind = torch.eye(4, dtype=torch.float64)
    behind[2, 3] = -3.0
    assert not seen(near, aside, wall, backend).any()
    assert not seen(near, behind, wall, backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_camera_to_the_side_sees_through_at_the_right_pixels(backend):
    """Points at 2 m, source 0.5 m to the right of the target: they shift left by f * 0.5 / 2 pixels in it."""
    source_from_target = torch.eye(4, dtype=torch.float64)
    source_from_target[0, 3] = -0.5
    source_depth = torch.full(SIZE, 2.0)
    source_depth[:, 10:12] = 6.0
    shift = K[0, 0].item() * 0.5 / 2.0
    expected = [u for u in range(SIZE[1]) if int(np.floor(u - shift + 0.5)) in (10, 11)]
    out = seen(torch.full(SIZE, 2.0), source_from_target, source_depth, backend)
    assert sorted(set(out.nonzero()[:, 1].tolist())) == expected and len(expected) == 2


def test_only_candidates_are_marked_and_both_paths_agree():
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(SIZE, generator=generator) * 5 + 0.5
    source_depth = torch.rand((36, 28), generator=generator) * 5 + 0.5
    candidates = torch.rand(SIZE, generator=generator) < 0.6
    K_source = intrinsics_from_fov((36, 28), 80.0)
    for seed in range(8):
        xi = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.3
        results = [seen_through(depth, candidates, K, K_source, se3_exp(xi), source_depth, b) for b in BACKENDS]
        assert torch.equal(*results)
        assert not (results[0] & ~candidates).any()
        assert 0.02 < results[0].float().mean() < 0.6
