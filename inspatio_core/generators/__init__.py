"""Generators turn anchors and reference frames into frames.

``geometric`` needs no network: the filled anchor is the frame. A generator is asked once per block for all
slots; it keeps what it must remember per slot in the states it made itself, never in the Session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.anchor import Anchor


@dataclass(frozen=True)
class GeneratorSpec:
    """What a generator declares of itself.

    Attributes:
        name: the word users choose it by.
        latents_per_block: n. A steady block has 4n frames, the first block of a slot 4n - 3.
        size: the (height, width) it works at; None for any.
        dtype: torch's name of the numbers it computes in, such as ``float32`` or ``bfloat16``. What it is given and
            what it returns is uint8 whichever.
        look_ahead: frames whose poses must be committed before the block that shows them (0: none).
        needs: which of {"anchor", "fill", "reference", "text", "history"} it reads.
        generates: true where its frames hold content that the reference does not, which may enter the map as
            *generated*; a filled anchor is not such content.
        framewise: true where each frame depends on its own anchor and source frame alone, so that any may be left out.
    """

    name: str
    latents_per_block: int = 1
    size: tuple[int, int] | None = None
    dtype: str = "float32"
    look_ahead: int = 0
    needs: frozenset[str] = frozenset({"anchor", "fill"})
    generates: bool = False
    framewise: bool = False

    @property
    def frames(self) -> int:
        """Frames of a steady block."""
        return 4 * self.latents_per_block

    @property
    def first_frames(self) -> int:
        """Frames of a slot's first block."""
        return 4 * self.latents_per_block - 3


class Generator(Protocol):
    """The protocol. ``states`` holds one opaque object a slot, made by ``new_state``; B slots, F frames."""

    spec: GeneratorSpec

    def new_state(self, reference: Any, seed: int) -> Any:
        """State of a fresh slot; must be picklable and cheap to copy (None where there is nothing to remember)."""

    def generate(self, anchor: Anchor, source_rgb: Tensor, states: Sequence[Any], blocks: Sequence[int]) -> Tensor:
        """One block.

        Args:
            anchor: views of all slots, slot-major: N = B * F.
            source_rgb: uint8 [N, H, W, 3] the reference frames shown by the playhead.
            states: one a slot, updated in place.
            blocks: each slot's block number (0 for its first), which keys its noise.

        Returns:
            uint8 [N, h, w, 3].
        """


def make_generator(name: str, *, latents_per_block: int = 1) -> Generator:
    """The generator called ``name``; InputError for an unknown one."""
    from inspatio_core.generators.geometric import GeometricGenerator

    if name == "geometric":
        return GeometricGenerator(latents_per_block)
    raise InputError(f"generator: '{name}' is not a generator of this version; use generator=geometric")
