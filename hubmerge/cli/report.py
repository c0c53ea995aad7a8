"""hubmerge report"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import Split
from hubmerge.cli.report_page import is_results_path, report_results
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import format_score, make_table
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.flows.report import AccuracyReport


@command
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
            help="Figure of models to write: .png or .svg; or page of results: .html, or a folder "
            "for a static Space."
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="For results: folder of every chart as .png and .svg.")
    ] = None,
) -> None:
    """Show results as one table, and draw a figure or a page.

    Of models: accuracy by step, of experts and merges. Of recipes: the claims and their verdicts.

    Example: hubmerge report me/mnist me/svhn ./merged --out accuracy.png
    """
    results = [text for text in models if is_results_path(text)]
    if len(results) == len(models):
        return report_results(session, results, out, figures)
    if results:
        raise UsageError(
            f"{results[0]} is a file of results, and other arguments are models.",
            "Report one kind at a time.",
        )
    if figures:
        raise UsageError(
            "--figures is for results of recipes.", "Write a figure of models with --out."
        )
    return _report_models(session, models, split, out)


def _report_models(session: Session, models: list[str], split: Split, out: Path | None) -> None:
    refs = [parse_ref(text) for text in models]
    if out and out.suffix not in (".png", ".svg"):
        raise UsageError(f"--out {out} is not a figure.", "Name it with .png or .svg.")
    with session.open_hub() as hub:
        from hubmerge.flows.report import report_accuracy

        summary = report_accuracy(hub, refs, session.score_log, split)
    for reason in summary.left_out:
        session.print_message(f"Left out {reason}.")
    if out:
        from hubmerge.cards.figures import draw_curves

        curves = {
            name: {step: (point.value, point.stderr) for step, point in curve.items()}
            for name, curve in summary.curves.items()
        }
        draw_curves(curves, f"{split} accuracy over {', '.join(summary.tasks)}", out)
    session.print_result(_curves_table(summary), _to_json(summary))
    if out:
        session.print_message(f"Figure: {out}")


def _curves_table(summary: AccuracyReport) -> object:
    rows = [
        (step, *(format_score(curve.get(step)) for curve in summary.curves.values()))
        for step in summary.steps
    ]
    columns = ("step>", *(f"{name}>" for name in summary.curves))
    title = f"mean {summary.split} accuracy, % ± standard error ({', '.join(summary.tasks)})"
    return make_table(columns, rows, title=title)


def _to_json(summary: AccuracyReport) -> dict[str, object]:
    return {
        "split": summary.split,
        "tasks": list(summary.tasks),
        "left_out": list(summary.left_out),
        "curves": {
            name: [
                {"step": step, "accuracy": point.value, "stderr": point.stderr}
                for step, point in curve.items()
            ]
            for name, curve in summary.curves.items()
        },
    }
