"""hubmerge report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hubmerge.cli.evaluate import SplitName
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import percent, table
from hubmerge.refs import parse_ref

Option = typer.Option


@verb
def report(
    session: Session,
    models: Annotated[
        list[str], typer.Argument(help="Expert repositories (all their steps) and merges.")
    ],
    split: Annotated[SplitName, Option(help="Split whose scores are told.")] = "test",
    out: Annotated[Path | None, Option(help="Figure to write: .png or .svg.")] = None,
) -> None:
    """One table and one figure: accuracy per step, of the experts and of their merges."""
    refs = [parse_ref(text) for text in models]
    with session.connected() as hub:
        from hubmerge.flows.report import report as gather

        found = gather(hub, refs, session.log, split)
    session.show(_table(found), _data(found))
    if out:
        from hubmerge.cards.figures import draw_curves

        curves = {
            name: {step: (point.value, point.stderr) for step, point in curve.items()}
            for name, curve in found.curves.items()
        }
        draw_curves(curves, f"{split} accuracy over {', '.join(found.tasks)}", out)
        session.say(f"Figure: {out}")


def _table(found: Any) -> object:
    rows = []
    for step in found.steps:
        points = [curve.get(step) for curve in found.curves.values()]
        rows.append(
            (step, *(f"{percent(p.value)} ± {percent(p.stderr)}" if p else "-" for p in points))
        )
    columns = ("step>", *(f"{name}>" for name in found.curves))
    title = f"mean {found.split} accuracy, % ± standard error ({', '.join(found.tasks)})"
    return table(columns, rows, title=title)


def _data(found: Any) -> dict[str, object]:
    return {
        "split": found.split,
        "tasks": list(found.tasks),
        "curves": {
            name: [
                {"step": step, "accuracy": point.value, "stderr": point.stderr}
                for step, point in curve.items()
            ]
            for name, curve in found.curves.items()
        },
    }
