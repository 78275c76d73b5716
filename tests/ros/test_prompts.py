"""Prompts of a running world, around a fake worker that answers jobs when told."""

import threading
from types import SimpleNamespace

import pytest
from inspatio_ros import prompts
from inspatio_ros.prompts import Prompts

from inspatio_core.errors import InputError


class Rig:
    """A world whose text encoder does what the prompt says, and whose blocks end when told."""

    def __init__(self, needs=("text",)):
        self.gates = {"slow": threading.Event(), "doomed": threading.Event()}
        self.jobs, self.told, self.complaints, self.set_prompts = [], [], [], []
        generator = SimpleNamespace(
            spec=SimpleNamespace(name="star", needs=frozenset(needs)), encode_prompt=self.encode_prompt
        )
        session = SimpleNamespace(set_prompt=self.set_prompt)
        self.worker = SimpleNamespace(
            world=SimpleNamespace(generator=generator), session=session, made=1.25, ask=self.jobs.append
        )
        self.prompts = Prompts(self.worker, self.told.append, self.complaints.append)

    def encode_prompt(self, text):
        if text in self.gates:
            assert self.gates[text].wait(30)
        if text in ("bad", "doomed"):
            raise InputError("weights that are needed\nare not here: umt5-xxl")
        if text == "burst":
            raise RuntimeError("out of memory")

    def set_prompt(self, text):
        if text == "gone":
            raise InputError("prompt: no more")
        self.set_prompts.append(text)

    def ask(self, text):
        self.prompts.check(text)
        self.prompts.take(text)

    def open(self, gate):
        """Let the encoder end, and wait until that is dealt with."""
        self.gates[gate].set()
        for thread in threading.enumerate():
            if thread.name == "prompt":
                thread.join(30)

    def end_block(self):
        while self.jobs:
            self.jobs.pop(0)()


@pytest.fixture
def rig(monkeypatch):
    monkeypatch.setattr(prompts, "QUICK", 0.05)
    rig = Rig()
    yield rig
    for gate in rig.gates:
        rig.open(gate)


def test_a_prompt_takes_effect_between_two_blocks(rig, monkeypatch):
    monkeypatch.setattr(prompts, "QUICK", 30.0)
    rig.ask("a kitchen")
    assert (rig.set_prompts, rig.told, rig.prompts.followed) == ([], [], None)
    rig.end_block()
    assert (rig.set_prompts, rig.prompts.followed) == (["a kitchen"], "a kitchen")
    assert rig.told == ["prompt: frames after 1.250 s follow 'a kitchen'"] and not rig.complaints


@pytest.mark.parametrize(
    "text, reason",
    [("bad", "prompt: weights that are needed are not here: umt5-xxl"), ("burst", "prompt: out of memory")],
)
def test_what_fails_at_once_is_refused_in_one_line(rig, monkeypatch, text, reason):
    monkeypatch.setattr(prompts, "QUICK", 30.0)
    with pytest.raises(InputError) as refused:
        rig.prompts.check(text)
    assert str(refused.value) == reason and not rig.complaints


def test_no_text_and_no_world_are_refused(rig):
    with pytest.raises(InputError, match="prompt: generator star, with its model, reads no text"):
        Rig(needs=()).prompts.check("a kitchen")
    rig.worker.world = None
    with pytest.raises(InputError, match="prompt: the world is still loading"):
        rig.prompts.check("a kitchen")


def test_what_takes_long_is_taken_and_a_late_failure_is_told(rig):
    for text in ("slow", "doomed"):
        rig.ask(text)
        assert not rig.jobs
        rig.open(text)
        rig.end_block()
    assert rig.set_prompts == ["slow"] and rig.prompts.followed == "slow"
    (line,) = rig.complaints
    assert line.startswith("prompt: weights that are needed are not here") and "\n" not in line and "old prompt" in line


def test_the_newest_wins_however_long_an_older_one_takes(rig):
    rig.ask("slow")
    rig.ask("a kitchen")
    rig.end_block()
    rig.open("slow")
    rig.end_block()
    assert rig.set_prompts == ["a kitchen"] and rig.prompts.followed == "a kitchen" and not rig.complaints


def test_a_refused_one_leaves_the_one_in_hand(rig):
    rig.ask("slow")
    with pytest.raises(InputError):
        rig.prompts.check("bad")
    rig.open("slow")
    rig.end_block()
    assert rig.prompts.followed == "slow"


def test_a_session_that_refuses_goes_on(rig):
    rig.ask("gone")
    rig.end_block()
    assert rig.prompts.followed is None and rig.complaints == ["prompt: no more; the world follows its old prompt"]
