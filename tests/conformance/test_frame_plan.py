"""Which frames reach the model, and the poses saved beside the video, in compatible mode."""

from inspatio_core.geometry import frame_plan
from inspatio_core.geometry.camera import invert_pose
from inspatio_core.geometry.frame_plan import plan_frames
from inspatio_core.geometry.trajectory import parse_trajectory, sample, without_translation

from .harness import Case, parametrize


@parametrize("frame_plan")
def test_frame_plan(case: Case) -> None:
    meta = case.meta
    assert meta["plans"]
    for key, constant in (
        ("min_angle_per_frame", frame_plan.MIN_DEGREES_PER_FRAME),
        ("max_angle_per_frame", frame_plan.MAX_DEGREES_PER_FRAME),
        ("min_expand", frame_plan.MIN_EXPANDED_FRAMES),
    ):
        assert meta.get(key, constant) == constant
    for number, row in enumerate(meta["plans"]):
        name = row.get("name", f"plan{number}")
        trajectory = parse_trajectory(row["trajectory_text"])
        plan = plan_frames(
            row["n_source"],
            trajectory,
            render_count=row["n_render"],
            mask_count=row["n_mask"],
            adaptive=row["adaptive"],
            freeze_repeat=row["freeze_repeat"],
            freeze_frame=row["freeze_frame"],
            mode="compatible",
        )
        assert plan.source_indices.tolist() == row["source_indices"], name
        assert plan.render_indices.tolist() == row["render_indices"], name
        if f"{name}.target_extrinsics_w2c" in case.tensors:
            nearest = row["first_depth_min"]
            poses = sample(
                trajectory,
                len(plan.source_indices),
                "compatible",
                radius_scale=nearest * row["radius_ratio"],
                zoom_scale=nearest,
            )
            if row["rotation_only"]:
                poses = without_translation(poses)
            case.check(f"{name}.target_extrinsics_w2c", invert_pose(poses))
