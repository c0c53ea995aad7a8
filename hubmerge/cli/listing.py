"""hubmerge tasks, hubmerge methods"""

from __future__ import annotations

from typing import Annotated

import typer

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table


@verb
def tasks(session: Session) -> None:
    """List the tasks that come with hubmerge."""
    from hubmerge.tasks.task import all_tasks

    specs = [task.spec for task in all_tasks()]
    rows = [
        (s.name, s.title, len(s.classes), len(s.templates), s.data.id or "in the package")
        for s in specs
    ]
    columns = ("task", "title", "classes>", "templates>", "data")
    session.show(table(columns, rows), [spec.model_dump(mode="json") for spec in specs])


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
    rows2.insert(0, ("weight", "1", "a,b,c", "one per expert, in the order they are named"))
    session.show(table(("parameter", "default", "values", "meaning"), rows2), fields)


def _choices(said: dict[str, object]) -> str:
    choices = said.get("enum")
    return " | ".join(map(str, choices)) if isinstance(choices, list) else str(said.get("type", ""))
