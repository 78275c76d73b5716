"""Small sources on disk for tests: a scene folder with exact depth and poses, a video, and how to run the command."""

from pathlib import Path

import numpy as np

from inspatio_core.cli import main
from inspatio_core.export import VideoWriter
from inspatio_core.reference.scene import SceneWriter
from tests.synthetic import make_reference


def make_scene(path: Path, frames: int = 10, size=(48, 64), **entries) -> Path:
    """The synthetic place as a scene folder; `entries` override what its transforms.json says."""
    reference = make_reference(frames=frames, size=size)
    with SceneWriter(path) as writer:
        for i in range(frames):
            writer.image(i, reference.rgb(i).numpy())
            writer.depth(i, reference.depth(i).numpy(), 0.001)
        details = {"size": size, "fps": 24.0, "metric": True} | entries
        writer.finish(reference.K.numpy(), reference.world_from_camera.numpy(), **details)
    return path


def make_video(path: Path, frames: int = 10, size=(48, 64), fps: float = 24.0) -> Path:
    """A short clip of a still camera: a textured background with a moving square."""
    height, width = size
    v, u = np.mgrid[:height, :width]
    background = np.stack([u * 3 % 256, v * 4 % 256, (u + v) * 2 % 256], -1).astype(np.uint8)
    with VideoWriter(path, size, fps) as writer:
        for i in range(frames):
            image = background.copy()
            image[height // 3 : height // 2, i : i + max(1, width // 6)] = (250, 240, 30)
            writer.write(image)
    return path


def run(capsys, *argv) -> tuple[int, str, str]:
    """Run the command in this process; returns its exit code, stdout and stderr."""
    capsys.readouterr()
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err
