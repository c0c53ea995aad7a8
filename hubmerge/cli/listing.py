"""hubmerge tasks, hubmerge methods"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import Columns
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table
from hubmerge.errors import DataError, UsageError, raise_together

if TYPE_CHECKING:
    from hubmerge.tasks.check import Report

_FEW = 10  # classes that are shown one by one
_SHARES = {
    "weight": "per expert, in their order: factor on its change",
    "keep": "per expert: fraction of its change, the largest entries, that goes in",
    "intruders": "per expert: factor on its intruder dimensions (arXiv 2410.21228)",
}


@verb
def tasks(
    session: Session,
    check: Annotated[
        str | None,
        typer.Option(help="Try the data of a task: name, YAML, folder, file or hf://datasets/..."),
    ] = None,
    columns: Columns = None,
) -> None:
    """List the tasks that come with hubmerge, or try the data of any task before training on it."""
    if check is not None:
        _check(session, check, columns)
        return
    if columns is not None:
        raise UsageError("--columns belongs to --check.")
    from hubmerge.tasks.lookup import all_tasks

    specs = [task.spec for task in all_tasks()]
    rows = [
        (s.name, s.kind, s.title, len(s.classes) or "", s.data.id or "in the package")
        for s in specs
    ]
    shown = ("task", "kind", "title", "classes>", "data")
    session.show(table(shown, rows), [spec.model_dump(mode="json") for spec in specs])


def _check(session: Session, text: str, columns: str | None) -> None:
    with session.connected() as hub:
        from hubmerge.opening.references import pin_task
        from hubmerge.tasks.check import check_task
        from hubmerge.tasks.custom_task import read_columns
        from hubmerge.tasks.lookup import find_task

        task = find_task(text, read_columns(columns) if columns else None)
        report = check_task(pin_task(hub, task))
    session.show(_told(report), dataclasses.asdict(report))
    raise_together(DataError, report.problems, "Mend the data, or what the task says of them.")


def _told(report: Report) -> str:
    """The report as lines: what is there, what the model will see, what is worth knowing."""
    lines = [f"{report.task}, a task of kind {report.kind}", ""]
    lines.append("".join(f"{split:>12}" for split in report.counts))
    lines.append("".join(f"{count:>12}" for count in report.counts.values()) + "  examples")
    names = list(next(iter(report.classes.values()), {}))
    for name, said in list(zip(names, report.head or names, strict=True))[:_FEW]:
        lines.append(
            "".join(f"{counts[name]:>12}" for counts in report.classes.values()) + f"  {said}"
        )
    if len(names) > _FEW:
        lines.append(" " * 12 * len(report.counts) + f"  ... {len(names)} classes in all")
    for number, example in enumerate(report.examples, start=1):
        lines += ["", f"Example {number} of train:", *(f"  {li}" for li in example.split("\n"))]
    notes = [f"Note: {note}" for note in report.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])


@verb
def methods(
    session: Session,
    name: Annotated[str | None, typer.Argument(help="Show the parameters of one method.")] = None,
) -> None:
    """List the merge methods, or what can be set with --set for one of them."""
    from hubmerge.merging.registry import METHODS, method

    if name is None:
        rows = [(m.name, m.title, m.arxiv, m.summary) for m in METHODS.values()]
        data: object = [
            dict(zip(("name", "title", "arxiv", "summary"), r, strict=True)) for r in rows
        ]
        session.show(table(("method", "title", "arXiv", "what it does"), rows), data)
        return
    fields = method(name).params.model_json_schema()["properties"]
    rows2 = [
        (key, said.get("default", ""), _choices(said), said.get("description", ""))
        for key, said in fields.items()
    ]
    rows2[:0] = [(key, "1", "a or a,b,c", meaning) for key, meaning in _SHARES.items()]
    session.show(table(("parameter", "default", "values", "meaning"), rows2), fields)


def _choices(said: dict[str, object]) -> str:
    choices = said.get("enum")
    return " | ".join(map(str, choices)) if isinstance(choices, list) else str(said.get("type", ""))
