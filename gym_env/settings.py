"""What an environment can be asked for. These fields are the keyword arguments of ``gymnasium.make``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from inspatio_core.errors import InputError

OBSERVATIONS = ("rgb", "depth", "pose")
ACTIONS = ("twist6", "planar", "discrete")
DEPTHS = ("inverse", "metres")


@dataclass(frozen=True)
class Settings:
    """Keyword arguments of ``WorldEnv`` and ``VectorWorldEnv``. Spaces depend on them alone, not on the generator.

    Attributes:
        scenes: names of shipped scenes, paths of scene folders or videos, or ``Reference`` objects; one or several.
            Each episode draws one.
        size: (height, width) of the images.
        observation: which keys the observation has, of "rgb", "depth", "pose".
        depth: "inverse" (uint8) or "metres" (float32).
        depth_near: depth in metres that inverse depth shows as 255.
        action: "twist6", "planar" or "discrete".
        max_linear: m/s at the end of an axis.
        max_angular: rad/s at the end of an axis.
        playhead_action: adds the playhead's rate to the action.
        play_rate: rate at which an episode's source video plays (0: a still world, negative: backwards).
        loop: what the playhead does at the ends of the video: "bounce", "loop" or "hold".
        frame_skip: frames of one step, a multiple of the generator's steady block; None: one block.
        fps: frames per second of world time.
        start_frame: source frame an episode starts at; None: drawn.
        start_jitter: (metres, radians) half-widths of the uniform offset of the start pose, per axis.
        generator: name of the generator: "geometric" or "star".
        generator_options: fields of ``inspatio_core.generators.GeneratorOptions`` for generators that have a network,
            such as ``{"checkpoint_path": "...", "prompt": "a kitchen"}``.
        device: "auto", "cpu", "cuda", "cuda:N".
        memory: keep a point map per world, which shows what earlier frames saw; costs time.
        reward_fn: ``f(observation, action, info) -> float`` for one world; None: reward 0.
        terminated_fn: ``f(observation, action, info) -> bool`` for one world; None: never.
    """

    scenes: Any = ("courtyard",)
    size: tuple[int, int] = (128, 224)
    observation: Sequence[str] = OBSERVATIONS
    depth: str = "inverse"
    depth_near: float = 0.5
    action: str = "twist6"
    max_linear: float = 1.0
    max_angular: float = 1.0
    playhead_action: bool = False
    play_rate: float = 1.0
    loop: str = "bounce"
    frame_skip: int | None = None
    fps: float = 24.0
    start_frame: int | None = None
    start_jitter: tuple[float, float] = (0.0, 0.0)
    generator: str = "geometric"
    generator_options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    memory: bool = False
    reward_fn: Callable[[dict, Any, dict], float] | None = None
    terminated_fn: Callable[[dict, Any, dict], bool] | None = None

    @classmethod
    def parse(cls, kwargs: dict[str, Any]) -> Settings:
        """Settings from keyword arguments; InputError in one line for a bad one."""
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(kwargs) - set(names))
        if unknown:
            raise InputError(f"{unknown[0]}: not an argument of this environment; there are {', '.join(names)}")
        return cls(**kwargs)

    def __post_init__(self):
        size = tuple(self.size) if isinstance(self.size, Sequence) else ()
        if len(size) != 2 or not all(isinstance(n, int) and 16 <= n <= 4096 for n in size):
            raise InputError(f"size: {self.size!r} is not (height, width) with both from 16 to 4096")
        keys = (self.observation,) if isinstance(self.observation, str) else tuple(self.observation)
        if not keys or len(set(keys)) != len(keys) or not set(keys) <= set(OBSERVATIONS):
            raise InputError(f"observation: {self.observation!r} is not a choice of {', '.join(OBSERVATIONS)}")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "observation", keys)
        if not isinstance(self.generator_options, Mapping):
            raise InputError(f"generator_options: {self.generator_options!r} is not a dict of options and their values")
        self._one_of("depth", DEPTHS)
        self._one_of("action", ACTIONS)
        for name in ("depth_near", "max_linear", "max_angular", "fps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name}: {getattr(self, name)} is not a positive number")
        if not math.isfinite(self.play_rate):
            raise InputError(f"play_rate: {self.play_rate} is not a finite number")
        if len(self.start_jitter) != 2 or not all(math.isfinite(x) and x >= 0 for x in self.start_jitter):
            raise InputError(f"start_jitter: {self.start_jitter!r} is not (metres, radians), both >= 0")

    def _one_of(self, name: str, choices: Sequence[str]) -> None:
        if getattr(self, name) not in choices:
            raise InputError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}")

    def steps_per_action(self, block: int) -> int:
        """Blocks in one env step, for a generator of ``block`` frames; InputError where ``frame_skip`` does not fit."""
        skip = block if self.frame_skip is None else self.frame_skip
        if not isinstance(skip, int) or skip < 1 or skip % block:
            raise InputError(
                f"frame_skip: {self.frame_skip} is not a multiple of {block}, the {self.generator} generator's block; "
                f"use {block}, {2 * block}, ..."
            )
        return skip // block
