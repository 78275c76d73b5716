"""World: a generator, a set of references and the workspace they share. ``World.start`` gives a Session."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.generators import Generator, GeneratorOptions, check_size, make_generator
from inspatio_core.reference import Reference
from inspatio_core.session import Block, Session

__all__ = ["Block", "Session", "World", "choose_device"]


def choose_device(device: str | torch.device) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; InputError for a device that is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device: '{device}' is not a device; use auto, cpu or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device: '{device}' is not supported; use auto, cpu or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: '{device}' is not here ({torch.cuda.device_count()} CUDA devices); use device=cpu")
    return chosen


def _opened(reference: Reference | str | Path) -> Reference:
    if isinstance(reference, Reference):
        return reference
    from inspatio_core.reference import (
        open_reference,
    )  # brings in video decoders, which in-memory references do not need

    return open_reference(reference)


class World:
    """A place that was filmed once and can be driven through ever after.

    Args:
        references: the scene(s): Reference objects or anything ``open_reference`` opens. May be left out and given
            to ``start`` instead.
        generator: ``"geometric"``, ``"star"`` or a Generator object.
        size: (height, width) of the frames; ``"auto"`` is the generator's own; where it works at any, 480x832, or
            832x480 where the first reference is upright.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        fps: frames per second of sim time. The playhead at rate 1 shows the source at its own speed whatever its rate.
        latents_per_block: n; a steady block has 4n frames (1: lowest control lag; 3: as released); None for the
            generator's own default (``geometric``: 1).
        memory: whether the point map feeds back into anchors.
        map_limit: the most points a slot's map holds.
        relative_to_source: let the camera ride on the source camera: twists move it relative to that camera.
        loop: what playheads do at the ends: ``loop``, ``bounce`` or ``hold``.
        overlap: insert into maps, and decode frames ahead, in a background thread (same bytes either way).
        keep_anchor: attach the Anchor to each Block.
        options: how to make a generator that is given by name.

    Raises:
        InputError: an unknown generator, options that it cannot follow, an absent device, a size or rate that cannot
            be, a size that the generator does not work at.
    """

    def __init__(
        self,
        references: Reference | str | Path | Sequence[Reference | str | Path] | None = None,
        generator: str | Generator = "geometric",
        *,
        size: tuple[int, int] | str = (480, 832),
        device: str | torch.device = "auto",
        fps: float = 24.0,
        latents_per_block: int | None = None,
        memory: bool = True,
        map_limit: int = 500_000,
        relative_to_source: bool = False,
        loop: str = "bounce",
        overlap: bool = True,
        keep_anchor: bool = False,
        options: GeneratorOptions | None = None,
    ):
        if not (math.isfinite(fps) and fps > 0):
            raise InputError(f"fps: {fps} is not a frame rate; use a positive number such as 24")
        if loop not in ("loop", "bounce", "hold"):
            raise InputError(f"loop: '{loop}' is not one of loop, bounce, hold")
        if map_limit < 1:
            raise InputError(f"map_limit: {map_limit} is not a number of points")
        self.device = choose_device(device)
        references = [references] if isinstance(references, (Reference, str, Path)) else list(references or [])
        auto = size == "auto"
        if auto:
            references[:1] = [_opened(r) for r in references[:1]]
            upright = bool(references) and references[0].size[0] > references[0].size[1]
            size = (832, 480) if upright else (480, 832)
        if isinstance(size, str) or len(size) != 2 or any(int(n) != n or not 16 <= n <= 4096 for n in size):
            raise InputError(f"size: {size} is not (height, width) with sides of 16 to 4096 pixels")
        self.size = (int(size[0]), int(size[1]))
        # Before the references are opened, which may take minutes: what is missing here is told at once.
        if isinstance(generator, str):
            generator = make_generator(
                generator, latents_per_block=latents_per_block, options=options, device=self.device, size=self.size
            )
        self.generator = generator
        if auto and generator.spec.size is not None:
            self.size = generator.spec.size
        check_size(generator.spec, self.size)
        self.fps = float(fps)
        self.memory = memory
        self.map_limit = map_limit
        self.relative_to_source = relative_to_source
        self.loop = loop
        self.overlap = overlap
        self.keep_anchor = keep_anchor
        self._fitted: dict[int | str, tuple[Reference | str | Path, Reference]] = {}
        self.references = [self.fitted(r) for r in references]

    def fitted(self, reference: Reference | str | Path) -> Reference:
        """``reference`` opened, and seen at the world's size; the same object each time it is asked for."""
        key = id(reference) if isinstance(reference, Reference) else str(reference)
        if key not in self._fitted:
            opened = _opened(reference)
            # What was asked for is kept as well: an id is good only as long as its object lives.
            self._fitted[key] = (reference, opened if opened.size == self.size else opened.resized(self.size))
        return self._fitted[key][1]

    def start(
        self,
        references: Reference | str | Path | Sequence[Reference | str | Path] | None = None,
        seeds: int | Sequence[int] = 0,
        *,
        start_indices: int | Sequence[int] | None = None,
        start_poses: Tensor | None = None,
    ) -> Session:
        """A session with one slot for each reference (default: the world's own); its first block is ``session.first``.

        Args:
            references: one reference or one a slot.
            seeds: one seed for all slots or one a slot.
            start_indices: source frame(s) to start at, see ``Session.reset``.
            start_poses: first camera(s), see ``Session.reset``.

        Raises:
            InputError: no reference anywhere, or numbers that do not fit.
        """
        if references is None:
            slots = self.references
        elif isinstance(references, (Reference, str, Path)):
            slots = [self.fitted(references)]
        else:
            slots = [self.fitted(r) for r in references]
        if not slots:
            raise InputError("references: a session needs at least one reference")
        return Session(self, slots, seeds, start_indices, start_poses)
