"""A random agent in a filmed world, alone and as one of many.

    python examples/gym_random_agent.py
    python examples/gym_random_agent.py --scenes courtyard my_clip.mp4 --worlds 16 --video out.mp4
"""

import argparse
import time

import cv2
import gymnasium as gym
import numpy as np
from gymnasium.wrappers.vector import RecordEpisodeStatistics


def novelty(observation, action, info) -> float:
    """An example of a reward: metres from the start, but only while most of the view is of the filmed place."""
    return float(np.linalg.norm(observation["pose"][:3])) * (info["known"] > 0.5)


def main() -> None:
    """Step one world, then several at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", nargs="+", default=["courtyard"], help="shipped scenes, videos or scene folders")
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video", help="mp4 of the first world")
    args = parser.parse_args()

    settings = dict(scenes=args.scenes, size=tuple(args.size), action="planar", reward_fn=novelty)
    env = gym.make("gym_env:InSpatio/World-v0", **settings)
    observation, info = env.reset(seed=args.seed)
    print(f"one world: {info['scene']}, source frame {info['source_index']}")
    for key, value in observation.items():
        print(f"  {key}: {value.dtype} {value.shape}")
    env.close()

    envs = gym.make_vec("gym_env:InSpatio/World-v0", num_envs=args.worlds, max_episode_steps=32, **settings)
    fps = envs.metadata["render_fps"]
    envs = RecordEpisodeStatistics(envs)
    envs.action_space.seed(args.seed)
    observations, infos = envs.reset(seed=args.seed)
    frames, start = [observations["rgb"][0]], time.perf_counter()
    for _ in range(args.steps):
        observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
        frames.append(observations["rgb"][0])
    seconds = time.perf_counter() - start
    rate = args.steps * args.worlds / seconds
    print(f"{args.worlds} worlds: {rate:.0f} steps/s, {envs.episode_count} episodes ended")
    if envs.episode_count:
        print(f"  mean return {np.mean(envs.return_queue):.2f}")
    envs.close()

    if args.video:
        out = cv2.VideoWriter(args.video, cv2.VideoWriter.fourcc(*"mp4v"), fps, args.size[::-1])
        for frame in frames:
            out.write(frame[..., ::-1])
        out.release()


if __name__ == "__main__":
    main()
