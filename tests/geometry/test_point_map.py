import struct
import sys
import threading

import numpy as np
import pytest
import torch
from plyfile import PlyData

from inspatio_core.errors import InputError
from inspatio_core.geometry.point_map import (
    GENERATED,
    OBSERVED,
    POINT_BYTES,
    MapPoints,
    PointMap,
    load_points,
    save_points,
    to_open3d,
    without_outliers,
)
from tests.moving_scene import frame, intrinsics, view, yaw

SIZE = (48, 80)


def insert(point_map, f, origin=OBSERVED, valid=None, **options):
    valid = np.ones_like(f.moving) if valid is None else valid
    point_map.insert(f.rgb, f.depth, valid, f.K, f.pose, origin, **options)


def moved(*xyz):
    pose = np.eye(4)
    pose[:3, 3] = xyz
    return pose


def plane(depth, size=SIZE, color=100):
    """A frame of one depth and colour at the origin."""
    return view(np.eye(4), size, walls=False)._replace(
        rgb=np.full((*size, 3), color, np.uint8), depth=np.full(size, depth, np.float32)
    )


def states_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.fixture(scope="module")
def drive():
    """A varied sequence of insertions: (frame, options)."""
    rng = np.random.default_rng(5)
    steps = []
    for n in range(14):
        f = frame(3 * n, SIZE)
        valid = rng.random(SIZE) < 0.9
        depth = f.depth * (1 + 0.02 * rng.normal(size=SIZE)).astype(np.float32) if n % 4 == 1 else f.depth
        options = {
            "origin": (OBSERVED, GENERATED, GENERATED)[n % 3],
            "confidence": (1.0, 0.4, rng.random(SIZE, np.float32))[n % 3],
            "stamp": n // 2 / 24,
            "moving": f.moving if n % 2 else None,
            "valid": valid,
        }
        steps.append((f._replace(depth=depth), options))
    return steps


# ------------------------------------------------------------------------------------- what goes in and comes out


def test_points_lie_on_the_surface_with_its_colours():
    f = view(moved(0.3, -0.2, 0.5) @ yaw(0.4), SIZE)
    point_map = PointMap(limit=20_000)
    insert(point_map, f, stamp=2.5)
    points = point_map.points()
    assert len(point_map) == points.xyz.shape[0] > 0.2 * f.depth.size
    camera = np.linalg.inv(f.pose)
    local = points.xyz.numpy() @ camera[:3, :3].T + camera[:3, 3]
    pixels = np.rint(local @ f.K.T / local[:, 2:])[:, :2].astype(int)
    np.testing.assert_allclose(local[:, 2], f.depth[pixels[:, 1], pixels[:, 0]], rtol=1e-5)
    np.testing.assert_array_equal(points.rgb.numpy(), f.rgb[pixels[:, 1], pixels[:, 0]])
    assert (points.last_seen == 2.5).all() and (points.origin == OBSERVED).all()


def test_screen_density_does_not_depend_on_depth():
    counts = []
    for depth in (0.5, 1.0, 4.0, 32.0):
        point_map = PointMap(limit=20_000)
        insert(point_map, plane(depth))
        counts.append(len(point_map))
    assert len(set(counts)) == 1
    assert SIZE[0] * SIZE[1] / 5 < counts[0] < SIZE[0] * SIZE[1]


def test_only_valid_finite_still_pixels_enter():
    f = plane(2.0)
    depth, valid, moving = f.depth.copy(), np.ones(SIZE, bool), np.zeros(SIZE, bool)
    depth[0, :], depth[1, :], depth[2, :], depth[3, :] = np.nan, np.inf, 0, -1
    valid[:, :10], moving[:, 70:] = False, True
    point_map = PointMap(limit=20_000)
    insert(point_map, f._replace(depth=depth), valid=valid, moving=moving)
    xyz = point_map.points().xyz.numpy()
    pixels = np.rint(xyz @ f.K.T / xyz[:, 2:])
    assert len(xyz) > 0 and np.isfinite(xyz).all()
    assert pixels[:, 0].min() >= 10 and pixels[:, 0].max() < 70 and pixels[:, 1].min() >= 4


