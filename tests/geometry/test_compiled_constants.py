"""Numba's cache on disk notices a change of a kernel's own file only: what a kernel reads must be written there."""

import ast
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest
from numba.core.dispatcher import Dispatcher

import inspatio_core

MODULES = [info.name for info in pkgutil.walk_packages(inspatio_core.__path__, "inspatio_core.")]
SOURCES = {m: Path(importlib.util.find_spec(m).origin).read_text(encoding="utf-8") for m in MODULES}
COMPILED = [m for m, text in SOURCES.items() if "numba" in text or "compiled import" in text]


def imported_constants(module: ModuleType) -> list[str]:
    """kernel.NAME of every value that a compiled function of `module` reads and another file defines."""
    assigned = {
        target.id
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
        for target in ast.walk(node)
        if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
    }
    found = []
    for name, kernel in vars(module).items():
        if not isinstance(kernel, Dispatcher) or kernel.py_func.__module__ != module.__name__:
            continue
        for used in kernel.py_func.__code__.co_names:
            value = vars(module).get(used)
            if value is not None and not callable(value) and not isinstance(value, ModuleType) and used not in assigned:
                found.append(f"{name}.{used}")
    return found


@pytest.mark.parametrize("name", COMPILED)
def test_kernels_read_constants_of_their_own_file(name):
    assert imported_constants(importlib.import_module(name)) == []


def test_the_modules_are_found_and_an_imported_constant_is_noticed(tmp_path, monkeypatch):
    assert "inspatio_core.geometry._fill_numba" in COMPILED
    (tmp_path / "trapped.py").write_text(
        "import numba\nfrom inspatio_core.geometry._splat_numba import ONE\nOWN = 1\n\n\n"
        "@numba.njit\ndef add(x):\n    return x + ONE + OWN\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert imported_constants(importlib.import_module("trapped")) == ["add.ONE"]
