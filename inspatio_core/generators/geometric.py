"""The generator without a network: memory and background-side fill are the frame.

The preview, the fast environment, and the baseline that every network must beat.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.generators import GeneratorSpec
from inspatio_core.geometry.anchor import Anchor
from inspatio_core.reference import Reference


class GeometricGenerator:
    """Returns the filled anchor itself. Stateless, draws no random numbers."""

    def __init__(self, latents_per_block: int = 1):
        if latents_per_block < 1:
            raise InputError(f"latents_per_block: {latents_per_block} is not a positive number of latents")
        self.spec = GeneratorSpec("geometric", latents_per_block, framewise=True)

    def new_state(self, reference: Reference, seed: int) -> None:
        """Nothing is remembered between blocks."""

    def condition(self, source_rgb: Tensor, states: Sequence[None], blocks: Sequence[int]) -> None:
        """Nothing can be done ahead."""

    def generate(
        self,
        anchor: Anchor,
        source_rgb: Tensor,
        states: Sequence[None],
        blocks: Sequence[int],
        condition: None,
        known: Tensor,
    ) -> Tensor:
        """The anchor's filled rgb, uint8 [N, h, w, 3]."""
        return anchor.filled_rgb