def test_the_same_surface_is_kept_once():
    point_map = PointMap(limit=100_000)
    insert(point_map, view(np.eye(4), SIZE), stamp=0)
    first = len(point_map)
    insert(point_map, view(np.eye(4), SIZE), stamp=1)
    assert len(point_map) == first
    rng = np.random.default_rng(0)
    for n in range(8):  # noisy depth must not pile up layers
        f = view(np.eye(4), SIZE)
        noise = (1 + 0.004 * rng.normal(size=SIZE)).astype(np.float32)
        insert(point_map, f._replace(depth=f.depth * noise), stamp=2 + n)
    assert len(point_map) < 2 * first
    assert (point_map.points().last_seen >= 2).float().mean() > 0.5


def test_a_closer_view_replaces_a_coarse_one_and_not_the_other_way():
    near, far = plane(1.0, color=200), plane(4.0, color=50)._replace(pose=moved(0, 0, -3))
    point_map = PointMap(limit=100_000)
    insert(point_map, far, stamp=0)
    insert(point_map, near, stamp=1)
    fine = point_map.points()
    inner = (fine.xyz[:, :2].abs() < 0.2).all(dim=1)
    assert (fine.rgb[inner] == 200).all()
    insert(point_map, far, stamp=2)
    again = point_map.points()
    inner = (again.xyz[:, :2].abs() < 0.2).all(dim=1)
    assert (again.rgb[inner] == 200).all()


def test_observed_replaces_generated_and_generated_never_observed():
    generated, observed = plane(2.0, color=10), plane(2.0, color=240)
    point_map = PointMap(limit=20_000)
    insert(point_map, generated, GENERATED, confidence=0.5, stamp=0)
    assert (point_map.points().origin == GENERATED).all()
    insert(point_map, observed, OBSERVED, stamp=1)
    points = point_map.points()
    assert (points.origin == OBSERVED).all() and (points.rgb == 240).all() and (points.confidence == 1).all()
    insert(point_map, generated, GENERATED, confidence=1.0, stamp=2)
    assert torch.equal(point_map.points().rgb, points.rgb)
    insert(point_map, plane(4.0), GENERATED, stamp=3)  # sees through, but only generates
    assert torch.isclose(point_map.points().xyz[:, 2], torch.tensor(2.0)).sum() == len(points.xyz)


def test_more_confident_generated_points_replace_less_confident_ones():
    point_map = PointMap(limit=20_000)
    insert(point_map, plane(2.0, color=10), GENERATED, confidence=0.3, stamp=0)
    insert(point_map, plane(2.0, color=90), GENERATED, confidence=0.6, stamp=1)
    insert(point_map, plane(2.0, color=30), GENERATED, confidence=0.5, stamp=2)
    assert (point_map.points().rgb == 90).all()


def test_each_pixel_may_have_a_confidence_of_its_own():
    ramp = np.tile(np.linspace(0.2, 0.8, SIZE[1], dtype=np.float32), (SIZE[0], 1))
    for backend in ("numba", "plain"):
        point_map = PointMap(limit=20_000, backend=backend)
        insert(point_map, plane(2.0, color=10), GENERATED, confidence=torch.from_numpy(ramp))
        points, f = point_map.points(), plane(2.0)
        pixels = np.rint(points.xyz.numpy() @ f.K.T / points.xyz.numpy()[:, 2:])[:, :2].astype(int)
        np.testing.assert_array_equal(points.confidence.numpy(), ramp[pixels[:, 1], pixels[:, 0]])
        insert(point_map, plane(2.0, color=90), GENERATED, confidence=0.5, stamp=1)
        points = point_map.points()
        left = points.xyz[:, 0] < 0
        assert (points.rgb[left] == 90).all() and (points.confidence[left] == 0.5).all()
        assert (points.rgb[points.confidence > 0.55] == 10).all() and (points.confidence > 0.55).any()


@pytest.mark.parametrize("origin", [OBSERVED, GENERATED])
def test_points_seen_through_are_carved(origin):
    point_map = PointMap(limit=100_000)
    ball = [(np.array([0.0, 0.0, 3.0]), 0.5, True, 3)]
    insert(point_map, view(np.eye(4), SIZE, ball), origin, stamp=0)
    near = point_map.points().xyz[:, 2] < 3.0
    assert near.sum() > 50
    insert(point_map, view(np.eye(4), SIZE), stamp=1)
    assert (point_map.points().xyz[:, 2] < 3.0).sum() == 0


