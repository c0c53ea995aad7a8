"""hubmerge train"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubmerge.cli.options import Columns, Device, DryRun, Private
from hubmerge.cli.session import Session, verb
from hubmerge.cli.spec_options import options_of
from hubmerge.cli.tables import percent, table
from hubmerge.refs import step_tag
from hubmerge.specs import TrainSpec, read_yaml, validated

if TYPE_CHECKING:
    from hubmerge.flows.train import Trained
    from hubmerge.runs.run import Run


def train(
    session: Session,
    spec: Annotated[
        Path | None, typer.Argument(help="YAML with these options; options typed win.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [~/.hubmerge/runs/...]")
    ] = None,
    columns: Columns = None,
    device: Device = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 0,
    state_every: Annotated[
        int, typer.Option(min=0, help="Steps a crash can cost at most; 0: to the last push.")
    ] = 100,
    track: Annotated[
        str, typer.Option(help="Trackers, if installed: tensorboard, trackio, wandb.")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where the run was interrupted.")
    ] = True,
    private: Private = False,
    dry_run: DryRun = False,
    **typed: Any,
) -> None:
    """Train an expert and publish its steps as revisions, each with its own tag.

    Running the same command again goes on with what was interrupted: training or publishing. Under
    `accelerate launch -m hubmerge train ...` several processes share each batch.
    """
    values: dict[str, Any] = read_yaml(spec) if spec else {}
    values |= {name: value for name, value in typed.items() if value is not None}
    asked = validated(TrainSpec, values, str(spec) if spec else "train")
    rank, world = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
    if rank > 0:
        session = dataclasses.replace(session, quiet=True)
    with session.connected() as hub:
        from hubmerge.flows import train as flow
        from hubmerge.runs.expert_job import prepare
        from hubmerge.runs.machine import Machine
        from hubmerge.runs.run import forget_position
        from hubmerge.tasks.custom_task import read_columns
        from hubmerge.tasks.lookup import find_task

        trackers = tuple(filter(None, track.split(",")))
        machine = Machine(device, workers, state_every, trackers, rank, world)
        task = find_task(asked.task, read_columns(columns) if columns else None)
        run = prepare(hub, asked, task, session.home / "runs", out, machine, columns)
        for note in run.notes:
            session.say(f"Note: {note}")
        if dry_run:
            said = {"run": run.id, "steps": list(run.steps), "to": asked.to, "notes": run.notes}
            session.show(_plan(run), said)
            return
        session.say(
            f"{task.name}: {asked.steps} steps from {run.base.revision.label}, "
            f"{len(run.steps)} revisions to {asked.to}, run {run.id[:12]}"
        )
        if not resume:
            forget_position(run)
        with session.progress() as progress:
            trained = flow.train(hub, run, progress, private=private)
        if trained is not None:
            session.show(_result(trained), _data(trained))


train_command = verb(train, options_of(TrainSpec))


def _plan(run: Run) -> object:
    rows = [(step, step_tag(step)) for step in run.steps]
    return table(("step>", "tag"), rows, title=f"would push to {run.to}, run {run.id[:12]}")


def _result(trained: Trained) -> object:
    points = trained.points
    rows = [
        (
            step, step_tag(step), commit[:12], f"{points[step].loss:.3f}",
            percent(points[step].accuracy),
        )
        for step, commit in trained.commits.items()
    ]  # fmt: skip
    columns = ("step>", "tag", "commit", "loss>", "validation %>")
    return table(columns, rows, title=f"{trained.repo_id}, run {trained.run[:12]}")


def _data(trained: Trained) -> dict[str, object]:
    return {
        "repo": trained.repo_id,
        "run": trained.run,
        "commits": {step_tag(step): commit for step, commit in trained.commits.items()},
        "validation": [point.said() for point in trained.curve],
    }
