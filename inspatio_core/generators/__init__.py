"""Generators turn anchors and reference frames into frames.

``geometric`` needs no network: the filled anchor is the frame. ``star`` is the spatiotemporal autoregressive diffusion
transformer. A generator is asked once per block for all slots; it keeps what it must remember per slot in the states
it made itself, never in the Session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.anchor import Anchor

GENERATORS = ("geometric", "star")
"""The names that ``make_generator`` knows."""


@dataclass(frozen=True)
class GeneratorOptions:
    """How to make a generator with a network; one that has none ignores all of it but ``latents_per_block``.

    Attributes:
        checkpoint_path: file of the network's weights; "" for the place where they belong.
        model: which of the generator's models; "auto" chooses.
        codec: which codec turns frames into latents and back; "auto" chooses.
        tae_checkpoint_path: file of the tiny codec's weights; "" for the place where they belong.
        prompt: what the video shows, for generators that read text; None for the reference's own caption.
        random_weights: make up the weights instead of reading any: for tests and speed measurements.
        dtype: torch's name of the numbers to compute in; "auto" chooses by the device.
        compile: compile the network before the first frame.
        fp8: compute its large products in 8 bits, where the device can.
        compatible: everything as released, number for number, where the better default differs.
        latents_per_block: n, see ``GeneratorSpec``; None for the generator's own default.
    """

    checkpoint_path: str = ""
    model: str = "auto"
    codec: str = "auto"
    tae_checkpoint_path: str = ""
    prompt: str | None = None
    random_weights: bool = False
    dtype: str = "auto"
    compile: bool = False
    fp8: bool = False
    compatible: bool = False
    latents_per_block: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> GeneratorOptions:
        """From names and values as users write them; InputError for an unknown name or a value of the wrong kind."""
        kinds = {f.name: type(f.default) for f in fields(cls)} | {"prompt": str, "latents_per_block": int}
        for name, value in values.items():
            if name not in kinds:
                raise InputError(f"generator option '{name}' is unknown; there are {', '.join(kinds)}")
            if type(value) is not kinds[name] and not (value is None and name in ("prompt", "latents_per_block")):
                raise InputError(f"generator option {name}: {value!r} is not of type {kinds[name].__name__}")
        return cls(**values)


@dataclass(frozen=True)
class GeneratorSpec:
    """What a generator declares of itself.

    Attributes:
        name: the word users choose it by.
        latents_per_block: n. A steady block has 4n frames, the first block of a slot 4n - 3.
        size: the (height, width) it works at; None for any.
        dtype: torch's name of the numbers it computes in, such as ``float32`` or ``bfloat16``. What it is given and
            what it returns is uint8 whichever.
        look_ahead: L, the frames that must be committed beyond the last one a block shows (0: none). A slot's first
            block commits ``first_frames`` + L frames, each later one as many as it shows.
        needs: which of {"anchor", "fill", "reference", "text", "history"} it reads.
        generates: true where its frames hold content that the reference does not, which may enter the map as
            *generated*; a filled anchor is not such content.
        framewise: true where each frame depends on its own anchor and source frame alone, so that any may be left out.
        multiple: height and width must be multiples of this many pixels.
    """

    name: str
    latents_per_block: int = 1
    size: tuple[int, int] | None = None
    dtype: str = "float32"
    look_ahead: int = 0
    needs: frozenset[str] = frozenset({"anchor", "fill"})
    generates: bool = False
    framewise: bool = False
    multiple: int = 1

    @property
    def frames(self) -> int:
        """Frames of a steady block."""
        return 4 * self.latents_per_block

    @property
    def first_frames(self) -> int:
        """Frames of a slot's first block."""
        return 4 * self.latents_per_block - 3