def test_carving_spares_what_invalid_pixels_and_silhouettes_hide():
    ball = [(np.array([0.0, 0.0, 3.0]), 0.5, False, 3)]
    with_ball, empty = view(np.eye(4), SIZE, ball), view(np.eye(4), SIZE)
    point_map = PointMap(limit=100_000)
    insert(point_map, with_ball, stamp=0)
    before = len(point_map)
    insert(point_map, empty, valid=np.zeros(SIZE, bool), stamp=1)
    assert len(point_map) == before
    slightly = view(yaw(0.5 / with_ball.K[0, 0]), SIZE, ball)  # half a pixel aside: rims must survive
    insert(point_map, slightly, stamp=2)
    assert len(point_map) >= before


def test_moving_pixels_still_carve():
    point_map = PointMap(limit=100_000)
    insert(point_map, plane(2.0), stamp=0)
    insert(point_map, plane(5.0), stamp=1, moving=np.ones(SIZE, bool))
    assert len(point_map) == 0


def test_under_one_percent_on_moving_objects():
    share = {}
    for masked in (True, False):
        point_map = PointMap(limit=100_000)
        for i in range(0, 48, 4):
            f = frame(i, (96, 160))
            label = np.repeat(f.moving[..., None] * np.uint8(255), 3, axis=2)
            insert(point_map, f._replace(rgb=label), stamp=i, moving=f.moving if masked else None)
        share[masked] = float((point_map.points().rgb[:, 0] > 0).float().mean())
    assert share[True] < 0.01 < share[False]


def test_min_views_keeps_unconfirmed_moving_points_hidden():
    share = {}
    for views in (1, 3):
        point_map = PointMap(limit=100_000, min_views=views)
        for i in range(0, 48, 4):
            f = frame(i, (96, 160))
            insert(point_map, f._replace(rgb=np.repeat(f.moving[..., None] * np.uint8(255), 3, axis=2)), stamp=i)
        share[views] = float((point_map.points().rgb[:, 0] > 0).float().mean())
    assert share[3] < 0.1 * share[1]


def test_render_shows_the_inserted_view():
    f = view(yaw(0.2), (96, 160))
    point_map = PointMap(limit=100_000)
    insert(point_map, f)
    rgb, depth, known = point_map.render(torch.from_numpy(f.K), torch.from_numpy(f.pose), (96, 160))
    assert known.float().mean() > 0.98
    error = np.abs(depth.numpy() - f.depth)[known.numpy()] / f.depth[known.numpy()]
    assert np.median(error) < 0.01
    assert np.median(np.abs(rgb.numpy().astype(int) - f.rgb)[known.numpy()]) < 12
    point_map.clear()
    assert not point_map.render(torch.from_numpy(f.K), torch.from_numpy(f.pose), (96, 160)).known.any()


# ------------------------------------------------------------------------------- bounds, determinism, both backends


@pytest.mark.parametrize("limit", [900, 3000, 50_000])
def test_compiled_equals_plain(drive, limit):
    fast, plain = PointMap(limit, min_views=2), PointMap(limit, min_views=2, backend="plain")
    for f, options in drive:
        for point_map in (fast, plain):
            insert(point_map, f, **options)
        assert states_equal(fast, plain)
        assert all(torch.equal(a, b) for a, b in zip(fast.changes(0, 10**6).added, plain.changes(0, 10**6).added))


def test_far_away_and_very_fine_voxels_stay_apart():
    for backend in ("numba", "plain"):
        point_map = PointMap(limit=50_000, voxel_pixels=0.01, backend=backend)
        f = plane(2.0, (12, 16))
        insert(point_map, f._replace(pose=moved(5e3, -4e3, 3e3)))
        insert(point_map, f._replace(pose=moved(-5e3, 4e3, 3e3)))
        xyz = point_map.points().xyz
        assert (xyz[:, 0] > 0).sum() == (xyz[:, 0] < 0).sum() > 0


def test_the_limit_holds_and_the_oldest_go_first():
    point_map = PointMap(limit=4000)
    bytes_before = point_map.nbytes
    for n in range(40):
        insert(point_map, view(yaw(0.15 * n), SIZE), stamp=n)
        assert 0 < len(point_map) <= 4000
        assert len(point_map.points().xyz) == len(point_map)
    assert point_map.nbytes == bytes_before
    seen = point_map.points().last_seen
    assert seen.max() == 39 and seen.min() > 10


