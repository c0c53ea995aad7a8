"""hubmerge eval"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import percent, table
from hubmerge.errors import UsageError
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.scores import Score, upcycling

Option = typer.Option
SplitName = Literal["test", "validation", "train"]


@verb
def evaluate(
    session: Session,
    models: Annotated[list[str], typer.Argument(help="Models: owner/name@step64, folders ...")],
    tasks: Annotated[
        str | None, Option(help="Tasks, separated by commas; default: those it was trained for.")
    ] = None,
    split: Annotated[SplitName, Option(help="Choose on validation, report on test.")] = "test",
    every_step: Annotated[
        bool, Option("--every-step", help="All step revisions of the repositories named.")
    ] = False,
    device: Annotated[str | None, Option(help="Where to run: cpu, cuda ...")] = None,
) -> None:
    """Measure raw accuracy per task, with count and standard error; measured once, then known."""
    refs = [parse_ref(text) for text in models]
    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else []
    if every_step and any(ref.is_local or ref.revision for ref in refs):
        raise UsageError("--every-step goes with repositories.", "Write owner/name alone.")
    with session.connected() as hub:
        from hubmerge.flows.evaluate import evaluate as measure
        from hubmerge.flows.sources import with_every_step

        if every_step:
            refs = [step for ref in refs for step in with_every_step(hub, ref)]
        with session.progress() as progress:
            scores = measure(hub, refs, names, split, session.log, progress, device)
    session.show(_table(scores, refs, split), [dataclasses.asdict(score) for score in scores])


def _table(scores: Sequence[Score], refs: Sequence[ModelRef], split: str) -> object:
    """One row a model; the mean only where there are several tasks."""
    tasks = list(dict.fromkeys(score.task_name for score in scores))
    by_model: dict[str, list[Score]] = {}
    for score in scores:
        by_model.setdefault(score.label, []).append(score)
    rows = []
    for label, own in by_model.items():
        by_task = {score.task_name: score for score in own}
        cells = [_cell(by_task.get(task)) for task in tasks]
        mean = upcycling(own)
        rows.append((label, *cells, *([_mean(mean)] if len(tasks) > 1 else [])))
    means = ["mean>"] if len(tasks) > 1 else []
    columns = ("model", *(f"{task}>" for task in tasks), *means)
    return table(columns, rows, title=f"accuracy on {split}, % ± standard error")


def _cell(score: Score | None) -> str:
    return f"{percent(score.value)} ± {percent(score.stderr)}" if score else "-"


def _mean(mean: object) -> str:
    return f"{percent(mean.value)} ± {percent(mean.stderr)}"  # type: ignore[attr-defined]
