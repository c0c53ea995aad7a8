"""Environment variables as lines for a shell, or as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from shlex import quote


class EnvFormat(StrEnum):
    """Who reads the variables: a shell, or a program that reads a file."""

    sh = "sh"
    fish = "fish"
    powershell = "powershell"
    json = "json"
    dotenv = "dotenv"


def format_env(variables: Mapping[str, str], target: EnvFormat) -> str:
    """The variables as text; an empty value is set too, because it replaces another one."""
    if target == EnvFormat.json:
        return json.dumps(dict(variables), indent=1)
    line = _LINES[target]
    return "\n".join(line(name, value) for name, value in variables.items())


def _fish_line(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{escaped}'"


def _powershell_line(name: str, value: str) -> str:
    escaped = value.replace("'", "''")
    return f"$env:{name} = '{escaped}'"


def _dotenv_line(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'{name}="{escaped}"'


_LINES: dict[EnvFormat, Callable[[str, str], str]] = {
    EnvFormat.sh: lambda name, value: f"export {name}={quote(value)}",
    EnvFormat.fish: _fish_line,
    EnvFormat.powershell: _powershell_line,
    EnvFormat.dotenv: _dotenv_line,
}