def test_of_equally_old_points_the_least_confident_go_first():
    def aside(metres):
        return plane(2.0)._replace(pose=moved(metres, 0, 0))

    point_map = PointMap(limit=10_000, voxel_pixels=3)
    insert(point_map, aside(0))
    each = len(point_map)
    point_map = PointMap(limit=3 * each - 50, voxel_pixels=3)
    insert(point_map, aside(0), GENERATED, confidence=0.9)
    insert(point_map, aside(64), GENERATED, confidence=0.2)
    state = point_map.state_dict()
    state["last_tick"][:] = 1  # as if one frame had seen all of them
    point_map.load_state_dict(state)
    insert(point_map, aside(128), GENERATED, confidence=0.5)
    kept = {c: int((point_map.points().confidence == c).sum()) for c in (0.9, 0.5, 0.2)}
    assert kept[0.9] == kept[0.5] == each
    assert 0 < kept[0.2] < each


def test_a_frame_fits_into_a_small_map():
    point_map = PointMap(limit=500)
    insert(point_map, view(np.eye(4), (96, 160)))
    xyz = point_map.points().xyz
    assert len(point_map) <= 500
    pixels = xyz[:, 0] / xyz[:, 2]
    assert pixels.min() < -0.5 and pixels.max() > 0.5


def test_reading_in_between_changes_nothing(drive):
    quiet, watched = PointMap(3000), PointMap(3000)
    for f, options in drive:
        insert(quiet, f, **options)
        insert(watched, f, **options)
        watched.points()
        watched.changes(0, 100)
        watched.render(torch.from_numpy(f.K), torch.from_numpy(f.pose), SIZE)
    assert states_equal(quiet, watched)


@pytest.mark.parametrize("backend", ["numba", "plain"])
def test_state_goes_round_bit_for_bit(drive, backend):
    one, other = PointMap(2000, backend=backend), PointMap(2000, backend=backend)
    for f, options in drive[3:6]:
        insert(other, f, **options)  # something to get rid of
    for n, (f, options) in enumerate(drive):
        if n == 8:
            other.load_state_dict(one.state_dict())
            assert states_equal(one, other)
        insert(one, f, **options)
        if n >= 8:
            insert(other, f, **options)
    assert states_equal(one, other)


def test_a_cleared_map_is_as_new(drive):
    used, new = PointMap(2000), PointMap(2000)
    for f, options in drive:
        insert(used, f, **options)
    used.clear()
    assert len(used) == 0 and len(used.points().xyz) == 0
    for f, options in drive[:4]:
        insert(used, f, **options)
        insert(new, f, **options)
    assert states_equal(used, new)


def test_memory_stays_flat_over_thousands_of_frames():
    point_map = PointMap(limit=300)
    arrays = {name: (a.ctypes.data, a.nbytes) for name, a in point_map._data.items()}
    table = point_map._table.ctypes.data
    size = (6, 8)
    f = view(np.eye(4), size)
    for n in range(3000):
        pose = moved(0.05 * n, 0, 0.3 * np.sin(n))
        point_map.insert(f.rgb, f.depth, f.depth > 0, f.K, pose, n % 2, stamp=n / 24)
    assert {name: (a.ctypes.data, a.nbytes) for name, a in point_map._data.items()} == arrays
    assert point_map._table.ctypes.data == table
    assert sorted(point_map._table[point_map._table >= 0]) == sorted(np.flatnonzero(point_map._data["key"] >= 0))
    state = point_map.state_dict()
    assert len(state["free"]) + len(point_map) == len(state["key"]) <= 300
    assert sum(sys.getsizeof(v.untyped_storage()) for v in state.values() if torch.is_tensor(v)) < point_map.nbytes


# ------------------------------------------------------------------------------------------------ changes, threads


class Consumer:
    """Holds what it is told of a map."""

    def __init__(self):
        self.cursor, self.points = 0, {}

    def read(self, point_map, max_points=10**6):
        added, removed, self.cursor = point_map.changes(self.cursor, max_points)
        assert len(added.id) + len(removed) <= max_points
        for row, i in enumerate(added.id.tolist()):
            self.points[i] = tuple(bytes(getattr(added, n)[row].numpy()) for n in ("xyz", "rgb", "radius", "origin"))
        for i in removed.tolist():
            self.points.pop(i, None)
        return len(added.id) + len(removed)

    def matches(self, point_map):
        points = point_map.points()
        names = ("xyz", "rgb", "radius", "origin")
        expected = {
            i: tuple(bytes(getattr(points, n)[row].numpy()) for n in names) for row, i in enumerate(points.id.tolist())
        }
        return self.points == expected


