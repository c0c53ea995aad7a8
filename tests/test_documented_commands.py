"""Every `hubmerge` command in a code block of the documentation has valid options and values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from hubmerge.cli.app import make_app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")]
_BLOCK = re.compile(r"^```(?:bash|sh|console)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
_END = {"|", "||", "&&", "&", ">", "2>", ";", "#"}


def commands() -> Iterator[tuple[str, str]]:
    """Page and command line of each command; a line that ends in a backslash goes on."""
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if line.strip().startswith("hubmerge ") and "..." not in line.partition("#")[0]:
                    yield str(page.relative_to(ROOT)), line.strip()


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)[1:]
    end = next((n for n, word in enumerate(words) if word in _END), len(words))
    return words[:end]


@cache
def main_command() -> Any:
    return get_command(make_app())


@pytest.mark.parametrize(("page", "line"), list(dict.fromkeys(commands())))
def test_a_documented_command_can_be_parsed(page: str, line: str) -> None:
    command, words = main_command(), words_of(line)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"{page}: there is no command {name!r}"
        command = command.commands[name]
    if "--help" not in words:
        command.make_context(command.name, words)
