"""Write docs/commands.md from the --help of every command; with --check, only compare."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from hubmerge.cli.app import make_app

_APP = make_app()

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """# Commands

Written by `make docs` from the `--help` of every command; a test compares.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 files or bases do not match what is recorded, 4 the
selection is inconclusive, 75 try again later. Every error is one sentence and a hint; `--debug`
adds the traceback.
"""


def render_page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(_section(words) for words in _commands(get_command(_APP)))])


def _commands(command: Any, words: str = "") -> Iterator[str]:
    """Every command, each group before its commands."""
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{words} {name}".strip())


def _section(words: str) -> str:
    output = CliRunner().invoke(_APP, [*words.split(), "--help"], env={"COLUMNS": "100"}).stdout
    text = "\n".join(line.rstrip() for line in output.strip().splitlines())
    return f"## hubmerge {words}".rstrip() + f"\n\n```\n{text}\n```\n"


def main() -> None:
    """Write the page, or with --check compare it."""
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.read_text() == render_page() else "docs/commands.md is stale: `make docs`."
        )
    PAGE.write_text(render_page())


if __name__ == "__main__":
    main()
