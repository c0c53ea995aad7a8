"""Run `hubmerge` in the process of the test."""

from __future__ import annotations

from functools import cache

import typer.testing
from typer.testing import CliRunner, Result

from hubmerge.cli.app import make_app

# Typer builds all commands anew for every call, which takes a tenth of a second.
typer.testing._get_command = cache(typer.testing._get_command)
_APP = make_app()


def run_command(*words: object, hub: str | None = "local", columns: int | None = None) -> Result:
    """Run a command; hub=None leaves HUBMERGE_HUB as it is."""
    env = {} if hub is None else {"HUBMERGE_HUB": hub}
    if columns is not None:
        env["COLUMNS"] = str(columns)
    return CliRunner().invoke(_APP, [str(word) for word in words], env=env)
