"""The help texts: commands under headings, and an example of each command that can be parsed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from hubmerge.cli.app import make_app
from tests.command_line import run_command

ROOT: Any = get_command(make_app())
PANELS = {
    "Train and publish": ["tasks", "train", "publish", "steps", "import"],
    "Choose and combine": ["methods", "select", "merge", "moerge", "extract", "export"],
    "Measure and explain": ["eval", "card", "report", "difficulty", "explain", "verify"],
    "The Hub and recipes": ["retain", "run", "hub"],
}


def commands(group: Any = ROOT, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of every command, such as ("hub", "serve")."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name)


def help_of(*words: str) -> str:
    return run_command(*words, "--help", hub=None, columns=80).stdout


def test_commands_are_listed_under_headings() -> None:
    sections = re.findall(r"^(\S[^\n]*):\n((?:  [^\n]*\n)+)", help_of(), re.MULTILINE)
    listed = {title: re.findall(r"^  (\S+)", rows, re.MULTILINE) for title, rows in sections}
    assert {title: names for title, names in listed.items() if title != "Options"} == PANELS
    assert "..." not in "".join(rows for title, rows in sections if title != "Options")


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_an_example_that_can_be_parsed(words: tuple[str, ...]) -> None:
    [example] = re.findall(r"^  Example: (.*)$", help_of(*words), re.MULTILINE)
    arguments = shlex.split(example)
    assert arguments[: len(words) + 1] == ["hubmerge", *words]
    command = ROOT
    for word in words:
        command = command.commands[word]
    context = command.make_context(" ".join(words), arguments[len(words) + 1 :])
    assert not context.args