@pytest.mark.parametrize("min_views", [1, 2])
def test_changes_add_up_to_the_map(drive, min_views):
    point_map, prompt, slow = PointMap(1500, min_views=min_views), Consumer(), Consumer()
    for n, (f, options) in enumerate(drive):
        insert(point_map, f, **options)
        if n == 5:
            state = point_map.state_dict()
        if n == 7:
            point_map.clear()
        if n == 10:
            point_map.load_state_dict(state)
        prompt.read(point_map)
        assert prompt.matches(point_map)
        slow.read(point_map, 60)
    assert not slow.matches(point_map)
    while slow.read(point_map, 60):
        pass
    assert slow.matches(point_map)
    assert prompt.read(point_map) == 0


def test_a_still_camera_publishes_nothing_new():
    point_map, consumer = PointMap(20_000), Consumer()
    insert(point_map, view(np.eye(4), SIZE), stamp=0)
    assert consumer.read(point_map) == len(point_map)
    insert(point_map, view(np.eye(4), SIZE), stamp=1)
    assert consumer.read(point_map) == 0


def test_point_bytes_is_what_a_point_takes():
    points = MapPoints(*(t[:1] for t in _some_points()))
    assert sum(t.element_size() * t.numel() for t in points) == POINT_BYTES


def test_other_threads_may_read_while_one_inserts(drive):
    point_map, alone, consumer = PointMap(2000), PointMap(2000), Consumer()
    done, errors = threading.Event(), []

    def read():
        while not done.is_set():
            try:
                points = point_map.points()
                assert len({len(t) for t in points}) == 1 and len(points.xyz) <= 2000
                consumer.read(point_map, 500)
                point_map.render(torch.from_numpy(intrinsics(SIZE)), torch.eye(4, dtype=torch.float64), SIZE)
            except BaseException as error:
                errors.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    for f, options in drive * 2:
        insert(point_map, f, **options)
        insert(alone, f, **options)
    done.set()
    thread.join()
    assert not errors
    assert states_equal(point_map, alone)
    while consumer.read(point_map, 500):
        pass
    assert consumer.matches(point_map)


# ----------------------------------------------------------------------------------------------------------- files


def _some_points():
    point_map = PointMap(5000)
    insert(point_map, view(np.eye(4), SIZE), stamp=1.5)
    insert(point_map, view(yaw(1.0), SIZE), GENERATED, confidence=0.25, stamp=3.0)
    return point_map.points()


def test_ply_is_read_by_another_reader(tmp_path):
    points = _some_points()
    save_points(tmp_path / "map.ply", points)
    vertex = PlyData.read(tmp_path / "map.ply")["vertex"]
    np.testing.assert_array_equal(np.stack([vertex[a] for a in "xyz"], 1), points.xyz.numpy())
    np.testing.assert_array_equal(np.stack([vertex[c] for c in ("red", "green", "blue")], 1), points.rgb.numpy())
    for name in ("origin", "radius", "confidence", "last_seen"):
        np.testing.assert_array_equal(vertex[name], getattr(points, name).numpy())


def test_pcd_has_the_documented_layout(tmp_path):
    points = _some_points()
    save_points(tmp_path / "map.pcd", points)
    head, body = (tmp_path / "map.pcd").read_bytes().split(b"DATA binary\n", 1)
    header = dict(line.split(" ", 1) for line in head.decode().splitlines() if not line.startswith("#"))
    assert header["FIELDS"] == "x y z rgb origin radius confidence last_seen"
    assert header["SIZE"] == "4 4 4 4 1 4 4 4" and header["TYPE"] == "F F F F U F F F"
    assert int(header["POINTS"]) == int(header["WIDTH"]) == len(points.xyz)
    for row, values in enumerate(struct.iter_unpack("<3f3BxB3f", body)):
        xyz, (blue, green, red), (origin, *rest) = values[:3], values[3:6], values[6:]
        assert xyz == tuple(points.xyz[row].tolist())
        assert [red, green, blue] == points.rgb[row].tolist()
        assert origin == points.origin[row]
        assert rest == [points.radius[row], points.confidence[row], points.last_seen[row]]


