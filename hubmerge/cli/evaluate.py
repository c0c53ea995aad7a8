"""hubmerge eval"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import typer

from hubmerge.cli.options import Columns, Device, Split
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import measured, table
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref
from hubmerge.scores import Score, shown_names, upcycling


@verb
def evaluate(
    session: Session,
    models: Annotated[list[str], typer.Argument(help="Models: owner/name@step64, folders ...")],
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, separated by commas; default: those it was trained for."),
    ] = None,
    split: Split = "test",
    every_step: Annotated[
        bool, typer.Option("--every-step", help="All step revisions of the repositories named.")
    ] = False,
    columns: Columns = None,
    device: Device = None,
) -> None:
    """Measure raw accuracy per task, with count and standard error; measured once, then known."""
    refs = [parse_ref(text) for text in models]
    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else []
    repos = [ref.repo_id for ref in refs if ref.repo_id and not ref.revision]
    if every_step and len(repos) < len(refs):
        raise UsageError("--every-step goes with repositories.", "Write owner/name alone.")
    with session.connected() as hub:
        from hubmerge.flows.evaluate import evaluate as measure
        from hubmerge.opening.references import every_step as all_steps
        from hubmerge.opening.references import pin, pin_revision
        from hubmerge.tasks.custom_task import read_columns
        from hubmerge.tasks.lookup import find_task, names_its_columns

        if every_step:
            revisions = [step for repo in repos for step in all_steps(hub, repo)]
            pinned = [pin_revision(hub, revision) for revision in revisions]
        else:
            pinned = [pin(hub, ref) for ref in refs]
        # Tasks that come with hubmerge, or in a YAML, name their columns themselves.
        said = read_columns(columns) if columns else None
        named = [find_task(name, None if names_its_columns(name) else said) for name in names]
        with session.progress() as progress:
            scores = measure(hub, pinned, named, split, session.log, progress, device)
    session.show(_table(scores, split), [dataclasses.asdict(score) for score in scores])


def _table(scores: Sequence[Score], split: str) -> object:
    """One row a model; a mean only where all have the same tasks, measured by the same metric."""
    rows_of: dict[str, list[Score]] = {}
    for score in scores:
        rows_of.setdefault(score.label, []).append(score)
    tasks = list(dict.fromkeys(score.task for score in scores))
    same_tasks = all(len(own) == len(tasks) for own in rows_of.values())
    comparable = len(tasks) > 1 and same_tasks and len({score.metric for score in scores}) == 1
    rows = []
    for label, own in rows_of.items():
        known = {score.task: score for score in own}
        means = [measured(upcycling(own))] if comparable else []
        rows.append((label, *(measured(known.get(task)) for task in tasks), *means))
    heads = shown_names(tasks).values()
    columns = ("model", *(f"{head}>" for head in heads), *(["mean>"] if comparable else []))
    return table(columns, rows, title=f"accuracy on {split}, % ± standard error")
