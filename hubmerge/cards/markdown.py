"""Text from outside as Markdown that says it and does nothing else."""

from __future__ import annotations

import re

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


def no_marker(text: str) -> str:
    """Where characters cannot be escaped, a forged marker must at least not be one."""
    return text.replace("<!--", "<! --")


def without_tokens(text: str) -> str:
    """Text in which no access token is left."""
    return _TOKEN.sub("hf_***", text)
