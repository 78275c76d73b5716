from __future__ import annotations

import pytest

from inspatio_core.reference import Reference
from tests.synthetic import make_reference

SIZE = (48, 64)


@pytest.fixture(scope="session")
def scenes() -> list[Reference]:
    return [make_reference(10, SIZE, seed=0), make_reference(7, SIZE, seed=1)]


@pytest.fixture
def options(scenes) -> dict:
    """Settings of a small environment with two scenes."""
    return dict(scenes=scenes, size=SIZE, device="cpu")
