import numpy as np
import pytest
import torch

from inspatio_core.errors import InputError
from inspatio_core.geometry import playhead as module
from inspatio_core.geometry.frame_plan import bounce
from inspatio_core.geometry.playhead import LOOPS, Playhead, PlayheadCommand


def run(head: Playhead, frames: int, **command) -> list[int]:
    return head.advance(frames, [PlayheadCommand(**command)] if command else None)[0].tolist()


def random_command(rng: np.random.Generator, count: int) -> PlayheadCommand | None:
    kind = rng.integers(10)
    if kind < 4:
        return None
    return PlayheadCommand(
        rate=float(rng.choice([-3.7, -1, -0.5, 0, 0.1, 0.5, 1, 2.5, 100])) if kind in (4, 9) else None,
        paused=bool(rng.integers(2)) if kind in (5, 9) else None,
        jump=float(rng.uniform(-5, count + 5)) if kind in (6, 9) else None,
        loop=str(rng.choice(LOOPS)) if kind in (7, 9) else None,
        freeze=int(rng.integers(5)) if kind in (8, 9) else None,
    )


def test_plays_from_the_first_frame():
    assert run(Playhead([10], [1.0]), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("loop", [0, 1, 2, 3, 0, 1, 2, 3, 0]),
        ("bounce", [0, 1, 2, 3, 2, 1, 0, 1, 2]),
        ("hold", [0, 1, 2, 3, 3, 3, 3, 3, 3]),
    ],
)
def test_ends(loop, expected):
    assert run(Playhead([4], [1.0], loop), 9) == expected


@pytest.mark.parametrize(
    ("loop", "expected"), [("loop", [0, 3, 2, 1, 0, 3]), ("bounce", [0, 1, 2, 3, 2, 1]), ("hold", [0, 0, 0, 0, 0, 0])]
)
def test_reverse(loop, expected):
    assert run(Playhead([4], [1.0], loop), 6, rate=-1.0) == expected


@pytest.mark.parametrize("count", [2, 3, 5, 17])
def test_bounce_is_the_bounce_of_clips(count):
    assert run(Playhead([count], [1.0], "bounce"), 100) == bounce(count, 100).tolist()


@pytest.mark.parametrize("loop", LOOPS)
def test_one_frame_clip(loop):
    head = Playhead([1], [1.3], loop)
    assert run(head, 5) == [0] * 5
    assert run(head, 5, rate=-7.3) == [0] * 5


def test_slow_rates_show_every_frame_equally_often():
    assert run(Playhead([50], [1.0]), 8, rate=0.5) == [0, 0, 1, 1, 2, 2, 3, 3]
    # 0.1 is not a binary fraction: ten steps of it must still make one frame.
    assert run(Playhead([1000], [1.0]), 5000, rate=0.1) == [i // 10 for i in range(5000)]


def test_source_rate_differs_from_output_rate():
    assert run(Playhead([100], [30 / 24]), 9) == [0, 1, 2, 3, 5, 6, 7, 8, 10]


def test_fast_rates_reflect_more_than_once():
    # Folding the straight line 0, 7, 14, .. at 0 and 3, by an independent formula.
    line = np.arange(50) * 7 % 6
    assert run(Playhead([4], [1.0], "bounce"), 50, rate=7.0) == np.where(line > 3, 6 - line, line).tolist()


def test_pause_and_go_on():
    head = Playhead([100], [1.0])
    run(head, 3)
    assert run(head, 3, paused=True) == [3, 3, 3]
    assert run(head, 2) == [3, 3]
    assert run(head, 3, paused=False) == [3, 4, 5]


def test_freeze_shows_a_frame_that_many_times_more():
    head = Playhead([100], [1.0])
    run(head, 3)
    assert run(head, 4, freeze=2) == [3, 3, 3, 4]
    assert run(head, 2, freeze=5) == [5, 5]
    assert run(head, 2, paused=True) == [5, 5]
    assert run(head, 6, paused=False) == [5, 5, 5, 5, 6, 7]
    run(head, 1, freeze=100)
    assert run(head, 2, freeze=0) == [8, 9]
    run(head, 1, freeze=100)
    assert run(head, 2, jump=50) == [50, 51]


def test_jump():
    head = Playhead([10], [1.0])
    assert run(head, 2, jump=7) == [7, 8]
    assert run(head, 2, jump=-1) == [9, 0]
    assert run(head, 2, jump=99, loop="hold") == [9, 9]
    assert run(head, 2, jump=-99) == [0, 1]
    assert run(head, 3, jump=12, loop="bounce") == [9, 8, 7]


def test_indices_then_continue():
    head = Playhead([10], [1.0])
    assert run(head, 4, indices=[3, 9, 0, 5]) == [3, 9, 0, 5]
    assert run(head, 3) == [6, 7, 8]
    assert run(head, 2, indices=[4, 4], freeze=1) == [4, 4]
    assert run(head, 3) == [4, 5, 6]


def test_the_sign_of_a_new_rate_holds_after_a_bounce():
    head = Playhead([5], [1.0], "bounce")
    assert run(head, 6) == [0, 1, 2, 3, 4, 3]
    assert run(head, 2, rate=1.0) == [2, 1]  # the same again: nothing changes
    assert run(head, 2, rate=-1.0) == [0, 1]
    assert run(head, 2, rate=1.0) == [2, 3]


def test_leaving_loop_between_last_and_first_frame_keeps_the_direction():
    head = Playhead([5], [1.0])
    run(head, 1, jump=4.6, paused=True)
    assert run(head, 4, loop="bounce", rate=-0.5, paused=False) == [4, 3, 3, 2]


@pytest.mark.parametrize("seed", range(6))
def test_streaming_equals_offline_and_slots_are_independent(seed):
    """One call of n frames = n calls of one frame; B slots = B playheads of one slot; whatever the commands."""
    rng = np.random.default_rng(seed)
    counts, steps = [1, 2, 7, 240], [1.0, 30 / 24, 23.976 / 24, 2.5]
    loop = LOOPS[seed % 3]
    whole, single = Playhead(counts, steps, loop), Playhead(counts, steps, loop)
    alone = [Playhead([n], [s], loop) for n, s in zip(counts, steps, strict=True)]
    for _ in range(200):
        commands = [random_command(rng, n) for n in counts]
        frames = int(rng.integers(1, 9))
        out = whole.advance(frames, commands)
        parts = [single.advance(1, commands if j == 0 else None) for j in range(frames)]
        assert torch.equal(out, torch.cat(parts, 1))
        assert torch.equal(out, torch.cat([h.advance(frames, [c]) for h, c in zip(alone, commands, strict=True)]))
        assert (out >= 0).all() and (out < torch.tensor(counts)[:, None]).all()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, single.state_dict()[name])


