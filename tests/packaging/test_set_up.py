"""Set-up fetches the depth network when it can, says its licence, and tries again when it could not."""

import os
import time

import pytest
import set_up


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A .venv whose `inspatio` is a script that the test writes, and a PATH with an npm or without."""

    class Place:
        stamp = tmp_path / "stamps" / "depth-network"

        def npm(self, here: bool) -> None:
            monkeypatch.setattr(set_up.shutil, "which", lambda name: f"/bin/{name}" if here else None)

        def inspatio(self, script: str) -> None:
            path = tmp_path / "bin" / "inspatio"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n{script}\n')
            path.chmod(0o755)

        def calls(self) -> int:
            path = tmp_path / "calls"
            return len(path.read_text().splitlines()) if path.exists() else 0

        def fetch(self) -> None:
            set_up.fetch_depth_network(self.stamp)

    monkeypatch.setattr(set_up, "VENV", tmp_path)
    place = Place()
    place.npm(True)
    return place


def test_success_is_told_with_the_licence_and_not_repeated(place, capsys):
    place.inspatio("echo 'fastdepth: MIT, trained on other data'; echo 'fastdepth: 5.8 MB at here'")
    place.fetch()
    assert "set-up: fastdepth: MIT, trained on other data\n" in capsys.readouterr().out
    place.fetch()
    place.npm(False)
    place.fetch()
    assert place.calls() == 1 and capsys.readouterr().out == ""


def test_failure_is_told_and_tried_again(place, capsys):
    place.inspatio("echo noise >&2; echo 'no connection' >&2; exit 2")
    for attempt in (1, 2):
        place.fetch()
        out = capsys.readouterr().out
        assert "not fetched (no connection)" in out and out.count("\n") == 1
        assert place.calls() == attempt and not place.stamp.exists()
    place.inspatio("echo licence")
    place.fetch()
    assert place.calls() == 3 and place.stamp.exists()


def test_npm_that_comes_later_is_used(place, capsys):
    place.inspatio("echo licence")
    place.npm(False)
    place.fetch()
    assert "npm is not here" in capsys.readouterr().out
    place.fetch()
    assert capsys.readouterr().out == "" and place.calls() == 0
    place.npm(True)
    place.fetch()
    assert "licence" in capsys.readouterr().out and place.calls() == 1


def test_no_command_is_a_failure_like_others(place, capsys):
    place.fetch()
    assert "not fetched" in capsys.readouterr().out and not place.stamp.exists()


def test_what_hangs_is_ended_with_all_it_started(place, capsys, monkeypatch, tmp_path):
    """The grandchild keeps the pipes open and does not heed the first signal."""
    monkeypatch.setattr(set_up, "FETCH_SECONDS", 1.0)
    place.inspatio(f"sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done' & wait")
    place.fetch()
    assert "not fetched (no answer within 1 s)" in capsys.readouterr().out and not place.stamp.exists()
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") or "Z" in open(f"/proc/{pid}/stat").read().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("it still runs")
