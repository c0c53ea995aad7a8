"""hubmerge train"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubmerge.cli.options import Device, DryRun, Private
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import percent, table
from hubmerge.refs import step_tag
from hubmerge.specs import TrainSpec, read_yaml, validated

if TYPE_CHECKING:
    from hubmerge.flows.train import Run, Trained


def option(name: str, help: str) -> Any:
    """An option of TrainSpec; its help ends with the default, which the spec alone decides."""
    default = TrainSpec.model_fields[name].default
    words = {True: "on", False: "off"}.get(default, default) if default is not None else "none"
    return typer.Option(help=f"{help} [{words}]")


@verb
def train(
    session: Session,
    spec: Annotated[
        Path | None, typer.Argument(help="YAML with these options; options typed win.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Model to start from: owner/name or a folder.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Name from `hubmerge tasks`, a task's YAML, or an image folder."),
    ] = None,
    to: Annotated[str | None, typer.Option(help="Repository of the steps: owner/name.")] = None,
    steps: Annotated[int | None, option("steps", "Optimizer steps.")] = None,
    push_every: Annotated[
        str | None, option("push_every", "Steps that become revisions: 2^k, N or a,b,c.")
    ] = None,
    lr: Annotated[float | None, option("lr", "Peak learning rate.")] = None,
    schedule: Annotated[str | None, option("schedule", "cosine or constant.")] = None,
    warmup: Annotated[float | None, option("warmup", "Warm-up as a share of the run.")] = None,
    warmup_steps: Annotated[
        int | None, option("warmup_steps", "Warm-up in steps, instead of a share.")
    ] = None,
    weight_decay: Annotated[float | None, option("weight_decay", "AdamW's weight decay.")] = None,
    clip: Annotated[float | None, option("clip", "Largest gradient norm.")] = None,
    batch: Annotated[int | None, option("batch", "Examples a step.")] = None,
    augment: Annotated[bool | None, option("augment", "Random crops of 90 to 100 %.")] = None,
    seed: Annotated[int | None, option("seed", "Seed of order and crops.")] = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [~/.hubmerge/runs/...]")
    ] = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Train an expert and publish its steps as revisions, each with its own tag.

    Running the same command again finishes what was interrupted: training or publishing.
    """
    typed = {
        "base": base, "task": task, "to": to, "steps": steps, "push_every": push_every, "lr": lr,
        "schedule": schedule, "warmup": warmup, "warmup_steps": warmup_steps,
        "weight_decay": weight_decay, "clip": clip, "batch": batch, "augment": augment,
        "seed": seed,
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
            trained = flow.train(hub, run, device, progress, private=private)
        session.show(_result(trained), _data(trained))


def _plan(run: Run) -> object:
    rows = [(step, step_tag(step)) for step in run.steps]
    return table(("step>", "tag"), rows, title=f"would push to {run.spec.to}, run {run.id[:12]}")


def _result(trained: Trained) -> object:
    points = {point.step: point for point in trained.curve}
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
        "validation": [dataclasses.asdict(point) for point in trained.curve],
    }
