"""hubmerge moerge"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubmerge.cli.options import Device, DryRun, Licence, Private, repository, spelled
from hubmerge.cli.session import Session, verb
from hubmerge.cli.spec_options import options_of
from hubmerge.cli.tables import percent, table
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref, step_tag
from hubmerge.scores import shown_names
from hubmerge.specs import MoeSpec, validated

if TYPE_CHECKING:
    from hubmerge.flows.train import Trained
    from hubmerge.runs.run import Run

Option = typer.Option


def moerge(
    session: Session,
    experts: Annotated[
        list[str] | None,
        typer.Argument(help="LoRA experts of one base: owner/name@step64, folders ..."),
    ] = None,
    tasks: Annotated[
        str | None,
        Option(help="Tasks to train on, separated by commas. [those of the experts]"),
    ] = None,
    base: Annotated[str | None, Option(help="Base of the experts, if they do not name it.")] = None,
    lock: Annotated[
        Path | None, Option(help="Mix what `hubmerge select` chose, by its hubmerge.lock.")
    ] = None,
    policy: Annotated[
        str | None, Option(help="Mix the lock's pick of this policy. [the chosen one]")
    ] = None,
    locked: Annotated[
        bool, Option("--locked", help="Refuse names that mean other commits than the lock pins.")
    ] = False,
    out: Annotated[Path | None, Option(help="Folder of the result. [~/.hubmerge/moes/...]")] = None,
    replace: Annotated[bool, Option("--replace", help="Replace what lies in --out.")] = False,
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
    licence: Licence = None,
    private: Private = False,
    dry_run: DryRun = False,
    **typed: Any,
) -> None:
    """Make a mixture of LoRA experts: a router picks a few for every token, and all are trained on.

    Running the same command again goes on with what was interrupted: training or publishing.
    """
    values = {name: value for name, value in typed.items() if value is not None}
    if lock is not None:
        _check_locked({"experts": experts, "--merge": merge}, values)
    else:
        _check_named(experts, policy, locked)
    asked = validated(MoeSpec, values, "moerge")
    to = repository(push)
    if to is not None and to.revision:
        raise UsageError("A mixture's steps have tags of their own.", f"Write --push {to.repo_id}.")
    rank, world = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
    if rank > 0:
        session = dataclasses.replace(session, quiet=True)
    named = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else ()
    with session.connected() as hub, TemporaryDirectory() as scratch:
        from hubmerge.flows import moerge as flow
        from hubmerge.runs.machine import Machine
        from hubmerge.runs.run import forget_position
        from hubmerge.tasks.lookup import find_task

        trackers = tuple(filter(None, track.split(",")))
        request = flow.Request(
            experts=tuple(parse_ref(text) for text in experts or ()),
            asked=asked,
            tasks=tuple(find_task(name) for name in named),
            base=parse_ref(base) if base else None,
            extracted=Path(scratch) if dry_run else None,
            out=out,
            replace=replace,
            push=to.repo_id if to else None,
            private=private,
            licence=spelled(licence),
            merge=merge,
            named=named,
            lock=lock,
            policy=policy,
            locked=locked,
        )
        machine = Machine(device, workers, state_every, trackers, rank, world)
        run = flow.prepare(hub, request, session.home, machine)
        for note in run.notes:
            session.say(f"Note: {note}")
        if dry_run:
            said = {"run": run.id, "steps": list(run.steps), "to": run.to, "notes": run.notes}
            session.show(_plan(run), said)
            return
        session.say(f"{flow.described(run)}, run {run.id[:12]}")
        if not resume:
            forget_position(run)
        with session.progress() as progress:
            made = flow.moerge(hub, run, request, progress)
            merged = flow.merged(hub, request, session.home, progress) if made else None
        if made is not None:
            session.show(_result(made, merged), _data(made, merged))


moerge_command = verb(moerge, options_of(MoeSpec))


def _check_locked(said: Mapping[str, object], typed: Mapping[str, object]) -> None:
    """A lock says all that decides the mixture, though not which of its steps are published."""
    given = [name for name, value in said.items() if value]
    given += [f"--{name.replace('_', '-')}" for name in typed if name != "push_every"]
    if given:
        raise UsageError(
            f"--lock says what is mixed and how: {', '.join(given)} cannot be given as well.",
            "Leave them out, or choose anew with `hubmerge select`.",
        )


def _check_named(experts: list[str] | None, policy: str | None, locked: bool) -> None:
    if not experts:
        raise UsageError(
            "There is nothing to mix.", "Name LoRA experts, owner/name@step64, or say --lock."
        )
    if policy or locked:
        raise UsageError(f"{'--policy' if policy else '--locked'} belongs to --lock.")


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
