from __future__ import annotations

import subprocess
import sys

import gymnasium as gym


def test_import_is_light_and_registers():
    code = (
        "import sys, gymnasium, gym_env\n"
        "heavy = {'torch', 'rclpy', 'numba', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "spec = gymnasium.spec('InSpatio/World-v0')\n"
        "assert spec.vector_entry_point and spec.max_episode_steps and not spec.nondeterministic\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_make_imports_the_module_by_itself():
    env = gym.make("gym_env:InSpatio/World-v0", size=(32, 48), device="cpu")
    observation, info = env.reset(seed=0)
    assert observation["rgb"].shape == (32, 48, 3) and info["scene"] == "courtyard"
    env.close()


def test_classes_are_there_on_demand():
    import gym_env
    from gym_env.vector import VectorWorldEnv

    assert gym_env.VectorWorldEnv is VectorWorldEnv
