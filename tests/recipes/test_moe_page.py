"""The page on mixtures says what was measured."""

from __future__ import annotations

from recipes.moe.tables import PAGE, told


def test_the_tables_are_those_of_the_results() -> None:
    said = PAGE.read_text(encoding="utf-8")
    assert told(said) == said
