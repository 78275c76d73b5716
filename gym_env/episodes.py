"""Episodes of B worlds in one Session: what the single and the batched environment share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gym_env.settings import Settings
from gym_env.spaces import Actions, Observations
from inspatio_core.errors import InputError
from inspatio_core.generators import GeneratorOptions
from inspatio_core.geometry.motion import se3_exp
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.reference import Reference, open_reference
from inspatio_core.session import Block
from inspatio_core.world import World

MAP_LIMIT, MAP_FRAMES = 500_000, 32
"""A world's point map holds as many points as this many frames have pixels, at most the limit."""

# A forked worker (AsyncVectorEnv) that inherits OpenMP threads which exist no more waits for them for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

RESET_OPTIONS = ("scene", "frame", "pose", "reset_mask")


@dataclass
class View:
    """The frame that B worlds show now: numpy rows, read-only for users of this class.

    rgb uint8 [B, h, w, 3]; depth float32 [B, h, w]; known bool [B, h, w]; pose float64 [B, 4, 4] ``world_from_camera``;
    source_index int64 [B]; time float64 [B] seconds; frames: tensors uint8 [B, F, h, w, 3] of the step's blocks.
    """

    rgb: np.ndarray
    depth: np.ndarray
    known: np.ndarray
    pose: np.ndarray
    source_index: np.ndarray
    time: np.ndarray
    frames: list[torch.Tensor]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> View:
        """The last frame of the last block; ``frames`` keeps all rgb for showing."""
        block = blocks[-1]
        return cls(
            rgb=block.rgb[:, -1].numpy(force=True),
            depth=block.depth[:, -1].numpy(force=True),
            known=block.known[:, -1].numpy(force=True),
            pose=block.world_from_camera[:, -1].numpy(force=True),
            source_index=block.source_index[:, -1].numpy(force=True),
            time=block.stamp[:, -1].numpy(force=True),
            frames=[b.rgb for b in blocks],
        )

    def with_rows(self, slots: Sequence[int], rows: View) -> View:
        """A copy in which the worlds ``slots`` show ``rows``; ``frames`` are dropped."""
        merged = {}
        for name in ("rgb", "depth", "known", "pose", "source_index", "time"):
            merged[name] = getattr(self, name).copy()
            merged[name][slots] = getattr(rows, name)
        return View(**merged, frames=[])


