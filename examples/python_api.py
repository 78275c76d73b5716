"""Drive through a video from Python: start a world, steer the camera and the clock, keep what was seen.

python examples/python_api.py                     the first scene that ships
python examples/python_api.py clip.mp4 drive.mp4  one's own video, and where the result goes
"""

import sys

import torch

from inspatio_core import assets
from inspatio_core.export import VideoWriter
from inspatio_core.geometry.motion import Motion
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.reference import open_reference
from inspatio_core.world import World


def main(source: str, out: str) -> None:
    """Roll forward, look left while time stands still, come back while it runs backwards."""
    reference = open_reference(source, size=(240, 416))
    print(reference, *reference.notices, sep="\n  ")
    world = World(reference, size=(240, 416), fps=24)

    # A twist is (vx, vy, vz, wx, wy, wz) in camera axes (x right, y down, z forward), m/s and rad/s.
    forward = torch.tensor([[0, 0, 0.3, 0, 0, 0]], dtype=torch.float64)
    left = torch.tensor([[0, 0, 0, 0, -0.4, 0]], dtype=torch.float64)
    script = [
        ("forward", forward, None),
        ("left, time paused", left, PlayheadCommand(paused=True)),
        ("right, time backwards", -left, PlayheadCommand(paused=False, rate=-1)),
        ("home", Motion.target(torch.eye(4, dtype=torch.float64)), PlayheadCommand(rate=1)),
    ]
    with world.start() as session, VideoWriter(out, world.size, world.fps) as video:
        for what, motion, command in script:
            for second in range(6):  # six blocks of four frames: one second
                block = session.step(motion, command if second == 0 else None)
                for frame in block.rgb[0]:
                    video.write(frame.cpu().numpy())
            session.wait()
            known = float(block.known.float().mean())
            position = [round(x, 2) for x in block.world_from_camera[0, -1, :3, 3].tolist()]
            print(
                f"{what:22} t = {float(session.time[0]):.2f} s, source frame {int(block.source_index[0, -1])}, "
                f"camera at {position} m, {known:.0%} known, {len(session.maps[0])} points in the map"
            )
        session.maps[0].save(f"{out.rsplit('.', 1)[0]}.ply")


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else str(assets.find(f"scenes/{assets.scenes()[0]}")),
        sys.argv[2] if len(sys.argv) > 2 else "drive.mp4",
    )
