"""Escapes external text so that it is shown as text in Markdown, HTML, tables and CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hubmerge.refs import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")
_COMMIT_DIGITS = 12


def escape_markdown(text: str) -> str:
    """Text that Markdown, HTML and tables show unchanged."""
    return _SPECIAL.sub(r"\\\1", printable(text)).replace("\\<", "&lt;").replace("\\>", "&gt;")


def escape_code(text: str) -> str:
    """Text that cannot end the fenced code block that contains it."""
    return break_comments(printable(text).replace("```", "'''"))


def format_commit(sha: str) -> str:
    """The first digits of a commit SHA as code; any other value as escaped text."""
    short = sha[:_COMMIT_DIGITS]
    return f"`{short}`" if short.isalnum() and short.isascii() else escape_markdown(short)


def escape_rows(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The rows of a table with every value escaped and each `sha` formatted as a commit."""
    return [
        {
            key: format_commit(value) if key == "sha" else escape_markdown(value)
            for key, value in row.items()
        }
        for row in rows
    ]


def join_names(names: Sequence[str], most: int) -> str:
    """At most `most` of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "none of those shown"


def escape_formula(text: str) -> str:
    """Text that a spreadsheet does not evaluate as a formula."""
    cell = printable(text)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def break_comments(text: str) -> str:
    """Text without HTML comments, and therefore without our markers; for use where escapes fail."""
    return text.replace("<!--", "<! --")
