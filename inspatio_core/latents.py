"""How frames map to latent frames, and the mask in latent form.

Latent frame 0 stands for frame 0 alone, latent frame i >= 1 for frames 4i-3 .. 4i.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inspatio_core.errors import InputError


class FrameCounts(NamedTuple):
    """What becomes of a clip of `frames` frames generated in whole blocks.

    latents: latent frames of the clip (either codec). mask_latents: of its mask (equal). used_latents: those that fill
    whole blocks. blocks: how many. output_frames: frames decoded from them.
    """

    frames: int
    latents: int
    mask_latents: int
    used_latents: int
    blocks: int
    output_frames: int


def frame_counts(frames: int, latents_per_block: int = 3) -> FrameCounts:
    """Latents, blocks and output frames of a clip of `frames` >= 1 frames. Raises InputError below 1."""
    if frames < 1 or latents_per_block < 1:
        raise InputError(
            f"a clip needs at least 1 frame and a block at least 1 latent, not {frames}, {latents_per_block}"
        )
    latents = 1 + (frames - 1) // 4
    blocks = latents // latents_per_block
    used = blocks * latents_per_block
    return FrameCounts(frames, latents, (frames + 3) // 4, used, blocks, max(0, 4 * used - 3))


def mask_latent(mask: Tensor, first: bool = True) -> Tensor:
    """Mask video [B,C,T,H,W] in [-1,1] (+1 known; channel 0 is read) -> [B,T',4,H/8,W/8], same dtype.

    A latent pixel is the mean of the central 2x2 pixels of its 8x8 cell: bilinear, half-pixel centres, no antialias.
    The four channels of latent frame i are frames 4i-3 .. 4i, those of latent frame 0 are frame 0 four times; what does
    not fill a group of four is dropped: T' = (T+3)//4. With ``first=False`` the video goes on one that began before:
    every four frames are a latent frame's, T' = T//4. H and W must be multiples of 8 (InputError).
    """
    if mask.dim() != 5 or mask.shape[2] < 1 or mask.shape[3] % 8 or mask.shape[4] % 8:
        raise InputError(f"mask: expected [B,C,T,H,W] with T >= 1 and H, W multiples of 8, got {tuple(mask.shape)}")
    channel = mask[:, 0].to(torch.promote_types(mask.dtype, torch.float32))
    low = (
        channel[..., 3::8, 3::8] + channel[..., 3::8, 4::8] + channel[..., 4::8, 3::8] + channel[..., 4::8, 4::8]
    ) / 4
    low = low.to(mask.dtype)
    if first:
        low = torch.cat([low[:, :1].expand(-1, 4, -1, -1), low[:, 1:]], 1)
    groups = low.shape[1] // 4
    return low[:, : groups * 4].unflatten(1, (groups, 4))
