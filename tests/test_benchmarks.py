"""What the benchmarks share, and that no script names a folder of the machine it was written on."""

import ast
import json
import os
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(p for folder in ("benchmarks", "scripts", "examples") for p in (ROOT / folder).rglob("*.py"))


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import machine

    return machine


def test_a_result_says_where_it_was_measured(machine, tmp_path):
    path = tmp_path / "new" / "result.json"
    machine.write({"machine": machine.describe(), "value": 1}, path)
    result = json.loads(path.read_text())
    about = result["machine"]
    assert result["value"] == 1
    assert about["cpu"] and about["cores"] == os.cpu_count() and about["threads"] == torch.get_num_threads()
    assert about["load_at_start"] == round(machine.LOAD_AT_START, 2)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_script(path):
    source = path.read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w.])/(?:tmp|home|root|Users|work)/", source)
    if path.parent.name == "benchmarks" and path.name != "machine.py":
        names = [n.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) for n in node.names]
        assert {"describe", "write"} <= set(names) and "cpuinfo" not in source
