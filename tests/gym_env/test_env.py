from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from scipy.spatial.transform import Rotation

from gym_env.env import WorldEnv
from inspatio_core import world
from inspatio_core.errors import InputError
from inspatio_core.reference import Reference
from tests.fake_generator import FakeGenerator

STEP = 4 / 24  # seconds of one step


@pytest.fixture
def env(options):
    env = WorldEnv(**options)
    yield env
    env.close()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"action": "planar", "depth": "metres", "playhead_action": True},
        {"action": "discrete", "observation": "rgb", "memory": True},
    ],
)
def test_checker_finds_nothing(settings):
    env = gym.make("gym_env:InSpatio/World-v0", size=(32, 48), device="cpu", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


STAR = {"generator": "star", "generator_options": {"random_weights": True}}


def test_checker_finds_nothing_with_star_which_says_that_its_weights_are_made_up():
    with pytest.warns(UserWarning, match="RANDOM WEIGHTS") as told:
        env = gym.make("gym_env:InSpatio/World-v0", size=(32, 48), device="cpu", **STAR)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "RANDOM WEIGHTS")  # of the environments that the checker makes
        check_env(env.unwrapped)
    geometric = gym.make("gym_env:InSpatio/World-v0", size=(32, 48), device="cpu")
    assert env.observation_space == geometric.observation_space and env.action_space == geometric.action_space
    env.close()


@pytest.mark.parametrize("latents, look_ahead", [(1, 3), (3, 0)])
@pytest.mark.parametrize("rate", [1.0, -1.0, 0.0])
def test_an_episode_starts_where_it_shall_whatever_a_block_commits(options, monkeypatch, latents, look_ahead, rate):
    """First blocks of several frames, and frames committed ahead: they hold the moment and the place of the start."""
    monkeypatch.setattr(world, "make_generator", lambda name, **_: FakeGenerator(look_ahead, latents))
    env = WorldEnv(**{**options, "scenes": options["scenes"][0], "start_frame": 5, "play_rate": rate})
    info = env.reset(seed=0)[1]
    assert info["source_index"] == 5
    for _ in range(2):
        block = env.step(np.zeros(6))[4]
    assert block["source_index"] != 5 or rate == 0
    start = env.reset(seed=0)[1]["world_from_camera"]
    action = np.array([1.0, 0, 0, 0, 0, 0])
    seen = [np.linalg.norm(env.step(action)[4]["world_from_camera"][:3, 3] - start[:3, 3]) for _ in range(2)]
    frames = 4 * latents
    assert np.allclose(seen, [(frames - look_ahead) / 24, (2 * frames - look_ahead) / 24])
    env.close()


def rollout(env, seed: int, steps: int = 3) -> list:
    seen = [env.reset(seed=seed)]
    env.action_space.seed(seed)
    for _ in range(steps):
        seen.append(env.step(env.action_space.sample()))
    return seen


def test_same_seed_same_bytes_and_other_seeds_start_elsewhere(env):
    assert data_equivalence(rollout(env, 5), rollout(env, 5), exact=True)
    starts = set()
    for seed in range(20):
        info = env.reset(seed=seed)[1]
        starts.add((info["scene"], info["source_index"]))
    assert len({scene for scene, _ in starts}) == 2 and len(starts) > 8


def test_options_fix_the_start_and_leave_the_other_draws(env, scenes):
    free = env.reset(seed=3)[1]
    scene = scenes[1].name
    for options, key, value in [
        ({"scene": scene}, "scene", scene),
        ({"scene": 1}, "scene", scene),
        ({"frame": 4}, "source_index", 4),
    ]:
        assert env.reset(seed=3, options=options)[1][key] == value
    assert env.reset(seed=3, options={"scene": free["scene"]})[1]["source_index"] == free["source_index"]
    pose = np.eye(4)
    pose[:3, 3] = [0.1, 0.2, 0.3]
    assert (env.reset(options={"pose": pose})[1]["world_from_camera"] == pose).all()


