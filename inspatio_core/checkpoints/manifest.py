"""Which keys and shapes a file of weights must have, and strict reading by that.

A *kind* of file is told by a manifest (``inspatio_core/manifests/KIND.json``): every key with its shape, and its name
in the library class that takes the same weights. Keys are written without prefix; files may prepend ``model.`` and
carry ``_fsdp_wrapped_module.`` and ``_orig_mod.`` anywhere, as wrappers of training programs leave them.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from inspatio_core.checkpoints import files
from inspatio_core.errors import InputError

if TYPE_CHECKING:
    import torch

KINDS = ("star-1.3b", "wan-t2v-1.3b", "wan-vae", "tae", "umt5")
"""What a file can be; each has a manifest."""

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""Element types that `convert` writes, by their short name."""

INFIXES = ("_fsdp_wrapped_module", "_orig_mod")
PREFIX = "model."

_LISTED = 100  # keys of one sort that a message names; the others are counted
_FEW = 3  # the same where no key fits at all

Shapes = Mapping[str, "tuple[int, ...]"]


@dataclass(frozen=True)
class Manifest:
    """What a kind of file holds.

    Attributes:
        kind: its name, one of `KINDS`. what: one line.
        shapes: the shape of every key.
        library: "diffusers" or "transformers", whose class takes these weights under other names; "" for none.
        names: key -> its names there; more than one where the class ties parameters.
        last_rows: keys of which a file may have more rows than needed; the last ones count. (TAEHV: a stage that could
            double the frame rate, used without.)
    """

    kind: str
    what: str
    shapes: dict[str, tuple[int, ...]]
    library: str
    names: dict[str, tuple[str, ...]]
    last_rows: frozenset[str]

    def layouts(self) -> dict[str, dict[str, str]]:
        """Library ("" for the names of the release) -> name in a file -> key."""
        layouts = {"": {key: key for key in self.shapes}}
        if self.library:
            layouts[self.library] = {name: key for key, names in self.names.items() for name in names}
        return layouts


@functools.cache
def manifest(kind: str) -> Manifest:
    """The manifest of a kind. Raises `InputError` with the known kinds."""
    if kind not in KINDS:
        raise InputError(f"kind {kind!r} of checkpoint is not known; there is: {', '.join(KINDS)}")
    file = Path(__file__).resolve().parent.parent / "manifests" / f"{kind}.json"
    data = json.loads(file.read_text())
    shapes, names = {}, {}
    for pattern, (shape, *others) in data["keys"].items():
        for block in range(data["blocks"] if "{}" in pattern else 1):
            key = pattern.replace("{}", str(block))
            shapes[key] = tuple(shape)
            names[key] = tuple(name.replace("{}", str(block)) for name in others)
    last_rows = frozenset(data.get("last_rows", ()))
    return Manifest(kind, data["what"], shapes, data.get("library", ""), names, last_rows)


def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    """Key (without prefix) -> shape of every tensor of a kind of file. Raises `InputError` for an unknown kind."""
    return dict(manifest(kind).shapes)


