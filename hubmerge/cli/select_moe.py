"""hubmerge select --target moe"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from hubmerge.cli.options import parse_settings
from hubmerge.cli.selection_tables import (
    SelectionOutput,
    cut_notes,
    format_gain,
    neighbours_table,
    skipped_notes,
)
from hubmerge.cli.tables import format_percent, make_table, text_line
from hubmerge.errors import UsageError
from hubmerge.lock import Lock
from hubmerge.specs import MoeSpec, validate_spec

if TYPE_CHECKING:
    from hubmerge.choosing.merge_selection import SelectRequest
    from hubmerge.choosing.moe_selection import PreparedMoeSelection
    from hubmerge.cli.session import Session
    from hubmerge.flows.select_moe import MoeSelectResult
    from hubmerge.hub.client import Hub
    from hubmerge.progress import Progress

_NULL_SOURCE = "arXiv 2506.14126: undertrained experts are the best start of a mixture"
_LEGEND = (
    "Mean validation accuracy in percent after this many training steps; each number is a run of "
    "its own with a complete schedule. Short runs exaggerate differences and favour late starts. "
    "The intervals count rows only, for one start at a time: another seed changes the numbers too, "
    "and with many starts the best one may be luck."
)


def parse_moe_settings(settings: Sequence[str]) -> MoeSpec:
    """The spec of the mixture in --set; raises UsageError that lists every problem."""
    values = parse_settings(settings, "train_steps=300")
    if "push_every" in values:
        raise UsageError(
            "--set push_every does not change the choice.",
            "Use it when the mixture is trained: `hubmerge moerge --lock ... --push-every`.",
        )
    return validate_spec(MoeSpec, values, "--set")


def choose_starts(
    session: Session,
    hub: Hub,
    request: SelectRequest,
    moe_spec: MoeSpec,
    dry_run: bool,
    progress: Progress,
) -> SelectionOutput | None:
    """Choose the start of a mixture of experts; a dry run prints the plan and returns None."""
    from hubmerge.choosing.moe_selection import MoeSelectRequest
    from hubmerge.flows import select_moe as flow
    from hubmerge.flows.select import few_rows_notes

    extracted = session.home / "extracted"
    moe_request = MoeSelectRequest(**vars(request), moe_spec=moe_spec, extracted=extracted)
    prepared = flow.prepare_moe_selection(hub, moe_request, progress)
    rows = {task.name: prepared.setup.rows[task.id] for task in prepared.setup.pool.tasks}
    for note in few_rows_notes(rows):
        session.print_message(f"Note: {note}")
    if dry_run:
        session.print_result(_plan_table(prepared), _plan_to_json(prepared))
        return None
    log = session.trial_log
    result = flow.select_moe(prepared, log, progress)
    return SelectionOutput(
        lock=result.lock,
        tables=_render(result),
        data=_to_json(result),
        notes=[*skipped_notes(log), *cut_notes(result.lock.cut)],
        conclusion=partial(_conclusion, result),
    )


def _render(result: MoeSelectResult) -> Group:
    lock = result.lock
    null = text_line(f"The null is {lock.rival} ({_NULL_SOURCE}): {_describe_outcome(lock)}.")
    return Group(_race_table(result), neighbours_table(lock), null, text_line(_LEGEND))


def _race_table(result: MoeSelectResult) -> Table:
    """Every start, its accuracy in each round, and its verdict."""
    lock, full = result.lock, result.rounds[0].horizon
    horizons = sorted({round_.horizon for round_ in result.rounds})
    picks = {pick.policy: pick for pick in lock.picks}
    rows = []
    for name in dict.fromkeys([*result.steps, *picks]):
        measured = {r.horizon: r.accuracies[name] for r in result.rounds if name in r.accuracies}
        if name in picks:
            measured[full] = picks[name].accuracy
        steps = result.steps.get(name) or [e.step or 0 for e in picks[name].experts]
        rows.append((
            ("> " if name == lock.chosen else "  ") + name,
            " ".join(map(str, steps)),
            *(format_percent(measured[h]) if h in measured else "" for h in horizons),
            format_gain(lock, picks[name]) if name in picks else "",
            _verdict_of(result, name),
        ))  # fmt: skip
    by_horizon = [f"{horizon}>" for horizon in horizons]
    columns = ("start", "steps", *by_horizon, f"over {lock.rival}>", "verdict")
    return make_table(columns, rows, title="moe: validation % of each start by training steps")


def _verdict_of(result: MoeSelectResult, name: str) -> str:
    lock = result.lock
    pick = next((pick for pick in lock.picks if pick.policy == name), None)
    if name == lock.rival:
        return "the null"
    if pick and pick.gain:
        _, low, high = pick.gain
        verdict = "better" if low > 0 else "worse" if high < 0 else "within the noise"
        return f"{verdict}, chosen" if name == lock.chosen else verdict
    if name in lock.cut:
        return "the budget ended"
    last = [round_ for round_ in result.rounds if name in round_.accuracies][-1]
    return f"out after {last.horizon}"


def _describe_outcome(lock: Lock) -> str:
    if lock.chosen == lock.rival:
        return f"nothing beats {lock.rival} beyond the noise, so {lock.rival} is chosen"
    if lock.conclusive:
        return f"{lock.chosen} beats {lock.rival} beyond the noise, on rows that did not choose"
    if lock.cross_fit is None:
        return f"{lock.chosen} is chosen, and a task has too few rows to measure its gain"
    return f"{lock.chosen} does not beat {lock.rival} beyond the noise on rows that did not choose"


def _conclusion(result: MoeSelectResult, path: Path) -> str:
    """What was gained, at what cost, and the command to run next."""
    lock = result.lock
    cost = (
        f"by {lock.spent.evaluations} mixtures, {result.train_steps} training steps in "
        f"{result.seconds / 60:.1f} minutes"
    )
    build = f"`{lock.build_command(str(path))}` trains it."
    gain = format_gain(lock, lock.pick())
    if lock.conclusive:
        return f"{lock.chosen}: {gain} points over the null, {lock.rival}, {cost}. {build}"
    return f"Inconclusive: {_describe_outcome(lock)}, {cost}. {build}"


def _to_json(result: MoeSelectResult) -> dict[str, object]:
    """The lock, and the rounds of the race."""
    return {
        **json.loads(result.lock.to_bytes()),
        "rungs": [dataclasses.asdict(round_) for round_ in result.rounds],
        "train_steps": result.train_steps,
    }


def _plan_table(prepared: PreparedMoeSelection) -> Group:
    rows = [
        (name, " ".join(map(str, prepared.steps(name))), " ".join(map(str, horizons)))
        for name, horizons in _planned_horizons(prepared)
    ]
    title = f"would choose the start of a mixture; the null is {prepared.starts.null}"
    cost = (
        f"The race takes {prepared.race_steps} training steps; measuring the steps around the "
        f"choice takes at most {prepared.sweep_steps} more. The same is done on each half of the "
        "rows, which trains only what was not trained by then."
    )
    return Group(
        make_table(("start", "steps", "trained for at most"), rows, title=title), text_line(cost)
    )


def _planned_horizons(prepared: PreparedMoeSelection) -> Iterator[tuple[str, Sequence[int]]]:
    for name in prepared.starts.indices:
        yield name, prepared.horizons[-1:] if name in prepared.protected else prepared.horizons


def _plan_to_json(prepared: PreparedMoeSelection) -> dict[str, object]:
    return {
        "target": prepared.request.method,
        "null": prepared.starts.null,
        "starts": {name: list(prepared.steps(name)) for name in prepared.starts.indices},
        "horizons": list(prepared.horizons),
        "race_steps": prepared.race_steps,
        "sweep_steps": prepared.sweep_steps,
    }
