"""What a lock tells of its selection: tasks by steps, and policies; in words and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hubmerge.cards.markdown import inert, listed, plain
from hubmerge.cards.number_format import MISSING, percent, points
from hubmerge.lock import Lock, Pick, Swap
from hubmerge.scores import shown_names

CSV, CURVES, HEAT_MAP = "selection.csv", "curves.png", "heatmap.png"
_MOST_STEPS, _MOST_TASKS, _MOST_NAMED = 16, 40, 12
_COLUMNS = (
    "what", "name", "step", "commit", "own_accuracy", "merged_accuracy", "standard_error",
    "chosen", "tied",
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The candidates by task and step: rows are names of tasks, columns are steps.

    `chosen` has a column of each row, None where the choice is at a step that is not shown.
    """

    tasks: tuple[str, ...]
    steps: tuple[int, ...]
    cells: tuple[tuple[Swap | None, ...], ...]
    chosen: tuple[int | None, ...]

    @property
    def is_measured(self) -> bool:
        """Whether any candidate beside the choice was measured in the merge."""
        return any(cell and cell.merged is not None for row in self.cells for cell in row)


def grid(lock: Lock) -> Grid:
    """All candidates of a small selection; of a large one, steps by their doublings and the choice.

    Of several candidates of one task and step the chosen one is shown, else the best.
    """
    picked = lock.pick().experts
    tasks = lock.tasks[:_MOST_TASKS]
    swaps = [lock.swaps.get(task.id, ()) for task in tasks]
    own = [(expert.sha, expert.label) for expert in picked[: len(tasks)]]
    choices = [
        next((swap.step for swap in its if (swap.sha, swap.label) == mine), None)
        for its, mine in zip(swaps, own, strict=True)
    ]
    steps = _shown_steps(
        {swap.step for its in swaps for swap in its}, {step for step in choices if step is not None}
    )
    names = shown_names(task.id for task in tasks)
    cells = tuple(
        tuple(_cell(its, step, mine) for step in steps)
        for its, mine in zip(swaps, own, strict=True)
    )
    chosen = tuple(steps.index(step) if step in steps else None for step in choices)
    return Grid(tuple(names[task.id] for task in tasks), steps, cells, chosen)


def experts_alone(lock: Lock) -> dict[int, float]:
    """Step -> mean over tasks of the experts' own accuracies, where all of them are known."""
    found: dict[int, dict[str, float]] = {}
    for task, swaps in lock.swaps.items():
        for swap in swaps:
            if swap.own is not None:
                best = max(swap.own, found.get(swap.step, {}).get(task, 0.0))
                found.setdefault(swap.step, {})[task] = best
    whole = {task.id for task in lock.tasks}
    return {
        step: math.fsum(own.values()) / len(own)
        for step, own in sorted(found.items())
        if own.keys() == whole
    }


def policy_rows(lock: Lock) -> list[dict[str, str]]:
    """One row per policy: the steps it took, in the order of the tasks, and what they reach."""
    return [
        {
            "policy": pick.policy,
            "chosen": "yes" if pick.policy == lock.chosen else "",
            "steps": _steps_of(pick),
            "accuracy": percent(pick.accuracy),
            "stderr": percent(pick.stderr),
            "gain": gain_words(pick.gain) if pick.gain else MISSING,
            "evaluations": str(pick.evaluations),
        }
        for pick in lock.picks
    ]


def gain_words(gain: tuple[float, float, float]) -> str:
    """A gain in points with its 95 % interval: "+1.20 (+0.30 to +2.10)"."""
    return f"{points(gain[0])} ({points(gain[1])} to {points(gain[2])})"


def verdict(lock: Lock) -> str:
    """The outcome in a sentence, as Markdown: who chose, and whether that is beyond the noise."""
    pick, rival = lock.pick(), plain(lock.rival)
    chose = f"the policy {plain(lock.chosen)} chose on {plain(lock.split)}"
    gain = f"{gain_words(pick.gain)} points over {rival}" if pick.gain else f"against {rival}"
    if lock.chosen == lock.rival:
        return f"**The selection is inconclusive:** no policy beats {rival} beyond the noise."
    if lock.conclusive:
        return f"Its steps are those that {chose}: {gain} there, beyond the noise."
    return (
        f"**The selection is inconclusive:** what {chose} does not beat {rival} beyond the noise"
        + (f" ({gain})." if pick.gain else ".")
    )


def noun(lock: Lock) -> str:
    """What the lock's choice is made into."""
    return "mixture" if lock.is_mixture else "merge"


def made(lock: Lock) -> str:
    """How that is made, as a participle."""
    return "mixed" if lock.is_mixture else "merged"


