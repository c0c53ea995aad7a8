"""hubmerge train"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubmerge.cli.options import Columns, DryRun, Private, TrainingOptions
from hubmerge.cli.session import Session, command
from hubmerge.cli.spec_options import options_from_spec
from hubmerge.cli.tables import format_percent, make_table
from hubmerge.refs import step_tag
from hubmerge.specs import TrainSpec, read_yaml, validate_spec

if TYPE_CHECKING:
    from hubmerge.flows.train import TrainResult
    from hubmerge.runs.run import Run


def train(
    session: Session,
    spec: Annotated[
        Path | None, typer.Argument(help="YAML file of these options; options given here win.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [~/.hubmerge/runs/...]")
    ] = None,
    columns: Columns = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out rows that cannot be read.")
    ] = False,
    *,
    training_options: TrainingOptions,
    private: Private = False,
    dry_run: DryRun = False,
    **typed: Any,
) -> None:
    """Train an expert and publish its steps as tagged revisions.

    If it was interrupted, the same command continues the training or the publishing. Under
    `accelerate launch -m hubmerge train ...` several processes share each batch.

    Example: hubmerge train --base o/clip --task mini-mnist --to me/mnist
    """
    values = _read_values(spec, typed)
    source = str(spec) if spec else "train"
    train_spec = None if values.get("start_from") else validate_spec(TrainSpec, values, source)
    machine = training_options.machine()
    if not machine.is_main_process:
        session = dataclasses.replace(session, quiet=True)
    with session.open_hub() as hub:
        from hubmerge.flows import train as flow
        from hubmerge.runs.expert_job import prepare_expert_run
        from hubmerge.runs.run import discard_position
        from hubmerge.tasks.custom_task import parse_columns
        from hubmerge.tasks.lookup import find_task, without_broken_rows
        from hubmerge.tasks.task_file import remember_data

        if train_spec is None:
            from hubmerge.runs.start_point import recorded_options

            recorded = recorded_options(hub, str(values["start_from"]), values)
            train_spec = validate_spec(TrainSpec, {**recorded, **values}, source)
        task = find_task(train_spec.task, parse_columns(columns) if columns else None)
        if skip_broken:
            task = without_broken_rows(task)
        run = prepare_expert_run(
            hub, train_spec, task, session.home / "runs", out, machine, columns
        )
        for note in run.notes:
            session.print_message(f"Note: {note}")
        if dry_run:
            _print_plan(session, run)
            return
        remember_data(session.home, [task])
        session.print_message(
            f"{task.name}: {train_spec.steps} steps from {run.base.revision.label}, "
            f"{len(run.steps)} revisions to {run.to}, run {run.id[:12]}"
        )
        if not training_options.resume:
            discard_position(run)
        with session.progress() as progress:
            result = flow.train(hub, run, progress, private=private, warn=session.print_message)
    if result is not None:
        session.print_result(_result_table(result), _to_json(result))


train_command = command(train, options_from_spec(TrainSpec))


def _read_values(path: Path | None, typed: dict[str, Any]) -> dict[str, Any]:
    """The options of a YAML file, with those given on the command line in place of its own."""
    values: dict[str, Any] = read_yaml(path) if path else {}
    return values | {name: value for name, value in typed.items() if value is not None}


def _print_plan(session: Session, run: Run) -> None:
    rows = [(step, step_tag(step)) for step in run.steps]
    session.print_result(
        make_table(("step>", "tag"), rows, title=f"would push to {run.to}, run {run.id[:12]}"),
        {"run": run.id, "steps": list(run.steps), "to": run.to, "notes": run.notes},
    )


def _result_table(result: TrainResult) -> object:
    points = result.points
    rows = [
        (
            step, step_tag(step), commit[:12], f"{points[step].loss:.3f}",
            format_percent(points[step].accuracy),
        )
        for step, commit in result.commits.items()
    ]  # fmt: skip
    columns = ("step>", "tag", "commit", "loss>", "validation %>")
    return make_table(columns, rows, title=f"{result.repo_id}, run {result.run[:12]}")


def _to_json(result: TrainResult) -> dict[str, object]:
    return {
        "repo": result.repo_id,
        "run": result.run,
        "commits": {step_tag(step): commit for step, commit in result.commits.items()},
        "validation": [point.to_json() for point in result.curve],
    }