@pytest.mark.parametrize("loop", LOOPS)
def test_backwards_undoes_forwards(loop):
    head = Playhead([1000], [1.25], loop)
    there = run(head, 200, rate=0.7)
    turn = head.position[0]
    back = run(head, 201, rate=-0.7)
    assert back[1:] == there[::-1]
    assert back[0] == int(turn)


def test_the_compiled_loop_equals_the_interpreted_one(monkeypatch):
    rng = np.random.default_rng(7)
    commands = [[random_command(rng, 30) for _ in range(3)] for _ in range(60)]

    def play() -> list:
        head = Playhead([1, 2, 30], [1.0, 1.1, 0.9], "bounce")
        return [head.advance(5, c) for c in commands] + list(head.state_dict().values())

    compiled = play()
    monkeypatch.setattr(module, "_advance", module._advance.py_func)
    assert all(torch.equal(a, b) for a, b in zip(compiled, play(), strict=True))


def test_snapshot_round_trip():
    rng = np.random.default_rng(3)
    head = Playhead([9, 31], [1.1, 0.7], "bounce")
    for _ in range(20):
        head.advance(3, [random_command(rng, 9), random_command(rng, 31)])
    state = head.state_dict()
    expected = [head.advance(4) for _ in range(30)]
    other = Playhead([1, 1], [1.0, 1.0])
    other.load_state_dict(state)
    assert all(torch.equal(a, other.advance(4)) for a in expected)
    head.load_state_dict(state)
    assert all(torch.equal(a, head.advance(4)) for a in expected)
    with pytest.raises(InputError, match="shape"):
        Playhead([1], [1.0]).load_state_dict(state)


def test_some_slots_only():
    head = Playhead([10, 20, 30], [1.0] * 3)
    head.advance(5)
    assert head.advance_slots([2], 2, [PlayheadCommand(jump=17)]).tolist() == [[17, 18]]
    head.reset([1], frame_counts=[4], steps=[2.0])
    assert head.advance(3).tolist() == [[5, 6, 7], [0, 2, 0], [19, 20, 21]]


def test_reset_forgets_everything():
    head = Playhead([10], [1.0], "hold")
    run(head, 3, rate=-2.0, paused=True, loop="bounce", freeze=9, jump=5)
    head.reset([0])
    fresh = Playhead([10], [1.0], "hold").state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in head.state_dict().items())


@pytest.mark.parametrize(
    "command",
    [
        {"rate": float("nan")}, {"rate": float("inf")}, {"rate": 1e7}, {"rate": "fast"}, {"jump": float("nan")},
        {"jump": -float("inf")}, {"loop": "again"}, {"freeze": -1}, {"freeze": float("nan")},
    ],
)  # fmt: skip
def test_bad_commands(command):
    with pytest.raises(InputError, match=f"playhead {next(iter(command))}"):
        PlayheadCommand(**command)


@pytest.mark.parametrize("indices", [[0, 10, 1], [-1, 0, 0], [0, 1], [0.5, 1.0, 2.0], []])
def test_bad_indices_leave_every_slot_as_it_was(indices):
    head = Playhead([10, 10], [1.0, 1.0])
    head.advance(2)
    before = head.state_dict()
    with pytest.raises(InputError, match="indices"):
        head.advance(3, [PlayheadCommand(jump=5), PlayheadCommand(indices=indices)])
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Playhead([0], [1.0]), lambda: Playhead([3], [0.0]), lambda: Playhead([3], [float("nan")]),
        lambda: Playhead([3], [1.0, 2.0]), lambda: Playhead([3], [1.0], "never"),
        lambda: Playhead([3], [1.0]).advance(0), lambda: Playhead([3], [1.0]).advance(1, [None, None]),
        lambda: Playhead([3], [1.0]).advance_slots([1], 1),
        lambda: Playhead([3, 3], [1.0, 1.0]).advance_slots([1, 1], 1),
    ],
)  # fmt: skip
def test_bad_arguments(make):
    with pytest.raises(InputError):
        make()
