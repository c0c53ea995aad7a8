"""The task of each repository of a selection, if its results can be compared row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from hubmerge.errors import DataError, Failures, UsageError
from hubmerge.hub.client import Hub
from hubmerge.opening.opened_model import PinnedModel
from hubmerge.opening.references import pin_task
from hubmerge.opening.trained_tasks import find_trained_tasks
from hubmerge.refs import ModelRef, printable
from hubmerge.specs import GENERATION_METRICS, LIKELIHOOD
from hubmerge.tasks.chosen_metric import CALIBRATION, LOSSES, with_metric
from hubmerge.tasks.lm_eval_name import LmEvalTask
from hubmerge.tasks.task import Task

# Sums over the tokens of all rows.
_NOT_OF_ROWS = ("token_accuracy", CALIBRATION, *LOSSES)


def find_tasks(
    hub: Hub,
    lasts: Mapping[ModelRef, PinnedModel],
    tasks: Sequence[Task],
    metric: str | None,
    assigned: Mapping[ModelRef, Task],
) -> dict[ModelRef, Task]:
    """The task of each repository by its last step, and by `metric` if there is one.

    `assigned` has the tasks of repositories that need none of `tasks`. Raises UsageError or
    DataError, also for a task that cannot be selected for.
    """
    others = {ref: [last] for ref, last in lasts.items() if ref not in assigned}
    found = _assign_tasks(hub, others, [pin_task(hub, task) for task in tasks], metric)
    by_ref = {ref: assigned.get(ref) or found[ref] for ref in lasts}
    task_of_ref = {ref: with_metric(task, metric) for ref, task in by_ref.items()}
    _check_metrics(list(task_of_ref.values()))
    return task_of_ref


def _assign_tasks(
    hub: Hub,
    pinned_by_ref: Mapping[ModelRef, Sequence[PinnedModel]],
    tasks: Sequence[Task],
    metric: str | None,
) -> dict[ModelRef, Task]:
    """Find the task of each repository: the one its manifests name, or the one at its position."""
    failures, task_of_ref = Failures(), dict[ModelRef, Task]()
    for index, (ref, steps) in enumerate(pinned_by_ref.items()):
        by_position = tasks[index] if len(tasks) == len(pinned_by_ref) else None
        task = failures.run(partial(_assign_task, hub, ref, steps, tasks, by_position, metric))
        if task is not None:
            task_of_ref[ref] = task
    failures.raise_all()
    assigned = {task.id for task in task_of_ref.values()}
    if unassigned := [task.name for task in tasks if task.id not in assigned]:
        raise UsageError(
            f"No repository is for {', '.join(unassigned)}: the manifests name other tasks.",
            "Write --tasks in the order of the repositories.",
        )
    return task_of_ref


def _assign_task(
    hub: Hub,
    ref: ModelRef,
    steps: Sequence[PinnedModel],
    tasks: Sequence[Task],
    by_position: Task | None,
    metric: str | None,
) -> Task:
    if not tasks:
        return find_trained_tasks(hub, steps[-1], metric)[0]
    named = manifest_tasks(ref, steps)
    task = next((task for task in tasks if task.id in named), by_position)
    if task is None:
        raise UsageError(
            f"{ref} does not name which of the {len(tasks)} tasks it was trained for.",
            "Write --tasks with one task for each repository, in the same order.",
        )
    return task


def manifest_tasks(ref: ModelRef, pinned: Sequence[PinnedModel]) -> set[str | None]:
    """Return the task that the manifests of a repository name; raises DataError for several."""
    tasks = {step.manifest.task for step in pinned if step.manifest}
    if len(tasks) > 1:
        raise DataError(f"{ref} holds experts of several tasks: {', '.join(map(str, tasks))}.")
    return tasks


def _check_metrics(tasks: Sequence[Task]) -> None:
    for task in tasks:
        if task.lm_eval is not None and task.metric not in task.lm_eval.row_metrics:
            raise _no_row_metric(task, task.lm_eval)
    unsupported = {task.name: task.metric for task in tasks if task.metric in _NOT_OF_ROWS}
    if unsupported:
        named = ", ".join(f"{name} by {metric}" for name, metric in unsupported.items())
        raise UsageError(
            f"Selection compares numbers from 0 to 1, one a row, and measures {named}.",
            f"Write --metric {', '.join(GENERATION_METRICS)}, {LIKELIHOOD} (it falls as the loss "
            "rises), or a function of your own, as module:function; or leave it out for tasks that "
            "are not of kind target.",
        )


def _no_row_metric(task: Task, found: LmEvalTask) -> UsageError:
    usable = "; ".join(found.row_metrics)
    return UsageError(
        f"Selection compares numbers from 0 to 1, one a row, more is better, and {task.name} is "
        f"measured by {printable(task.metric)}.",
        f"Write --metric with one of {printable(usable)}." if usable else "Name another task.",
    )