def spent_words(lock: Lock) -> str:
    """What choosing cost."""
    spent = lock.spent
    budget = f", of a budget of {plain(lock.budget)}" if lock.budget else "; no budget was set"
    return f"{spent.evaluations} {noun(lock)}s measured on {spent.examples} examples{budget}."


def heat_map_words(lock: Lock) -> str:
    """What the heat map shows, for those who cannot see it, as Markdown."""
    shown = grid(lock)
    chosen, ties, worst = list[str](), list[str](), list[tuple[float, str]]()
    for name, row, place in zip(shown.tasks, shown.cells, shown.chosen, strict=True):
        chosen += [f"{name} step {shown.steps[place]}"] if place is not None else []
        others = [cell for column, cell in enumerate(row) if cell and column != place]
        steps = [str(cell.step) for cell in others if cell.tied]
        ties += [f"{name} step {listed(steps, 4)}"] if steps else []
        worst += [(c.merged, f"{name} step {c.step}") for c in others if c.merged is not None]
    said = (
        f"Heat map of {_counted(len(shown.tasks), 'task')} by {_counted(len(shown.steps), 'step')}:"
        f" mean {lock.split} accuracy of the {noun(lock)} with one expert at another step. The "
        f"choice reaches {percent(lock.pick().accuracy)} %: {listed(chosen, _MOST_NAMED)}."
    )
    if ties:
        said += f" As good within the noise: {listed(ties, _MOST_NAMED)}."
    if worst:
        low, where = min(worst)
        said += f" The lowest is {percent(low)} %, with {where}."
    return plain(said)


def selection_words(lock: Lock) -> str:
    """What the curves show, for those who cannot see them, as Markdown."""
    said = f"Mean {lock.split} accuracy over the tasks."
    if lock.uniform:
        curve = sorted((point.step, point.accuracy) for point in lock.uniform)
        best = max(curve, key=lambda point: point[1])
        said += f" {made(lock).capitalize()} at one common step: {_course(curve)}, highest at step "
        said += f"{best[0]} with {percent(best[1])} %."
    if alone := experts_alone(lock):
        said += f" Experts alone: {_course(list(alone.items()))}."
    policies = [f"{pick.policy} {percent(pick.accuracy)} %" for pick in lock.picks]
    return plain(f"{said} Policies: {listed(policies, _MOST_NAMED)}.")


def selection_csv(lock: Lock) -> str:
    """Everything the figures show, a line each: candidates, common steps, policies; six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_candidate_lines(lock))
    for point in lock.uniform:
        writer.writerow(
            ("uniform", "", point.step, "", "", _six(point.accuracy), _six(point.stderr), "", "")
        )
    for pick in lock.picks:
        numbers = "", _six(pick.accuracy), _six(pick.stderr)
        chosen = int(pick.policy == lock.chosen)
        writer.writerow(("policy", inert(pick.policy), _steps_of(pick), "", *numbers, chosen, ""))
    return text.getvalue()


def _candidate_lines(lock: Lock) -> Iterator[tuple[object, ...]]:
    for task, expert in zip(lock.tasks, lock.pick().experts, strict=True):
        for swap in lock.swaps.get(task.id, ()):
            chosen = (swap.sha, swap.label) == (expert.sha, expert.label)
            numbers = _six(swap.own), _six(swap.merged), ""
            marks = int(chosen), int(swap.tied)
            yield "candidate", inert(task.id), swap.step, inert(swap.sha), *numbers, *marks


def _shown_steps(steps: set[int], chosen: set[int]) -> tuple[int, ...]:
    if len(steps) > _MOST_STEPS:
        first = {step.bit_length(): step for step in sorted(steps, reverse=True)}
        steps = {*sorted(first.values())[-_MOST_STEPS:], *sorted(chosen)[:_MOST_STEPS], max(steps)}
    return tuple(sorted(steps))


def _cell(swaps: Sequence[Swap], step: int, own: tuple[str, str]) -> Swap | None:
    here = [swap for swap in swaps if swap.step == step]
    return max(here, key=lambda s: ((s.sha, s.label) == own, s.merged or 0.0), default=None)


def _steps_of(pick: Pick) -> str:
    """The steps of a pick: each, or from the least to the largest where there are many."""
    steps = [expert.step for expert in pick.experts]
    known = [step for step in steps if step is not None]
    if not known:
        return MISSING
    if len(set(known)) == 1 and len(known) == len(steps):
        return str(known[0])
    if len(steps) > _MOST_NAMED:
        return f"{min(known)} to {max(known)}"
    return ", ".join(MISSING if step is None else str(step) for step in steps)


def _course(curve: Sequence[tuple[int, float]]) -> str:
    (first, start), (last, end) = curve[0], curve[-1]
    return f"{percent(start)} % at step {first} to {percent(end)} % at step {last}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _six(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
