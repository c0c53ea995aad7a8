"""hubmerge train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import percent, table
from hubmerge.refs import step_tag
from hubmerge.specs import TrainSpec, read_yaml, validated

Option = typer.Option


@verb
def train(
    session: Session,
    spec: Annotated[
        Path | None, typer.Argument(help="YAML with these options; options typed win.")
    ] = None,
    base: Annotated[str | None, Option(help="Model to start from: owner/name or folder.")] = None,
    task: Annotated[
        str | None, Option(help="Name from `hubmerge tasks`, a task's YAML, or an image folder.")
    ] = None,
    to: Annotated[str | None, Option(help="Repository of the steps: owner/name.")] = None,
    steps: Annotated[int | None, Option(help="Optimizer steps. [2048]")] = None,
    push_every: Annotated[
        str | None, Option(help="Steps that become revisions: 2^k, N or a,b,c. [2^k]")
    ] = None,
    lr: Annotated[float | None, Option(help="Peak learning rate. [1e-5]")] = None,
    schedule: Annotated[str | None, Option(help="cosine or constant. [cosine]")] = None,
    warmup: Annotated[
        float | None, Option(help="Warm-up steps, or share of the run below 1. [0.1]")
    ] = None,
    weight_decay: Annotated[float | None, Option(help="AdamW's weight decay. [0.1]")] = None,
    clip: Annotated[float | None, Option(help="Largest gradient norm. [1.0]")] = None,
    batch: Annotated[int | None, Option(help="Examples a step. [128]")] = None,
    augment: Annotated[bool | None, Option(help="Random crops of 90 to 100 %. [on]")] = None,
    seed: Annotated[int | None, Option(help="Seed of order and crops. [0]")] = None,
    device: Annotated[str | None, Option(help="`cpu` keeps training off the GPU.")] = None,
    out: Annotated[Path | None, Option(help="Folder of the run. [~/.hubmerge/runs/...]")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Check everything, write nothing.")] = False,
) -> None:
    """Train an expert and publish its steps as revisions, each with its own tag.

    Running the same command again finishes what was interrupted: training or publishing.
    """
    typed = {
        "base": base, "task": task, "to": to, "steps": steps, "push_every": push_every, "lr": lr,
        "schedule": schedule, "warmup": warmup, "weight_decay": weight_decay, "clip": clip,
        "batch": batch, "augment": augment, "seed": seed,
    }  # fmt: skip
    values: dict[str, Any] = read_yaml(spec) if spec else {}
    values |= {name: value for name, value in typed.items() if value is not None}
    asked = validated(TrainSpec, values, str(spec) if spec else "train")
    with session.connected() as hub:
        from hubmerge.flows import train as flow

        run = flow.prepare(hub, asked, session.home / "runs", out)
        if dry_run:
            session.show(_plan(run), {"run": run.id, "steps": list(run.steps), "to": asked.to})
            return
        session.say(
            f"{run.task.name}: {asked.steps} steps from {run.base.revision.label}, "
            f"{len(run.steps)} revisions to {asked.to}, run {run.id[:12]}"
        )
        with session.progress() as progress:
            trained = flow.train(hub, run, device, progress)
        session.show(_result(trained), _data(trained))


def _plan(run: Any) -> object:
    rows = [(step, step_tag(step)) for step in run.steps]
    return table(("step>", "tag"), rows, title=f"would push to {run.spec.to}, run {run.id[:12]}")


def _result(trained: Any) -> object:
    points = {point["step"]: point for point in trained.curve}
    rows = [
        (
            step,
            step_tag(step),
            commit[:12],
            f"{points[step]['loss']:.3f}" if points.get(step) else "-",
            percent(points[step]["accuracy"]) if points.get(step) else "-",
        )
        for step, commit in trained.commits.items()
    ]
    columns = ("step>", "tag", "commit", "loss>", "validation %>")
    return table(columns, rows, title=f"{trained.repo_id}, run {trained.run[:12]}")


def _data(trained: Any) -> dict[str, object]:
    return {
        "repo": trained.repo_id,
        "run": trained.run,
        "commits": {step_tag(step): commit for step, commit in trained.commits.items()},
        "validation": [dict(point) for point in trained.curve],
    }
