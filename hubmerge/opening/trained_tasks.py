"""The shipped tasks that a model was trained for, as its manifest names them."""

from __future__ import annotations

from collections.abc import Iterable

from hubmerge.errors import UsageError
from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import Opened, Pinned
from hubmerge.opening.references import pin_task
from hubmerge.tasks.lookup import catalog, find_task
from hubmerge.tasks.task import Task


def own_tasks(hub: Hub, model: Opened | Pinned) -> list[Task]:
    """The shipped tasks that a model's manifest names: its own, or those of its experts.

    Raises UsageError if it names none, or one that is not among the shipped ones.
    """
    manifest = model.manifest
    said = list(_trained_for(manifest)) if manifest else [None]
    names = {str(task_id).partition("@")[0] for task_id in said}
    shipped = {name: find_task(name) for name in names & catalog().keys()}
    found = [_same(hub, shipped, task_id) for task_id in dict.fromkeys(said)]
    tasks = [task for task in found if task]
    if len(tasks) < len(found):
        trained_for = f" but for {', '.join(sorted(names))}" if any(said) else ""
        raise UsageError(
            f"{model.revision.label} was not trained for tasks that come with hubmerge"
            f"{trained_for}.",
            "Write --tasks with names of `hubmerge tasks`, YAML files or image folders, separated "
            "by commas.",
        )
    return tasks


def _trained_for(manifest: Manifest) -> Iterable[str | None]:
    """The ids of a model's tasks: its own, those a mixture was trained on, or its experts'."""
    if manifest.is_expert:
        return [manifest.task]
    together = manifest.params.get("tasks")
    if manifest.is_moe and isinstance(together, list | tuple):
        return [str(task) for task in together]
    return [source.task for source in manifest.experts]


def _same(hub: Hub, shipped: dict[str, Task], task_id: str | None) -> Task | None:
    """The shipped task of that id: the same name may mean other images elsewhere."""
    task = shipped.get((task_id or "").partition("@")[0])
    pinned = pin_task(hub, task) if task else None
    return pinned if pinned and pinned.id == task_id else None
