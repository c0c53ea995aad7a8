"""Text from outside as Markdown that says it and does nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hubmerge.refs import printable

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$])")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_COMMIT = 12


def plain(text: str) -> str:
    """Text that Markdown, HTML and tables take as text."""
    return _MARKDOWN.sub(r"\\\1", printable(text)).replace("\\<", "&lt;").replace("\\>", "&gt;")


def code(text: str) -> str:
    """Text that stays inside a fenced block."""
    return no_marker(printable(text).replace("```", "'''"))


def commit(sha: str) -> str:
    """The first digits of a commit as code; whatever else stands in its place, as text."""
    short = sha[:_COMMIT]
    return f"`{short}`" if short.isalnum() and short.isascii() else plain(short)


def escaped(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The rows of a table as plain text, with each `sha` as a commit."""
    return [
        {key: commit(value) if key == "sha" else plain(value) for key, value in row.items()}
        for row in rows
    ]


def listed(names: Sequence[str], most: int) -> str:
    """So many of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "none of those shown"


def inert(text: str) -> str:
    """Text that a spreadsheet takes as text, and no formula."""
    said = printable(text)
    return f"'{said}" if said.startswith(("=", "+", "-", "@")) else said


def no_marker(text: str) -> str:
    """Where characters cannot be escaped, a forged marker must at least not be one."""
    return text.replace("<!--", "<! --")


def without_tokens(text: str) -> str:
    """Text in which no access token is left."""
    return _TOKEN.sub("hf_***", text)
