"""The harness must find every case, and must be able to say no."""

import json

import pytest
import torch
from safetensors.torch import save_file

from .harness import Case, Tolerance, find_cases


@pytest.fixture
def folder(tmp_path):
    def add(name: str, tensors: dict | None = None, **meta) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(meta))
        if tensors:
            save_file(tensors, path.with_suffix(".safetensors"))

    add("trajectory/spiral.json", {"out.a": torch.ones(4)}, suggested_tolerance={"interp": 1e-7, "c2w": 2e-6})
    add("trajectory_spiral.json", suggested_tolerance=1e-5)
    add("warp_sky.json", suggested_tolerance={"float32": {"atol": 1e-3, "rtol": 0.1, "where": "stable"}})
    add("depth_formats/arrays.json")
    add("depth_formats_b/arrays.json")
    add("frame_plan_3.json")
    add("rollout_long.json")
    add("novel.json", case="golden/mask_latent_2")
    add("stranger.json")
    return tmp_path


def by_name(folder) -> dict[str, Case]:
    return {c.name: c for c in find_cases(folder)}


def test_kinds(folder):
    assert {name: case.kind for name, case in by_name(folder).items()} == {
        "trajectory/spiral": "trajectory",
        "trajectory_spiral": "trajectory",
        "warp_sky": "warp",
        "depth_formats/arrays": "depth_formats",
        "depth_formats_b/arrays": "depth_formats",
        "frame_plan_3": "frame_plan",
        "rollout_long": "rollout",
        "novel": "mask_latent",
        "stranger": "unknown",
    }


def test_tolerances(folder):
    found = by_name(folder)
    assert found["trajectory_spiral"].tolerance() == Tolerance(1e-5, 1e-5)
    assert found["trajectory/spiral"].tolerance("c2w") == Tolerance(2e-6, 2e-6)
    assert found["warp_sky"].tolerance() == Tolerance(1e-3, 0.1, "stable")
    assert found["stranger"].tolerance(default=0.5) == Tolerance(0.5, 0.5)
    with pytest.raises(KeyError, match="no tolerance"):
        found["stranger"].tolerance()


def test_check_says_no(folder):
    case = by_name(folder)["trajectory/spiral"]
    case.check("out.a", torch.ones(4), "c2w")
    case.check("out.a", torch.ones(4) + 1e-6, "c2w")
    off = torch.tensor([1.0, 1.0, 1.0, 2.0])
    for wrong in (torch.ones(4) + 1e-5, off, torch.full((4,), float("nan"))):
        with pytest.raises(pytest.fail.Exception, match="out.a"):
            case.check("out.a", wrong, "c2w")
    case.check("out.a", off, "c2w", where=torch.tensor([1, 1, 1, 0]))
    case.check("out.a", off, "c2w", outliers=0.25)
    with pytest.raises(AssertionError, match=r"\(3,\)"):
        case.check("out.a", torch.ones(3), "c2w")
    with pytest.raises(AssertionError, match="nothing to compare"):
        case.check("out.a", off, "c2w", where=torch.zeros(4))
    with pytest.raises(KeyError, match="no tensor 'out.b'"):
        case.check("out.b", off, "c2w")
