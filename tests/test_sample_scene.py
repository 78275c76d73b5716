"""The shipped scene through the whole core: what it holds, what its map remembers, and the way back."""

import numpy as np
import pytest
import torch

from inspatio_core import assets
from inspatio_core.geometry.motion import Motion, se3_exp
from inspatio_core.geometry.playhead import PlayheadCommand
from inspatio_core.reference import Reference, open_reference
from inspatio_core.world import World

SIZE = (240, 416)


@pytest.fixture(scope="module")
def courtyard():
    return open_reference("courtyard", SIZE)


def drive_through(reference, **options):
    """A session that has shown the whole clip once, its map complete."""
    session = World(reference, size=SIZE, device="cpu", loop="hold", **options).start()
    for _ in range(reference.frame_count // 4 + 3):
        session.step()
    session.wait()
    return session


def yaw(degrees):
    return se3_exp(torch.tensor([0, 0, 0, 0, np.deg2rad(degrees), 0], dtype=torch.float64))


def test_it_is_a_few_seconds_of_a_moving_world_under_six_megabytes(courtyard):
    folder = assets.find("scenes/courtyard")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 6e6
    assert courtyard.frame_count / courtyard.fps > 2.5 and courtyard.metric
    path = courtyard.world_from_camera[:, :3, 3]
    assert (path[-1] - path[0]).norm() > 0.5
    true = open_reference("courtyard", SIZE, moving="true")
    shares = [true.moving(i).float().mean() for i in range(0, true.frame_count, 12)]
    assert 0.005 < max(shares) < 0.3


def test_depth_and_poses_agree_between_frames(courtyard):
    """Still pixels of a late frame, warped by depth and pose, show the colours of an early one."""
    true = open_reference("courtyard", SIZE, moving="true")
    world = World(courtyard, size=SIZE, device="cpu", memory=False, keep_anchor=True)
    with world.start(start_indices=20, start_poses=courtyard.world_from_camera[24]) as session:
        block = session.first
    still = ~true.moving(24) & ~true.moving(20) & session.first.known[0, 0]
    error = (block.rgb[0, 0].float() - courtyard.rgb(24).float()).abs().mean(-1)[still]
    unwarped = (courtyard.rgb(20).float() - courtyard.rgb(24).float()).abs().mean(-1)[still]
    assert still.float().mean() > 0.8
    assert error.median() < 3 and error.mean() < 0.5 * unwarped.mean()


def moving_share(masks):
    """Share of the map's points on moving objects. The exact masks only measure: they are painted on as colours."""
    seen, true = open_reference("courtyard", SIZE, moving=masks), open_reference("courtyard", SIZE, moving="true")
    n = seen.frame_count
    painted = Reference.from_arrays(
        torch.stack([true.moving(i) for i in range(n)])[..., None].expand(-1, -1, -1, 3).to(torch.uint8) * 255,
        torch.stack([seen.depth(i) for i in range(n)]),
        seen.K,
        seen.world_from_camera,
        fps=seen.fps,
        moving=None if masks == "none" else torch.stack([seen.moving(i) for i in range(n)]),
    )
    with drive_through(painted) as session:
        points = session.maps[0].points()
    assert len(points.xyz) > 20_000
    return (points.rgb[:, 0] > 127).float().mean().item()


def test_under_one_percent_of_the_map_lies_on_moving_objects():
    """With the masks that any prepared clip gets, found in its pictures; without masks it would be several percent."""
    assert moving_share("auto") < 0.01
    assert moving_share("none") > 0.03


def test_look_away_come_back_and_find_it_there(courtyard):
    """Yaw 0 -> 30 -> 0 -> 20 degrees with time held: observed pixels come back equal, and memory knows more of them."""
    known = {}
    for memory in (True, False):
        with drive_through(courtyard, memory=memory) as session:
            session.step(Motion.teleport(yaw(0)), PlayheadCommand(paused=True))
            for _ in range(2):
                session.step()
            views = {}
            for leg, goal in enumerate((0, 30, 0, 20, 30)):
                block = session.step(Motion.target(yaw(goal)))
                views[leg] = block.rgb[0, -1], block.known[0, -1]
        for first, again in ((0, 2), (1, 4)):
            (rgb_a, known_a), (rgb_b, known_b) = views[first], views[again]
            assert torch.equal(known_a, known_b)
            assert torch.equal(rgb_a[known_a], rgb_b[known_b])
        known[memory] = [views[leg][1].float().mean().item() for leg in range(4)]
    assert all(on > off for on, off in zip(known[True], known[False], strict=True))
    assert known[True][1] > known[False][1] + 0.05


def test_things_are_where_they_were_when_the_camera_returns(courtyard):
    """From the first camera, at the end of the clip: what does not move looks as it did, though the source camera has
    moved on, a planter in front has left its picture, and it now sees the wall behind it."""
    first, moving = courtyard.rgb(0), open_reference("courtyard", SIZE, moving="true").moving(0)
    results = {}
    for memory in (True, False):
        with drive_through(courtyard, memory=memory) as session:
            block = session.step(Motion.teleport(yaw(0)))
        still = ~moving & block.known[0, -1]
        error = (block.rgb[0, -1].float() - first.float()).abs().mean(-1)
        results[memory] = still.float().mean().item(), error[still].mean().item(), error[60:200, :70].mean().item()
    share, error, planter = results[True]
    assert share > 0.9 and share > results[False][0] + 0.05
    assert error < 12 and error < 0.7 * results[False][1]
    assert planter < 20 and planter < 0.4 * results[False][2]