def test_start_shows_the_source_frame(env, scenes):
    observation, info = env.reset(options={"scene": 0, "frame": 6})
    np.testing.assert_array_equal(observation["rgb"], scenes[0].rgb(6).numpy())
    np.testing.assert_allclose(info["world_from_camera"], scenes[0].world_from_camera[6].numpy(), atol=1e-12)
    np.testing.assert_array_equal(observation["pose"], [0, 0, 0, 0, 0, 0, 1])
    assert info["known"] == 1.0 and info["time"] == 0.0


def test_start_jitter_is_bounded_and_drawn(options, scenes):
    env = WorldEnv(**options, start_jitter=(0.05, 0.0), start_frame=2)
    poses = [env.reset(seed=seed, options={"scene": 0})[1]["world_from_camera"] for seed in range(8)]
    offsets = np.array([np.linalg.inv(scenes[0].world_from_camera[2].numpy()) @ pose for pose in poses])
    assert (np.abs(offsets[:, :3, 3]) <= 0.05).all() and np.ptp(offsets[:, :3, 3]) > 0.02
    np.testing.assert_allclose(offsets[:, :3, :3], np.tile(np.eye(3), (8, 1, 1)), atol=1e-9)
    env.close()


@pytest.mark.parametrize(
    ("axis", "value", "position", "rotation"),
    [
        (0, 0.6, [0.6 * STEP, 0, 0], [0, 0, 0]),
        (1, -0.6, [0, -0.6 * STEP, 0], [0, 0, 0]),
        (2, 0.3, [0, 0, 0.3 * STEP], [0, 0, 0]),
        (3, 1.0, [0, 0, 0], [STEP, 0, 0]),
        (4, -1.0, [0, 0, 0], [0, -STEP, 0]),
        (5, 1.0, [0, 0, 0], [0, 0, STEP]),
    ],
)
def test_the_camera_moves_as_commanded(env, axis, value, position, rotation):
    env.reset(seed=0)
    action = np.zeros(6, np.float32)
    action[axis] = value
    pose = env.step(action)[0]["pose"]
    np.testing.assert_allclose(pose[:3], position, atol=1e-6)
    np.testing.assert_allclose(Rotation.from_quat(pose[3:]).as_rotvec(), rotation, atol=1e-6)


def test_forward_brings_the_wall_nearer_by_what_was_driven(options):
    env = WorldEnv(**options, depth="metres", play_rate=0.0, action="planar")
    before = env.reset(seed=0, options={"scene": 0, "frame": 0})[0]["depth"]
    for _ in range(3):
        observation, *_ = env.step([1.0, 0.0, 0.0])
    driven = observation["pose"][0]
    assert driven == pytest.approx(3 * STEP)
    assert np.median(before) - np.median(observation["depth"]) == pytest.approx(driven, abs=0.05)
    env.close()


def test_frame_skip_is_several_blocks_at_once(options):
    twice, once = WorldEnv(**options, frame_skip=8), WorldEnv(**options)
    twice.reset(seed=1), once.reset(seed=1)
    action = once.action_space.sample()
    once.step(action)
    assert data_equivalence(twice.step(action), once.step(action), exact=True)
    assert twice.metadata["render_fps"] == 3 and once.metadata["render_fps"] == 6
    twice.close(), once.close()


def test_playhead_by_setting_by_method_and_by_action(options):
    shown = []
    still = WorldEnv(**options, play_rate=0.0)
    still.reset(seed=0, options={"scene": 0, "frame": 3})
    shown = [still.step(np.zeros(6))[4]["source_index"] for _ in range(2)]
    assert shown == [3, 3]
    still.set_play_rate(1.0)
    assert still.step(np.zeros(6))[4]["source_index"] == 6
    back = WorldEnv(**options, play_rate=-1.0)
    back.reset(seed=0, options={"scene": 0, "frame": 8})
    assert back.step(np.zeros(6))[4]["source_index"] == 4
    acted = WorldEnv(**options, action="planar", playhead_action=True)
    acted.reset(seed=0, options={"scene": 0, "frame": 0})
    assert acted.step([0, 0, 0, 1.0])[4]["source_index"] == 4
    assert acted.step([0, 0, 0, 0.0])[4]["source_index"] == 5
    assert acted.step([0, 0, 0, -1.0])[4]["source_index"] == 2
    for env in (still, back, acted):
        env.close()


