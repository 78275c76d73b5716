"""`make run`: start the world on the sample scene or on VIDEO, until Ctrl-C.

Reads the variables VIDEO (a clip or a scene folder), GENERATOR (what makes the frames: geometric or star) and ARGS
(launch arguments `name:=value ...`). With ROS=none it renders VIDEO to outputs/ instead; ARGS are then arguments of
`inspatio render`.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import environment
from environment import PREFIX, ROOT, VENV, SetUpError
from supervise import supervise

SAMPLE = ROOT / "scenes" / "courtyard"

WHICH = {
    environment.SOURCED: "the sourced one",
    environment.INSTALLED: str(environment.SYSTEM),
    environment.WHEEL: f"pip wheel in {PREFIX.relative_to(ROOT)}",
}


def say(text: str) -> None:
    """Print one line at once, ahead of what the started programs print."""
    print(f"run: {text}", flush=True)


def chosen_video(video: str) -> Path | None:
    """VIDEO as a path, None when it is empty; a shipped scene may be named without its folder."""
    if not video:
        return None
    for path in (Path(video), ROOT / "scenes" / video):
        if path.exists():
            return path.resolve()
    raise SetUpError(f"VIDEO={video}: no such file, folder or shipped scene")


def render(video: Path, arguments: list[str]) -> int:
    """Render one video to outputs/, without ROS."""
    output = ROOT / "outputs" / (video.name if video.is_dir() else video.stem)
    say(f"ROS=none: rendering {video.name} to {output.relative_to(ROOT)}/")
    command = [VENV / "bin" / "inspatio", "render", video, "--output_folder", output, *arguments]
    return supervise(command, environment.venv_environment(os.environ))


def launch(kind: str, video: Path | None, arguments: list[str]) -> int:
    """Start the launch file and hold on until it ends."""
    env = environment.workspace_environment(kind, os.environ)
    command = ["ros2", "launch", "inspatio", "world.launch.py"]
    if video:
        command.append(f"video:={video}")
    shell = f". .venv/bin/activate && . {environment.WORKSPACE.name}/install/setup.bash"
    say(f"ROS 2: {WHICH[kind]}. In another terminal: {shell} && ros2 topic list")
    say(f"{shlex.join([*command, *arguments])}   (Ctrl-C ends it)")
    return supervise([*command, *arguments], env)


def main() -> int:
    """Run what the variables ask for; returns the exit code."""
    try:
        kind = environment.find_ros(os.environ)
        video = chosen_video(os.environ.get("VIDEO", ""))
        generator, arguments = os.environ.get("GENERATOR", ""), shlex.split(os.environ.get("ARGS", ""))
        if kind == environment.NONE:
            return render(video or SAMPLE, [*(["--generator", generator] if generator else []), *arguments])
        return launch(kind, video, [*([f"generator:={generator}"] if generator else []), *arguments])
    except SetUpError as error:
        print(f"make run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
