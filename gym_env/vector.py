"""``InSpatio/World-v0``, batched: B worlds, of several scenes, in one Session step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from gym_env.episodes import Episodes, View, row
from gym_env.settings import Settings
from inspatio_core.errors import InputError


class VectorWorldEnv(VectorEnv):
    """B worlds that step together; spaces, rewards and infos are those of B ``WorldEnv`` side by side.

    World i of ``reset(seed=s)`` is seeded with ``s + i`` and shows, byte for byte on the CPU, what a ``WorldEnv``
    with that seed and these actions shows. Resetting some worlds changes nothing of the others.

    Args:
        num_envs: B.
        max_episode_steps: steps after which an episode is truncated; None: never.
        autoreset_mode: what happens when an episode ends. "NextStep" (default, as in Gymnasium): the next ``step``
            ignores that world's action and resets it. "SameStep": it is reset at once, and the last observation and
            info are in ``infos["final_obs"]`` and ``infos["final_info"]``; no world-step is spent on resets.
            "Disabled": nothing, until ``reset(options={"reset_mask": mask})`` restarts the worlds where the bool
            array is true (which works in every mode).
        render_mode: None or "rgb_array" (``render`` gives one image a world).
        settings: the arguments of ``gym_env.Settings``. ``reward_fn`` and ``terminated_fn`` are asked per world.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array"],
        "render_fps": 6,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ):
        """Open the scenes; InputError in one line for a bad argument."""
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = ", ".join(mode.value for mode in AutoresetMode)
            raise InputError(f"autoreset_mode: {autoreset_mode!r} is not one of {modes}") from None
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode: {render_mode!r} is not one of rgb_array for several worlds")
        if max_episode_steps is not None and (not isinstance(max_episode_steps, int) or max_episode_steps < 1):
            raise InputError(f"max_episode_steps: {max_episode_steps} is not a positive number of steps")
        self.settings = Settings.parse(settings)
        self._episodes = Episodes(self.settings, num_envs)
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.metadata = {
            **type(self).metadata,
            "render_fps": self._episodes.render_fps,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_action_space = self._episodes.actions.space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.single_observation_space = self._episodes.observations.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._generators = [None] * num_envs
        self._seeds = [None] * num_envs
        self._steps = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)
        self._view: View | None = None

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """Each world's generator of random numbers."""
        self._seed(range(self.num_envs), [None] * self.num_envs)
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:
        """The seed of each world's generator."""
        self._seed(range(self.num_envs), [None] * self.num_envs)
        return tuple(self._seeds)

    def _seed(self, slots: Sequence[int], seeds: Sequence[int | None]) -> None:
        for slot in slots:
            if seeds[slot] is not None or self._generators[slot] is None:
                self._generators[slot], self._seeds[slot] = seeding.np_random(seeds[slot])

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start new episodes in all worlds, or where ``options["reset_mask"]`` (bool [B]) is true.

        Args:
            seed: world i is seeded with ``seed + i``, or with entry i of a list (None: goes on as it is).
            options: as for ``WorldEnv``, each one value for all worlds or a list of B.

        Returns:
            The observations of all B worlds and the infos of those that were reset.
        """
        n = self.num_envs
        seeds = [None] * n if seed is None else [seed + i for i in range(n)] if isinstance(seed, int) else list(seed)
        if len(seeds) != n:
            raise InputError(f"seed: {len(seeds)} given for {n} worlds")
        mask = None if options is None else options.get("reset_mask")
        if mask is None:
            mask = np.ones(n, np.bool_)
        elif not isinstance(mask, np.ndarray) or mask.shape != (n,) or mask.dtype != np.bool_ or not mask.any():
            raise InputError(f"reset option 'reset_mask': not a bool array of shape ({n},) with at least one True")
        if self._view is None and not mask.all():
            raise InputError("reset option 'reset_mask': the first reset must be of all worlds")
        slots = np.flatnonzero(mask)
        self._seed(slots, seeds)
        _, infos = self._restart(slots, options)
        return self._episodes.observe(self._view), batched(n, [(slots, infos)])

    def step(
        self, actions: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of all worlds; ``actions`` is a batch of the action space."""
        n = self.num_envs
        actions = np.asarray(actions)
        if actions.shape[:1] != (n,):
            raise gym.error.InvalidAction(f"actions: shape {actions.shape} is not that of {self.action_space}")
        if self._ended.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            worlds = np.flatnonzero(self._ended).tolist()
            raise gym.error.ResetNeeded(f"step: the episodes of worlds {worlds} have ended; reset them (reset_mask)")
        restarting, moving = np.flatnonzero(self._ended), np.flatnonzero(~self._ended)
        parts = []
        if len(moving):
            if len(restarting):
                actions = actions.copy()
                actions[restarting] = 0
            self._view = self._episodes.step(actions)
            infos = self._episodes.infos(self._view)
            observations = self._episodes.observe(self._view)
            self._steps[moving] += 1
        if len(restarting):
            began, begin_infos = self._restart(restarting, None)
            parts.append((restarting, begin_infos))
            if len(moving):
                self._replace(observations, restarting, began)
            else:
                observations = self._episodes.observe(self._view)
        rewards, terminations, truncations = np.zeros(n), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        if self.settings.reward_fn is not None or self.settings.terminated_fn is not None:
            for i in moving:
                world = ({key: rows[i] for key, rows in observations.items()}, actions[i], row(infos, i))
                if self.settings.reward_fn is not None:
                    rewards[i] = self.settings.reward_fn(*world)
                if self.settings.terminated_fn is not None:
                    terminations[i] = self.settings.terminated_fn(*world)
        if self.max_episode_steps is not None:
            truncations[moving] = self._steps[moving] >= self.max_episode_steps
        self._ended = terminations | truncations
        final = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._ended.any():
            ended, moving = np.flatnonzero(self._ended), np.flatnonzero(~self._ended)
            final_obs = np.full(n, None, dtype=object)
            for i in ended:
                final_obs[i] = {key: rows[i].copy() for key, rows in observations.items()}
            final = {
                "final_obs": final_obs,
                "_final_obs": self._ended.copy(),
                "final_info": batched(n, [(ended, {key: rows[ended] for key, rows in infos.items()})]),
                "_final_info": self._ended.copy(),
            }
            began, begin_infos = self._restart(ended, None)
            parts.append((ended, begin_infos))
            self._replace(observations, ended, began)
        if len(moving):
            parts.append((moving, {key: rows[moving] for key, rows in infos.items()}))
        return observations, rewards, terminations, truncations, {**final, **batched(n, parts)}

    def _replace(self, observations: dict[str, np.ndarray], slots: np.ndarray, began: View) -> None:
        """Put the first observations of new episodes into their rows."""
        for key, rows in self._episodes.observe(began, slots).items():
            observations[key][slots] = rows

    def _restart(self, slots: np.ndarray, options: dict[str, Any] | None) -> tuple[View, dict[str, np.ndarray]]:
        """New episodes in ``slots``: their view and infos, a row for each."""
        slots = slots.tolist()
        view, infos = self._episodes.reset(slots, [self._generators[slot] for slot in slots], options)
        self._view = view if len(slots) == self.num_envs else self._view.with_rows(slots, view)
        self._steps[slots] = 0
        self._ended[slots] = False
        return view, infos

    def set_play_rate(self, rate: float | Sequence[float]) -> None:
        """Let the source videos play at ``rate`` (one, or one a world) from the next step until reset."""
        rates = np.asarray(rate, np.float64)
        if rates.shape not in ((), (self.num_envs,)) or not np.isfinite(rates).all():
            raise InputError(f"rate: {rate} is not one finite number or {self.num_envs}")
        self._episodes.rates[:] = rates

    @property
    def frames_rendered_per_step(self) -> int:
        """Frames that are rendered for one step of one world, whether or not they are returned."""
        return self._episodes.frames_rendered

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The frame each world shows, uint8 [h, w, 3] each, in mode "rgb_array"."""
        if self.render_mode is None:
            return None
        if self._view is None:
            raise InputError("render: there is no frame yet; call reset() first")
        return tuple(self._view.rgb.copy())

    def close_extras(self, **kwargs: Any) -> None:
        """End threads."""
        self._episodes.close()


def batched(worlds: int, parts: Sequence[tuple[np.ndarray, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Gymnasium's vector infos of ``parts``, each (its worlds, rows): arrays of B rows with their masks ``_key``."""
    infos: dict[str, np.ndarray] = {}
    for slots, rows in parts:
        for key, values in rows.items():
            if key not in infos:
                empty = np.full if values.dtype == object else np.zeros
                fill = (None,) if values.dtype == object else ()
                infos[key] = empty((worlds, *values.shape[1:]), *fill, dtype=values.dtype)
                infos[f"_{key}"] = np.zeros(worlds, np.bool_)
            infos[key][slots] = values
            infos[f"_{key}"][slots] = True
    return infos
