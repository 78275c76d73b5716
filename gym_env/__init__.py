"""Gymnasium environments over InSpatio worlds: ``InSpatio/World-v0``, single and batched.

``import gym_env`` registers the id and imports neither torch nor ROS; the worlds load when an environment is made::

    env = gymnasium.make("gym_env:InSpatio/World-v0", size=(128, 224))
    envs = gymnasium.make_vec("gym_env:InSpatio/World-v0", num_envs=16)

``docs/gym.md`` has the conventions: axes, units, spaces, seeding, autoreset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gymnasium.envs.registration import register

from gym_env.settings import Settings

if TYPE_CHECKING:
    from gym_env.env import WorldEnv
    from gym_env.vector import VectorWorldEnv

__all__ = ["Settings", "VectorWorldEnv", "WorldEnv"]

MAX_EPISODE_STEPS = 256
"""Default time limit of a registered environment: about 43 s of world time at 4 frames a step and 24 fps."""

register(
    id="InSpatio/World-v0",
    entry_point="gym_env.env:WorldEnv",
    vector_entry_point="gym_env.vector:VectorWorldEnv",
    max_episode_steps=MAX_EPISODE_STEPS,
)


def __getattr__(name: str):
    """Load the environment classes, and with them torch, on first use."""
    if name == "WorldEnv":
        from gym_env.env import WorldEnv

        return WorldEnv
    if name == "VectorWorldEnv":
        from gym_env.vector import VectorWorldEnv

        return VectorWorldEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
