"""Cases of kinds that this version does not build: reported by name, so that nobody takes silence for success."""

import pytest

from .harness import BUILT, Case, cases


@pytest.mark.parametrize("case", [c for c in cases() if c.kind not in BUILT], ids=lambda c: c.name)
def test_not_built(case: Case) -> None:
    pytest.skip(f"{case.name}: kind {case.kind} is not built")
