"""Describes the selection recorded in a lock: candidates and policies, in words and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hubmerge.cards.markdown import escape_formula, escape_markdown, join_names
from hubmerge.cards.number_format import MISSING, percent, points
from hubmerge.lock import Lock, Pick, Swap
from hubmerge.scores import display_names
from hubmerge.source import Source

CSV, CURVES, HEAT_MAP = "selection.csv", "curves.png", "heatmap.png"
_MOST_STEPS, _MOST_TASKS, _MOST_NAMED = 16, 40, 12
_COLUMNS = (
    "what", "name", "step", "commit", "own_accuracy", "merged_accuracy", "standard_error",
    "chosen", "tied",
)  # fmt: skip


@dataclass(frozen=True)
class HeatMap:
    """The candidates of a selection: one row per task, one column per step.

    `chosen` has the index of each row's chosen column, None if that step is not shown.
    """

    tasks: tuple[str, ...]
    steps: tuple[int, ...]
    cells: tuple[tuple[Swap | None, ...], ...]
    chosen: tuple[int | None, ...]

    @property
    def is_measured(self) -> bool:
        """Whether any candidate was measured in the merge."""
        return any(cell and cell.merged is not None for row in self.cells for cell in row)


def heat_map(lock: Lock) -> HeatMap:
    """All candidates of a small selection; of a large one, the doubling steps and the choice.

    If a task has several candidates at one step, the chosen one is shown, else the best.
    """
    experts = lock.pick().experts
    tasks = lock.tasks[:_MOST_TASKS]
    swaps = [lock.swaps.get(task.id, ()) for task in tasks]
    own = [(expert.sha, expert.label) for expert in experts[: len(tasks)]]
    choices = [
        next((swap.step for swap in candidates if (swap.sha, swap.label) == expert), None)
        for candidates, expert in zip(swaps, own, strict=True)
    ]
    steps = _shown_steps(
        {swap.step for candidates in swaps for swap in candidates},
        {step for step in choices if step is not None},
    )
    names = display_names(task.id for task in tasks)
    cells = tuple(
        tuple(_cell(candidates, step, expert) for step in steps)
        for candidates, expert in zip(swaps, own, strict=True)
    )
    chosen = tuple(steps.index(step) if step in steps else None for step in choices)
    return HeatMap(tuple(names[task.id] for task in tasks), steps, cells, chosen)


def experts_alone(lock: Lock) -> dict[int, float]:
    """Step -> mean over tasks of the experts' own accuracies, for steps where all are known."""
    accuracies: dict[int, dict[str, float]] = {}
    for task, swaps in lock.swaps.items():
        for swap in swaps:
            if swap.own is not None:
                best = max(swap.own, accuracies.get(swap.step, {}).get(task, 0.0))
                accuracies.setdefault(swap.step, {})[task] = best
    all_tasks = {task.id for task in lock.tasks}
    return {
        step: math.fsum(own.values()) / len(own)
        for step, own in sorted(accuracies.items())
        if own.keys() == all_tasks
    }


def policy_rows(lock: Lock) -> list[dict[str, str]]:
    """One row per policy: its steps, in the order of the tasks, and their accuracy."""
    return [
        {
            "policy": pick.policy,
            "chosen": "yes" if pick.policy == lock.chosen else "",
            "steps": _format_steps(pick),
            "accuracy": percent(pick.accuracy),
            "stderr": percent(pick.stderr),
            "gain": format_gain(pick.gain) if pick.gain else MISSING,
            "evaluations": str(pick.evaluations),
        }
        for pick in lock.picks
    ]


def format_gain(gain: tuple[float, float, float]) -> str:
    """A gain in points with its 95 % interval: "+1.20 (+0.30 to +2.10)"."""
    return f"{points(gain[0])} ({points(gain[1])} to {points(gain[2])})"


def describe_outcome(lock: Lock) -> str:
    """One Markdown sentence: the chosen policy, and whether its gain is beyond the noise."""
    pick, rival = lock.pick(), escape_markdown(lock.rival)
    policy = f"the policy {escape_markdown(lock.chosen)} on {escape_markdown(lock.split)}"
    gain = f"{format_gain(pick.gain)} points over {rival}" if pick.gain else f"against {rival}"
    if lock.chosen == lock.rival:
        return f"**The selection is inconclusive:** no policy beats {rival} beyond the noise."
    if lock.conclusive:
        return f"Its steps were chosen by {policy}: {gain}, beyond the noise."
    if lock.outcome == "loss":
        return f"**The selection is a loss:** its steps were chosen by {policy}: {gain}."
    base = next((control for control in lock.controls if control.kind == "base"), None)
    if base is not None and pick.gain is not None and pick.gain[1] > 0:
        return (
            f"**No gain:** its steps were chosen by {policy}: {gain}, but only "
            f"{format_gain(base.gain)} over the base."
        )
    return (
        f"**The selection is inconclusive:** the choice of {policy} does not beat {rival} beyond "
        "the noise" + (f" ({gain})." if pick.gain else ".")
    )


def noun(lock: Lock) -> str:
    """The kind of model that the lock's choice is for."""
    return "mixture" if lock.is_moe else "merge"


def participle(lock: Lock) -> str:
    """The participle for a model of that kind."""
    return "mixed" if lock.is_moe else "merged"


def describe_spent(lock: Lock) -> str:
    """The cost of the selection and its budget."""
    spent = lock.spent
    budget = (
        f", of a budget of {escape_markdown(lock.budget)}" if lock.budget else "; no budget was set"
    )
    return f"{spent.evaluations} {noun(lock)}s measured on {spent.examples} examples{budget}."


