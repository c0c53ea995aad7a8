"""The typer app: every command, grouped by what a user wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from hubmerge import __version__
from hubmerge.cli import (
    card,
    difficulty,
    evaluate,
    explain,
    export,
    hub,
    import_model,
    listing,
    merge,
    moerge,
    publish,
    report,
    retain,
    run,
    select,
    steps,
    train,
    verify,
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


app = typer.Typer(
    name="hubmerge",
    cls=PanelGroup,
    help="Turn the checkpoints people already have into better models: train experts step by "
    "step, pick the right step per task, merge, score.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Train and publish": {
        "tasks": listing.tasks,
        "train": train.train_command,
        "publish": publish.publish,
        "steps": steps.steps,
        "import": import_model.import_command,
    },
    "Choose and combine": {
        "methods": listing.methods,
        "select": select.select,
        "merge": merge.merge,
        "moerge": moerge.moerge_command,
        "export": export.export,
    },
    "Measure and explain": {
        "eval": evaluate.evaluate,
        "card": card.card,
        "report": report.report,
        "difficulty": difficulty.difficulty,
        "explain": explain.explain,
        "verify": verify.verify,
    },
    "The Hub and recipes": {
        "retain": retain.retain,
        "run": run.run,
    },
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(hub.app, name="hub", rich_help_panel="The Hub and recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hubmerge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Turn the checkpoints people already have into better models."""