class Episodes:
    """B worlds in lockstep, each in an episode of its own.

    What an episode starts with is drawn from the generator of its slot alone, always in the same order and number
    (scene, source frame, jitter, seed), so that fixing one by an option leaves the others as they were.
    """

    def __init__(self, settings: Settings, slots: int, all_frames: bool = False):
        """Open the scenes. ``all_frames``: the views' ``frames`` are to be complete, not each block's last alone."""
        if slots < 1:
            raise InputError(f"num_envs: {slots} is not a positive number of worlds")
        self.settings = settings
        self.slots = slots
        self.all_frames = all_frames
        self.actions = Actions(settings)
        self.observations = Observations(settings)
        options = GeneratorOptions.parse(settings.generator_options)
        self.world = World(
            generator=settings.generator,
            options=options,
            size=settings.size,
            device=settings.device,
            fps=settings.fps,
            memory=settings.memory,
            map_limit=min(MAP_LIMIT, MAP_FRAMES * settings.size[0] * settings.size[1]) if settings.memory else 1,
            loop=settings.loop,
        )
        spec = self.world.generator.spec
        notices = list(getattr(self.world.generator, "notices", ()))
        if options.prompt is not None and "text" not in spec.needs:
            notices.append(f"prompt: generator {spec.name}, with its model, reads no text, ignored")
        for notice in notices:
            warnings.warn(notice, stacklevel=3)
        self.block_frames, self.first_frames = spec.frames, spec.first_frames + spec.look_ahead
        self.blocks_per_step = settings.steps_per_action(self.block_frames)
        self.names, self.references = self._open(settings.scenes)
        if settings.start_frame is not None:
            for reference in self.references:
                self._check_frame(settings.start_frame, reference)
        self.session = None
        self.start = np.tile(np.eye(4), (slots, 1, 1))
        self.rates = np.full(slots, settings.play_rate)
        self._sent = np.ones(slots)
        self._jump = np.zeros(slots)
        self._scene = [0] * slots

    @property
    def frames_rendered(self) -> int:
        """Frames rendered for one env step."""
        spared = self.world.generator.spec.framewise and not self.all_frames
        return self.blocks_per_step * (1 if spared else self.block_frames)

    @property
    def render_fps(self) -> float:
        """Env steps per second of world time."""
        return self.world.fps / (self.block_frames * self.blocks_per_step)

    def _open(self, scenes: Any) -> tuple[list[str], list[Reference]]:
        scenes = [scenes] if isinstance(scenes, (str, Path, Reference)) else list(scenes)
        if not scenes:
            raise InputError("scenes: the list is empty; name at least one scene")
        names, references = [], []
        for scene in scenes:
            if not isinstance(scene, Reference):
                names.append(str(scene))
                scene = open_reference(scene)
            else:
                names.append(scene.name)
            references.append(self.world.fitted(scene))
        return names, references

    def _check_frame(self, frame: Any, reference: Reference) -> int:
        if not isinstance(frame, (int, np.integer)) or not 0 <= frame < reference.frame_count:
            raise InputError(f"frame: {frame!r} is not a frame of {reference.name}, which has {reference.frame_count}")
        return int(frame)

    def _scene_index(self, scene: Any) -> int:
        if isinstance(scene, (int, np.integer)) and 0 <= scene < len(self.names):
            return int(scene)
        if scene in self.names:
            return self.names.index(scene)
        raise InputError(f"scene: {scene!r} is not one of this environment's scenes: {', '.join(self.names)}")

    def reset(
        self, slots: Sequence[int], generators: Sequence[np.random.Generator], options: Mapping[str, Any] | None
    ) -> tuple[View, dict[str, np.ndarray]]:
        """Start new episodes in ``slots``; the other worlds are not touched. Rows in the order of ``slots``.

        The first call must name all slots. Options (each a value for all, or with a batch one of a list per world of
        the whole batch): "scene" name or number, "frame" source frame, "pose" 4x4 ``world_from_camera``.
        """
        options = dict(options or {})
        unknown = sorted(set(options) - set(RESET_OPTIONS))
        if unknown:
            raise InputError(f"reset option {unknown[0]!r}: there are {', '.join(RESET_OPTIONS)}")
        scenes, frames, poses, seeds = [], [], [], []
        for slot, generator in zip(slots, generators, strict=True):
            drawn_scene, drawn_frame = generator.integers(len(self.names)), generator.random()
            jitter, seed = generator.uniform(-1.0, 1.0, 6), generator.integers(2**31)
            scene = self._option(options, "scene", slot)
            self._scene[slot] = int(drawn_scene) if scene is None else self._scene_index(scene)
            reference = self.references[self._scene[slot]]
            frame = self._option(options, "frame", slot)
            frame = self.settings.start_frame if frame is None else frame
            frame = int(drawn_frame * reference.frame_count) if frame is None else self._check_frame(frame, reference)
            pose = self._option(options, "pose", slot)
            if pose is None:
                offset = torch.from_numpy(jitter * np.repeat(self.settings.start_jitter, 3))
                pose = reference.world_from_camera[frame] @ se3_exp(offset)
            scenes.append(reference)
            frames.append(frame)
            poses.append(self._pose(pose))
            seeds.append(int(seed))
        # However many frames the first block has, they show the moment that the episode starts at.
        start = dict(start_indices=[[f] * self.first_frames for f in frames], start_poses=torch.stack(poses))
        if self.session is None:
            self.session = self.world.start(scenes, seeds, **start)
            block = self.session.first
        else:
            block = self.session.reset(list(slots), seeds, scenes, **start)
        slots = list(slots)
        self.start[slots] = torch.stack(poses).numpy()
        self.rates[slots] = self.settings.play_rate
        self._sent[slots] = 1.0 if self.settings.play_rate == 1.0 else np.nan
        steps = [reference.fps / self.world.fps for reference in scenes]
        self._jump[slots] = np.add(frames, self.settings.play_rate * np.array(steps))
        view = View.of([block])
        infos = self.infos(view)
        infos["scene"] = np.array([self.names[self._scene[slot]] for slot in slots], dtype=object)
        return view, infos

    def _option(self, options: Mapping[str, Any], name: str, slot: int) -> Any:
        """The value for one world of an option given for all, or as one a world."""
        value = options.get(name)
        if value is None or np.ndim(value) != (3 if name == "pose" else 1):
            return value
        if len(value) != self.slots:
            raise InputError(f"reset option {name!r}: {len(value)} given for {self.slots} worlds")
        return value[slot]

    @staticmethod
    def _pose(value: Any) -> torch.Tensor:
        try:
            pose = torch.as_tensor(np.asarray(value, np.float64))
        except (TypeError, ValueError):
            pose = torch.zeros(0)
        rotation = pose[:3, :3] if pose.shape == (4, 4) else torch.zeros(3, 3, dtype=torch.float64)
        if not torch.allclose(rotation.T @ rotation, torch.eye(3, dtype=rotation.dtype), atol=1e-4):
            raise InputError("pose: not a rigid 4x4 world_from_camera matrix")
        return pose

    def step(self, actions: np.ndarray) -> View:
        """One env step of every world.

        Args:
            actions: [B, ...] actions of the single action space.
        """
        if self.session is None:
            raise InputError("step: no episode has begun; call reset() first")
        twists, rates = self.actions.decode(actions)
        if rates is not None:
            self.rates[:] = rates
        motion = torch.from_numpy(twists)
        last_only = not self.all_frames
        blocks = [self.session.step(motion, self._commands(), last_only=last_only)]
        for _ in range(1, self.blocks_per_step):
            blocks.append(self.session.step(motion, last_only=last_only))
        return View.of(blocks)

    def _commands(self) -> list[PlayheadCommand | None] | None:
        """What the playheads must be told: changed rates, and where episodes go on that do not start at rate 1."""
        changed = self.rates != self._sent
        if not changed.any():
            return None
        commands: list[PlayheadCommand | None] = [None] * self.slots
        for slot in np.flatnonzero(changed):
            first = np.isnan(self._sent[slot])
            commands[slot] = PlayheadCommand(rate=self.rates[slot], jump=self._jump[slot] if first else None)
        self._sent[:] = self.rates
        return commands

    def observe(self, view: View, slots: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Observations of all worlds, or of ``slots`` when ``view`` has their rows only; fresh arrays."""
        start = self.start if slots is None else self.start[slots]
        return self.observations.encode(view.rgb, view.depth, view.pose, start)

    def infos(self, view: View) -> dict[str, np.ndarray]:
        """What is known beside the observation, one row a world, fresh arrays."""
        return {
            "source_index": view.source_index.copy(),
            "time": view.time.copy(),
            "known": np.array([np.count_nonzero(known) for known in view.known]) / view.known[0].size,
            "world_from_camera": view.pose.copy(),
        }

    def close(self) -> None:
        """End the session's thread."""
        if self.session is not None:
            self.session.close()
            self.session = None


def row(infos: dict[str, np.ndarray], index: int) -> dict[str, Any]:
    """One world's infos: Python numbers and strings, arrays where there is more than one number."""
    return {key: rows[index] if rows.ndim > 1 else rows[index].item() if rows.dtype != object else rows[index]
            for key, rows in infos.items()}  # fmt: skip
