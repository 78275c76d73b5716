"""Session: the mutable state of B slots that step in lockstep through their worlds, and the Block they yield."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inspatio_core import memory
from inspatio_core.arguments import one_each, several, start_of, start_poses_of, whole
from inspatio_core.block import Block, Frames
from inspatio_core.errors import InputError
from inspatio_core.geometry.anchor import Anchor, build_anchor
from inspatio_core.geometry.camera import invert_pose
from inspatio_core.geometry.compiled import WORTH_A_THREAD, threads
from inspatio_core.geometry.motion import Motion, block_poses, block_poses_twist, se3_log
from inspatio_core.geometry.playhead import Playhead, PlayheadCommand
from inspatio_core.geometry.point_map import PointMap
from inspatio_core.reference import Reference

if TYPE_CHECKING:
    from inspatio_core.world import World

__all__ = ["Block", "Session"]

_SNAPSHOT = frozenset(
    "references seeds prompts maps playhead world_from_camera rig frames_shown blocks states".split()
    + "waiting pending inserted".split()
)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack`` of CPU tensors as one plain copy: torch's own wakes its threads, and waits for them."""
    return torch.from_numpy(np.stack([t.numpy() for t in tensors]))


@dataclass(frozen=True)
class _Prepared:
    """What of a block needs no command: the frames' source indices [b, C], their rgb uint8 [b * C, H, W, 3], and what
    the generator made of them."""

    indices: Tensor
    rgb: Tensor
    condition: Any


