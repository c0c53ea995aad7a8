"""hubmerge moerge"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubmerge.cli.options import (
    Base,
    LockOptions,
    Option,
    ResultOptions,
    Tasks,
    TrainingOptions,
    parse_licence,
    split_names,
)
from hubmerge.cli.session import Session, command
from hubmerge.cli.spec_options import options_from_spec
from hubmerge.cli.tables import format_percent, make_table
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref, step_tag
from hubmerge.scores import display_names
from hubmerge.specs import MoeSpec, validate_spec

if TYPE_CHECKING:
    from hubmerge.flows.moerge import MoeRequest
    from hubmerge.flows.train import TrainResult
    from hubmerge.runs.run import Run


@dataclass(frozen=True)
class MoeOptions:
    """What the mixture is trained on, and what it is compared with."""

    tasks: Tasks = None
    base: Base = None
    merge: Annotated[
        str | None,
        Option(help="Also merge the same experts by this method, to compare with. [none]"),
    ] = None


def moerge(
    session: Session,
    experts: Annotated[
        list[str] | None,
        typer.Argument(help="LoRA experts of one base: owner/name@step64, folders ..."),
    ] = None,
    *,
    options: MoeOptions,
    lock_options: LockOptions,
    result_options: ResultOptions,
    training_options: TrainingOptions,
    **typed: Any,
) -> None:
    """Combine LoRA experts in a mixture of experts.

    A router picks a few experts for each token; router and experts are trained on all tasks. If it
    was interrupted, the same command continues the training or the publishing.

    Example: hubmerge moerge me/cars@step64 me/birds@step32 --out ./moe
    """
    values = {name: value for name, value in typed.items() if value is not None}
    lock_options.check(experts)
    if lock_options.lock is not None:
        _check_lock_alone({"experts": experts, "--merge": options.merge}, values)
    moe_spec = validate_spec(MoeSpec, values, "moerge")
    _check_target(result_options)
    machine = training_options.machine()
    if not machine.is_main_process:
        session = dataclasses.replace(session, quiet=True)
    with session.open_hub() as hub, TemporaryDirectory() as scratch:
        from hubmerge.flows import moerge as flow
        from hubmerge.runs.run import discard_position

        request = _make_request(experts, moe_spec, options, lock_options, result_options)
        if result_options.dry_run:
            request = dataclasses.replace(request, extracted=Path(scratch))
        run = flow.prepare_moe(hub, request, session.home, machine)
        for note in run.notes:
            session.print_message(f"Note: {note}")
        if result_options.dry_run:
            _print_plan(session, run)
            return
        session.print_message(f"{flow.describe_run(run)}, run {run.id[:12]}")
        if not training_options.resume:
            discard_position(run)
        with session.progress() as progress:
            result = flow.moerge(hub, run, request, progress, session.print_message)
            merged = flow.merge_experts(hub, request, session.home, progress) if result else None
    if result is not None:
        session.print_result(_result_table(result, merged), _to_json(result, merged))


moerge_command = command(moerge, options_from_spec(MoeSpec))


def _make_request(
    experts: list[str] | None,
    moe_spec: MoeSpec,
    options: MoeOptions,
    lock_options: LockOptions,
    result_options: ResultOptions,
) -> MoeRequest:
    from hubmerge.flows.moerge import MoeRequest
    from hubmerge.tasks.lookup import find_task

    task_names = tuple(split_names(options.tasks))
    target = result_options.target
    return MoeRequest(
        experts=tuple(parse_ref(text) for text in experts or ()),
        moe_spec=moe_spec,
        tasks=tuple(find_task(name) for name in task_names),
        base=parse_ref(options.base) if options.base else None,
        out=result_options.out,
        replace=result_options.replace,
        push=target.repo_id if target else None,
        private=result_options.private,
        licence=parse_licence(result_options.licence),
        merge=options.merge,
        task_names=task_names,
        lock=lock_options.lock,
        policy=lock_options.policy,
        locked=lock_options.locked,
    )


def _check_lock_alone(arguments: Mapping[str, object], typed: Mapping[str, object]) -> None:
    """A lock already decides everything but which steps are published."""
    given = [name for name, value in arguments.items() if value]
    given += [f"--{name.replace('_', '-')}" for name in typed if name != "push_every"]
    if given:
        raise UsageError(
            f"--lock decides what is combined and how: {', '.join(given)} cannot be given as well.",
            "Leave them out, or make another lock with `hubmerge select`.",
        )


def _check_target(result_options: ResultOptions) -> None:
    target = result_options.target
    if target is not None and target.revision:
        raise UsageError(
            "The steps of a mixture of experts have tags of their own.",
            f"Write --push {target.repo_id}.",
        )


def _print_plan(session: Session, run: Run) -> None:
    rows = [(step, step_tag(step)) for step in run.steps]
    action = f"push to {run.to}" if run.to else f"save in {run.outbox.steps_folder}"
    session.print_result(
        make_table(("step>", "tag"), rows, title=f"would {action}, run {run.id[:12]}"),
        {"run": run.id, "steps": list(run.steps), "to": run.to, "notes": run.notes},
    )


def _result_table(result: TrainResult, merged: Path | None) -> object:
    points = result.points
    names = list(dict.fromkeys(name for point in points.values() for name in point.tasks))
    rows = [
        (
            step, step_tag(step), result.commits.get(step, "-")[:12],
            "-" if point.loss is None else f"{point.loss:.3f}",
            *(format_percent(point.tasks[name]) for name in names), format_percent(point.accuracy),
        )
        for step, point in points.items()
    ]  # fmt: skip
    task_columns = [f"{name}>" for name in display_names(names).values()]
    columns = ("step>", "tag", "commit", "loss>", *task_columns, "validation %>")
    merge = f", the same experts merged in {merged}" if merged else ""
    return make_table(columns, rows, title=f"mixture of experts in {result.folder}{merge}")


def _to_json(result: TrainResult, merged: Path | None) -> dict[str, object]:
    return {
        "folder": str(result.folder),
        "merged": str(merged) if merged else None,
        "repo": result.repo_id,
        "run": result.run,
        "commits": {step_tag(step): commit for step, commit in result.commits.items()},
        "validation": [point.to_json() for point in result.curve],
    }
