"""The validation curve of a loop, from what its Trainer logged."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

from hubmerge.training_curve import ValidationPoint

_PREFIX = "eval_"
_NOT_METRICS = ("runtime", "samples_per_second", "steps_per_second", "num_tokens")
# In this order; then the first metric with accuracy in its name.
_ACCURACIES = ("accuracy", "mean_token_accuracy")
# Accuracies that are not a mean over rows.
_NOT_OF_ROWS = ("token",)

Metrics = Mapping[str, float]


def read_evaluations(log_history: Iterable[Mapping[str, Any]], last: int) -> dict[int, Metrics]:
    """The metrics of each evaluation up to step `last`, without the prefix of a Trainer."""
    evaluations: dict[int, dict[str, float]] = {}
    for entry in log_history:
        step = int(entry.get("step", -1))
        metrics = plain_metrics({k: v for k, v in entry.items() if k.startswith(_PREFIX)})
        if metrics and 0 <= step <= last:
            evaluations.setdefault(step, {}).update(metrics)
    return dict(sorted(evaluations.items()))


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among metrics, without the prefix and what is no metric."""
    named = {key.removeprefix(_PREFIX): value for key, value in metrics.items()}
    return {
        key: float(value)
        for key, value in named.items()
        if isinstance(value, int | float)
        and math.isfinite(value)
        and not key.endswith(_NOT_METRICS)
    }


def validation_curve(
    evaluations: Mapping[int, Metrics], log_history: Iterable[Mapping[str, Any]], rows: int
) -> tuple[ValidationPoint, ...]:
    """The points of the evaluations that have an accuracy, which is a share of `rows` rows.

    The loss and the learning rate are the last that were logged by then.
    """
    logged = [entry for entry in log_history if "loss" in entry]
    steps = [int(entry.get("step", 0)) for entry in logged]
    points = []
    for step, metrics in evaluations.items():
        if (name := accuracy_name(metrics)) is None:
            continue
        before = bisect_right(steps, step)
        last: Mapping[str, Any] = logged[before - 1] if before else {}
        loss = last.get("loss")
        is_of_rows = not any(word in name for word in _NOT_OF_ROWS)
        points.append(
            ValidationPoint(
                step=step,
                loss=float(loss) if loss is not None and math.isfinite(loss) else None,
                accuracy=metrics[name],
                count=rows if is_of_rows else 0,
                lr=float(last.get("learning_rate") or 0.0),
            )
        )
    return tuple(points)


def accuracy_name(metrics: Metrics) -> str | None:
    """The name of the accuracy among metrics, None if there is none from 0 to 1."""
    named = [key for key in metrics if "accuracy" in key and 0 <= metrics[key] <= 1]
    first = [key for key in _ACCURACIES if key in named]
    return next(iter(first or named), None)
