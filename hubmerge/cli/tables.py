"""Tables, and the formats of numbers in them.

rich is imported when a table is made: --help needs none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from hubmerge.refs import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 40


class ScoreLike(Protocol):
    """A score or a mean of scores."""

    @property
    def value(self) -> float: ...

    @property
    def stderr(self) -> float: ...


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
) -> Table:
    """A table; a column whose name ends with `>` is aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.endswith(">")
        result.add_column(
            column.rstrip(">"),
            justify="right" if right else "left",
            no_wrap=right or column == "commit",  # numbers and commits stay on one line
            overflow="fold",
        )
    for row in rows:
        # Text, not str: rich would read markup in a name from a Hub.
        result.add_row(*(Text(printable(str(cell))) for cell in row))
    return result


def format_percent(value: float | None) -> str:
    """A fraction as percent with one digit, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def format_score(score: ScoreLike | None) -> str:
    """A score and its standard error, or a dash; in percent, if it is a share."""
    if score is not None and not getattr(score, "is_share", True):
        return f"{score.value:.4g} ± {score.stderr:.2g}"
    return f"{format_percent(score.value)} ± {format_percent(score.stderr)}" if score else "-"


def text_line(text: str) -> Text:
    """A line of text to print below a table."""
    from rich.text import Text

    return Text(printable(text))


def sparkline(values: Sequence[float]) -> str:
    """A bar for each of one or more finite values, at most 40, from the lowest to the highest."""
    shown = min(len(values), _MAX_BARS)
    stride = (len(values) - 1) / max(shown - 1, 1)
    sampled = [values[round(index * stride)] for index in range(shown)]
    low, high = min(values), max(values)
    height = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * height)] for value in sampled)


def can_print(text: str) -> bool:
    """Whether the encoding of standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
