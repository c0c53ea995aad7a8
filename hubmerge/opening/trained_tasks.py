"""Find the shipped tasks that a model was trained for, from its manifest."""

from __future__ import annotations

from collections.abc import Iterable

from hubmerge.errors import UsageError
from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.references import pin_task
from hubmerge.tasks.lookup import catalog, find_task
from hubmerge.tasks.task import Task


def find_trained_tasks(hub: Hub, model: OpenedModel | PinnedModel) -> list[Task]:
    """The shipped tasks in a model's manifest: its own, or those of its experts.

    Raises UsageError if there is none, or one that is not shipped with hubmerge.
    """
    manifest = model.manifest
    task_ids = list(_task_ids(manifest)) if manifest else [None]
    names = {str(task_id).partition("@")[0] for task_id in task_ids}
    shipped = {name: find_task(name) for name in names & catalog().keys()}
    matches = [_shipped_task(hub, shipped, task_id) for task_id in dict.fromkeys(task_ids)]
    tasks = [task for task in matches if task]
    if len(tasks) < len(matches):
        others = f" but for {', '.join(sorted(names))}" if any(task_ids) else ""
        raise UsageError(
            f"{model.revision.label} was not trained for tasks that come with hubmerge{others}.",
            "Write --tasks with names of `hubmerge tasks`, YAML files or image folders, separated "
            "by commas.",
        )
    return tasks


def _task_ids(manifest: Manifest) -> Iterable[str | None]:
    """The ids of a model's tasks: its own, those of a mixture of experts, or of its experts."""
    if manifest.is_expert:
        return [manifest.task]
    tasks = manifest.params.get("tasks")
    if manifest.is_moe and isinstance(tasks, list | tuple):
        return [str(task) for task in tasks]
    return [source.task for source in manifest.experts]


def _shipped_task(hub: Hub, shipped: dict[str, Task], task_id: str | None) -> Task | None:
    """The shipped task with that id; one with the same name may have other data."""
    task = shipped.get((task_id or "").partition("@")[0])
    pinned = pin_task(hub, task) if task else None
    return pinned if pinned and pinned.id == task_id else None
