"""Cleaning of prompts before they are tokenised."""

from inspatio_core.reference.text import clean_prompt

from .harness import Case, parametrize


@parametrize("text_clean")
def test_text_clean(case: Case) -> None:
    assert case.meta["mode"] == "whitespace"
    pairs = case.meta["pairs"]
    assert pairs
    assert [[raw, clean_prompt(raw)] for raw, _ in pairs] == pairs
