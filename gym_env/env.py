"""``InSpatio/World-v0``: one world."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle

from gym_env import window
from gym_env.episodes import Episodes, View, row
from gym_env.settings import Settings
from inspatio_core.errors import InputError


class WorldEnv(gym.Env[dict[str, np.ndarray], Any], EzPickle):
    """Drive a camera through a filmed scene, in space and in time.

    ## Action space
    By ``action``, in axes of the robot's base (x forward, y left, z up; the camera looks along x), in m/s and rad/s:

    | ``action``   | space                        | meaning                                                     |
    |--------------|------------------------------|-------------------------------------------------------------|
    | ``twist6``   | ``Box(6,)``                  | body twist (vx, vy, vz, wx, wy, wz), as in ``/cmd_vel``     |
    | ``planar``   | ``Box(3,)``                  | (vx forward, vy left, wz yaw to the left)                   |
    | ``discrete`` | ``Discrete(7)``              | stay, forward, backward, turn left/right, strafe left/right |

    Bounds are ``max_linear`` (1 m/s) and ``max_angular`` (1 rad/s); with these defaults the space is normalised. With
    ``playhead_action`` a Box has one more entry, the rate of the source video in [-1, 1], and the discrete space is
    ``MultiDiscrete([7, 3])`` with pause, play, reverse. Values beyond a Box are clipped; NaN is an error.

    ## Observation space
    A flat ``Dict`` of the keys in ``observation``:

    | key     | space                  | meaning                                                                     |
    |---------|------------------------|-----------------------------------------------------------------------------|
    | `rgb`   | ``Box(h, w, 3)`` uint8 | the last frame of the step                                                  |
    | `depth` | ``Box(h, w, 1)`` uint8 | its inverse depth, ``round(255 * depth_near / z)``, saturating at 255       |
    |         | or float32             | with ``depth="metres"``: z in metres, saturating at 1000                    |
    | `pose`  | ``Box(7,)`` float32    | camera relative to the episode's start: x, y, z in metres (base axes), then |
    |         |                        | the unit quaternion x, y, z, w with w >= 0                                  |

    ## Step
    One step is ``frame_skip`` frames (default: one block of the generator, 4 frames, 1/6 s of world time).

    ## Reward and end
    The reward is 0 and nothing terminates, unless ``reward_fn`` and ``terminated_fn`` say so or a subclass overrides
    ``reward`` and ``terminated``. ``gymnasium.make`` adds the time limit.

    ## Start
    Scene, source frame, pose jitter and the generator's seed are drawn from ``np_random``. ``reset(options=...)`` fixes
    any of "scene" (name or number), "frame" (source frame) and "pose" (4x4 ``world_from_camera``, OpenCV axes, metres).

    ## Info
    ``source_index`` (int), ``time`` (seconds of world time), ``known`` (share of pixels that were filmed, the rest is
    filled in), ``world_from_camera`` (float64 4x4); on reset also ``scene`` (name).

    ## Arguments
    Those of ``gym_env.Settings``, and ``render_mode``: None, "rgb_array", or "human" where there is a display.

    ## Versions
    v0: first.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array", "human"] if window.available() else ["rgb_array"],
        "render_fps": 6,
    }

    def __init__(self, render_mode: str | None = None, **settings: Any):
        """Open the scenes; InputError in one line for a bad argument."""
        EzPickle.__init__(self, render_mode, **settings)
        if render_mode not in (None, "rgb_array", "human"):
            raise InputError(f"render_mode: {render_mode!r} is not one of rgb_array, human")
        self.settings = Settings.parse(settings)
        self._episodes = Episodes(self.settings, 1, all_frames=render_mode == "human")
        self._window = None
        if render_mode == "human":
            self._window = window.Window(self.settings.size, self.settings.fps, "InSpatio world")
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "render_fps": self._episodes.render_fps}
        self.action_space = self._episodes.actions.space
        self.observation_space = self._episodes.observations.space
        self._view: View | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; see the class for the options."""
        super().reset(seed=seed)
        self._view, infos = self._episodes.reset([0], [self.np_random], options)
        self._show()
        return self._observe(), row(infos, 0)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Move for ``frame_skip`` frames. InvalidAction for an action that is not finite or of another shape."""
        self._view = self._episodes.step(np.asarray(action)[None])
        self._show()
        observation, info = self._observe(), row(self._episodes.infos(self._view), 0)
        reward = self.reward(observation, action, info)
        return observation, reward, self.terminated(observation, action, info), False, info

    def reward(self, observation: dict[str, np.ndarray], action: Any, info: dict[str, Any]) -> float:
        """Reward of a step: ``reward_fn``'s, or 0."""
        return 0.0 if self.settings.reward_fn is None else float(self.settings.reward_fn(observation, action, info))

    def terminated(self, observation: dict[str, np.ndarray], action: Any, info: dict[str, Any]) -> bool:
        """Whether a step ends the episode: ``terminated_fn``'s word, or False."""
        return self.settings.terminated_fn is not None and bool(self.settings.terminated_fn(observation, action, info))

    def set_play_rate(self, rate: float) -> None:
        """Let the source video play at ``rate`` (0: stand still, negative: backwards) from the next step on."""
        if not np.isfinite(rate):
            raise InputError(f"rate: {rate} is not a finite number")
        self._episodes.rates[0] = rate

    @property
    def frames_rendered_per_step(self) -> int:
        """Frames that are rendered for one step of one world, whether or not they are returned."""
        return self._episodes.frames_rendered

    def render(self) -> np.ndarray | None:
        """The frame shown last, uint8 [h, w, 3], in mode "rgb_array"; a window shows frames by itself."""
        if self.render_mode is None and self.spec is not None:
            gym.logger.warn(f'render: no render mode; use gymnasium.make("{self.spec.id}", render_mode="rgb_array")')
        if self.render_mode != "rgb_array":
            return None
        if self._view is None:
            raise InputError("render: there is no frame yet; call reset() first")
        return self._view.rgb[0].copy()

    def close(self) -> None:
        """End threads and the window; may be called twice."""
        self._episodes.close()
        if self._window is not None:
            self._window.close()
            self._window = None

    def _observe(self) -> dict[str, np.ndarray]:
        return {key: rows[0] for key, rows in self._episodes.observe(self._view).items()}

    def _show(self) -> None:
        if self._window is not None:
            for block in self._view.frames:
                for frame in block[0].numpy(force=True):
                    self._window.show(frame)
