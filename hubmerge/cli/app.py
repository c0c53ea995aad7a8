"""The typer app: every command, grouped by what a user wants."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from hubmerge import __version__

# Panel -> name of the command -> its module and its function, or `app` for a group of commands.
_PANELS: dict[str, dict[str, str]] = {
    "Train and publish": {
        "tasks": "listing.tasks",
        "train": "train.train_command",
        "publish": "publish.publish",
        "steps": "steps.steps",
        "import": "import_model.import_command",
    },
    "Choose and combine": {
        "methods": "listing.methods",
        "select": "select.select",
        "merge": "merge.merge",
        "moerge": "moerge.moerge_command",
        "extract": "extract.extract",
        "export": "export.export",
    },
    "Measure and explain": {
        "eval": "evaluate.evaluate",
        "card": "card.card",
        "report": "report.report",
        "difficulty": "difficulty.difficulty",
        "explain": "explain.explain",
        "verify": "verify.verify",
    },
    "The Hub and recipes": {
        "retain": "retain.retain",
        "run": "run.run",
        "hub": "hub.app",
    },
}
_NAMES = {name for commands in _PANELS.values() for name in commands}
_HELP = (
    "Turn the checkpoints people already have into better models: train experts step by "
    "step, pick the right step per task, merge, score."
)


class PanelGroup(TyperGroup):
    """Lists commands under the heading of their `rich_help_panel`, in plain help too."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each panel, in the order in which panels first appear."""
        width = formatter.width - 6 - max(map(len, self.commands))
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(width)))
        longest = max(map(len, self.commands))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(longest), text) for name, text in rows])


def make_app(arguments: list[str] | None = None) -> typer.Typer:
    """The app with all commands, or with the one alone that begins the arguments, if any.

    To import all of them would take longer than many a command.
    """
    first = arguments[0] if arguments else None
    only = first if first == "--version" or first in _NAMES else None  # no command has that name
    app = typer.Typer(
        name="hubmerge",
        cls=PanelGroup,
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    # Arguments that begin with a command ask only that for help, and typer loads pydantic for each
    # such option that is not given.
    app.callback(add_help_option=only is None)(_options)
    for panel, commands in _PANELS.items():
        for name, place in commands.items():
            if only in (None, name):
                _add_command(app, panel, name, place)
    return app


def _add_command(app: typer.Typer, panel: str, name: str, place: str) -> None:
    module, function = place.split(".")
    command = getattr(import_module(f"hubmerge.cli.{module}"), function)
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name, rich_help_panel=panel)
    else:
        app.command(name, rich_help_panel=panel)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hubmerge {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Turn the checkpoints people already have into better models."""
