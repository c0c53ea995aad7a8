"""hubmerge report"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import Split
from hubmerge.cli.report_page import is_results, report_results
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import measured, table
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.flows.report import Report


@verb
def report(
    session: Session,
    models: Annotated[
        list[str],
        typer.Argument(
            help="Expert repositories (all their steps) and merges; or results.json files, and "
            "folders of them, from `hubmerge run`."
        ),
    ],
    split: Split = "test",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Figure to write: .png or .svg. Of results the page: .html, or a folder for a "
            "static Space."
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Of results: the folder for every chart as .png and .svg.")
    ] = None,
) -> None:
    """One table and one figure: accuracy per step of experts and merges; or recipes' results."""
    results = [text for text in models if is_results(text)]
    if len(results) == len(models):
        return report_results(session, results, out, figures)
    if results:
        raise UsageError(
            f"{results[0]} holds results of a recipe, and others are references to models.",
            "Report one kind at a time.",
        )
    if figures:
        raise UsageError(
            "--figures goes with results of recipes.", "Write a figure of models with --out."
        )
    return _report_models(session, models, split, out)


def _report_models(session: Session, models: list[str], split: Split, out: Path | None) -> None:
    refs = [parse_ref(text) for text in models]
    if out and out.suffix not in (".png", ".svg"):
        raise UsageError(f"--out {out} is no figure.", "Name it with .png or .svg.")
    with session.connected() as hub:
        from hubmerge.flows.report import report as gather

        found = gather(hub, refs, session.log, split)
    for line in found.left_out:
        session.say(f"Left out {line}.")
    if out:
        from hubmerge.cards.figures import draw_curves

        curves = {
            name: {step: (point.value, point.stderr) for step, point in curve.items()}
            for name, curve in found.curves.items()
        }
        draw_curves(curves, f"{split} accuracy over {', '.join(found.tasks)}", out)
    session.show(_table(found), _data(found))
    if out:
        session.say(f"Figure: {out}")


def _table(found: Report) -> object:
    rows = [
        (step, *(measured(curve.get(step)) for curve in found.curves.values()))
        for step in found.steps
    ]
    columns = ("step>", *(f"{name}>" for name in found.curves))
    title = f"mean {found.split} accuracy, % ± standard error ({', '.join(found.tasks)})"
    return table(columns, rows, title=title)


def _data(found: Report) -> dict[str, object]:
    return {
        "split": found.split,
        "tasks": list(found.tasks),
        "left_out": list(found.left_out),
        "curves": {
            name: [
                {"step": step, "accuracy": point.value, "stderr": point.stderr}
                for step, point in curve.items()
            ]
            for name, curve in found.curves.items()
        },
    }