def describe_heat_map(lock: Lock) -> str:
    """The alternative text of the heat map, as Markdown."""
    table = heat_map(lock)
    chosen, ties, worst = list[str](), list[str](), list[tuple[float, str]]()
    for name, row, index in zip(table.tasks, table.cells, table.chosen, strict=True):
        chosen += [f"{name} step {table.steps[index]}"] if index is not None else []
        others = [cell for column, cell in enumerate(row) if cell and column != index]
        steps = [str(cell.step) for cell in others if cell.tied]
        ties += [f"{name} step {join_names(steps, 4)}"] if steps else []
        worst += [(c.merged, f"{name} step {c.step}") for c in others if c.merged is not None]
    size = f"{_count_of(len(table.tasks), 'task')} by {_count_of(len(table.steps), 'step')}"
    text = (
        f"Heat map of {size}: mean {lock.split} {lock.metric_name} of the {noun(lock)} with one "
        f"expert at another step. The choice reaches {percent(lock.pick().accuracy)} %: "
        f"{join_names(chosen, _MOST_NAMED)}."
    )
    if ties:
        text += f" As good within the noise: {join_names(ties, _MOST_NAMED)}."
    if worst:
        low, where = min(worst)
        text += f" The lowest is {percent(low)} %, with {where}."
    return escape_markdown(text)


def describe_selection(lock: Lock) -> str:
    """The alternative text of the curves, as Markdown."""
    text = f"Mean {lock.split} {lock.metric_name} over the tasks."
    if lock.uniform:
        curve = sorted((point.step, point.accuracy) for point in lock.uniform)
        best = max(curve, key=lambda point: point[1])
        text += f" {participle(lock).capitalize()} at one common step: {_describe_ends(curve)}, "
        text += f"highest at step {best[0]} with {percent(best[1])} %."
    if alone := experts_alone(lock):
        text += f" Experts alone: {_describe_ends(list(alone.items()))}."
    policies = [f"{pick.policy} {percent(pick.accuracy)} %" for pick in lock.picks]
    return escape_markdown(f"{text} Policies: {join_names(policies, _MOST_NAMED)}.")


def selection_csv(lock: Lock) -> str:
    """All numbers of the figures with six digits: candidates, common steps and policies."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_candidate_lines(lock))
    for point in lock.uniform:
        numbers = "", _six_digits(point.accuracy), _six_digits(point.stderr)
        writer.writerow(("uniform", "", point.step, "", *numbers, "", ""))
    for pick in lock.picks:
        numbers = "", _six_digits(pick.accuracy), _six_digits(pick.stderr)
        chosen = int(pick.policy == lock.chosen)
        writer.writerow(
            ("policy", escape_formula(pick.policy), _format_steps(pick), "", *numbers, chosen, "")
        )
    return text.getvalue()


def _candidate_lines(lock: Lock) -> Iterator[tuple[object, ...]]:
    for task, expert in zip(lock.tasks, lock.pick().experts, strict=True):
        for swap in lock.swaps.get(task.id, ()):
            chosen = (swap.sha, swap.label) == (expert.sha, expert.label)
            numbers = _six_digits(swap.own), _six_digits(swap.merged), ""
            marks = int(chosen), int(swap.tied)
            names = escape_formula(task.id), swap.step, escape_formula(swap.sha)
            yield "candidate", *names, *numbers, *marks


def _shown_steps(steps: set[int], chosen: set[int]) -> tuple[int, ...]:
    """All steps if they are few; else the first of each doubling, the chosen ones and the last."""
    if len(steps) > _MOST_STEPS:
        first = {step.bit_length(): step for step in sorted(steps, reverse=True)}
        steps = {*sorted(first.values())[-_MOST_STEPS:], *sorted(chosen)[:_MOST_STEPS], max(steps)}
    return tuple(sorted(steps))


def _cell(swaps: Sequence[Swap], step: int, own: tuple[str, str]) -> Swap | None:
    candidates = [swap for swap in swaps if swap.step == step]
    return max(candidates, key=lambda s: ((s.sha, s.label) == own, s.merged or 0.0), default=None)


def _format_steps(pick: Pick) -> str:
    """The steps of a pick: one if all are equal, each, or the smallest and the largest of many."""
    if any(expert.averaged or expert.weight == 0 for expert in pick.experts):
        return ", ".join(describe_steps(expert) for expert in pick.experts)
    steps = [expert.step for expert in pick.experts]
    known = [step for step in steps if step is not None]
    if not known:
        return MISSING
    if len(set(known)) == 1 and len(known) == len(steps):
        return str(known[0])
    if len(steps) > _MOST_NAMED:
        return f"{min(known)} to {max(known)}"
    return ", ".join(MISSING if step is None else str(step) for step in steps)


def describe_steps(expert: Source) -> str:
    """The step of an expert of a pick, those that are averaged, or that it is left out."""
    if expert.weight == 0:
        return "left out"
    return expert.steps_text if expert.step is not None else MISSING


def _describe_ends(curve: Sequence[tuple[int, float]]) -> str:
    """The first and the last point of a curve: "60.00 % at step 2 to 70.00 % at step 8"."""
    (first, start), (last, end) = curve[0], curve[-1]
    return f"{percent(start)} % at step {first} to {percent(end)} % at step {last}"


def _count_of(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _six_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
