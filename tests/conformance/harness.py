"""Finds conformance cases and turns them into pytest parameters.

A case is ``NAME.json`` (facts, tolerance, a table of tensors) with ``NAME.safetensors`` beside it where it has tensors.
``INSPATIO_GOLDEN=DIR`` names the folder that is searched, with its sub-folders; the default is ``tests/golden``.

The *kind* of a case is the first known kind that a part of its path (sub-folder or file name) begins with:
``trajectory/circle_9.json`` and ``trajectory_circle_9.json`` are both of kind ``trajectory``, ``warp_ply.json`` is of
kind ``warp``, ``depth_formats_b/arrays.json`` of kind ``depth_formats``. Where no part of the path says it, the
``case`` entry of the JSON is asked the same way.

A kind is *built* when ``test_<kind>.py`` lies beside this file; the others are reported as skipped, by name.

In a test file::

    from .harness import Case, parametrize

    @parametrize("warp")
    def test_warp(case: Case) -> None:
        render, mask = warp(case.tensors["in.rgb"], ...)
        case.check("out.render", render, where=case.tensors["out.stable"])
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open

HERE = Path(__file__).resolve().parent
DEFAULT_ROOT = HERE.parent / "golden"

BUILT = frozenset(p.stem.removeprefix("test_") for p in HERE.glob("test_*.py")) - {"harness", "not_built"}
KINDS = BUILT | {
    "trajectory", "frame_plan", "frame_arithmetic", "mask_latent", "warp", "depth_formats",
    "dit_tiny", "rollout", "scheduler", "vae", "taehv", "t5", "text_clean",
}  # fmt: skip


class Tolerance(NamedTuple):
    """``|actual - expected| <= atol + rtol * |expected|``, compared only where the tensor named `where` says so."""

    atol: float
    rtol: float
    where: str | None = None


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of one safetensors file, read one by one when asked for. Empty when the file does not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def _file(self) -> Any:
        return safe_open(str(self.path), framework="pt")

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self._file.keys()) if self.path.is_file() else ()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(f"{self.path.name} has no tensor {name!r}")
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False)
class Case:
    """One conformance case.

    name: path below the searched folder, without suffix, e.g. ``trajectory/circle_9``.
    kind: see the module's text.
    path: the JSON file. Other data of the case (images, text files) lie in ``path.parent``.
    meta: the JSON.
    tensors: mapping from name to tensor, read lazily.
    """

    name: str
    kind: str
    path: Path
    meta: dict[str, Any]
    tensors: LazyTensors

    def tolerance(self, *keys: str, default: float | Tolerance | None = None) -> Tolerance:
        """The tolerance of the JSON. A number v means atol = rtol = v.

        keys: for JSONs with several values (``{"interp": .., "c2w": ..}``, ``{"float32": {"atol": ..}}``), the first
        key present is taken; ``float32`` is tried last. default: where the JSON has none; without it that is an error.
        """
        value: Any = self.meta.get("suggested_tolerance", default)
        while isinstance(value, Mapping) and "atol" not in value and "rtol" not in value:
            key = next((k for k in (*keys, "float32") if k in value), None)
            if key is None:
                value = default
                break
            value = value[key]
        if value is None:
            raise KeyError(f"{self.name}: no tolerance for {keys} in {self.meta.get('suggested_tolerance')}")
        if isinstance(value, Tolerance):
            return value
        if isinstance(value, Mapping):
            return Tolerance(float(value.get("atol", 0.0)), float(value.get("rtol", 0.0)), value.get("where"))
        return Tolerance(float(value), float(value))

    def check(
        self,
        name: str,
        actual: torch.Tensor | np.ndarray,
        *keys: str,
        tolerance: Tolerance | None = None,
        where: torch.Tensor | None = None,
        outliers: float = 0.0,
    ) -> None:
        """Assert that `actual` equals tensor `name` within `tolerance` (default: ``self.tolerance(*keys)``).

        where: compare only where it is non-zero (broadcast against the tensor). outliers: fraction allowed to differ.
        """
        expected = self.tensors[name].to(torch.float64)
        actual = torch.as_tensor(actual).detach().cpu().to(torch.float64)
        assert actual.shape == expected.shape, f"{self.name} {name}: {tuple(actual.shape)} != {tuple(expected.shape)}"
        atol, rtol, _ = tolerance or self.tolerance(*keys)
        # A NaN compares as false, so that it counts as wrong where a number is expected; equal infinities are right.
        close = (actual - expected).abs() <= atol + rtol * expected.abs()
        wrong = ~(close | (actual == expected) | (actual.isnan() & expected.isnan()))
        if where is not None:
            where = torch.broadcast_to(torch.as_tensor(where) != 0, wrong.shape)
            assert where.any(), f"{self.name} {name}: nothing to compare"
            wrong &= where
        count, compared = int(wrong.sum()), wrong.numel() if where is None else int(where.sum())
        if count > outliers * compared:
            worst = (actual - expected).abs()[wrong].max().item()
            pytest.fail(
                f"{self.name} {name}: {count} of {compared} off by up to {worst:.3g} (atol {atol}, rtol {rtol})"
            )


def root() -> Path:
    """The folder that is searched."""
    return Path(os.environ.get("INSPATIO_GOLDEN") or DEFAULT_ROOT).expanduser().resolve()


def _kind(parts: list[str]) -> str | None:
    for part in parts:
        known = [k for k in KINDS if part.startswith(k)]
        if known:
            return max(known, key=len)
    return None


@functools.cache
def find_cases(folder: Path) -> tuple[Case, ...]:
    """All cases below a folder, in order of their names."""
    if not folder.is_dir():
        raise pytest.UsageError(f"INSPATIO_GOLDEN={folder} is not a folder")
    found = []
    for path in sorted(folder.rglob("*.json")):
        meta = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(meta, dict):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        kind = _kind(name.split("/")) or _kind(str(meta.get("case", "")).split("/")) or "unknown"
        found.append(Case(name, kind, path, meta, LazyTensors(path.with_suffix(".safetensors"))))
    return tuple(found)


def cases(kind: str | None = None) -> list[Case]:
    """The cases of one kind, or all, in order of their names."""
    return [c for c in find_cases(root()) if kind is None or c.kind == kind]


def parametrize(kind: str) -> pytest.MarkDecorator:
    """Decorator: run a test with argument ``case`` once per case of `kind`; the test id is the case's name."""
    return pytest.mark.parametrize("case", cases(kind), ids=lambda c: c.name)