class Generator(Protocol):
    """The protocol. ``states`` holds one opaque object a slot, made by ``new_state``; B slots.

    A block *commits* C frames a slot (their cameras and source frames are final from then on) and *shows* F. Without
    look-ahead these are the same frames. With a look-ahead of L a slot's first block commits L more than it shows;
    from then on C = F, and each block shows the oldest frames not yet shown, so the last L committed ones wait.

    The session calls, for each block, ``condition`` and then ``generate`` with what it returned, for the same slots in
    the same order. It may call ``condition`` long before ``generate`` (``Session.prepare``), call it again with other
    frames if the playheads were told otherwise meanwhile, and serve another session in between.
    """

    spec: GeneratorSpec

    def new_state(self, reference: Any, seed: int) -> Any:
        """State of a fresh slot; must be picklable and cheap to copy (None where there is nothing to remember)."""

    def condition(self, source_rgb: Tensor, states: Sequence[Any], blocks: Sequence[int]) -> Any:
        """What of the next block needs no command; changes no state. None where there is nothing to do ahead.

        Args:
            source_rgb: uint8 [B, C, H, W, 3] the reference frames of the frames to be committed.
            states: one a slot.
            blocks: each slot's block number.
        """

    def generate(
        self,
        anchor: Anchor,
        source_rgb: Tensor,
        states: Sequence[Any],
        blocks: Sequence[int],
        condition: Any,
        known: Tensor,
    ) -> Tensor:
        """One block.

        Args:
            anchor: views of the frames committed now, slot-major: B * C.
            source_rgb: uint8 [B * C, H, W, 3] their reference frames.
            states: one a slot, updated in place.
            blocks: each slot's block number (0 for its first), which keys its noise.
            condition: what ``condition`` returned for these very frames, states and blocks.
            known: bool [N, h, w], N = B * F: the known masks of the frames shown (``anchor.known`` without look-ahead).

        Returns:
            uint8 [N, h, w, 3], the frames shown.
        """

    def set_prompt(self, state: Any, prompt: str) -> None:
        """Let the slot follow ``prompt`` from its next block on; ``state`` is updated in place.

        Asked only of generators whose ``needs`` hold "text". An InputError leaves ``state`` as it was.
        """


def check_multiple(name: str, size: tuple[int, int], multiple: int) -> None:
    """InputError, naming the nearest sizes that do, where the sides of ``size`` are no multiples of ``multiple``."""
    if any(side % multiple for side in size):
        near = [sorted({max(n // multiple, 1), -(-n // multiple)}) for n in size]
        sizes = " or ".join(f"{h * multiple}x{w * multiple}" for h in near[0] for w in near[1])
        given = "x".join(map(str, size))
        raise InputError(f"size: generator {name} works at multiples of {multiple} pixels, not {given}; use {sizes}")


def check_size(spec: GeneratorSpec, size: tuple[int, int]) -> None:
    """InputError where the generator does not work at ``size``, (height, width)."""
    if spec.size not in (None, size):
        able, given = ("x".join(map(str, s)) for s in (spec.size, size))
        raise InputError(f"size: generator {spec.name} works at {able} only, not {given}")
    check_multiple(spec.name, size, spec.multiple)


def make_generator(
    name: str,
    *,
    latents_per_block: int | None = None,
    options: GeneratorOptions | None = None,
    device: torch.device | str = "cpu",
    size: tuple[int, int] | None = None,
) -> Generator:
    """The generator called ``name``.

    Args:
        latents_per_block: n; None for what ``options`` say, else for the generator's own default.
        options: how to make it; None for the defaults.
        device: where it computes.
        size: the (height, width) it will work at, where that is known already.

    Raises:
        InputError: an unknown name, or options that the generator cannot follow.
    """
    options = options or GeneratorOptions()
    latents = options.latents_per_block if latents_per_block is None else latents_per_block
    if name == "geometric":
        from inspatio_core.generators.geometric import GeometricGenerator

        return GeometricGenerator(1 if latents is None else latents)
    if name == "star":
        from inspatio_core.generators.star import StarGenerator

        return StarGenerator.create(latents_per_block=latents, options=options, device=torch.device(device), size=size)
    raise InputError(f"generator: '{name}' is not a generator of this version; use one of {', '.join(GENERATORS)}")