@pytest.mark.parametrize("suffix", [".ply", ".pcd"])
def test_files_come_back_whole_and_leave_nothing_else(tmp_path, suffix):
    point_map = PointMap(5000)
    insert(point_map, view(np.eye(4), SIZE), stamp=1.5)
    point_map.save(tmp_path / f"map{suffix}")
    point_map.save(tmp_path / f"map{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [f"map{suffix}"]
    back, points = load_points(tmp_path / f"map{suffix}"), point_map.points()
    for name in ("xyz", "rgb", "radius", "origin", "confidence", "last_seen"):
        assert torch.equal(getattr(back, name), getattr(points, name))
    content = (tmp_path / f"map{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut"):
        load_points(tmp_path / f"cut{suffix}")


def test_a_foreign_ply_is_read(tmp_path):
    header = (
        b"ply\nformat binary_little_endian 1.0\ncomment by hand\nelement vertex 2\nproperty double x\n"
        b"property double y\nproperty double z\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    )
    (tmp_path / "a.ply").write_bytes(header + struct.pack("<6d", 1, 2, 3, 4, 5, 6))
    points = load_points(tmp_path / "a.ply")
    assert points.xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert points.confidence.tolist() == [1, 1] and points.rgb.sum() == 0


def test_bad_files_get_one_line(tmp_path):
    points = _some_points()
    (tmp_path / "words.ply").write_text("hello")
    with pytest.raises(InputError, match="words.ply"):
        load_points(tmp_path / "words.ply")
    with pytest.raises(InputError, match="nowhere.ply"):
        load_points(tmp_path / "nowhere.ply")
    with pytest.raises(InputError, match=".xyz"):
        save_points(tmp_path / "map.xyz", points)
    with pytest.raises(InputError, match="no-folder"):
        save_points(tmp_path / "no-folder" / "map.ply", points)


def test_open3d_reads_the_files_and_drops_outliers(tmp_path):
    open3d = pytest.importorskip("open3d", reason="the open3d extra is not installed", exc_type=ImportError)
    points = _some_points()
    cloud = to_open3d(points)
    np.testing.assert_allclose(np.asarray(cloud.points), points.xyz.numpy())
    for suffix in (".ply", ".pcd"):
        save_points(tmp_path / f"map{suffix}", points)
        read = open3d.io.read_point_cloud(str(tmp_path / f"map{suffix}"))
        np.testing.assert_allclose(np.asarray(read.points), points.xyz.numpy())
        np.testing.assert_allclose(np.asarray(read.colors) * 255, points.rgb.numpy(), atol=1e-3)
    lone = MapPoints(*(torch.cat([t, t[:1]]) for t in points))
    lone.xyz[-1] = torch.tensor([500.0, 0, 0])
    kept = without_outliers(lone)
    assert 0.5 * len(points.xyz) < len(kept.xyz) <= len(points.xyz)
    assert kept.xyz[:, 0].max() < 100


def test_without_open3d_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(InputError, match="pip install"):
        to_open3d(_some_points())


# -------------------------------------------------------------------------------------------------------- bad input


def test_bad_arguments():
    f = plane(2.0)
    point_map = PointMap(100)
    for wrong in (
        lambda: PointMap(0),
        lambda: PointMap(voxel_pixels=0),
        lambda: PointMap(backend="cuda"),
        lambda: insert(point_map, f, origin=7),
        lambda: insert(point_map, f, confidence=float("nan")),
        lambda: insert(point_map, f, confidence=np.full((2, 2), 0.5)),
        lambda: insert(point_map, f, confidence=np.full(SIZE, -0.5)),
        lambda: insert(point_map, f._replace(depth=f.depth[1:])),
        lambda: insert(point_map, f._replace(pose=np.full((4, 4), np.nan))),
        lambda: insert(point_map, f, moving=np.zeros((2, 2), bool)),
        lambda: point_map.changes(0, 0),
        lambda: point_map.load_state_dict(PointMap(200).state_dict()),
        lambda: point_map.load_state_dict({}),
    ):
        with pytest.raises(InputError):
            wrong()
    assert len(point_map) == 0
