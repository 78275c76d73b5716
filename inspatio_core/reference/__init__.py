"""From a video, images or a scene folder to a `Reference`: frames, depth, camera path, intrinsics, masks."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from inspatio_core import assets, checkpoints
from inspatio_core.errors import InputError
from inspatio_core.reference.prepare import prepare
from inspatio_core.reference.reference import FrameCache, Reference, auto_size
from inspatio_core.reference.scene import is_scene, open_scene, read_scene

__all__ = ["FrameCache", "Reference", "open_reference", "prepare"]

_FORMAT = 3  # of the scene folders in the cache; raised when they should be made anew
_WHOLE = 64 << 20  # files up to this size are hashed whole


def open_reference(
    source: str | Path,
    size: tuple[int, int] | str | None = None,
    *,
    depth="auto",
    poses: str | Path = "auto",
    fov: float | None = None,
    metres_per_unit: float | None = None,
    moving: str = "auto",
    cache_dir: str | Path | None = None,
    progress=None,
) -> Reference:
    """Open a video, an image, a folder of images, a scene folder, a DA3 folder, or a shipped scene by its name.

    A scene folder with depth opens as it is. Anything else is prepared once (see `prepare`, which explains `depth`,
    `poses`, `fov` and `progress`) into the cache, by the fingerprint of its content and of the options, and opens from
    there in well under a second afterwards.

    Args:
        fov: horizontal angle of view in degrees, for sources without intrinsics; refused for others.
        size: (height, width) of the frames, ``"auto"`` for 480x832 (upright clips: 832x480), None for the size stored.
        metres_per_unit: scale of a clip without one; default such that the median depth is 3 m.
        moving: which masks of moving things: ``auto`` (the scene's), ``true`` (exact ones, rendered scenes), ``none``.
        cache_dir: default ``assets.cache_dir()``.

    Raises:
        InputError: in one line, what is wrong with the source or an option.
    """
    if not str(source).strip():
        raise InputError("the source's name is empty; give a video, an image, a folder, or a shipped scene's name")
    path = Path(source).expanduser()
    if not path.exists() and str(source) in assets.scenes():
        path = assets.find(f"scenes/{source}")
    if not path.exists():
        raise InputError(
            f"{source}: no such file or folder; give a video, an image, a folder, or a shipped scene's name"
        )
    own = is_scene(path) and depth == "auto" and poses == "auto" and bool(read_scene(path).depths)
    if own and fov is not None:
        raise InputError(f"{source}: fov is given, but this scene has its own intrinsics; leave fov out")
    if not own:
        options = {"depth": depth, "poses": poses, "fov": fov}
        folder = Path(cache_dir or assets.cache_dir()) / "scenes" / fingerprint(path, options)
        if not is_scene(folder):
            prepare(path, folder, **options, progress=progress, replace_existing=False)
        path = folder
    reference = open_scene(path, metres_per_unit=metres_per_unit, moving=moving)
    if size is None:
        return reference
    if size != "auto" and (isinstance(size, str) or len(tuple(size)) != 2):
        raise InputError(f"size must be auto or (height, width), not {size!r}")
    return reference.resized(auto_size(reference.size) if size == "auto" else size)


def fingerprint(path: Path, options: dict) -> str:
    """24 hexadecimal digits that change with the content of a file or folder, the options, and the tools at hand."""
    digest = hashlib.sha256(f"{_FORMAT}".encode())
    for key, value in sorted(options.items()):
        digest.update(f"{key}={getattr(value, 'name', value)};".encode())
        if isinstance(value, (str, Path)) and Path(value).exists():
            _digest_tree(digest, Path(value))
    tools = checkpoints.locate("fastdepth"), importlib.util.find_spec("pycolmap")
    digest.update(str([tool is not None for tool in tools]).encode())
    _digest_tree(digest, path)
    return digest.hexdigest()[:24]


def _digest_tree(digest, path: Path) -> None:
    """Content of a file (of large ones the beginning, middle and end), or names, sizes and times of a folder."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            stat = file.stat()
            digest.update(f"{file.relative_to(path)}:{stat.st_size}:{stat.st_mtime_ns};".encode())
        return
    size = path.stat().st_size
    digest.update(f"{path.name}:{size};".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return
        for at in (0, size // 2, size - (8 << 20)):
            file.seek(at)
            digest.update(file.read(8 << 20))
