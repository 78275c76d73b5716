"""Files of weights: what they hold, told without reading a tensor; reading them; writing them.

Two formats, known by their content and never by their suffix: safetensors, and what ``torch.save`` writes. The latter
are pickles, which can hold code: only weights are taken from them, and nothing else in them is run.
"""

from __future__ import annotations

import functools
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from inspatio_core.errors import InputError

if TYPE_CHECKING:
    import torch

WRAPPERS = ("state_dict", "model")
"""Names under which training programs put the weights beside other things."""

_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file; the format's own bound

Headers = dict[str, "tuple[tuple[int, ...], torch.dtype]"]


@functools.cache
def dtypes() -> dict[str, torch.dtype]:
    """Every element type that a file may hold, by its safetensors name."""
    import torch

    names = (
        "F64 float64|F32 float32|F16 float16|BF16 bfloat16|F8_E4M3 float8_e4m3fn|F8_E5M2 float8_e5m2|C64 complex64|"
        "I64 int64|I32 int32|I16 int16|I8 int8|U64 uint64|U32 uint32|U16 uint16|U8 uint8|BOOL bool"
    )
    return {short: getattr(torch, name) for short, name in (pair.split() for pair in names.split("|"))}


def headers(path: str | Path) -> Headers:
    """Shape and element type of every tensor in a file, by its key in there; no tensor is read.

    A pickle that wraps its weights (``{"state_dict": ...}``, ``{"model": ...}``) is unwrapped.

    Raises:
        InputError: no such file, a folder, neither format, cut off or damaged, or a pickle with code in it.
    """
    path = Path(path)
    if _is_safetensors(path):
        return _safetensors_header(path)[0]
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in _load_pickle(path, "meta").items()}


def metadata(path: str | Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; empty for a pickle. Raises as `headers` does."""
    path = Path(path)
    return _safetensors_header(path)[1] if _is_safetensors(path) else {}


@contextmanager
def opened(path: str | Path) -> Iterator[Callable[[str], torch.Tensor]]:
    """Open a file of weights; yields ``get(key)``, the tensor on the CPU. Only what is asked for is read.

    Raises `InputError` as `headers` does.
    """
    path = Path(path)
    if not _is_safetensors(path):
        yield _load_pickle(path, "cpu").__getitem__
        return
    from safetensors import SafetensorError, safe_open

    _safetensors_header(path)
    try:
        file = safe_open(path, "pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
    with file:
        yield file.get_tensor


def write(
    path: Path, tensors: Headers, get: Callable[[str], torch.Tensor], texts: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, one tensor at a time, so that memory holds one.

    Args:
        tensors: shape and element type of each, by key. get: the tensor of a key, of that shape and type.
        texts: what the file carries beside them (see `metadata`).
    """
    import torch

    names = {dtype: name for name, dtype in dtypes().items()}
    # Wide types first, so that every tensor lies at a multiple of its element size: readers map it where it lies.
    order = sorted(tensors, key=lambda key: (-tensors[key][1].itemsize, key))
    table, end = {"__metadata__": {"format": "pt"} | dict(texts or {})}, 0
    for key in order:
        shape, dtype = tensors[key]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        table[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for key in order:
            file.write(get(key).contiguous().reshape(-1).view(torch.uint8).numpy().data)


# ---------------------------------------------------------------------------------------------------------- safetensors


def _is_safetensors(path: Path) -> bool:
    """True for safetensors, False for a pickle of either age; raises InputError for everything else."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the file of weights")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise InputError(f"{path}: is empty")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return True
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return False
    if head.startswith(b"version https:/"):
        raise InputError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull` where it was cloned")
    raise InputError(f"{path}: is neither a safetensors file nor a PyTorch checkpoint")


def _safetensors_header(path: Path) -> tuple[Headers, dict[str, str]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise InputError(f"{path}: is cut off: {size} bytes, less than its header of {start}; fetch it anew")
        text = file.read(start - 8)
    try:
        table = json.loads(text)
        texts = {str(key): str(text) for key, text in table.pop("__metadata__", {}).items()}
        rows = sorted(_row(key, row) for key, row in table.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{path}: its safetensors header is damaged; fetch it anew") from None
    if not rows:
        raise InputError(f"{path}: holds no tensors")
    found, end = {}, 0
    for begin, stop, key, shape, name in rows:
        dtype = dtypes().get(name)
        if dtype is None:
            raise InputError(f"{path}: {key} is of type {name}, which is not known here")
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise InputError(f"{path}: its safetensors header is damaged at {key}; fetch it anew")
        found[key], end = (shape, dtype), stop
    if start + end != size:
        what = "is cut off" if size < start + end else "is longer than its header says"
        raise InputError(f"{path}: {what}: {size} bytes instead of {start + end}; fetch it anew")
    return found, texts


def _row(key: str, row: dict) -> tuple[int, int, str, tuple[int, ...], str]:
    (begin, stop), shape = row["data_offsets"], tuple(row["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (begin, stop, *shape)):
        raise ValueError
    return begin, stop, key, shape, str(row["dtype"])


# -------------------------------------------------------------------------------------------------------------- pickles


def _load_pickle(path: Path, device: str) -> dict[str, torch.Tensor]:
    """The state dict in a ``torch.save`` file; on device "meta" no tensor is read."""
    import torch

    # torch maps a file only by its name, and takes every name in .safetensors for that format. For the header alone
    # nothing is mapped: a file larger than the memory could not be.
    mapped = _is_plain_zip(path) and path.suffix != ".safetensors" and device != "meta"
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of pickle dialects; they are read or refused
            source = str(path) if mapped else file
            loaded = torch.load(source, map_location=device, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise InputError(
                f"{path}: refused: it holds code ({asked[1].rstrip('.')}) and not only weights; none of it was run. "
                "Ask for a safetensors file"
            ) from None
        raise InputError(f"{path}: is no PyTorch checkpoint of weights alone, or damaged; none of it was run") from None
    except Exception as error:
        # What torch raises for a damaged file depends on where the damage is; it is the user's file all the same.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{path}: is cut off or damaged, or no PyTorch checkpoint ({reason.strip()[:100]})") from None
    return _state_dict(path, loaded)


def _is_plain_zip(path: Path) -> bool:
    """Whether a pickle lies in a zip archive whose tensors can be mapped; False before torch 1.6, which used none."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise InputError(f"{path}: is cut off or damaged: its zip archive has no proper end; fetch it anew") from None
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise InputError(f"{path}: is a zip archive, not a PyTorch checkpoint")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _state_dict(path: Path, loaded: object) -> dict[str, torch.Tensor]:
    import torch

    while isinstance(loaded, dict):
        inner = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), dict)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f"{path}: holds no state dict (a dict of tensors, alone or under state_dict or model)")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: holds no state dict: {str(key)[:80]} is no tensor but {type(value).__name__}")
    return loaded
