"""Text from outside as Markdown that says it and does nothing else."""

from __future__ import annotations

import re

from hubmerge.refs import printable

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#])")


def plain(text: str) -> str:
    """Text that Markdown, HTML and tables take as text."""
    return _MARKDOWN.sub(r"\\\1", printable(text)).replace("\\<", "&lt;").replace("\\>", "&gt;")


def code(text: str) -> str:
    """Text that stays inside a fenced block."""
    return no_marker(printable(text).replace("```", "'''"))


def no_marker(text: str) -> str:
    """Where characters cannot be escaped, a forged marker must at least not be one."""
    return text.replace("<!--", "<! --")
