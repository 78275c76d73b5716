"""Session: the mutable state of B slots that step in lockstep through their worlds, and the Block they yield."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inspatio_core.errors import InputError
from inspatio_core.geometry.anchor import Anchor, build_anchor
from inspatio_core.geometry.camera import invert_pose
from inspatio_core.geometry.compiled import WORTH_A_THREAD, threads
from inspatio_core.geometry.motion import Motion, block_poses, block_poses_twist, rigid_poses, se3_log
from inspatio_core.geometry.playhead import Playhead, PlayheadCommand
from inspatio_core.geometry.point_map import OBSERVED, PointMap
from inspatio_core.reference import Reference

if TYPE_CHECKING:
    from inspatio_core.world import World


_SNAPSHOT = frozenset(
    "references seeds maps playhead world_from_camera rig frames_shown blocks states pending inserted".split()
)


def _several(value: Any) -> bool:
    """Whether this is a sequence, array or tensor of values and not a value."""
    return hasattr(value, "__len__") and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def _whole(value: Any, what: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{what}: {value!r} is not a whole number") from None


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack`` of CPU tensors as one plain copy: torch's own wakes its threads, and waits for them."""
    return torch.from_numpy(np.stack([t.numpy() for t in tensors]))


@dataclass
class Block:
    """What one generator call yields: F frames for each of B slots.

    Attributes:
        rgb: uint8 [B, F, H, W, 3].
        depth: float32 [B, F, H, W], z in metres, completed: everywhere > 0.
        known: bool [B, F, H, W], where the reference or the memory covers the pixel; elsewhere it is invented.
        world_from_camera: float64 [B, F, 4, 4], OpenCV axes, metres, world = first source camera.
        K: float64 [B, F, 3, 3], pixels, pixel centres at integer coordinates.
        source_index: int64 [B, F], the source frame each output frame shows.
        stamp: float64 [B, F], seconds of the slot's sim time: frames shown before it / fps.
        twist: float64 [B, F, 6], body twist (vx, vy, vz, wx, wy, wz) in camera axes, m/s and rad/s, that led from
            the frame before to this one; zero for a slot's first frame and for teleports.
        index: int64 [B], the slot's block number, 0 for its first.
        anchor: the anchor of all B * F views (slot-major), if the world was made with ``keep_anchor=True``.
    """

    rgb: Tensor
    depth: Tensor
    known: Tensor
    world_from_camera: Tensor
    K: Tensor
    source_index: Tensor
    stamp: Tensor
    twist: Tensor
    index: Tensor
    anchor: Anchor | None = None

    @property
    def frames(self) -> int:
        """F, the number of frames."""
        return self.rgb.shape[1]

    def last(self) -> Block:
        """The last frame alone, as a Block of F = 1 without the anchor."""
        values = {name: value for name, value in vars(self).items() if name not in ("index", "anchor")}
        return Block(**{name: value[:, -1:] for name, value in values.items()}, index=self.index)


