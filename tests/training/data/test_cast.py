"""Rays against solids, checked by distances, which are computed another way."""

import pytest
import torch

from inspatio_core.training.data.cast import BALL, BOX, CAPSULE, CONE, CYLINDER, PYRAMID, WEDGE, distance, interval

SHAPES = [
    (BOX, 0.0), (BALL, 0.0), (CYLINDER, 0.0), (CONE, 0.0), (CONE, 0.6), (CAPSULE, 1.7), (WEDGE, 0.0), (WEDGE, -0.8),
    (PYRAMID, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "param"), SHAPES)
def test_a_line_is_inside_between_near_and_far(kind, param):
    generator = torch.Generator().manual_seed(kind)
    n = 4000
    start = torch.randn(n, 3, generator=generator) * 2.5
    way = torch.randn(n, 3, generator=generator) * 0.6 - start
    way[:20] *= torch.tensor([0.0, 1.0, 0.0])  # along the axis, too
    p, one = torch.full((n, 1), param), torch.ones(())
    o, d = ([c[:, None] for c in x.unbind(-1)] for x in (start, way))
    near, far = interval(kind, o, d, p)
    t = torch.linspace(-1, 3, 801)
    q = [a + t * b for a, b in zip(o, d)]
    depth = distance(kind, q, (one, one, one), p)
    inside, said = depth < 0, (t > near) & (t < far)
    sure = depth.abs() > 2e-3
    assert torch.equal(inside[sure], said[sure])
    assert 0.2 < inside.any(1).float().mean() < 1.0


@pytest.mark.parametrize(("kind", "param"), SHAPES)
def test_distances_are_no_longer_than_true_ones(kind, param):
    """Between two points a distance may change by no more than they are apart."""
    generator = torch.Generator().manual_seed(kind + 50)
    half = torch.tensor([0.7, 1.3, 0.7])
    a = torch.randn(20000, 3, generator=generator) * 2
    b = a + torch.randn(20000, 3, generator=generator) * 0.05
    p = torch.tensor(param)
    da, db = (distance(kind, x.unbind(-1), half.unbind(-1), p) for x in (a, b))
    slope = (da - db).abs() / (a - b).norm(dim=-1)
    if kind == BALL:  # an ellipsoid's is close to the true one near its surface only
        slope = slope[(da.abs() < 0.2) & (db.abs() < 0.2)]
        assert slope.max() < 1.3
    else:
        assert slope.max() < 1.001
