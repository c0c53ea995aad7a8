"""The tables of a selection: the choice of each policy, and the steps around the best choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.console import Group
from rich.table import Table

from hubmerge.cli.control_tables import control_tables, format_interval
from hubmerge.cli.tables import format_percent, make_table, text_line
from hubmerge.lock import Lock, Pick, Swap
from hubmerge.scores import display_names
from hubmerge.trials import TrialLog


@dataclass(frozen=True)
class SelectionOutput:
    """What a selection prints: its tables, its data as JSON, and notes.

    `conclusion` takes the path of the lock and returns the last sentence: what was gained, at what
    cost, and the command to run next.
    """

    lock: Lock
    tables: Group
    data: object
    notes: Sequence[str]
    conclusion: Callable[[Path], str]


_MAX_COLUMNS = 14
_LEGEND = (
    "Mean validation {} of the model with this step in place of the chosen one: [chosen], = within "
    "its noise, . not measured."
)


def selection_tables(lock: Lock) -> Group:
    """The choice of each policy, the steps around the best choice, and the controls."""
    parts = [_policies_table(lock), *neighbours_table(lock).renderables]
    if lock.cross_fit is not None:
        parts += control_tables(lock)
    return Group(*parts)


def neighbours_table(lock: Lock) -> Group:
    """The accuracy of the chosen model with one expert at another step."""
    return Group(_steps_table(lock), text_line(_LEGEND.format(lock.metric_name)))


def _policies_table(lock: Lock) -> Table:
    rows = [_policy_row(lock, pick) for pick in lock.picks]
    columns = (
        "policy", "steps", "parameters", "validation %>", f"over {lock.rival}>", "merges so far>",
    )  # fmt: skip
    by = "" if lock.metric_name == "accuracy" else f", by {lock.metric_name}"
    title = f"{lock.method}: the choice of each policy ({', '.join(_task_names(lock))}{by})"
    return make_table(columns, rows, title=title)


def _policy_row(lock: Lock, pick: Pick) -> tuple[object, ...]:
    marker = "> " if pick.policy == lock.chosen else "  "
    cut = " (cut short)" if pick.policy in lock.cut else ""
    steps = " ".join("out" if expert.weight == 0 else expert.steps_text for expert in pick.experts)
    accuracy = f"{format_percent(pick.accuracy)} ± {format_percent(pick.stderr)}"
    return (
        f"{marker}{pick.policy}{cut}", steps, _describe_parameters(pick), accuracy,
        format_gain(lock, pick), pick.evaluations,
    )  # fmt: skip


def format_gain(lock: Lock, pick: Pick) -> str:
    """The gain of a pick over the rival with its interval, in points; empty for the rival."""
    if not pick.gain or pick.policy == lock.rival:
        return ""
    return format_interval(pick.gain)


def _describe_parameters(pick: Pick) -> str:
    """The tuned values: numeric parameters, and values that experts have of their own."""
    parts = [f"{name} {value:g}" for name, value in pick.params.items() if type(value) is float]
    parts += [
        f"{name} {' '.join(f'{number:g}' for number in value)}"
        for name, value in pick.params.items()
        if isinstance(value, list)
    ]
    for name in ("weight", "keep", "intruders"):
        values = [getattr(expert, name) for expert in pick.experts]
        if set(values) != {1.0}:
            parts.append(f"{name}s " + " ".join(f"{value:g}" for value in values))
    return ", ".join(parts) or "-"


def _steps_table(lock: Lock) -> Table:
    """Tasks by steps; if there are too many steps, those that were measured."""
    # By label: one commit may hold many checkpoint-N folders.
    chosen = {expert.label for expert in lock.pick().experts}
    steps = sorted({swap.step for row in lock.swaps.values() for swap in row})
    if len(steps) > _MAX_COLUMNS:
        swaps = chain.from_iterable(lock.swaps.values())
        measured = {swap.step for swap in swaps if swap.merged is not None or swap.label in chosen}
        steps = sorted(measured)[-_MAX_COLUMNS:]
    rows = []
    for name, task in zip(_task_names(lock), lock.tasks, strict=True):
        swaps_of_task = lock.swaps[task.id]
        by_step = {swap.step: swap for swap in reversed(swaps_of_task)}
        by_step |= {s.step: s for s in reversed(swaps_of_task) if s.merged is not None}
        by_step |= {swap.step: swap for swap in swaps_of_task if swap.label in chosen}
        rows.append((name, *(_step_cell(by_step.get(step), chosen) for step in steps)))
    return make_table(("task", *(f"{step}>" for step in steps)), rows)


def _step_cell(swap: Swap | None, chosen: set[str]) -> str:
    if swap is None:
        return ""
    if swap.label in chosen:
        return f"[{format_percent(swap.merged)}]"
    if swap.merged is None:
        return "."
    return ("=" if swap.tied else "") + format_percent(swap.merged)


def _task_names(lock: Lock) -> list[str]:
    return list(display_names(task.id for task in lock.tasks).values())


def describe_conclusion(lock: Lock, seconds: float, path: Path) -> str:
    """What was gained, at what cost, and the command to run next."""
    cost = f"{lock.spent.evaluations} merges in {seconds / 60:.1f} minutes"
    return f"{_describe_outcome(lock)}, by {cost}. `{lock.build_command(str(path))}` builds it."


def _describe_outcome(lock: Lock) -> str:
    """What was gained on rows that did not choose, without a full stop."""
    pick, base = lock.pick(), next((c for c in lock.controls if c.kind == "base"), None)
    rival = lock.pick(lock.rival)
    if (pick.experts, pick.params) == (rival.experts, rival.params) and not lock.conclusive:
        return f"Inconclusive: nothing beats {lock.rival} on validation"
    if pick.gain is None:
        return (
            f"Inconclusive: the gain of {lock.chosen} was not measured, because the budget or the "
            "rows do not suffice for a choice on each half of the rows"
        )
    gain = f"{format_interval(pick.gain)} points over {lock.rival}"
    if lock.conclusive:
        return f"{lock.chosen}: {gain}, 95 % interval on rows that did not choose"
    if lock.outcome == "loss":
        return f"A loss: {lock.chosen} is {gain}, beyond the noise; {lock.rival} is better"
    if base is not None and pick.gain[1] > 0:
        return (
            f"No gain: {lock.chosen} is {gain}, but {format_interval(base.gain)} over the base, "
            "which is within the noise or below it"
        )
    return f"Inconclusive: {lock.chosen} is {gain}; more validation examples may decide it"


def cut_notes(names: Sequence[str]) -> Iterator[str]:
    """Yield the note that the budget ended policies, or trainings of starts, early."""
    if names:
        yield f"The budget ended early for {', '.join(names)}."


def skipped_notes(log: TrialLog) -> Iterator[str]:
    """Yield the note that lines of a log could not be used."""
    if log.skipped:
        lines = "1 line" if log.skipped == 1 else f"{log.skipped} lines"
        yield f"Skipped {lines} of {log.path}: no trials of this version of hubmerge."
