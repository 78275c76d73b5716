"""Frames, latents and blocks."""

from inspatio_core.latents import frame_counts

from .harness import Case, parametrize


@parametrize("frame_arithmetic")
def test_frame_arithmetic(case: Case) -> None:
    assert case.meta["rows"]
    for row in case.meta["rows"]:
        counts = frame_counts(row["frames"])
        assert counts.latents == row["wan_latents"] == row["tae_latents"], row
        assert counts.mask_latents == row["mask_latents"], row
        assert counts.used_latents == row["used_latents"], row
        assert counts.blocks == row["blocks"], row
        assert counts.output_frames == row["wan_decoded"] == row["tae_decoded"], row
