"""hubmerge publish"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubmerge.cli.options import DryRun, Private
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import format_percent, make_table
from hubmerge.refs import check_repo_id, parse_ref, step_tag

if TYPE_CHECKING:
    from hubmerge.flows.prepared_publish import PreparedPublish
    from hubmerge.trainer_runs.found_checkpoint import FoundCheckpoint


@command
def publish(
    session: Session,
    run: Annotated[
        str,
        typer.Argument(
            help="Folder with folders checkpoint-64, step64 ..., or the repository of a run."
        ),
    ],
    to: Annotated[str, typer.Option(help="Repository: owner/name.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="Base that the checkpoints were fine-tuned from. [with --task, the one that the "
            "run's files name]"
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task that the checkpoints were trained for.")
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            help="Validation metric for the curve: eval_loss, or NAME:higher, NAME:lower. [the "
            "one of the run's best model, else eval_accuracy or eval_loss]"
        ),
    ] = None,
    last_step: Annotated[
        int | None,
        typer.Option(min=1, help="Step of the model at the run's root. [as the run records it]"),
    ] = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Publish the checkpoints of a run as tagged step revisions.

    The run can be one of Trainer, TRL, axolotl, LLaMA-Factory, sentence-transformers or hubmerge,
    in a folder or on a Hub. The same command again, also after more training, publishes only the
    checkpoints that are new.

    Example: hubmerge publish ./output --to me/cars --task mini-cars
    """
    repo_id = check_repo_id(to)
    with session.open_hub() as hub:
        from hubmerge.flows.prepared_publish import PublishRequest, prepare_publish
        from hubmerge.flows.publish import publish_steps
        from hubmerge.tasks.lookup import find_task

        request = PublishRequest(
            repo_id,
            parse_ref(base) if base else None,
            find_task(task) if task else None,
            curve,
            last_step,
        )
        commits: dict[int, str] = {}
        with session.progress() as progress:
            prepared = prepare_publish(hub, parse_ref(run), request, progress, fetch=not dry_run)
            if not dry_run:
                commits = publish_steps(
                    hub, prepared, session.home / "publishing", progress, private=private
                )
    for note in _notes(prepared):
        session.print_message(f"Note: {note}")
    session.print_result(_steps_table(prepared, commits), _to_json(prepared, commits))


def _notes(prepared: PreparedPublish) -> Iterator[str]:
    run = prepared.run
    if run.curve is not None:
        others = [name for name in run.metrics if name != run.curve.name]
        reason = f", as {run.curve.reason}" if run.curve.reason else ""
        also = f"; the run also has {', '.join(others)}" if others else ""
        yield f"The curve is {run.curve.formula}{reason}{also}."
    elif run.metrics:
        yield f"No curve: name one of {', '.join(run.metrics)} with --curve."
    yield from prepared.notes


def _steps_table(prepared: PreparedPublish, commits: dict[int, str]) -> object:
    action = "published to" if commits else "would publish to"
    rows: list[tuple[object, ...]] = [
        (
            item.step, step_tag(item.step),
            (commits or prepared.published).get(item.step, "-")[:12], item.name,
            format_percent(_value(prepared, item)), ", ".join(prepared.run.marks(item)),
            "; ".join(item.notes),
        )
        for item in prepared.run.checkpoints
    ]  # fmt: skip
    rows += [
        ("-", "-", "-", name, "-", "", f"left out: {why}") for name, why in prepared.run.left_out
    ]
    columns = ("step>", "tag", "commit", "folder", "curve %>", "marks", "note")
    return make_table(columns, rows, title=f"{action} {prepared.to}")


def _value(prepared: PreparedPublish, item: FoundCheckpoint) -> float | None:
    """The value of the curve at a step itself, None if it was not evaluated there."""
    points = prepared.run.points(item)
    return points[-1].accuracy if points and points[-1].step == item.step else None


def _to_json(prepared: PreparedPublish, commits: dict[int, str]) -> dict[str, Any]:
    run, settings = prepared.run, prepared.run.settings
    return {
        "repo": prepared.to,
        "steps": [item.step for item in run.checkpoints],
        "commits": {step_tag(step): commit for step, commit in commits.items()},
        "manifest": prepared.manifest is not None,
        "checkpoints": [
            {
                "step": item.step, "folder": item.name, "value": _value(prepared, item),
                "marks": list(run.marks(item)), "notes": list(item.notes),
            }
            for item in run.checkpoints
        ],
        "left_out": [{"name": name, "reason": reason} for name, reason in run.left_out],
        "curve": run.curve.formula if run.curve else None,
        "metrics": list(run.metrics),
        "base": settings.base.value if settings.base else None,
        "seed": settings.seed,
        "tuning": dict(settings.tuning),
        "notes": list(_notes(prepared)),
    }  # fmt: skip
