"""The YAML of an own task that travels with each step of an expert, and the data it needs here.

The file has no local paths: data are found where they were when this machine last used the task,
and are recognised by their digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from hubmerge.durable import append_lines
from hubmerge.errors import DataError
from hubmerge.refs import printable
from hubmerge.specs import TaskSpec, parse_yaml, validate_spec
from hubmerge.tasks.lookup import is_shipped
from hubmerge.tasks.task import Task

TASK_YAML = "task.yaml"
_DATA_LOG = "task-data.jsonl"


def task_file(task: Task) -> bytes | None:
    """The YAML of an own task, None for a task that comes with hubmerge."""
    if is_shipped(task):
        return None
    fields = task.spec.model_dump(mode="json", exclude_unset=True)
    if task.data_path is not None:
        fields["data"]["path"] = task.data_path.name
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return text.encode()


def parse_task_file(data: bytes, task_id: str, label: str, home: Path) -> Task:
    """The task with that id from the file that travels with a model.

    Raises DataError if the file defines another task, or if its local data are not found, and
    UsageError for a file that is not a task.
    """
    where = f"{TASK_YAML} of {label}"
    text = data.decode("utf-8", errors="replace")
    spec = validate_spec(TaskSpec, parse_yaml(text, Path(where)), where)
    if spec.data.path is None:
        task = Task(spec, Path())
        if task.id != task_id:
            raise DataError(f"{where} does not define {printable(task_id)} of its hubmerge.json.")
        return task
    paths = known_data(home, spec.name)
    for path in paths:
        data_at = spec.data.model_copy(update={"path": path})
        task = Task(spec.model_copy(update={"data": data_at}), path.parent)
        if path.exists() and task.id == task_id:
            return task
    raise DataError(
        f"The local data of task {spec.name} of {label} {_describe_missing(paths)}.",
        "Write --tasks with the task's YAML file, its folder or its file of rows.",
    )


def _describe_missing(paths: list[Path]) -> str:
    if not paths:
        return "are not known on this machine"
    last = printable(str(paths[0]))
    return f"are no longer {'those in' if paths[0].exists() else 'at'} {last}"


def remember_data(home: Path, tasks: Iterable[Task]) -> None:
    """Write down where the local data of own tasks are, for `parse_task_file`."""
    new = [
        json.dumps({"task": task.name, "path": str(task.data_path)}) + "\n"
        for task in tasks
        if task.data_path is not None
        and not is_shipped(task)
        and known_data(home, task.name)[:1] != [task.data_path]
    ]
    if new:
        append_lines(home / _DATA_LOG, "".join(new))


def known_data(home: Path, name: str) -> list[Path]:
    """Where data of a task of that name were, the latest first."""
    lines = list(_read_lines(home / _DATA_LOG))
    return list(dict.fromkeys(Path(path) for task, path in reversed(lines) if task == name))


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Task and path of each line; broken lines are skipped."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                fields = json.loads(line)
                yield str(fields["task"]), str(fields["path"])
            except (ValueError, LookupError, TypeError, RecursionError):
                continue
