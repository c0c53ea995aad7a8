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
        "left_out": escape_markdown(describe_left_out(lock)),
        "predicted": None if lock.predicted_gain is None else points(lock.predicted_gain),
    }


def _row(lock: Lock, control: Control) -> dict[str, str]:
    value, low, high = control.gain
    return {
        "name": describe_control(lock, control.kind, control.name),
        "accuracy": percent(control.accuracy),
        "gain": f"{points(value)} ({points(low)} to {points(high)})",
    }


def describe_control(lock: Lock, kind: str, name: str) -> str:
    """What the choice is compared with, in words."""
    names = display_names(task.id for task in lock.tasks)
    return {
        "base": "the base",
        "expert": f"the best single expert, {name}" if name else "the best single expert",
        "without": f"without the expert of {names.get(name, name)}",
        "random": f"random steps, tuned: {name}",
    }.get(kind, name)


def describe_left_out(lock: Lock) -> str:
    """The controls for which the budget did not suffice, in words."""
    parts = (text.partition(" ") for text in lock.left_out)
    return "; ".join(describe_control(lock, kind, name) for kind, _, name in parts)
