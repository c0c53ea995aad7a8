"""Numbers of a lock that follow from others: accuracies, errors, gains, and what they say.

What is measured cannot be checked here: `hubmerge verify --evidence` measures it again. What
follows from it can: a lock with an edited accuracy, gain or conclusion is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hubmerge.kinds import MOE
from hubmerge.lock import CrossFitted, Lock, Pick, Swap
from hubmerge.source import Source

_ROUNDING = 1e-9
_NORMAL_95 = 1.96
# A bootstrap's interval differs from the normal one by its draws and by the skew of few rows.
_INTERVAL = 0.35


def find_number_problems(lock: Lock) -> Iterator[str]:
    """Yield a sentence for each number of a lock that does not follow from the others.

    `lock` must have its chosen pick and its rival, and one expert a task in every pick.
    """
    rows = {task.id: task.rows for task in lock.tasks}
    for pick in lock.picks:
        yield from _pick_problems(lock, pick, rows)
    yield from _conclusion_problems(lock)
    if lock.cross_fit is not None:
        yield from _fold_problems(lock, lock.cross_fit, rows)
    yield from _control_problems(lock)
    for task_id in sorted(lock.swaps.keys() & rows.keys()):
        yield from _swap_problems(lock, task_id, lock.swaps[task_id])
    if unknown := lock.swaps.keys() - rows.keys():
        yield f"it has swaps of {min(unknown)[:40]!r}, which is not a task."
    yield from _curve_problems(lock)


def _pick_problems(lock: Lock, pick: Pick, rows: Mapping[str, int]) -> Iterator[str]:
    name = f"pick {pick.policy[:40]!r}"
    if missing := rows.keys() - pick.tasks.keys():
        yield f"{name} has no accuracy on {min(missing)[:40]!r}."
    if missing or pick.tasks.keys() - rows.keys():
        return
    graded = _graded_tasks(lock)
    for task, accuracy in pick.tasks.items():
        right = accuracy * rows[task]
        is_share = task in graded or abs(right - round(right)) <= 1e-6
        if rows[task] == 0 or not is_share:
            yield (
                f"{name} has accuracy {accuracy:.6g} on {task[:40]!r}, which is no share of its "
                f"{rows[task]} rows."
            )
            return
    accuracies = list(pick.tasks.values())
    mean = math.fsum(accuracies) / len(rows)
    spread = math.fsum(a * (1 - a) / rows[task] for task, a in pick.tasks.items())
    yield from _difference(f"the accuracy of {name}", pick.accuracy, mean)
    most = math.sqrt(spread) / len(rows)
    if graded:  # numbers between 0 and 1 vary at most as much as answers that are right or wrong
        if not 0 <= pick.stderr <= most + _ROUNDING:
            yield f"the standard error of {name} is {pick.stderr:.6g}, and at most {most:.6g}."
    else:
        yield from _difference(f"the standard error of {name}", pick.stderr, most)
    if pick.gain is not None:
        yield from _gain_problems(name, lock, pick, rows)
    if pick.evaluations > lock.spent.evaluations:
        yield (
            f"{name} was found after {pick.evaluations} merges, and the selection measured "
            f"{lock.spent.evaluations}."
        )
    if lock.method != MOE and lock.swaps:
        for locked, expert in zip(lock.tasks, pick.experts, strict=True):
            yield from _expert_problems(name, expert, lock.swaps.get(locked.id, ()))


def _conclusion_problems(lock: Lock) -> Iterator[str]:
    """A choice gains if its interval is above zero, and over the last steps that over the base."""
    gain = lock.pick().gain
    is_above = gain is not None and gain[1] > 0
    over_base = [c.gain for c in lock.controls if c.kind == "base" and lock.rival != "locked"]
    beats_base = all(low > 0 for _, low, _ in over_base)
    if lock.conclusive != (is_above and beats_base):
        yield (
            f"it has conclusive = {lock.conclusive}, and the gain of {lock.chosen[:40]!r} is "
            f"{_points(gain)}."
        )
    if lock.outcome is None:
        return
    outcome = "loss" if gain is not None and gain[2] < 0 else "inconclusive"
    if lock.outcome != ("gain" if is_above and beats_base else outcome):
        yield f"its outcome is {lock.outcome}, and the gain of the choice is {_points(gain)}."


def _fold_problems(lock: Lock, fit: CrossFitted, rows: Mapping[str, int]) -> Iterator[str]:
    """Compare the choices of the folds with the tasks, and their accuracy with what was counted."""
    if len(fit.chosen) != len(fit.steps) or {len(steps) for steps in fit.steps} != {len(rows)}:
        yield f"its cross-fitted choices are not one step for each of {len(rows)} tasks."
    if fit.counts.keys() != rows.keys() or 0 in rows.values() or _graded_tasks(lock):
        return
    # The rival is right where the choice is worse, and wrong where it is better.
    right = [worse / rows[task] for task, (worse, _, _) in fit.counts.items()]
    wrong = [better / rows[task] for task, (_, _, better) in fit.counts.items()]
    least, most = math.fsum(right) / len(rows), 1 - math.fsum(wrong) / len(rows)
    if not least - _ROUNDING <= fit.rival <= most + _ROUNDING:
        yield (
            f"the cross-fitted accuracy of {lock.rival[:40]!r} is {fit.rival:.6g}, and by what was "
            f"counted it is between {least:.6g} and {most:.6g}."
        )


def _control_problems(lock: Lock) -> Iterator[str]:
    """The gain over a control is a difference of two accuracies that are there."""
    fit = lock.cross_fit
    for control in lock.controls:
        name = f"the control {control.kind[:40]!r}"
        if fit is None:
            yield f"{name} is there, and no accuracy on rows that did not choose."
            continue
        gain, low, high = control.gain
        if not low <= gain <= high:
            yield f"the interval over {name} does not hold the gain: {_points(control.gain)}."
        yield from _difference(f"the gain over {name}", gain, fit.accuracy - control.accuracy)


def _gain_problems(name: str, lock: Lock, pick: Pick, rows: Mapping[str, int]) -> Iterator[str]:
    assert pick.gain is not None
    rival, fit = lock.pick(lock.rival), lock.cross_fit
    gain, low, high = pick.gain
    if pick.policy == rival.policy:
        if pick.gain != (0, 0, 0):
            yield f"{name} is the one to beat, and has a gain of {_points(pick.gain)}."
        return
    if not low <= gain <= high:
        yield f"the interval of {name} does not hold its gain: {_points(pick.gain)}."
        return
    if fit is not None:
        if pick.policy == lock.chosen:
            is_graded = bool(_graded_tasks(lock))
            yield from _cross_fit_problems(name, fit, pick.gain, rows, is_graded)
        return
    if rival.tasks.keys() != rows.keys():
        return
    yield from _difference(f"the gain of {name}", gain, pick.accuracy - rival.accuracy)
    if not _graded_tasks(lock):
        widths = _interval_widths(pick.tasks, rival.tasks, rows)
        yield from _width_problems(name, pick.gain, *widths)


def _graded_tasks(lock: Lock) -> set[str]:
    """The tasks whose rows have numbers between right and wrong, which counts do not determine."""
    return {task.id for task in lock.tasks if not task.is_binary}


def _cross_fit_problems(
    name: str,
    fit: CrossFitted,
    gain: tuple[float, float, float],
    rows: Mapping[str, int],
    is_graded: bool,
) -> Iterator[str]:
    """Compare the gain of the choice with what was counted on rows that did not choose."""
    yield from _difference(f"the gain of {name}", gain[0], fit.accuracy - fit.rival)
    seeds = _NORMAL_95 * (fit.seed_stderr or 0.0)
    if min(gain[0] - gain[1], gain[2] - gain[0]) < seeds * (1 - _ROUNDING):
        yield (
            f"the interval of {name} ends {_points(gain[1:])}, and does not include its standard "
            f"error of {100 * seeds / _NORMAL_95:.2f} points between seeds."
        )
    if not fit.counts:
        return
    if {task: sum(counts) for task, counts in fit.counts.items()} != rows:
        yield "its cross-fitted rows are not the rows of its tasks."
        return
    if is_graded:
        return
    variance, mean = 0.0, 0.0
    for worse, same, better in fit.counts.values():
        count = worse + same + better
        share = (better - worse) / count
        mean += share / len(rows)
        variance += ((worse + better) / count - share**2) / max(count - 1, 1)
    yield from _difference(f"the gain of {name}", gain[0], mean)
    width = _NORMAL_95 * math.sqrt(variance) / len(rows)
    grain = 2 / (len(rows) * min(rows.values()))
    # The spread between seeds widens the interval.
    most = math.inf if fit.seed_stderr else (1 + _INTERVAL) * width + grain
    yield from _width_problems(name, gain, (1 - _INTERVAL) * width - grain, most)


def _width_problems(
    name: str, interval: tuple[float, float, float], least: float, most: float
) -> Iterator[str]:
    gain, low, high = interval
    for end, width in ((low, gain - low), (high, high - gain)):
        if not least <= width <= most:
            yield (
                f"the interval of {name} ends {_points((end,))}, and for a gain of "
                f"{_points((gain,))} on so many rows it is between {100 * least:.2f} and "
                f"{100 * most:.2f} points wide on each side."
            )
            return


def _interval_widths(
    ours: Mapping[str, float], theirs: Mapping[str, float], rows: Mapping[str, int]
) -> tuple[float, float]:
    """Return how wide the half of a 95 % interval of a paired difference is, at least and at most.

    Of n rows with accuracies a and b, between n |a - b| and n min(a + b, 2 - a - b) have answers
    that differ.
    """
    variances = [0.0, 0.0]
    for task, count in rows.items():
        a, b = ours[task], theirs[task]
        for index, share in enumerate((abs(a - b), min(a + b, 2 - a - b))):
            variances[index] += max(share - (a - b) ** 2, 0.0) / max(count - 1, 1)
    least, most = (_NORMAL_95 * math.sqrt(variance) / len(rows) for variance in variances)
    grain = 2 / (len(rows) * min(rows.values()))
    return (1 - _INTERVAL) * least - grain, (1 + _INTERVAL) * most + grain


def _expert_problems(name: str, expert: Source, swaps: tuple[Swap, ...]) -> Iterator[str]:
    """Compare an expert of a pick with the candidates of its task."""
    known = next(
        (swap for swap in swaps if (swap.sha, swap.label) == (expert.sha, expert.label)), None
    )
    if known is None:
        yield f"{name} has {expert.label[:80]}, which is no candidate of its task."
        return
    if expert.step is not None and expert.step != known.step:
        yield f"{name} has {expert.label[:80]} at step {expert.step}, and it is step {known.step}."
    own = [swap.step for swap in swaps if swap.label.partition("@")[0] == expert.name]
    last = max(own, default=0)
    if expert.last_step is not None and last > expert.last_step:
        yield (
            f"{name} says that the last step of {expert.name[:80]} is {expert.last_step}, and "
            f"step {last} is a candidate."
        )


def _swap_problems(lock: Lock, task_id: str, swaps: tuple[Swap, ...]) -> Iterator[str]:
    chosen = lock.pick()
    number = [task.id for task in lock.tasks].index(task_id)
    expert = chosen.experts[number]
    for swap in swaps:
        label = swap.label[:80]
        if swap.tied and swap.merged is None:
            yield f"{label} is tied with the choice, and was not measured."
        is_chosen = (swap.sha, swap.label) == (expert.sha, expert.label)
        if is_chosen and swap.merged is not None:
            yield from _difference(f"the merge with {label}", swap.merged, chosen.accuracy)


def _curve_problems(lock: Lock) -> Iterator[str]:
    steps = [point.step for point in lock.uniform]
    if steps != sorted(set(steps)):
        yield "the steps of its curve do not rise."
    by_step = {point.step: point for point in lock.uniform}
    for pick in lock.picks:
        common = {expert.step for expert in pick.experts}
        if pick.policy != "uniform" or len(common) != 1:
            continue
        point = by_step.get(common.pop() or 0)
        if point is not None:
            yield from _difference("the curve at its best step", point.accuracy, pick.accuracy)
            yield from _difference("the error of the curve", point.stderr, pick.stderr)


def _difference(what: str, found: float, expected: float) -> Iterator[str]:
    if not abs(found - expected) <= _ROUNDING:
        yield f"{what} is {found:.6g}, and follows to be {expected:.6g}."


def _points(values: tuple[float, ...] | None) -> str:
    return "none" if values is None else " to ".join(f"{100 * value:+.2f}" for value in values)
