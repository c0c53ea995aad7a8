"""The typer app: every verb under its name."""

from __future__ import annotations

import typer

from hubmerge import __version__
from hubmerge.cli import (
    card,
    difficulty,
    evaluate,
    explain,
    export,
    hub,
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

app = typer.Typer(
    name="hubmerge",
    help="Turn the checkpoints people already have into better models: train experts step by "
    "step, pick the right step per task, merge, score.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("train")(train.train_command)
app.command("steps")(steps.steps)
app.command("select")(select.select)
app.command("merge")(merge.merge)
app.command("moerge")(moerge.moerge_command)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("publish")(publish.publish)
app.command("eval")(evaluate.evaluate)
app.command("difficulty")(difficulty.difficulty)
app.command("explain")(explain.explain)
app.command("card")(card.card)
app.command("report")(report.report)
app.command("retain")(retain.retain)
app.command("run")(run.run)
app.command("tasks")(listing.tasks)
app.command("methods")(listing.methods)
app.add_typer(hub.app, name="hub")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hubmerge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Turn the checkpoints people already have into better models."""
