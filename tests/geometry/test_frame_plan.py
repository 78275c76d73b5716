import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry.frame_plan import adaptive_bounds, bounce, freeze, plan_frames, total_angle
from inspatio_core.geometry.trajectory import Trajectory, parse_trajectory, sample

CIRCLE = parse_trajectory("0 60 -60 0\n0 0\n1 1\n")
ZOOM = parse_trajectory("0 0\n0 0\n0 1\n")
SMALL = parse_trajectory("0 10\n0 -20\n1 1\n")


def test_bounce():
    assert bounce(4, 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert bounce(10, 3).tolist() == [0, 4, 9]
    assert bounce(1, 4).tolist() == [0, 0, 0, 0]
    assert bounce(5, 0).tolist() == []
    with pytest.raises(InputError):
        bounce(0, 3)


def test_freeze():
    assert freeze(4, 2).tolist() == [0, 1, 2, 2, 2, 3]
    assert freeze(4, 2, 0).tolist() == [0, 0, 0, 1, 2, 3]
    assert freeze(4, 1, 99).tolist() == [0, 1, 2, 3, 3]
    assert freeze(4, 1, -5).tolist() == [0, 0, 1, 2, 3]
    assert freeze(4, 0).tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError):
        freeze(4, -1)


def test_angles():
    assert total_angle(CIRCLE) == 240 and total_angle(ZOOM) == 0
    assert adaptive_bounds(240, 50) == (301, 801)
    assert adaptive_bounds(0.0, 50) == (50, 50)


def test_exact_plan_slows_the_camera_instead_of_repeating_it():
    exact = plan_frames(81, CIRCLE)
    compatible = plan_frames(81, CIRCLE, mode="compatible")
    assert torch.equal(exact.source_indices, compatible.source_indices) and len(exact.source_indices) == 301
    assert exact.render_count == 301 and exact.render_indices.tolist() == list(range(301))
    assert compatible.render_count == 81 and torch.equal(compatible.render_indices, bounce(81, 301))

    def fastest_turn(plan) -> float:
        R = sample(CIRCLE, plan.render_count)[plan.render_indices, :3, :3]
        cosine = (torch.einsum("nii->n", R[:-1].transpose(1, 2) @ R[1:]) - 1) / 2
        return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).max())

    assert fastest_turn(exact) < 2.0 < 6.0 < fastest_turn(compatible)


def test_a_slow_path_thins_a_long_clip_as_released_and_slows_down_otherwise():
    plan = plan_frames(200, SMALL, mode="compatible")
    assert len(plan.source_indices) == 67
    assert plan.source_indices[0] == 0 and plan.source_indices[-1] == 199
    plan = plan_frames(200, SMALL)
    assert plan.source_indices.tolist() == list(range(200)) and plan.render_count == 200


def test_no_turn_no_rule_but_the_least_length():
    assert plan_frames(150, ZOOM).source_indices.tolist() == list(range(150))
    assert torch.equal(plan_frames(60, ZOOM).source_indices, bounce(60, 121))
    assert plan_frames(60, ZOOM, adaptive=False).source_indices.tolist() == list(range(60))


def test_a_single_frame_can_be_extended():
    assert plan_frames(1, CIRCLE).source_indices.tolist() == [0] * 301


def test_freeze_comes_before_the_path_and_cuts_after_it():
    plan = plan_frames(21, CIRCLE, adaptive=False, freeze_repeat=3, freeze_frame=5)
    assert plan.source_indices.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, *range(6, 21)]
    assert plan.render_count == 24
    plan = plan_frames(21, CIRCLE, adaptive=False, render_count=19, mask_count=18, mode="compatible")
    assert plan.source_indices.tolist() == plan.render_indices.tolist() == list(range(18))
    assert len(plan_frames(1500, CIRCLE, adaptive=False, mode="compatible").source_indices) == 1000
    assert len(plan_frames(1500, CIRCLE, adaptive=False).source_indices) == 1500


def test_bad_plans():
    for call in (
        lambda: plan_frames(0, CIRCLE),
        lambda: plan_frames(9, CIRCLE, render_count=0, mode="compatible"),
        lambda: plan_frames(9, CIRCLE, render_count=9),
    ):
        with pytest.raises(InputError, match="frame plan"):
            call()


def test_a_plan_without_end_is_refused_before_it_is_made():
    endless = parse_trajectory("0 1e9\n0 0\n1 1\n")
    infinite = Trajectory(*[np.array([0.0, 1.7e308])] * 3)
    for mode in ("exact", "compatible"):
        for trajectory in (endless, infinite):
            with pytest.raises(InputError, match="100000"):
                plan_frames(10, trajectory, mode=mode)
        with pytest.raises(InputError, match="freeze.*100000"):
            plan_frames(10, SMALL, freeze_repeat=10**18, mode=mode)
        assert plan_frames(10, endless, adaptive=False, mode=mode).render_count == 10
    with pytest.raises(InputError, match="100000"):
        bounce(10, 10**18)
    assert len(plan_frames(150_000, SMALL).source_indices) == 150_000  # a long source is no mistake
    assert len(plan_frames(10, parse_trajectory("0 79990\n0 0\n1 1\n")).source_indices) == 99_989
