"""Every case that is found is of a kind that is tested here: nobody shall take silence for success."""

from .harness import BUILT, cases


def test_every_kind_is_built() -> None:
    assert [c.name for c in cases() if c.kind not in BUILT] == []
    assert cases()
