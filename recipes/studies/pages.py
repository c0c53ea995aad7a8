"""Markdown tables of measured numbers, and how they are inserted into a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hubmerge.seed_statistics import mean, stderr


def format_mean(values: Sequence[float], sign: bool = False) -> str:
    """A value in percent; for several seeds the mean and its standard error."""
    if not values:
        return "-"
    text = f"{100 * mean(values):+.1f}" if sign else f"{100 * mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {100 * stderr(values):.1f}"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def insert_table(page: str, name: str, table: str) -> str:
    """The page with a table between the markers of that name, if it has them."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", f"{begin}\n{table}\n{end}", page, flags=re.DOTALL
    )
