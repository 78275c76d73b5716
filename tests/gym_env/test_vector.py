from __future__ import annotations

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from gym_env.env import WorldEnv
from gym_env.vector import VectorWorldEnv
from inspatio_core.errors import InputError

MODES = list(AutoresetMode)


def driven_far(observation, action, info) -> bool:
    return float(observation["pose"][0]) > 0.25


def reward(observation, action, info) -> float:
    return float(observation["pose"][1]) + info["known"] + float(action[0])


@pytest.fixture
def make(options):
    made = []

    def build(n=3, **kwargs):
        made.append(VectorWorldEnv(n, **{**options, **kwargs}))
        return made[-1]

    yield build
    for envs in made:
        envs.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_is_stacked_singles_byte_for_byte(make, options, mode):
    """Observations, rewards, ends and infos of three worlds whose episodes end at different times."""
    settings = dict(start_jitter=(0.1, 0.1), reward_fn=reward, terminated_fn=driven_far)
    ours = make(3, max_episode_steps=4, autoreset_mode=mode, **settings)
    theirs = SyncVectorEnv([lambda: TimeLimit(WorldEnv(**options, **settings), 4)] * 3, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == mode
    assert data_equivalence(ours.reset(seed=11), theirs.reset(seed=11), exact=True)
    ours.action_space.seed(2)
    ended = np.zeros(2, int)
    for _ in range(9):
        actions = ours.action_space.sample()
        actions[1, 0] = 1.0
        got, expected = ours.step(actions), theirs.step(actions)
        assert data_equivalence(got, expected, exact=True)
        ended += got[2].any(), got[3].any()
    assert ended.all()
    theirs.close()


@pytest.mark.filterwarnings("ignore:RANDOM WEIGHTS")
def test_vector_with_star_is_stacked_singles_byte_for_byte(make, options):
    """Two worlds with a network, one of them restarted in between."""
    settings = {"generator": "star", "generator_options": {"random_weights": True, "latents_per_block": 2}}
    ours, singles = make(2, **settings, autoreset_mode="Disabled"), [WorldEnv(**options, **settings) for _ in range(2)]

    def same(batch, slot, single):
        got = {key: rows[slot] for key, rows in batch.items()}
        assert data_equivalence(got, single, exact=True)

    observations, _ = ours.reset(seed=7)
    for slot, env in enumerate(singles):
        same(observations, slot, env.reset(seed=7 + slot)[0])
    ours.action_space.seed(2)
    for k in range(3):
        if k == 1:
            observations, _ = ours.reset(seed=[None, 3], options={"reset_mask": np.array([False, True])})
            same(observations, 1, singles[1].reset(seed=3)[0])
        actions = ours.action_space.sample()
        observations = ours.step(actions)[0]
        for slot, env in enumerate(singles):
            same(observations, slot, env.step(actions[slot])[0])
    for env in singles:
        env.close()


def test_worlds_are_of_several_scenes(make, scenes):
    envs = make(8)
    _, infos = envs.reset(seed=0)
    assert set(infos["scene"]) == {scene.name for scene in scenes}
    _, infos = envs.reset(options={"scene": [0, 1] * 4, "frame": list(range(0, 4)) + [6, 5, 4, 3]})
    assert list(infos["scene"]) == [scenes[0].name, scenes[1].name] * 4
    assert infos["source_index"].tolist() == [0, 1, 2, 3, 6, 5, 4, 3]


@pytest.mark.parametrize("memory", [False, True])
def test_resetting_one_world_leaves_the_bytes_of_the_others(make, memory):
    disturbed, left = make(3, memory=memory, autoreset_mode="Disabled"), make(3, memory=memory)
    disturbed.reset(seed=0), left.reset(seed=0)
    left.action_space.seed(1)
    mask = np.array([False, True, False])
    for i in range(6):
        actions = left.action_space.sample()
        a, b = disturbed.step(actions), left.step(actions)
        for key in a[0]:
            np.testing.assert_array_equal(a[0][key][~mask], b[0][key][~mask])
        if i == 2:
            observations, infos = disturbed.reset(seed=[None, 9, None], options={"reset_mask": mask})
            for key in observations:
                np.testing.assert_array_equal(observations[key][~mask], a[0][key][~mask])
            assert infos["_scene"].tolist() == mask.tolist()
            np.testing.assert_array_equal(observations["pose"][1], [0, 0, 0, 0, 0, 0, 1])
    assert not np.array_equal(a[0]["rgb"][1], b[0]["rgb"][1])


def test_a_masked_reset_does_not_change_the_options(make):
    envs = make(2)
    envs.reset(seed=0)
    options = {"reset_mask": np.array([True, False])}
    envs.reset(options=options)
    assert list(options) == ["reset_mask"]


def test_disabled_mode_wants_resets(make):
    envs = make(2, max_episode_steps=1, autoreset_mode="Disabled")
    envs.reset(seed=0)
    assert envs.step(np.zeros((2, 6)))[3].all()
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0, 1\]"):
        envs.step(np.zeros((2, 6)))
    envs.reset(options={"reset_mask": np.array([True, True])})
    envs.step(np.zeros((2, 6)))


