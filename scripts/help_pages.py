"""Write docs/commands.md from the commands' own --help; with --check, only compare."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from hubmerge.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """# Commands

Written by `make docs` from what each command says of itself; a test compares.

Exit codes: 0 done, 1 error, 2 usage, 3 bytes or bases are not what was promised, 4 inconclusive,
75 try again later. Every error is one sentence and a way out; `--debug` adds the traceback.
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(_section(words) for words in _commands(get_command(app)))])


def _commands(command: Any, words: str = "") -> Iterator[str]:
    """Every command there is, each group before its own."""
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{words} {name}".strip())


def _section(words: str) -> str:
    said = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "100"}).stdout
    text = "\n".join(line.rstrip() for line in said.strip().splitlines())
    return f"## hubmerge {words}".rstrip() + f"\n\n```\n{text}\n```\n"


def main() -> None:
    """Write the page, or compare it."""
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text() == page() else "docs/commands.md is stale: `make docs`.")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
