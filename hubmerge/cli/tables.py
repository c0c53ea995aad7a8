"""Tables that a human can scan: few lines, numbers to the right."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Protocol

from rich import box
from rich.table import Table
from rich.text import Text

from hubmerge.refs import printable

_BARS = "▁▂▃▄▅▆▇█"
_WIDEST = 40


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


def line(text: str) -> Text:
    """A line of text as it is, below a table."""
    return Text(printable(text))


def sparkline(values: Sequence[float]) -> str:
    """Finite values, one or more, as bars from the lowest to the highest; of many, 40 of them."""
    shown = min(len(values), _WIDEST)
    apart = (len(values) - 1) / max(shown - 1, 1)
    kept = [values[round(place * apart)] for place in range(shown)]
    low, high = min(values), max(values)
    height = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * height)] for value in kept)


def can_print(text: str) -> bool:
    """Whether standard output has the characters; a terminal without them shows question marks."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