class Session:
    """B slots in lockstep. Made by ``World.start``; holds nothing heavy but the slots' point maps.

    Slots are independent: what one does, is asked or is reset to never changes a byte of another. What block k
    inserts into a slot's map is visible from block k + 2 on, whether or not insertion overlaps (``World.overlap``).
    That is, of the block's last frame: what the reference holds, and then, from generators that generate, what is not
    known and of sufficient confidence.

    A generator may look ahead: with a look-ahead of L frames (``GeneratorSpec.look_ahead``) a slot's first block
    commits L frames more than it shows, and every block shows the oldest frames not yet shown. So a motion or playhead
    command moves the frames committed by its block, of which the last L are shown by the next: what is asked for is
    seen L frames later, and what the Block holds is always of the frames it shows.

    Attributes:
        batch: B.
        references: each slot's Reference at the world's size.
        maps: each slot's PointMap.
        world_from_camera: float64 [B, 4, 4], the camera of the last frame committed, from which the next motion
            starts. The camera on show is the last Block's ``world_from_camera[:, -1]``, the same without look-ahead.
        playhead: where the frames to be committed next begin.
        frames_shown: int64 [B]; ``blocks``: int64 [B], blocks shown by each slot.
        first: the block that ``start`` showed (F = the generator's ``first_frames``).
    """

    def __init__(self, world: World, references: Sequence[Reference], seeds: Sequence[int], start_indices, start_poses):
        self.world = world
        self.batch = len(references)
        self.references: list[Reference] = list(references)
        self.maps = [PointMap(limit=world.map_limit) for _ in references]
        self.world_from_camera = torch.eye(4, dtype=torch.float64).repeat(self.batch, 1, 1)
        self.frames_shown = torch.zeros(self.batch, dtype=torch.int64)
        self.blocks = torch.zeros(self.batch, dtype=torch.int64)
        self.playhead = Playhead([r.frame_count for r in references], [self._rate(r) for r in references], world.loop)
        self._seeds = [0] * self.batch
        self._rig = self.world_from_camera.clone()
        self._states: list[Any] = [None] * self.batch
        self._prompts: list[str | None] = [None] * self.batch
        self._waiting: list[Frames | None] = [None] * self.batch
        self._prepared: _Prepared | None = None
        self._pending: list[memory.Sight | None] = [None] * self.batch
        self._inserted: list[set[int]] = [set() for _ in references]
        self._executor: ThreadPoolExecutor | None = None
        self._running: list[Future] = []
        self.first = self.reset(None, seeds, start_indices=start_indices, start_poses=start_poses)

    def _rate(self, reference: Reference) -> float:
        return reference.fps / self.world.fps

    @property
    def time(self) -> Tensor:
        """Sim time of each slot, seconds, float64 [B]: frames shown / fps."""
        return self.frames_shown.to(torch.float64) / self.world.fps

    @property
    def prompts(self) -> tuple[str | None, ...]:
        """What ``set_prompt`` set for each slot; None where the slot follows the generator's default."""
        return tuple(self._prompts)

    # ---------------------------------------------------------------------------------------------- stepping

    def step(
        self,
        motion: Motion | Sequence[Motion] | Tensor | None = None,
        playhead: PlayheadCommand | Sequence[PlayheadCommand | None] | None = None,
        *,
        last_only: bool = False,
    ) -> Block:
        """Show the next block of every slot.

        Args:
            motion: one Motion for all slots, one a slot, or a float64 [B, 6] tensor of twists (camera axes, m/s,
                rad/s); None holds the camera. Poses are ``world_from_camera``. A path has the poses of the F frames
                committed now.
            playhead: one command for all slots or one (or None) a slot; None leaves the playheads as they are.
            last_only: return the block's last frame alone (F = 1), with the bytes it has in the whole block. What the
                block does to the session is the same; a generator whose frames are independent of each other is
                spared the rest.

        Returns:
            A Block with F = the generator's steady number of frames, or 1.

        Raises:
            InputError: a wrong number of motions or commands, twists that are not finite, a path whose length is
                not F.
        """
        frames = self.world.generator.spec.frames
        commands = self._per_slot(playhead, PlayheadCommand, "playhead commands")
        if isinstance(motion, Tensor):
            if motion.shape != (self.batch, 6) or not np.isfinite(motion.numpy(force=True)).all():
                raise InputError(f"motion: expected finite twists of shape [{self.batch}, 6], got {list(motion.shape)}")
            motions: Sequence[Motion] | Tensor = motion.to(dtype=torch.float64, device="cpu")
        else:
            motions = [m or Motion.hold() for m in self._per_slot(motion, Motion, "motions")]
            for m in motions:
                if m.kind == "path" and len(m.poses) != frames:
                    raise InputError(
                        f"motion: a path needs one pose for each of the block's {frames} frames, got {len(m.poses)}"
                    )
        return self._advance(frames, motions, commands, last_only)

    def set_prompt(self, prompt: str | Sequence[str], slots: Sequence[int] | int | None = None) -> None:
        """Say in words what slots show, from their next block on and until they are reset to another reference.

        Args:
            prompt: one text for all of ``slots``, or one a slot.
            slots: which slots; None for all.

        Raises:
            InputError: the generator reads no text, an unknown slot, something that is not a text or not one a slot.
        """
        spec = self.world.generator.spec
        if "text" not in spec.needs:
            raise InputError(f"prompt: generator {spec.name} reads no text")
        slots = self._slots(slots)
        prompts = one_each(slots, prompt, "prompt", lambda v: v)
        if not all(isinstance(p, str) for p in prompts):
            raise InputError(f"prompt: {prompt!r} is not a text")
        states = [copy.deepcopy(self._states[slot]) for slot in slots]
        for state, text in zip(states, prompts, strict=True):
            self.world.generator.set_prompt(state, text)
        self._prepared = None  # from here on nothing can fail
        for slot, state, text in zip(slots, states, prompts, strict=True):
            self._states[slot], self._prompts[slot] = state, text

    def _per_slot(self, value, kind: type, what: str) -> list:
        if value is None or isinstance(value, kind):
            return [value] * self.batch
        if len(value) != self.batch:
            raise InputError(f"{what}: {len(value)} given for {self.batch} slots")
        return list(value)

    def prepare(self) -> None:
        """Do ahead what the next block needs no command for, as if the playheads go on as they are.

        May be called at any time between two blocks, for instance while one is on show, and any number of times. The
        next ``step`` gives the same bytes with it and without it, sooner where its playhead commands change no frame.
        Costs nothing where the generator has nothing to do ahead (it reads neither reference nor history).
        """
        if self._prepared is None and self.world.generator.spec.needs & {"reference", "history"}:
            self._prepared = self._prepare(list(range(self.batch)), self._next_indices())

    def _next_indices(self) -> Tensor:
        """What the next block commits if the playheads go on as they are."""
        return copy.deepcopy(self.playhead).advance(self.world.generator.spec.frames)

    def _prepare(self, slots: list[int], indices: Tensor) -> _Prepared:
        rgb = self._source_frames(slots, indices, lambda reference, i: reference.rgb(i))
        states, numbers = [self._states[s] for s in slots], self.blocks.numpy()[slots].tolist()
        condition = self.world.generator.condition(rgb.unflatten(0, indices.shape), states, numbers)
        return _Prepared(indices, rgb, condition)

    def _advance(self, frames: int, motions, commands, last_only: bool) -> Block:
        slots = list(range(self.batch))
        self.wait()
        indices = self.playhead.advance(frames, commands)
        source = self._source_poses(slots, indices)
        poses, twists = self._poses(slots, motions, source, frames)
        prepared, self._prepared = self._prepared, None
        block = self._show(slots, indices, source, poses, twists, frames, prepared, last_only)
        self._moved(slots, frames, source[:, -1], poses[:, -1])
        if self.world.overlap and self.world.size[0] * self.world.size[1] >= WORTH_A_THREAD:
            self._background().submit(self._fetch, list(self.references), self._next_indices().tolist())
        return block

    @staticmethod
    def _fetch(references: Sequence[Reference], indices: Sequence[Sequence[int]]) -> None:
        """Decode into the references' cache what the next block shows if the playheads go on as they are."""
        for reference, row in zip(references, indices, strict=True):
            for i in row:
                reference.rgb(i)
                reference.depth(i)

    def _background(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="inspatio-session")
        return self._executor

    def _moved(self, slots: list[int], frames: int, source: Tensor, poses: Tensor) -> None:
        """Note that ``slots`` showed ``frames`` frames, and committed the last one at ``poses`` [b, 4, 4]."""
        self.world_from_camera.numpy()[slots] = poses.numpy()
        rig = invert_pose(source) @ poses if self.world.relative_to_source else poses
        self._rig.numpy()[slots] = rig.numpy()
        self.frames_shown.numpy()[slots] += frames
        self.blocks.numpy()[slots] += 1

    def _source_frames(self, slots: Sequence[int], indices: Tensor, read: Callable[[Reference, int], Tensor]) -> Tensor:
        """What ``read`` gives for each of the source frames [b, C], as [b * C, ...] on the world's device."""
        views = [(self.references[s], i) for s, row in zip(slots, indices.tolist(), strict=True) for i in row]
        frames: list[Tensor | None] = [None] * len(views)

        def load(rows: slice) -> None:
            for view in range(*rows.indices(len(views))):
                frames[view] = read(*views[view])

        threads.over_rows(len(views), len(views) * self.world.size[0] * self.world.size[1], load)
        return stack(frames).to(self.world.device)

    def _source_poses(self, slots: Sequence[int], indices: Tensor) -> Tensor:
        rows = zip(slots, indices.numpy(), strict=True)
        return torch.from_numpy(np.stack([self.references[s].world_from_camera.numpy()[i] for s, i in rows]))

    def _poses(self, slots: list[int], motions, source: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Target cameras [b, F, 4, 4] and applied twists [b, F, 6].

        With ``relative_to_source`` a twist or hold moves a rig that rides on the source camera; poses stay poses
        of the world whichever way.
        """
        dt = 1.0 / self.world.fps
        start = self._rig[slots]
        if isinstance(motions, Tensor):
            poses, twists = block_poses_twist(start, motions, frames, dt)
        elif self.world.relative_to_source:
            riding = [
                Motion.target(invert_pose(source[row, -1]) @ m.pose) if m.kind == "target" else m
                for row, m in enumerate(motions)
            ]
            poses, twists = block_poses(start, riding, frames, dt)
        else:
            return block_poses(start, motions, frames, dt)
        if self.world.relative_to_source:
            poses = source @ poses
            absolute = (
                []
                if isinstance(motions, Tensor)
                else [r for r, m in enumerate(motions) if m.kind in ("path", "teleport")]
            )
            for row in absolute:
                poses[row] = motions[row].poses if motions[row].kind == "path" else motions[row].pose
            before = torch.cat([self.world_from_camera[slots][:, None], poses[:, :-1]], 1)
            twists = se3_log(invert_pose(before) @ poses) / dt
            for row in absolute:
                if motions[row].kind == "teleport":
                    twists[row] = 0
        return poses, twists

    def _show(
        self,
        slots: list[int],
        indices: Tensor,
        source: Tensor,
        poses: Tensor,
        twists: Tensor,
        count: int,
        prepared: _Prepared | None = None,
        last_only: bool = False,
    ) -> Block:
        """Commit the frames given, [b, C, ...] each, and show ``count`` frames a slot, or the last of them alone."""
        world, spec = self.world, self.world.generator.spec
        shown_before = self.frames_shown.numpy()[slots]
        stamp = torch.from_numpy((shown_before[:, None] + np.arange(count)) / world.fps)
        if last_only:
            stamp, count = stamp[:, -1:], 1
            if spec.framewise and not spec.look_ahead:
                indices, source, poses, twists = (t[:, -1:] for t in (indices, source, poses, twists))
        if prepared is None or not torch.equal(prepared.indices, indices):
            prepared = self._prepare(slots, indices)
        anchor = self._anchor(slots, indices, prepared.rgb, source, poses)
        shown = self._queued(slots, Frames.of(indices, poses, twists, anchor))
        self._insert_pending(slots)
        out = world.generator.generate(
            anchor,
            prepared.rgb,
            [self._states[s] for s in slots],
            self.blocks.numpy()[slots].tolist(),
            prepared.condition,
            shown.anchor.known.flatten(0, 1),
        )
        rgb = out.unflatten(0, shown.source_index.shape)[:, -count:]
        shown = shown.part(slice(-count, None)) if shown.source_index.shape[1] > count else shown
        depth, confidence = self._depth(rgb, shown)
        K = torch.from_numpy(np.stack([self.references[s].K.numpy()[0] for s in slots]))
        block = Block(
            rgb=rgb,
            depth=depth,
            known=shown.anchor.known,
            world_from_camera=shown.world_from_camera,
            K=K[:, None].expand(len(slots), count, 3, 3),
            source_index=shown.source_index,
            stamp=stamp,
            twist=shown.twist,
            index=self.blocks[slots].clone(),
            anchor=shown.views if world.keep_anchor else None,
        )
        if world.memory:
            self._remember(slots, block, confidence)
        return block

    def _anchor(self, slots: Sequence[int], indices: Tensor, rgb: Tensor, source: Tensor, poses: Tensor) -> Anchor:
        """The anchor of the b * C views that see the source frames [b, C], of ``rgb``, from ``poses`` [b, C, 4, 4]."""
        rows = zip(slots, indices.tolist(), strict=True)
        views = [(self.references[s], self.maps[s], i) for s, row in rows for i in row]
        K = torch.from_numpy(np.stack([reference.K.numpy()[0] for reference, _, _ in views]))
        return build_anchor(
            rgb,
            self._source_frames(slots, indices, lambda reference, i: reference.depth(i)),
            torch.from_numpy(np.stack([reference.K.numpy()[i] for reference, _, i in views])),
            source.reshape(-1, 4, 4),
            K,
            poses.reshape(-1, 4, 4),
            self.world.size,
            torch.tensor([reference.median_depth for reference, _, _ in views], dtype=torch.float64),
            [point_map for _, point_map, _ in views] if self.world.memory else None,
        )

    def _queued(self, slots: Sequence[int], committed: Frames) -> Frames:
        """The frames to show now that ``committed`` are: all but the last ``look_ahead``, which wait."""
        look_ahead = self.world.generator.spec.look_ahead
        if look_ahead == 0:
            return committed
        before = [self._waiting[s] for s in slots]
        if before[0] is not None:
            committed = Frames.stacked(before).then(committed)
        waiting = committed.part(slice(-look_ahead, None))
        for row, slot in enumerate(slots):
            self._waiting[slot] = waiting.slot(row)
        return committed.part(slice(-look_ahead))

    def _depth(self, rgb: Tensor, shown: Frames) -> tuple[Tensor, Tensor | None]:
        """Depth of the frames shown, [b, F, h, w], everywhere > 0; and, of generated frames, its confidence in 0..1."""
        if not self.world.generator.spec.generates:
            return shown.anchor.filled_depth, None
        from inspatio_core.geometry.depth_completion import complete_depth  # spared where nothing is generated

        anchor = shown.views
        depth, confidence = complete_depth(rgb.flatten(0, 1), anchor.depth, anchor.known, anchor.filled_depth)
        shape = shown.source_index.shape
        return depth.unflatten(0, shape), confidence.unflatten(0, shape)

    # ------------------------------------------------------------------------------------------------ memory

    def _remember(self, slots: Sequence[int], block: Block, confidence: Tensor | None) -> None:
        """Note what the maps shall learn of the block's last frame, by ``_insert_pending`` of the next block."""
        last = zip(block.source_index[:, -1].tolist(), block.stamp[:, -1].tolist(), strict=True)
        for row, (slot, (index, stamp)) in enumerate(zip(slots, last, strict=True)):
            generated = None
            if confidence is not None:
                frames = (block.rgb, block.depth, confidence, block.known, block.K, block.world_from_camera)
                generated = memory.Generated.of(*(t[row, -1] for t in frames))
            self._pending[slot] = memory.Sight(index, stamp, generated)

    def _insert_pending(self, slots: Sequence[int]) -> None:
        """Insert what the slots' last blocks showed; in the background if the world overlaps."""
        for slot in slots:
            sight, self._pending[slot] = self._pending[slot], None
            if sight is None:
                continue
            observed = sight.index not in self._inserted[slot]
            if not observed and sight.generated is None:
                continue
            self._inserted[slot].add(sight.index)
            job = partial(memory.insert, self.maps[slot], self.references[slot], sight, observed)
            if self.world.overlap:
                self._running.append(self._background().submit(job))
            else:
                job()

    def wait(self) -> None:
        """Return once background insertions are done."""
        running, self._running = self._running, []
        for future in running:
            future.result()

    # --------------------------------------------------------------------------------------- reset, snapshot

    def reset(
        self,
        slots: Sequence[int] | int | None = None,
        seeds: Sequence[int] | int | None = None,
        references: Reference | Sequence[Reference] | None = None,
        *,
        start_indices: Sequence[int] | Sequence[Sequence[int]] | int | None = None,
        start_poses: Tensor | None = None,
    ) -> Block:
        """Restart some slots and show their first block; the others are not touched.

        The first block commits C = ``first_frames`` + ``look_ahead`` frames of the generator. A prompt that was set by
        ``set_prompt`` stays as long as the slot keeps its reference.

        Args:
            slots: which slots; None for all.
            seeds: one whole number, or one a slot; None keeps each slot's seed.
            references: the scenes to restart on; None keeps each slot's scene.
            start_indices: the source frame the playheads start at, for all slots or one a slot; or a slot's C source
                frames. None for 0.
            start_poses: ``world_from_camera``, float64 [4, 4] or [len(slots), 4, 4], at which the camera holds; or
                [len(slots), C, 4, 4], one a frame. None for the world origin (with ``relative_to_source``: the source
                camera).

        Returns:
            The first block of the reset slots only: ``len(slots)`` rows in the order given.

        Raises:
            InputError: an unknown slot, a number of values that does not fit, seeds or indices that are no whole
                numbers, poses that are not finite and rigid. The session is as it was.
        """
        generator = self.world.generator
        shows, commits = generator.spec.first_frames, generator.spec.first_frames + generator.spec.look_ahead
        slots = self._slots(slots)
        seeds = one_each(slots, seeds, "seeds", lambda v: whole(v, "seeds"))
        seeds = [self._seeds[s] if v is None else v for s, v in zip(slots, seeds, strict=True)]
        chosen = one_each(slots, references, "references", self.world.fitted)
        chosen = [self.references[s] if v is None else v for s, v in zip(slots, chosen, strict=True)]
        starts = one_each(slots, start_indices, "start_indices", lambda v: v)
        starts = [start_of(v, commits, r.frame_count) for v, r in zip(starts, chosen, strict=True)]
        start_poses = start_poses_of(start_poses, slots, commits)
        states, prompts = [], []
        for slot, seed, reference in zip(slots, seeds, chosen, strict=True):
            states.append(generator.new_state(reference, seed))
            prompts.append(self._prompts[slot] if reference is self.references[slot] else None)
            if prompts[-1] is not None:
                generator.set_prompt(states[-1], prompts[-1])
        self.wait()
        self._prepared = None
        for row, slot in enumerate(slots):
            self.references[slot] = chosen[row]
            self._seeds[slot] = seeds[row]
            self._prompts[slot] = prompts[row]
            self._states[slot] = states[row]
            if self.world.memory:
                self.maps[slot].clear()
            self._waiting[slot] = None
            self._pending[slot] = None
            self._inserted[slot].clear()
            self.frames_shown[slot] = 0
            self.blocks[slot] = 0
        self.playhead.reset(slots, [r.frame_count for r in chosen], [self._rate(r) for r in chosen])
        indices = self.playhead.advance_slots(slots, commits, starts)
        source = self._source_poses(slots, indices)
        twists = torch.zeros(len(slots), commits, 6, dtype=torch.float64)
        if start_poses is None and not self.world.relative_to_source:
            start_poses = torch.eye(4, dtype=torch.float64)
        if start_poses is None or start_poses.dim() == 4:
            poses = source.clone() if start_poses is None else start_poses
            twists[:, 1:] = se3_log(invert_pose(poses[:, :-1]) @ poses[:, 1:]) * self.world.fps
        else:
            poses = start_poses.reshape(-1, 1, 4, 4).expand(len(slots), commits, 4, 4).clone()
        block = self._show(slots, indices, source, poses, twists, shows)
        self._moved(slots, shows, source[:, -1], poses[:, -1])
        return block

    def _slots(self, slots: Sequence[int] | int | None) -> list[int]:
        """The slots that are meant, checked; None means all."""
        slots = range(self.batch) if slots is None else slots if several(slots) else [slots]
        slots = [whole(s, "slots") for s in slots]
        if len(set(slots)) != len(slots) or any(not 0 <= s < self.batch for s in slots):
            raise InputError(f"slots: {slots} are not distinct slots of 0..{self.batch - 1}")
        return slots

    def snapshot(self) -> dict[str, Any]:
        """Everything the session's future depends on; ``restore`` brings it back bit for bit.

        References are immutable and held by identity, not copied.
        """
        self.wait()
        return {
            "references": list(self.references),
            "seeds": list(self._seeds),
            "prompts": list(self._prompts),
            "maps": [m.state_dict() for m in self.maps],
            "playhead": self.playhead.state_dict(),
            "world_from_camera": self.world_from_camera.clone(),
            "rig": self._rig.clone(),
            "frames_shown": self.frames_shown.clone(),
            "blocks": self.blocks.clone(),
            "states": copy.deepcopy(self._states),
            "waiting": list(self._waiting),
            "pending": list(self._pending),
            "inserted": [set(s) for s in self._inserted],
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to ``snapshot``, taken from this session or another of the same world and batch size.

        Raises:
            InputError: not a snapshot, or one of another batch size or world; the session is as it was.
        """
        if not isinstance(snapshot, dict) or set(snapshot) != _SNAPSHOT:
            given = sorted(map(str, snapshot)) if isinstance(snapshot, dict) else type(snapshot).__name__
            raise InputError(f"snapshot: needs the entries that Session.snapshot() gives, got {given}")
        for name in sorted(_SNAPSHOT - {"playhead"}):
            count = len(snapshot[name]) if several(snapshot[name]) else None
            if count != self.batch:
                raise InputError(f"snapshot: has {count} slots in {name}, this session {self.batch}")
        for reference, state in zip(snapshot["references"], snapshot["maps"], strict=True):
            theirs, ours = (reference.size, state["limit"]), (self.world.size, self.world.map_limit)
            if theirs != ours:
                raise InputError(f"snapshot: of a world with size and map_limit {theirs}, this one has {ours}")
        self.wait()
        self._prepared = None
        self.playhead.load_state_dict(snapshot["playhead"])
        self.references = list(snapshot["references"])
        self._seeds = list(snapshot["seeds"])
        self._prompts = list(snapshot["prompts"])
        for point_map, state in zip(self.maps, snapshot["maps"], strict=True):
            point_map.load_state_dict(state)
        self.world_from_camera = snapshot["world_from_camera"].clone()
        self._rig = snapshot["rig"].clone()
        self.frames_shown = snapshot["frames_shown"].clone()
        self.blocks = snapshot["blocks"].clone()
        self._states = copy.deepcopy(snapshot["states"])
        self._waiting = list(snapshot["waiting"])
        self._pending = list(snapshot["pending"])
        self._inserted = [set(s) for s in snapshot["inserted"]]

    def close(self) -> None:
        """End the background thread. The session can still be read, and starts a new thread if stepped."""
        self.wait()
        self._prepared = None
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc) -> None:
        self.close()
