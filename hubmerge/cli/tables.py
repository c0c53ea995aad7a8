"""Tables that a human can scan: few lines, numbers to the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from rich import box
from rich.table import Table
from rich.text import Text

from hubmerge.refs import printable


class Measured(Protocol):
    """A score or a mean of scores."""

    @property
    def value(self) -> float: ...

    @property
    def stderr(self) -> float: ...


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
) -> Table:
    """A table; a column whose name ends with `>` is flushed right."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.endswith(">")
        whole = right or column == "commit"  # what is copied and compared is never broken in two
        made.add_column(
            column.rstrip(">"), justify="right" if right else "left", no_wrap=whole, overflow="fold"
        )
    for row in rows:
        # Text, not str: a name from a Hub must not be taken for markup.
        made.add_row(*(Text(printable(str(cell))) for cell in row))
    return made


def percent(value: float | None) -> str:
    """A share as percent with one digit, a dash for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def measured(score: Measured | None) -> str:
    """A score as percent with its standard error, a dash for none."""
    return f"{percent(score.value)} ± {percent(score.stderr)}" if score else "-"
