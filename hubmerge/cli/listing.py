"""hubmerge tasks, hubmerge methods"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import Columns
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import DataError, UsageError, raise_together

if TYPE_CHECKING:
    from hubmerge.tasks.check import TaskReport

_MOST_PROBLEMS = 20
_MAX_CLASSES = 10  # classes that are shown one by one
_PER_EXPERT_SETTINGS = {
    "weight": "per expert, in their order: factor on its change",
    "keep": "per expert: fraction of its change, the largest entries, that goes in",
    "intruders": "per expert: factor on its intruder dimensions (arXiv 2410.21228)",
}


@command
def tasks(
    session: Session,
    check: Annotated[
        str | None,
        typer.Option(help="Check a task's data: name, YAML, folder, file or hf://datasets/..."),
    ] = None,
    columns: Columns = None,
) -> None:
    """List the tasks of hubmerge, or check the data of any task.

    Example: hubmerge tasks --check ./photos
    """
    if check is not None:
        _check_task(session, check, columns)
        return
    if columns is not None:
        raise UsageError("--columns needs --check.")
    from hubmerge.tasks.lookup import all_tasks

    specs = [task.spec for task in all_tasks()]
    rows = [
        (s.name, s.kind, s.title, len(s.classes) or "", s.data.id or "in the package")
        for s in specs
    ]
    columns_shown = ("task", "kind", "title", "classes>", "data")
    data = [spec.model_dump(mode="json") for spec in specs]
    session.print_result(make_table(columns_shown, rows), data)


def _check_task(session: Session, text: str, columns: str | None) -> None:
    with session.open_hub() as hub, session.progress() as progress:
        from hubmerge.opening.references import pin_task
        from hubmerge.tasks.check import check_task
        from hubmerge.tasks.custom_task import parse_columns
        from hubmerge.tasks.lookup import find_task

        task = find_task(text, parse_columns(columns) if columns else None)
        report = check_task(pin_task(hub, task), progress)
    session.print_result(_render_report(report), dataclasses.asdict(report))
    hint = " ".join(report.hints) or "Fix the data, or the task's description of them."
    problems, more = report.problems[:_MOST_PROBLEMS], len(report.problems) - _MOST_PROBLEMS
    if more > 0:
        problems = (*problems, f"And {more} more, which --json lists.")
    raise_together(DataError, problems, hint)


def _render_report(report: TaskReport) -> str:
    """The report as text: counts, examples as the model gets them, and notes."""
    lines = [f"{report.task}, a task of kind {report.kind}", ""]
    lines.append("".join(f"{split:>12}" for split in report.counts))
    lines.append("".join(f"{count:>12}" for count in report.counts.values()) + "  examples")
    names = list(next(iter(report.classes.values()), {}))
    for name, label in list(zip(names, report.head or names, strict=True))[:_MAX_CLASSES]:
        lines.append(
            "".join(f"{counts[name]:>12}" for counts in report.classes.values()) + f"  {label}"
        )
    if len(names) > _MAX_CLASSES:
        lines.append(" " * 12 * len(report.counts) + f"  ... {len(names)} classes in all")
    for number, example in enumerate(report.examples, start=1):
        lines += ["", f"Example {number} of train:", *(f"  {line}" for line in example.split("\n"))]
    notes = [f"Note: {note}" for note in report.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])


@command
def methods(
    session: Session,
    name: Annotated[str | None, typer.Argument(help="Show the parameters of one method.")] = None,
) -> None:
    """List the merge methods, or the parameters of one method.

    Example: hubmerge methods ties
    """
    from hubmerge.merging.registry import METHODS, method

    if name is None:
        rows = [(m.name, m.title, m.arxiv, m.summary) for m in METHODS.values()]
        keys = ("name", "title", "arxiv", "summary")
        data = [dict(zip(keys, row, strict=True)) for row in rows]
        session.print_result(make_table(("method", "title", "arXiv", "what it does"), rows), data)
        for problem in METHODS.problems:
            session.print_message(problem)
        return
    fields = method(name).params.model_json_schema()["properties"]
    params = [(key, "1", "a or a,b,c", meaning) for key, meaning in _PER_EXPERT_SETTINGS.items()]
    params += [
        (key, field.get("default", ""), _format_choices(field), field.get("description", ""))
        for key, field in fields.items()
    ]
    session.print_result(make_table(("parameter", "default", "values", "meaning"), params), fields)


def _format_choices(field: dict[str, object]) -> str:
    choices = field.get("enum")
    if isinstance(choices, list):
        return " | ".join(map(str, choices))
    return str(field.get("type", ""))