def test_next_step_ignores_the_action_of_a_world_that_restarts(make):
    envs = make(2, max_episode_steps=1)
    envs.reset(seed=0)
    envs.step(np.zeros((2, 6)))
    observations, rewards, terminated, truncated, infos = envs.step(np.full((2, 6), np.nan))
    assert not truncated.any() and infos["_scene"].all()
    np.testing.assert_array_equal(observations["pose"], [[0, 0, 0, 0, 0, 0, 1]] * 2)


@pytest.mark.parametrize("mode", MODES)
def test_gymnasium_statistics_count_episodes(make, mode):
    envs = RecordEpisodeStatistics(
        make(3, max_episode_steps=3, autoreset_mode=mode, reward_fn=lambda observation, action, info: 1.0)
    )
    envs.reset(seed=0)
    lengths = []
    for _ in range(9):
        *_, truncated, infos = envs.step(envs.action_space.sample())
        if truncated.any():
            lengths += infos["episode"]["l"][truncated].tolist()
            if mode == AutoresetMode.DISABLED:
                envs.reset(options={"reset_mask": truncated.copy()})
    assert len(lengths) >= 6 and set(lengths) == {3}
    assert list(envs.return_queue)[0] == 3.0


def test_other_vector_wrappers_run_on_top(make):
    envs = DictInfoToList(make(2, max_episode_steps=2, autoreset_mode="SameStep"))
    envs.reset(seed=0)
    for _ in range(3):
        observations, *_, infos = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        assert len(infos) == 2 and infos[0]["world_from_camera"].shape == (4, 4)


def test_registered_vector_entry_point():
    envs = gym.make_vec("gym_env:InSpatio/World-v0", num_envs=2, size=(32, 48), device="cpu", max_episode_steps=5)
    assert isinstance(envs, VectorWorldEnv) and envs.max_episode_steps == 5
    observations, _ = envs.reset(seed=0)
    assert observations["rgb"].shape == (2, 32, 48, 3) and observations in envs.observation_space
    assert envs.reset(seed=1)[0]["rgb"] is not observations["rgb"]
    envs.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_workers_do_not_hang():
    """Gymnasium's AsyncVectorEnv forks where the parent has already computed."""
    code = (
        "import gymnasium as gym, torch\n"
        "torch.set_num_threads(2)\n"
        "make = lambda: gym.make('gym_env:InSpatio/World-v0', size=(48, 64), device='cpu')\n"
        "make().reset(seed=0)\n"
        "envs = gym.vector.AsyncVectorEnv([make, make], context='fork')\n"
        "envs.reset(seed=0), envs.step(envs.action_space.sample()), envs.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_rendering_gives_an_image_a_world(make):
    envs = make(2, render_mode="rgb_array")
    observations, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(np.stack(envs.render()), observations["rgb"])


@pytest.mark.parametrize(
    "bad",
    [
        {"num_envs": 0},
        {"max_episode_steps": 0},
        {"autoreset_mode": "Sometimes"},
        {"render_mode": "human"},
        {"size": (1, 1)},
    ],
)
def test_bad_arguments_are_one_line(options, bad):
    with pytest.raises(InputError, match=next(iter(bad))) as error:
        VectorWorldEnv(**{"num_envs": 2, **options, **bad})
    assert "\n" not in str(error.value)


def test_bad_resets_and_actions_are_one_line(make):
    envs = make(2)
    with pytest.raises(InputError, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0)
    for mask in (np.zeros(2, bool), np.ones(3, bool), [True, False], np.array([1, 0])):
        with pytest.raises(InputError, match="reset_mask"):
            envs.reset(options={"reset_mask": mask})
    with pytest.raises(InputError, match="seed"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(InputError, match="frame"):
        envs.reset(options={"frame": [1, 2, 3]})
    with pytest.raises(gym.error.InvalidAction):
        envs.step(np.zeros((3, 6)))
    envs.step(np.zeros((2, 6)))
