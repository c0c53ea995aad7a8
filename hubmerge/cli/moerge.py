"""hubmerge moerge"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubmerge.cli.options import Device, DryRun, Private, repository
from hubmerge.cli.session import Session, verb
from hubmerge.cli.spec_options import options_of
from hubmerge.cli.tables import percent, table
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref, step_tag
from hubmerge.scores import shown_names
from hubmerge.specs import MoeSpec, validated

if TYPE_CHECKING:
    from hubmerge.flows.run import Run
    from hubmerge.flows.train import Trained

Option = typer.Option


def moerge(
    session: Session,
    experts: Annotated[
        list[str], typer.Argument(help="LoRA experts of one base: owner/name@step64, folders ...")
    ],
    tasks: Annotated[
        str | None,
        Option(help="Tasks to train on, separated by commas. [those of the experts]"),
    ] = None,
    base: Annotated[str | None, Option(help="Base of the experts, if they do not name it.")] = None,
    out: Annotated[Path | None, Option(help="Folder of the result. [~/.hubmerge/moes/...]")] = None,
    push: Annotated[
        str | None, Option(help="Publish its steps as revisions of owner/name.")
    ] = None,
    merge: Annotated[
        str | None,
        Option(help="Also merge the same experts by this method, to compare with. [none]"),
    ] = None,
    device: Device = None,
    workers: Annotated[int, Option(min=0, help="Processes that prepare batches.")] = 0,
    state_every: Annotated[
        int, Option(min=0, help="Steps a crash can cost at most; 0: to the last push.")
    ] = 100,
    track: Annotated[str, Option(help="Trackers, if installed: tensorboard, trackio, wandb.")] = "",
    resume: Annotated[
        bool, Option("--resume/--no-resume", help="Go on where the run was interrupted.")
    ] = True,
    private: Private = False,
    dry_run: DryRun = False,
    **typed: Any,
) -> None:
    """Make a mixture of LoRA experts: a router picks a few for every token, and all are trained on.

    Running the same command again goes on with what was interrupted: training or publishing.
    """
    values = {name: value for name, value in typed.items() if value is not None}
    asked = validated(MoeSpec, values, "moerge")
    to = repository(push)
    if to is not None and to.revision:
        raise UsageError("A mixture's steps have tags of their own.", f"Write --push {to.repo_id}.")
    rank, world = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
    if rank > 0:
        session = dataclasses.replace(session, quiet=True)
    named = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else ()
    with session.connected() as hub:
        from hubmerge.flows import moerge as flow
        from hubmerge.flows.machine import Machine
        from hubmerge.flows.run import forget_position
        from hubmerge.tasks.task import find_task

        trackers = tuple(filter(None, track.split(",")))
        request = flow.Request(
            experts=tuple(parse_ref(text) for text in experts),
            asked=asked,
            tasks=tuple(find_task(name) for name in named),
            base=parse_ref(base) if base else None,
            out=out,
            push=to.repo_id if to else None,
            private=private,
            merge=merge,
            named=named,
        )
        machine = Machine(device, workers, state_every, trackers, rank, world)
        run = flow.prepare(hub, request, session.home, machine)
        for note in run.notes:
            session.say(f"Note: {note}")
        if dry_run:
            said = {"run": run.id, "steps": list(run.steps), "to": run.to, "notes": run.notes}
            session.show(_plan(run), said)
            return
        session.say(
            f"mixture of {len(experts)} experts, top {asked.top_k}: {asked.train_steps} steps from "
            f"{run.base.revision.label}, run {run.id[:12]}"
        )
        if not resume:
            forget_position(run)
        with session.progress() as progress:
            made = flow.moerge(hub, run, request, progress)
            merged = flow.merged(hub, request, session.home, progress) if made else None
        if made is not None:
            session.show(_result(made, merged), _data(made, merged))


moerge_command = verb(moerge, options_of(MoeSpec))


def _plan(run: Run) -> object:
    rows = [(step, step_tag(step)) for step in run.steps]
    where = f"push to {run.to}" if run.to else f"save in {run.outbox.steps}"
    return table(("step>", "tag"), rows, title=f"would {where}, run {run.id[:12]}")


def _result(made: Trained, merged: Path | None) -> object:
    points = made.points
    names = list(dict.fromkeys(name for point in points.values() for name in point.tasks))
    rows = [
        (
            step, step_tag(step), made.commits.get(step, "-")[:12],
            "-" if point.loss is None else f"{point.loss:.3f}",
            *(percent(point.tasks[name]) for name in names), percent(point.accuracy),
        )
        for step, point in points.items()
    ]  # fmt: skip
    each = [f"{head}>" for head in shown_names(names).values()]
    columns = ("step>", "tag", "commit", "loss>", *each, "validation %>")
    beside = f", the same experts merged in {merged}" if merged else ""
    return table(columns, rows, title=f"mixture in {made.folder}{beside}")


def _data(made: Trained, merged: Path | None) -> dict[str, object]:
    return {
        "folder": str(made.folder),
        "merged": str(merged) if merged else None,
        "repo": made.repo_id,
        "run": made.run,
        "commits": {step_tag(step): commit for step, commit in made.commits.items()},
        "validation": [point.said() for point in made.curve],
    }