def renamed(state: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """A state dict of a kind under the names of the library class that takes it.

    These classes are ``diffusers.WanTransformer3DModel`` (both transformers), ``diffusers.AutoencoderKLWan`` (wan-vae)
    and ``transformers.UMT5EncoderModel`` (umt5). A tensor that the class ties appears under each of its names. A
    smaller network of the same build (fewer blocks, other widths) is renamed as well.

    Raises:
        InputError: no library has a class for this kind, or a key is not one of the kind's.
    """
    known = manifest(kind)
    if not known.library:
        raise InputError(f"{kind}: no library class takes these weights; they keep their names")
    if foreign := [key for key in state if key not in known.names]:
        raise InputError(f"{kind}: no name in {known.library} for {_listed(foreign)}")
    return {name: tensor for key, tensor in state.items() for name in known.names[key]}


# ------------------------------------------------------------------------------------------------------------- matching


@dataclass(frozen=True)
class Report:
    """A file that is as it should be.

    Attributes:
        kind: one of `KINDS`; "" where only shapes were given.
        library: whose names the file uses, "" for those of the release.
        keys: key -> its name in the file. parameters: their number.
        dtypes: names of the element types in it, the most frequent first.
        trimmed: key -> rows, for those of which only the last rows are used.
    """

    kind: str
    library: str
    keys: dict[str, str]
    parameters: int
    dtypes: tuple[str, ...]
    trimmed: dict[str, int]


@dataclass
class _Match:
    """How the keys of a file fit what is wanted."""

    library: str
    keys: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)
    trimmed: dict[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return not (self.missing or self.extra or self.misshapen or self.mistyped)


def plain_key(key: str, names: Mapping[str, str]) -> str:
    """A file's key without what wrappers add."""
    if key not in names:
        key = ".".join(part for part in key.split(".") if part not in INFIXES)
    while key not in names and key.startswith(PREFIX):
        key = key.removeprefix(PREFIX)
    return key


def _match(
    found: files.Headers,
    shapes: Shapes,
    names: Mapping[str, str],
    library: str,
    last_rows: frozenset[str] = frozenset(),
) -> _Match:
    match, plain_names = _Match(library), set()
    for key, (shape, dtype) in found.items():
        plain = plain_key(key, names)
        wanted = names.get(plain)
        if wanted is None or plain in plain_names:
            match.extra.append(key)
            continue
        plain_names.add(plain)
        match.keys[wanted] = key
        expected = tuple(shapes[wanted])
        grown = wanted in last_rows and shape[1:] == expected[1:] and shape[:1] > expected[:1]
        if grown:
            match.trimmed[wanted] = expected[0]
        if shape != expected and not grown:
            match.misshapen.append(f"{key} {list(shape)} instead of {list(expected)}")
        elif not dtype.is_floating_point or dtype.itemsize < 2:
            match.mistyped.append(f"{key} of {str(dtype).removeprefix('torch.')}")
    match.missing = [key for key in shapes if key not in match.keys]
    return match


def _matches(found: files.Headers, kinds: Iterable[str], shapes: Shapes | None) -> Iterator[tuple[str, _Match]]:
    """The file against every layout of every kind, or of the part of it that `shapes` asks for."""
    for kind in kinds:
        known = manifest(kind)
        for library, names in known.layouts().items():
            if shapes is not None:
                names = {name: key for name, key in names.items() if key in shapes}
            yield kind, _match(found, known.shapes if shapes is None else shapes, names, library, known.last_rows)


def _best(matches: Iterable[tuple[str, _Match]]) -> tuple[str, _Match]:
    """The one whose keys and shapes fit best; types tell nothing of what a file is."""

    def fit(match: _Match) -> tuple[int, ...]:
        return len(match.keys), -len(match.misshapen), -len(match.missing), -len(match.mistyped)

    return max(matches, key=lambda m: fit(m[1]))


def _listed(keys: list[str], most: int = _LISTED) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _differences(match: _Match) -> str:
    most = _LISTED if match.keys else _FEW
    sorts = (
        ("missing", match.missing),
        ("extra", match.extra),
        ("of wrong shape or type", match.misshapen + match.mistyped),
    )
    return "; ".join(f"{len(keys)} {sort}: {_listed(keys, most)}" for sort, keys in sorts if keys)


def verify(path: str | Path, kind: str | None = None, *, shapes: Shapes | None = None) -> Report:
    """Check a file of weights by its headers; no tensor is read.

    Args:
        path: safetensors or a ``torch.save`` file.
        kind: one of `KINDS`; inferred from the keys when not given.
        shapes: key -> shape to be met instead of the kind's (for a network of another size).

    Raises:
        InputError: the file cannot be read; its keys are none of a known kind; or keys are missing, extra or of the
            wrong shape, which are then listed.
    """
    found = files.headers(path)
    if shapes is None:
        kinds = KINDS if kind is None else (kind,)
        fitting, match = _best(_matches(found, kinds, None))
        shapes = manifest(fitting).shapes
        if kind is None and len(match.keys) * 2 < len(shapes):
            raise InputError(
                f"{path}: holds none of the known networks ({', '.join(KINDS)}); its {len(found)} keys: "
                f"{_listed(list(found), _FEW)}{_hint(found, (manifest(k).shapes for k in KINDS))}"
            )
        kind = fitting
    else:
        # A network of another size has the names of its kind, so that a library's are understood for it as well.
        kinds = [k for k in KINDS if kind in (None, k) and shapes.keys() <= manifest(k).shapes.keys()]
        own = _match(found, shapes, {key: key for key in shapes}, "")
        _, match = _best([("", own), *_matches(found, kinds, shapes)])
    if not match.fits:
        hint = "" if match.keys else _hint(found, [shapes])
        raise InputError(f"{path}: is not {kind or 'the network asked for'}: {_differences(match)}{hint}")
    types = Counter(str(found[key][1]).removeprefix("torch.") for key in match.keys.values())
    return Report(
        kind=kind or "",
        library=match.library,
        keys=match.keys,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        dtypes=tuple(name for name, _ in types.most_common()),
        trimmed=match.trimmed,
    )


def _hint(found: files.Headers, networks: Iterable[Shapes]) -> str:
    """Says so where the keys would be one of the networks' but for a prefix before each."""
    first = next(iter(found))
    for names in networks:
        for name in names:
            prefix = first.removesuffix(name)
            if prefix != first and all(key.removeprefix(prefix) in names for key in found):
                accepted = ", ".join([PREFIX, *(f"{infix}." for infix in INFIXES)])
                return f"; each starts with {prefix!r}, which is not accepted ({accepted} and none are)"
    return ""


# -------------------------------------------------------------------------------------------------- reading, converting


def read_state_dict(
    path: str | Path,
    kind: str | None = None,
    *,
    shapes: Shapes | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Read weights strictly: every key there, none too many, all of the right shape.

    Args:
        path, kind, shapes: as for `verify`. A file under a library's names is read as well.
        dtype: what to cast to; by default each tensor stays as it is in the file.
        device: where the tensors go.

    Returns:
        Key without prefix -> tensor, in the manifest's order. On the CPU and without a cast, tensors lie in the mapped
        file: pages are read when they are used.

    Raises:
        InputError: as `verify`, before a tensor is read.
    """
    report = verify(path, kind, shapes=shapes)
    state = {}
    with files.opened(path) as get:
        for key in shapes if shapes is not None else manifest(report.kind).shapes:
            state[key] = _rows(get(report.keys[key]), report.trimmed.get(key)).detach().to(device, dtype).contiguous()
    return state


def _rows(tensor: torch.Tensor, rows: int | None) -> torch.Tensor:
    return tensor if rows is None else tensor[-rows:]


def convert(
    path: str | Path, out: str | Path, *, kind: str | None = None, dtype: str | None = None, to: str = "same"
) -> Report:
    """Write a file of weights anew as safetensors, without prefixes; memory holds one tensor at a time.

    Args:
        path, kind: as for `verify`.
        out: the file to write, ending in ``.safetensors``; it appears when complete, and replaces an earlier one.
        dtype: "bf16", "f16" or "f32"; by default each tensor stays as it is.
        to: whose names to use: "diffusers" or "transformers", or "same" for those that the file has. A tensor that the
            library ties is written once, as the library itself saves it.

    Returns:
        What was written.

    Raises:
        InputError: as `verify`; a wrong name or type; a value that does not fit the type; no room or no permission.
    """
    import torch

    from inspatio_core.export import atomic_file

    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: what is written is safetensors; give a name that ends in .safetensors")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; there is: {', '.join(DTYPES)}")
    report = verify(path, kind)
    known = manifest(report.kind)
    library = report.library if to == "same" else to
    if library not in known.layouts() or not to:
        choices = ", ".join(["same", *filter(None, [known.library])])
        raise InputError(f"{report.kind} cannot be written for {to!r}; there is: {choices}")
    names = {(known.names[key][0] if library else key): key for key in known.shapes}
    found = files.headers(path)
    target = getattr(torch, DTYPES[dtype]) if dtype else None
    wanted = {name: (known.shapes[key], target or found[report.keys[key]][1]) for name, key in names.items()}
    try:
        with files.opened(path) as get, atomic_file(out) as partial:

            def tensor(name: str) -> torch.Tensor:
                key = names[name]
                read = _rows(get(report.keys[key]), report.trimmed.get(key)).detach()
                cast = read.to(wanted[name][1])
                if cast.dtype == torch.float16 != read.dtype and not torch.equal(cast.isfinite(), read.isfinite()):
                    raise InputError(f"{path}: values of {key} do not fit float16; choose bf16 or f32")
                return cast

            files.write(partial, wanted, tensor, files.metadata(path))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    return verify(out, report.kind)
