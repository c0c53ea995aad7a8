"""The tables of docs/selection.md are those of the results."""

from __future__ import annotations

from recipes.studies.selection.tables import PAGE, render_page


def test_the_tables_are_those_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render_page(page) == page
