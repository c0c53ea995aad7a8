"""hubmerge report"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import Split
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
        list[str], typer.Argument(help="Expert repositories (all their steps) and merges.")
    ],
    split: Split = "test",
    out: Annotated[Path | None, typer.Option(help="Figure to write: .png or .svg.")] = None,
) -> None:
    """One table and one figure: accuracy per step, of the experts and of their merges."""
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
