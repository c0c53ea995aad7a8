"""What a selection maximises: the mean accuracy over tasks, or that of the worst task.

A race compares a challenger with the best on the rows that both have. For the worst task, that is
the task on which the best is worst: a challenger that is behind there has a lower minimum.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from hubmerge.selection import noise
from hubmerge.trials import Trial

Objective = Literal["mean", "worst", "pareto"]
OBJECTIVES: tuple[Objective, ...] = ("mean", "worst", "pareto")


def value(trial: Trial, objective: Objective) -> float:
    """Return what is maximised; `pareto` searches for the best mean, and reports the others."""
    if objective == "worst":
        return min(trial.accuracies.values())
    return trial.accuracy


def estimate(trial: Trial, best: Trial, objective: Objective) -> tuple[float, float]:
    """Estimate the value over all rows and its variance from the rows shared with the best."""
    if trial.is_complete:
        return value(trial, objective), 0.0
    if objective != "worst":
        gain, stderr = noise.gain_and_stderr(trial, best)
        return best.accuracy + gain, stderr**2
    guesses = []
    for task, accuracy in best.accuracies.items():
        ours, theirs = _only(trial, task), _only(best, task)
        gain, stderr = noise.gain_and_stderr(ours, theirs)
        guesses.append((accuracy + gain, stderr**2))
    return min(guesses)


def lead(trial: Trial, rival: Trial, objective: Objective) -> tuple[float, float]:
    """Return by how much a trial leads a complete rival, on shared rows, and the standard error."""
    if objective == "worst":
        worst = _worst_task(rival)
        trial, rival = _only(trial, worst), _only(rival, worst)
    return noise.gain_and_stderr(trial, rival)


def _worst_task(trial: Trial) -> str:
    return min(sorted(trial.accuracies), key=lambda task: trial.accuracies[task])


def _only(trial: Trial, task: str) -> Trial:
    return dataclasses.replace(trial, rows={task: trial.rows[task]})


def dominates(trial: Trial, other: Trial) -> bool:
    """Return whether a trial is better than another on some task, and worse on none."""
    ours, theirs = trial.accuracies, other.accuracies
    return ours != theirs and all(ours[task] >= theirs[task] for task in theirs)