def test_reward_and_end_by_functions_and_by_subclass(options):
    def far(observation, action, info):
        return float(observation["pose"][0]) > 0.3

    env = WorldEnv(**options, reward_fn=lambda observation, action, info: observation["pose"][0], terminated_fn=far)
    env.reset(seed=0)
    got = [env.step(np.eye(6)[0]) for _ in range(2)]
    assert [round(step[1], 5) for step in got] == [round(STEP, 5), round(2 * STEP, 5)]
    assert [step[2] for step in got] == [False, True]
    env.close()

    class Still(WorldEnv):
        def reward(self, observation, action, info):
            return -float(np.abs(action).sum())

    env = Still(**options)
    env.reset(seed=0)
    assert env.step(np.full(6, 0.5))[1] == -3.0
    env.close()


def test_spaces_and_arrays_do_not_depend_on_memory_and_know_their_keys(options):
    one, other = WorldEnv(**options), WorldEnv(**options, memory=True)
    assert one.observation_space == other.observation_space and one.action_space == other.action_space
    rgb_only = WorldEnv(**options, observation="rgb")
    assert set(rgb_only.reset(seed=0)[0]) == {"rgb"}
    for env in (one, other, rgb_only):
        env.close()


def test_render_gives_the_last_frame(options):
    env = WorldEnv(**options, render_mode="rgb_array")
    with pytest.raises(InputError, match="reset"):
        env.render()
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), observation["rgb"])
    env.close()
    env.close()


def test_only_the_frames_that_are_seen_are_rendered(options):
    env = WorldEnv(**options, frame_skip=8)
    env.reset(seed=0)
    env.step(np.zeros(6))
    assert env.frames_rendered_per_step == 2 == sum(block.shape[1] for block in env._view.frames)
    env.close()


def test_window_shows_every_frame(options, monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = WorldEnv(**options, fps=240.0, render_mode="human")
    flips = []
    flip = pygame.display.flip
    monkeypatch.setattr(pygame.display, "flip", lambda: (flips.append(1), flip()))
    env.reset(seed=0)
    env.step(np.zeros(6))
    assert len(flips) == 5
    env.close()


def test_no_display_is_one_line(options, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(InputError, match="display"):
        WorldEnv(**options, render_mode="human")


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"scenes": "atlantis"}, "atlantis"),
        ({"scenes": []}, "scenes"),
        ({"frame_skip": 6}, "frame_skip"),
        ({"generator": "magic"}, "generator"),
        ({"generator_options": {"promt": "a wall"}}, "promt"),
        ({"generator_options": {"fp8": "yes"}}, "fp8"),
        ({"generator_options": "random_weights"}, "generator_options"),
        ({"device": "tpu"}, "device"),
        ({"loop": "twirl"}, "loop"),
        ({"start_frame": 7}, "start_frame|frame"),
        ({"render_mode": "ascii"}, "render_mode"),
    ],
)
def test_bad_arguments_are_one_line(options, bad, word):
    with pytest.raises(InputError, match=word) as error:
        WorldEnv(**{**options, **bad})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "bad", [{"scene": "atlantis"}, {"scene": 2}, {"frame": 10}, {"frame": 1.5}, {"pose": np.ones((4, 4))}, {"start": 1}]
)
def test_bad_reset_options_are_one_line(env, bad):
    with pytest.raises(InputError, match=next(iter(bad))) as error:
        env.reset(options={"scene": 0, **bad})
    assert "\n" not in str(error.value)
    env.reset(seed=0)  # the environment lives on


def test_stepping_needs_an_episode_and_a_finite_action(env):
    with pytest.raises(InputError, match="reset"):
        env.step(np.zeros(6))
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="finite"):
        env.step(np.full(6, np.nan))
    env.step(np.zeros(6))


def test_a_scene_with_one_frame_is_a_place(options, scenes):
    photo = Reference.from_arrays(
        scenes[0].rgb(0)[None].numpy(), scenes[0].depth(0)[None].numpy(), scenes[0].K[0].numpy(), name="photo"
    )
    env = WorldEnv(**{**options, "scenes": photo})
    env.reset(seed=0)
    assert env.step(np.zeros(6))[4]["source_index"] == 0
    env.close()
