"""Find the tasks that a model was trained for, from its manifest and the task file beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hubmerge.errors import HubError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.environment import home
from hubmerge.hub.fetch import read_file
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.references import pin_task
from hubmerge.refs import ModelRef, Revision, printable
from hubmerge.source import Source
from hubmerge.tasks.chosen_metric import metric_of_id, with_metric
from hubmerge.tasks.lm_eval_name import is_lm_eval
from hubmerge.tasks.lookup import catalog, find_task
from hubmerge.tasks.task import Task
from hubmerge.tasks.task_file import TASK_YAML, known_data, parse_task_file


def find_trained_tasks(
    hub: Hub, model: OpenedModel | PinnedModel, metric: str | None = None
) -> list[Task]:
    """The tasks in a model's manifest, its own or those of its experts, shipped or with a file.

    They are measured by `metric`, or else by the one that the manifest names with the task. Raises
    UsageError if there is no task, one that is neither shipped nor has a file, or one that was
    measured by a function; DataError if local data of an own task are not found.
    """
    manifest = model.manifest
    chosen_by_id = dict(map(metric_of_id, filter(None, _task_ids(manifest)))) if manifest else {}
    task_ids: list[str | None] = [*chosen_by_id] or [None]
    names = {str(task_id).partition("@")[0] for task_id in task_ids}
    shipped = {name: find_task(name) for name in names & catalog().keys()}
    matches = [
        _shipped_task(hub, model, shipped, task_id)
        or find_recorded_lm_eval_task(task_id)
        or _own_task(hub, model, task_id)
        for task_id in task_ids
    ]
    tasks = [
        with_metric(
            task,
            _own_metric(task, chosen_by_id.get(task_id or "")) if metric is None else metric,
        )
        for task_id, task in zip(task_ids, matches, strict=True)
        if task
    ]
    if len(tasks) < len(matches):
        others = f" but for {', '.join(sorted(names))}" if any(task_ids) else ""
        raise UsageError(
            f"{model.revision.label} was not trained for tasks that come with hubmerge{others}.",
            "Write --tasks with names of `hubmerge tasks`, YAML files or image folders, separated "
            "by commas.",
        )
    return tasks


def _own_metric(task: Task, chosen: str | None) -> str | None:
    """The metric that a manifest names; a function is code, and runs only if the user names it."""
    function = (chosen or "").partition("#")[0]
    if ":" in function:
        raise UsageError(
            f"Task {task.name} was measured by the function {printable(function)}.",
            f"Write --metric {printable(function)}, or another metric.",
        )
    return chosen


def _task_ids(manifest: Manifest) -> Iterable[str | None]:
    """The ids of a model's tasks: its own, those of a mixture of experts, or of its experts."""
    if manifest.is_expert:
        return [manifest.task]
    tasks = manifest.params.get("tasks")
    if manifest.is_moe and isinstance(tasks, list | tuple):
        return [str(task) for task in tasks]
    return [source.task for source in manifest.experts]


def _shipped_task(
    hub: Hub, model: OpenedModel | PinnedModel, shipped: dict[str, Task], task_id: str | None
) -> Task | None:
    """The shipped task with that id; an own task of the same name has another id."""
    task = shipped.get((task_id or "").partition("@")[0])
    try:
        pinned = pin_task(hub, task) if task else None
    except HubError:
        # Its data are not on this Hub, where there may be an own task of that name.
        if own := _own_task(hub, model, task_id):
            return own
        raise
    return pinned if pinned and pinned.id == task_id else None


def find_recorded_lm_eval_task(task_id: str | None) -> Task | None:
    """The task of lm_eval with that id, None for the id of another task.

    Its YAML comes with lm_eval, or is where this machine last used it. Raises UsageError or
    DataError if it is not found.
    """
    if task_id is None or not is_lm_eval(task_id):
        return None
    # Imported here because it imports `datasets`.
    from hubmerge.tasks.lm_eval_task import find_task_with_id

    return find_task_with_id(task_id, known_data(home(), task_id.partition("@")[0]))


def _own_task(hub: Hub, model: OpenedModel | PinnedModel, task_id: str | None) -> Task | None:
    """The task with that id from the file that travels with the model or with its expert."""
    if task_id is None or model.manifest is None:
        return None
    revision = model.revision
    if not model.manifest.is_expert:
        sources = [
            source
            for source in model.manifest.experts
            if source.task and metric_of_id(source.task)[0] == task_id
        ]
        if not sources:
            return None
        revision = _revision_of(sources[0])
    data = _read_task_file(hub, revision)
    return parse_task_file(data, task_id, revision.label, home()) if data else None


def _revision_of(source: Source) -> Revision:
    """The commit or local folder of an expert of a merge."""
    if source.is_local:
        return Revision(ModelRef(path=Path(source.label)), sha="")
    return Revision(ModelRef(source.name, None, source.sha, source.folder), source.sha)


def _read_task_file(hub: Hub, revision: Revision) -> bytes | None:
    """The task file of a revision, None if it has none or is gone."""
    if revision.ref.path is not None:
        path = revision.ref.path / TASK_YAML
        return path.read_bytes() if path.is_file() else None
    try:
        return read_file(hub, revision, TASK_YAML)
    except NotOnHub:
        return None
