"""Measure a task by another metric than that of its definition."""

from __future__ import annotations

import dataclasses

from hubmerge.errors import UsageError
from hubmerge.refs import printable
from hubmerge.specs import GENERATION_METRICS, LIKELIHOOD, RETRIEVAL_METRICS, Kind
from hubmerge.tasks.lm_eval_name import LmEvalTask
from hubmerge.tasks.metric_function import metric_function_id
from hubmerge.tasks.task import Task

# The metrics that only evaluation has: less is better.
LOSSES = ("loss", "perplexity")
CALIBRATION = "calibration_error"
_METRICS_BY_KIND: dict[Kind, tuple[str, ...]] = {
    "image": ("accuracy", CALIBRATION),
    "text": ("accuracy", CALIBRATION),
    "rank": ("accuracy", CALIBRATION, *GENERATION_METRICS),
    "target": ("token_accuracy", *GENERATION_METRICS, LIKELIHOOD, *LOSSES),
    "pairs": RETRIEVAL_METRICS,
}


def with_metric(task: Task, metric: str | None) -> Task:
    """The task measured by a metric: one of its kind, or a function, as module:function.

    None keeps the metric of the task. Raises UsageError for one that does not fit, and for a
    function that cannot be imported.
    """
    if metric is None or metric == task.metric:
        return task
    if task.lm_eval is not None:
        return _with_lm_eval_metric(task, task.lm_eval, metric)
    kind = task.spec.kind
    has_answers = kind in ("rank", "target") and task.spec.format != "text"
    if ":" in metric and has_answers:
        return dataclasses.replace(task, chosen_metric=metric_function_id(metric))
    allowed = _METRICS_BY_KIND[kind]
    if task.spec.format == "text":
        allowed = ("token_accuracy", LIKELIHOOD, *LOSSES)
    if metric not in allowed:
        raise UsageError(
            f"Task {task.name} cannot be measured by {printable(metric) or repr(metric)}.",
            f"Use one of {', '.join(allowed)}"
            + (", or a function of your own, as module:function." if has_answers else "."),
        )
    chosen = None if metric == task.spec.metric else metric
    return dataclasses.replace(task, chosen_metric=chosen)


def _with_lm_eval_metric(task: Task, found: LmEvalTask, metric: str) -> Task:
    chosen = found.find_metric(metric)
    if chosen is None:
        raise UsageError(
            f"Task {task.name} cannot be measured by {printable(metric)}.",
            f"Use one of {'; '.join(map(printable, found.metrics))}.",
        )
    return dataclasses.replace(task, chosen_metric=None if chosen == found.metrics[0] else chosen)


def metric_of_id(task_id: str) -> tuple[str, str | None]:
    """A task's id as in its definition, and the metric that was chosen instead, None for none."""
    own_id, _, metric = task_id.partition("+")
    return own_id, metric or None
