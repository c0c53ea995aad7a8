"""hubmerge select"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hubmerge.cli.options import DryRun, Option
from hubmerge.cli.select_files import SelectFiles
from hubmerge.cli.select_moe import choose_starts
from hubmerge.cli.select_options import SelectOptions, make_request, read_moe_spec
from hubmerge.cli.select_workers import WorkerOptions
from hubmerge.cli.selection_tables import (
    SelectionOutput,
    cut_notes,
    describe_conclusion,
    selection_tables,
    skipped_notes,
)
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table

if TYPE_CHECKING:
    from hubmerge.choosing.merge_selection import PreparedSelection, SelectRequest
    from hubmerge.hub.client import Hub
    from hubmerge.progress import Progress

INCONCLUSIVE = 4


@command
def select(
    session: Session,
    repos: Annotated[list[str], typer.Argument(help="Repositories of experts: owner/name ...")],
    *,
    target: Annotated[
        str, Option(help="What to choose steps for: a merge method, or moe for a mixture.")
    ],
    options: SelectOptions,
    files: SelectFiles,
    workers: WorkerOptions,
    dry_run: DryRun = False,
) -> None:
    """Choose the step of each expert and pin the choice in a lock.

    Only validation data decide, and gains are measured on examples that did not choose. With
    --target moe, many starts are trained for a few steps, and the best become the start of the
    mixture. Exit code 4: the choice is not better beyond the noise than the last steps and the base
    (or for moe, than an early start).

    Example: hubmerge select me/cars me/birds --target ties --budget 30m
    """
    moe_spec = read_moe_spec(target, options)
    workers.check(is_merge=moe_spec is None)
    files.check()
    request = make_request(repos, target, options)
    with session.open_hub(options.step_pattern) as hub, session.progress() as progress:
        if moe_spec is None:
            output = _choose_steps(session, hub, request, workers, dry_run, progress)
        else:
            output = choose_starts(session, hub, request, moe_spec, dry_run, progress)
    if output is None:
        return
    files.write(output.lock, session.home / "locks")
    session.print_result(output.tables, output.data)
    for sentence in (*output.notes, output.conclusion(files.lock)):
        session.print_message(sentence)
    if not output.lock.conclusive:
        raise typer.Exit(INCONCLUSIVE)


def _choose_steps(
    session: Session,
    hub: Hub,
    request: SelectRequest,
    workers: WorkerOptions,
    dry_run: bool,
    progress: Progress,
) -> SelectionOutput | None:
    """Choose steps for a merge; a dry run prints the plan and returns None."""
    from hubmerge.flows import select as flow
    from hubmerge.tasks.lm_eval_docs import carved_note

    prepared = flow.prepare_selection(hub, request, progress)
    rows = {split.task.name: len(split.row_order) for split in prepared.splits}
    for note in flow.few_rows_notes(rows):
        session.print_message(f"Note: {note}")
    for note in filter(None, (carved_note(split.task) for split in prepared.splits)):
        session.print_message(f"Note: {note}")
    if proxy_note := prepared.proxy_note:
        session.print_message(f"Note: {proxy_note}")
    if dry_run:
        session.print_result(_plan_table(prepared), _plan_to_json(prepared))
        return None
    log = session.trial_log
    with workers.open(session, prepared) as evaluator:
        result = flow.select(prepared, log, progress, evaluator)
    lock = result.lock
    return SelectionOutput(
        lock=lock,
        tables=selection_tables(lock),
        data=json.loads(lock.to_bytes()),
        notes=[
            *skipped_notes(log),
            *cut_notes(lock.cut),
            *flow.unfinished_notes(prepared.splits),
        ],
        conclusion=partial(describe_conclusion, lock, result.seconds),
    )


def _plan_table(prepared: PreparedSelection) -> Table:
    pool = prepared.pool
    rows: Sequence[tuple[object, ...]] = [
        (
            task.name,
            len(candidates),
            " ".join(str(candidate.step) for candidate in candidates),
            len(split.row_order),
        )
        for task, candidates, split in zip(
            pool.tasks, pool.candidates, prepared.splits, strict=True
        )
    ]
    title = f"would choose for {prepared.method.name}: {', '.join(prepared.policies)}"
    return make_table(("task", "candidates>", "steps", "validation rows>"), rows, title=title)


def _plan_to_json(prepared: PreparedSelection) -> dict[str, object]:
    pool = prepared.pool
    return {
        "target": prepared.method.name,
        "policies": prepared.policies,
        "tasks": {
            task.id: {
                "candidates": [candidate.source.label for candidate in candidates],
                "rows": len(split.row_order),
            }
            for task, candidates, split in zip(
                pool.tasks, pool.candidates, prepared.splits, strict=True
            )
        },
    }
