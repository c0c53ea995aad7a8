"""The template variables for what a lock's choice was compared with."""

from __future__ import annotations

from typing import Any

from hubmerge.cards.markdown import escape_markdown, escape_rows
from hubmerge.cards.number_format import percent, points
from hubmerge.lock import Control, Lock
from hubmerge.scores import display_names


def control_variables(lock: Lock) -> dict[str, Any] | None:
    """The variables of the section on controls; None for a lock without cross-fitted gains."""
    fit = lock.cross_fit
    if fit is None:
        return None
    return {
        "rows": escape_rows([_row(lock, control) for control in lock.controls]),
        "steps": " and ".join(", ".join(map(str, steps)) for steps in fit.steps),
        "accuracy": percent(fit.accuracy),
        "rival_accuracy": percent(fit.rival),
        "left_out": escape_markdown(", ".join(lock.left_out)),
        "predicted": None if lock.predicted_gain is None else points(lock.predicted_gain),
    }


def _row(lock: Lock, control: Control) -> dict[str, str]:
    value, low, high = control.gain
    return {
        "name": describe_control(lock, control),
        "accuracy": percent(control.accuracy),
        "gain": f"{points(value)} ({points(low)} to {points(high)})",
    }


def describe_control(lock: Lock, control: Control) -> str:
    """What the choice is compared with, in words."""
    names = display_names(task.id for task in lock.tasks)
    return {
        "base": "the base",
        "expert": f"the best single expert, {control.name}",
        "without": f"without the expert of {names.get(control.name, control.name)}",
        "random": f"random steps, tuned: {control.name}",
    }.get(control.kind, control.name)
