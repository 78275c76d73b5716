"""Steps and frames per second of the Gymnasium env, single and batched, beside MiniWorld in the same run.

    python -m venv build/miniworld && build/miniworld/bin/pip install miniworld
    python benchmarks/env.py --miniworld-python build/miniworld/bin/python

Timed: `env.step` with actions drawn beforehand, resets at the end of episodes included, the observation handed over as
numpy. Both sides make the environment by Gymnasium (checker off), at the same size, with an RGB observation. A step of
MiniWorld renders one frame (EGL, no window). A step of the world moves on by a block of 4 frames of world time and
returns the last; "rendered" counts the frames that were really rendered. CPU time is that of all threads of the
process (not of MiniWorld's workers) and is what to look at on a busy machine. Every case runs in a process of its own,
one after another, several rounds; the table has the median, the JSON every round. Nothing is asserted here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from machine import describe, write

ROOT = Path(__file__).resolve().parent.parent
MINIWORLD_WORLDS = 8
RATES = ("steps_per_second", "rendered_per_second", "ms_per_call", "cpu_ms_per_step")


def measure(env, vector: bool, seconds: float) -> dict:
    """Steps of all worlds per second."""
    worlds = env.num_envs if vector else 1
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(64)]
    env.reset(seed=0)
    for action in actions:
        env.step(action)
    env.reset(seed=0)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        *_, terminated, truncated, _ = env.step(actions[count % len(actions)])
        count += 1
        if not vector and (terminated or truncated):
            env.reset()
    cpu = time.process_time() - cpu
    return {
        "steps_per_second": count * worlds / elapsed,
        "ms_per_call": 1000 * elapsed / count,
        "cpu_ms_per_step": 1000 * cpu / (count * worlds),
    }


def work_inspatio(case: dict, seconds: float) -> dict:
    """One case of ours, in this process."""
    import gymnasium as gym
    import torch

    import gym_env  # noqa: F401  registers

    if case["threads"]:
        torch.set_num_threads(case["threads"])
    settings = {key: case[key] for key in ("size", "scenes", "observation", "device", "memory")}
    if case["worlds"] == 1:
        env = gym.make("InSpatio/World-v0", disable_env_checker=True, **settings)
    else:
        env = gym.make_vec("InSpatio/World-v0", num_envs=case["worlds"], **settings)
    result = measure(env, case["worlds"] > 1, seconds)
    result["rendered_per_second"] = result["steps_per_second"] * env.unwrapped.frames_rendered_per_step
    env.close()
    result["torch"], result["torch_threads"] = torch.__version__, torch.get_num_threads()
    return result


def work_miniworld(case: dict, seconds: float) -> dict:
    """One case of MiniWorld, in this process, which needs nothing of ours."""
    import gymnasium as gym

    h, w = case["size"]

    def make():
        import pyglet

        pyglet.options["headless"] = True
        import miniworld  # noqa: F401  registers

        return gym.make(case["env"], obs_width=w, obs_height=h, disable_env_checker=True)

    vector = case["worlds"] > 1  # spawned: a forked OpenGL context hangs
    env = gym.vector.AsyncVectorEnv([make] * case["worlds"], context="spawn") if vector else make()
    result = measure(env, vector, seconds)
    result["rendered_per_second"] = result["steps_per_second"]
    if not vector:
        from pyglet import gl

        result["renderer"] = gl.gl_info.get_renderer()
    env.close()
    return result


def run_case(python: str, case: dict, seconds: float) -> dict:
    """A case in a fresh process of ``python``."""
    command = [python, __file__, "--worker", json.dumps(case), "--seconds", str(seconds)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"benchmark: {case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def cases_of(args: argparse.Namespace) -> list[dict]:
    """Everything to measure."""
    cases = []
    for size in ([int(n) for n in text.split("x")] for text in args.sizes):
        if args.miniworld_python:
            for worlds in (1, MINIWORLD_WORLDS):
                cases.append(dict(who="miniworld", env=args.miniworld_env, size=size, worlds=worlds))
        ours = dict(who="inspatio", size=size, scenes=args.scenes, device=args.device, memory=False)
        for threads in args.threads:
            for worlds in args.batches:
                cases.append(dict(ours, worlds=worlds, observation=["rgb"], threads=threads))
        full = dict(ours, worlds=max(args.batches), threads=args.threads[0])
        cases.append(dict(full, observation=["rgb", "depth", "pose"]))
        cases.append(dict(full, observation=["rgb"], memory=True))
    return cases


def main() -> None:
    """Run all cases, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["60x80", "128x224"], help="HEIGHTxWIDTH")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 16, 32])
    parser.add_argument("--scenes", nargs="+", default=["courtyard"])
    parser.add_argument("--threads", nargs="+", type=int, default=[0], help="torch threads; 0: torch's default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each case and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--miniworld-python", help="a Python that has miniworld; without it only ours is measured")
    parser.add_argument("--miniworld-env", default="MiniWorld-Hallway-v0")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/env.json")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work = work_miniworld if args.worker["who"] == "miniworld" else work_inspatio
        print(json.dumps(work(args.worker, args.seconds)))
        return

    host = describe()
    rows = [dict(case, rounds=[]) for case in cases_of(args)]
    for _ in range(args.rounds):
        for row in rows:
            case = {key: value for key, value in row.items() if key != "rounds"}
            python = args.miniworld_python if row["who"] == "miniworld" else sys.executable
            row["rounds"].append(run_case(python, case, args.seconds))
    for row in rows:
        row.update({key: value for key, value in row["rounds"][0].items() if key not in RATES})
        row.update({key: median(r[key] for r in row["rounds"]) for key in RATES})
    for row in rows:
        for base in rows:
            if base["who"] == "miniworld" and base["size"] == row["size"]:
                name = "single" if base["worlds"] == 1 else f"async_{base['worlds']}"
                row[f"steps_over_miniworld_{name}"] = row["steps_per_second"] / base["steps_per_second"]
    report = {"timed": " ".join(__doc__.split("Timed: ")[1].split()), "machine": host, "rows": rows}
    write(report, args.out)
    print(table(report))


def table(report: dict) -> str:
    """The report as a Markdown table."""
    over = [f"steps_over_miniworld_{name}" for name in ("single", f"async_{MINIWORLD_WORLDS}")]
    lines = [
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores, load {report['machine']['load_at_start']}",
        "",
        f"| size | env | worlds | steps/s | rendered/s | CPU ms/step | x MiniWorld | x {MINIWORLD_WORLDS} MiniWorlds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if row["who"] == "miniworld":
            who = row["env"]
        else:
            who = "InSpatio/World-v0: " + "+".join(row["observation"]) + (", memory" if row["memory"] else "")
            who += f", {row['threads']} threads" if row["threads"] else ""
        times = " | ".join(f"{row[key]:.2f}" if key in row else "" for key in over)
        size = "x".join(map(str, row["size"]))
        rates = f"{row['steps_per_second']:.0f} | {row['rendered_per_second']:.0f} | "
        rates += "" if row["who"] == "miniworld" and row["worlds"] > 1 else f"{row['cpu_ms_per_step']:.2f}"
        lines.append(f"| {size} | {who} | {row['worlds']} | {rates} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
