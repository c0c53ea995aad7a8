"""hubmerge eval"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import (
    Columns,
    Device,
    EvalSplit,
    IncludePath,
    Metric,
    find_tasks,
    split_names,
)
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import format_score, make_table
from hubmerge.errors import UsageError
from hubmerge.refs import ModelRef, is_pinned_name, parse_ref
from hubmerge.scores import Score, display_names, upcycling

if TYPE_CHECKING:
    from hubmerge.hub.client import Hub
    from hubmerge.opening.opened_model import PinnedModel
    from hubmerge.tasks.task import Task


@command
def evaluate(
    session: Session,
    models: Annotated[list[str], typer.Argument(help="Models: owner/name@step64, folders ...")],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks, separated by commas, also lm-eval:NAME, and owner/name@step for the task "
            "of an expert. [the tasks that the model or its experts are trained for]"
        ),
    ] = None,
    split: EvalSplit = "test",
    every_step: Annotated[
        bool, typer.Option("--every-step", help="Measure all step revisions of the repositories.")
    ] = False,
    columns: Columns = None,
    metric: Metric = None,
    include_path: IncludePath = None,
    device: Device = None,
) -> None:
    """Measure a metric per task, with count and standard error.

    Scores are stored in the hubmerge home, so no model is measured twice on the same rows.

    Example: hubmerge eval ./merged me/mnist@step64 --tasks mini-mnist
    """
    refs = [parse_ref(text) for text in models]
    if every_step and any(ref.repo_id is None or ref.revision for ref in refs):
        raise UsageError("--every-step needs repositories.", "Write owner/name without a step.")
    # A wrong name is reported before a Hub is asked for anything.
    named = _find_tasks(split_names(tasks), columns, include_path)
    with session.open_hub() as hub, session.progress() as progress:
        from hubmerge.flows.evaluate import evaluate as measure

        pinned = _pin_models(hub, refs, every_step)
        log, notes = session.score_log, list[str]()
        scores = measure(
            hub, pinned, named, split, log, progress, device, metric, print_note=notes.append
        )
    session.print_result(
        _scores_table(scores, split), [dataclasses.asdict(score) for score in scores]
    )
    for note in notes:
        session.print_message(f"Note: {note}")
    for score in scores:
        if score.unfinished:
            session.print_message(f"Note: {_unfinished_note(score)}")


def _find_tasks(
    names: Sequence[str], columns: str | None, include_path: Path | None
) -> list[Task | ModelRef]:
    """The tasks of these names, and references to the experts whose tasks are meant."""
    experts = {name: parse_ref(name) for name in names if is_pinned_name(name)}
    others = iter(find_tasks([n for n in names if n not in experts], columns, include_path))
    return [experts[name] if name in experts else next(others) for name in names]


def _unfinished_note(score: Score) -> str:
    return (
        f"{score.unfinished} of the {score.count} texts that {score.label} generated for "
        f"{score.task_name} reached the limit without an end. Raise `max_new_tokens:` in the "
        "task's YAML, or give it `stop:`."
    )


def _pin_models(hub: Hub, refs: Sequence[ModelRef], every_step: bool) -> list[PinnedModel]:
    """The models at fixed commits; with `every_step`, all steps of the repositories."""
    from hubmerge.opening import references

    if not every_step:
        return [references.pin(hub, ref) for ref in refs]
    repos = [str(ref.repo_id) for ref in refs]
    revisions = [step for repo in repos for step in references.require_steps(hub, repo)]
    return [references.pin_revision(hub, revision) for revision in revisions]


def _scores_table(scores: Sequence[Score], split: str) -> object:
    """A row for each model, with a mean if all have the same tasks with the same metric."""
    scores_by_label: dict[str, list[Score]] = {}
    for score in scores:
        scores_by_label.setdefault(score.label, []).append(score)
    tasks = list(dict.fromkeys(score.task for score in scores))
    same_tasks = all(len(scores) == len(tasks) for scores in scores_by_label.values())
    comparable = len(tasks) > 1 and same_tasks and len({score.metric for score in scores}) == 1
    rows = []
    for label, of_model in scores_by_label.items():
        by_task = {score.task: score for score in of_model}
        means = [format_score(upcycling(of_model))] if comparable else []
        rows.append((label, *(format_score(by_task.get(task)) for task in tasks), *means))
    names = display_names(tasks).values()
    columns = ("model", *(f"{name}>" for name in names), *(["mean>"] if comparable else []))
    return make_table(columns, rows, title=_title(scores, split))


def _title(scores: Sequence[Score], split: str) -> str:
    metrics = dict.fromkeys(score.metric_title for score in scores)
    shares = {score.is_share for score in scores}
    unit = ", %" if shares == {True} else "" if shares == {False} else ", shares in %"
    return f"{', '.join(metrics)} on {split}{unit} ± standard error"