class Session:
    """B slots in lockstep. Made by ``World.start``; holds nothing heavy but the slots' point maps.

    Slots are independent: what one does, is asked or is reset to never changes a byte of another. What block k
    inserts into a slot's map is visible from block k + 2 on, whether or not insertion overlaps (``World.overlap``).

    Attributes:
        batch: B.
        references: each slot's Reference at the world's size.
        maps: each slot's PointMap.
        world_from_camera: float64 [B, 4, 4], the camera of the last frame shown.
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
        self._pending: list[int | None] = [None] * self.batch
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
                rad/s); None holds the camera. Poses are ``world_from_camera``.
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

    def _per_slot(self, value, kind: type, what: str) -> list:
        if value is None or isinstance(value, kind):
            return [value] * self.batch
        if len(value) != self.batch:
            raise InputError(f"{what}: {len(value)} given for {self.batch} slots")
        return list(value)

    def _advance(self, frames: int, motions, commands, last_only: bool) -> Block:
        slots = list(range(self.batch))
        self.wait()
        indices = self.playhead.advance(frames, commands)
        source = self._source_poses(slots, indices)
        poses, twists = self._poses(slots, motions, source, frames)
        block = self._show(slots, indices, source, poses, twists, last_only)
        self._moved(slots, frames, source[:, -1], poses[:, -1])
        if self.world.overlap and self.world.size[0] * self.world.size[1] >= WORTH_A_THREAD:
            ahead = copy.deepcopy(self.playhead).advance(frames, [None] * self.batch)
            self._background().submit(self._fetch, list(self.references), ahead.tolist())
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
        """Note that ``slots`` showed ``frames`` frames, the last at ``poses`` [b, 4, 4]."""
        self.world_from_camera.numpy()[slots] = poses.numpy()
        rig = invert_pose(source) @ poses if self.world.relative_to_source else poses
        self._rig.numpy()[slots] = rig.numpy()
        self.frames_shown.numpy()[slots] += frames
        self.blocks.numpy()[slots] += 1

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
        self, slots: list[int], indices: Tensor, source: Tensor, poses: Tensor, twists: Tensor, last_only: bool = False
    ) -> Block:
        world, (b, frames) = self.world, indices.shape
        shown = self.frames_shown.numpy()[slots]
        stamp = torch.from_numpy((shown[:, None] + np.arange(frames)) / world.fps)
        if last_only and world.generator.spec.framewise:
            indices, source, poses, twists, stamp = (t[:, -1:] for t in (indices, source, poses, twists, stamp))
            frames = 1
        views = [(s, i) for s, row in zip(slots, indices.tolist(), strict=True) for i in row]
        device = world.device
        rgbs: list[Tensor | None] = [None] * len(views)
        depths: list[Tensor | None] = [None] * len(views)

        def load(rows: slice) -> None:
            for view in range(*rows.indices(len(views))):
                slot, i = views[view]
                rgbs[view], depths[view] = self.references[slot].rgb(i), self.references[slot].depth(i)

        threads.over_rows(len(views), len(views) * world.size[0] * world.size[1], load)
        rgb, depth = stack(rgbs).to(device), stack(depths).to(device)
        K_source = torch.from_numpy(np.stack([self.references[s].K.numpy()[i] for s, i in views]))
        K = torch.from_numpy(np.stack([self.references[s].K.numpy()[0] for s in slots]))
        K = K[:, None].expand(b, frames, 3, 3)
        anchor = build_anchor(
            rgb,
            depth,
            K_source,
            source.reshape(-1, 4, 4),
            K.reshape(-1, 3, 3),
            poses.reshape(-1, 4, 4),
            world.size,
            torch.tensor([self.references[s].median_depth for s, _ in views], dtype=torch.float64),
            [self.maps[s] for s, _ in views] if world.memory else None,
        )
        if world.memory:
            self._insert_pending(slots)
            for row, slot in enumerate(slots):
                self._pending[slot] = views[(row + 1) * frames - 1][1]
        numbers = self.blocks.numpy()[slots].tolist()
        states = [self._states[s] for s in slots]
        condition = world.generator.condition(rgb.unflatten(0, (b, frames)), states, numbers)
        out = world.generator.generate(anchor, rgb, states, numbers, condition, anchor.known)
        shape = (b, frames, *world.size)
        block = Block(
            rgb=out.reshape(*shape, 3),
            depth=anchor.filled_depth.reshape(shape),
            known=anchor.known.reshape(shape),
            world_from_camera=poses,
            K=K,
            source_index=indices,
            stamp=stamp,
            twist=twists,
            index=self.blocks[slots].clone(),
            anchor=anchor if world.keep_anchor else None,
        )
        return block.last() if last_only and frames > 1 else block

    # ------------------------------------------------------------------------------------------------ memory

    def _insert_pending(self, slots: Sequence[int]) -> None:
        """Insert what the slots' last blocks showed of the reference; in the background if the world overlaps."""
        jobs = [(s, self._pending[s]) for s in slots if self._pending[s] is not None]
        jobs = [(s, i) for s, i in jobs if i not in self._inserted[s]]
        for slot, index in jobs:
            self._inserted[slot].add(index)
            if self.world.overlap:
                self._running.append(self._background().submit(self._insert, slot, index))
            else:
                self._insert(slot, index)

    def _insert(self, slot: int, index: int) -> None:
        reference = self.references[slot]
        depth = reference.depth(index)
        self.maps[slot].insert(
            reference.rgb(index),
            depth,
            depth > 0,
            reference.K[index],
            reference.world_from_camera[index],
            OBSERVED,
            stamp=float(index),
            moving=reference.moving(index),
        )

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
        start_indices: Sequence[int] | int | None = None,
        start_poses: Tensor | None = None,
    ) -> Block:
        """Restart some slots and show their first block; the others are not touched.

        Args:
            slots: which slots; None for all.
            seeds: one whole number, or one a slot; None keeps each slot's seed.
            references: the scenes to restart on; None keeps each slot's scene.
            start_indices: source frame(s) the playheads start at; None for 0.
            start_poses: float64 [4, 4] or [len(slots), 4, 4], ``world_from_camera`` of the first frame; None for
                the world origin (with ``relative_to_source``: the source camera).

        Returns:
            The first block of the reset slots only: ``len(slots)`` rows in the order given.

        Raises:
            InputError: an unknown slot, a number of values that does not fit, seeds or indices that are no whole
                numbers, poses that are not finite and rigid. The session is as it was.
        """
        slots = range(self.batch) if slots is None else slots if _several(slots) else [slots]
        slots = [_whole(s, "slots") for s in slots]
        if len(set(slots)) != len(slots) or any(not 0 <= s < self.batch for s in slots):
            raise InputError(f"slots: {slots} are not distinct slots of 0..{self.batch - 1}")

        def one_each(value, what, check):
            values = value if _several(value) else [value] * len(slots)
            if len(values) != len(slots):
                raise InputError(f"{what}: {len(values)} given for {len(slots)} slots")
            return [v if v is None else check(v) for v in values]

        seeds = one_each(seeds, "seeds", lambda v: _whole(v, "seeds"))
        references = one_each(references, "references", self.world.fitted)
        start_indices = one_each(start_indices, "start_indices", lambda v: _whole(v, "start_indices"))
        if start_poses is not None:
            shape = tuple(getattr(start_poses, "shape", ()))
            if shape not in ((4, 4), (len(slots), 4, 4)):
                raise InputError(f"start_poses: expected [4, 4] or [{len(slots)}, 4, 4], got {list(shape)}")
            start_poses = rigid_poses(start_poses, "start_poses", len(shape), "slot")
        self.wait()
        for row, slot in enumerate(slots):
            if references[row] is not None:
                self.references[slot] = references[row]
            if seeds[row] is not None:
                self._seeds[slot] = seeds[row]
            reference = self.references[slot]
            self._states[slot] = self.world.generator.new_state(reference, self._seeds[slot])
            if self.world.memory:
                self.maps[slot].clear()
            self._pending[slot] = None
            self._inserted[slot].clear()
            self.frames_shown[slot] = 0
            self.blocks[slot] = 0
        chosen = [self.references[s] for s in slots]
        self.playhead.reset(slots, [r.frame_count for r in chosen], [self._rate(r) for r in chosen])
        commands = [None if i is None else PlayheadCommand(jump=float(i)) for i in start_indices]
        frames = self.world.generator.spec.first_frames
        indices = self.playhead.advance_slots(slots, frames, commands)
        source = self._source_poses(slots, indices)
        poses = torch.eye(4, dtype=torch.float64).expand(len(slots), frames, 4, 4)
        if start_poses is not None:
            poses = start_poses.reshape(-1, 1, 4, 4).expand(len(slots), frames, 4, 4)
        elif self.world.relative_to_source:
            poses = source
        poses = poses.clone()
        block = self._show(slots, indices, source, poses, torch.zeros(len(slots), frames, 6, dtype=torch.float64))
        self._moved(slots, frames, source[:, -1], poses[:, -1])
        return block

    def snapshot(self) -> dict[str, Any]:
        """Everything the session's future depends on; ``restore`` brings it back bit for bit.

        References are immutable and held by identity, not copied.
        """
        self.wait()
        return {
            "references": list(self.references),
            "seeds": list(self._seeds),
            "maps": [m.state_dict() for m in self.maps],
            "playhead": self.playhead.state_dict(),
            "world_from_camera": self.world_from_camera.clone(),
            "rig": self._rig.clone(),
            "frames_shown": self.frames_shown.clone(),
            "blocks": self.blocks.clone(),
            "states": copy.deepcopy(self._states),
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
            count = len(snapshot[name]) if _several(snapshot[name]) else None
            if count != self.batch:
                raise InputError(f"snapshot: has {count} slots in {name}, this session {self.batch}")
        for reference, state in zip(snapshot["references"], snapshot["maps"], strict=True):
            theirs, ours = (reference.size, state["limit"]), (self.world.size, self.world.map_limit)
            if theirs != ours:
                raise InputError(f"snapshot: of a world with size and map_limit {theirs}, this one has {ours}")
        self.wait()
        self.playhead.load_state_dict(snapshot["playhead"])
        self.references = list(snapshot["references"])
        self._seeds = list(snapshot["seeds"])
        for point_map, state in zip(self.maps, snapshot["maps"], strict=True):
            point_map.load_state_dict(state)
        self.world_from_camera = snapshot["world_from_camera"].clone()
        self._rig = snapshot["rig"].clone()
        self.frames_shown = snapshot["frames_shown"].clone()
        self.blocks = snapshot["blocks"].clone()
        self._states = copy.deepcopy(snapshot["states"])
        self._pending = list(snapshot["pending"])
        self._inserted = [set(s) for s in snapshot["inserted"]]

    def close(self) -> None:
        """End the background thread. The session can still be read, and starts a new thread if stepped."""
        self.wait()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc) -> None:
        self.close()
