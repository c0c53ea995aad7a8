"""Find a task by its name, YAML file, or data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from hubmerge.errors import UnknownName, UsageError
from hubmerge.refs import printable
from hubmerge.specs import TaskSpec, read_yaml, validate_spec
from hubmerge.tasks.files import is_rows_file
from hubmerge.tasks.lm_eval_name import is_lm_eval
from hubmerge.tasks.task import Task

CATALOG = Path(str(files("hubmerge") / "tasks" / "catalog"))


def catalog() -> dict[str, Path]:
    """Name -> YAML file of the tasks that come with hubmerge."""
    return {path.stem: path for path in sorted(CATALOG.glob("*.yaml"))}


def find_task(text: str, columns: Mapping[str, str] | None = None) -> Task:
    """The task for a catalog name, YAML file, folder, file of rows, or `hf://datasets/...`.

    A folder contains images by class, or train.csv or similar. `columns` is key -> column for the
    keys `image` or `text`, and `label`, or `prompt` and `target`; missing keys are guessed from the
    column names. Raises UnknownName with similar names, UsageError if columns do not fit or cannot
    be guessed, DataError if the data do not exist.
    """
    if is_lm_eval(text):
        raise UsageError(
            f"{printable(text)} is a task of lm_eval, which only measures models.",
            "Use it in `hubmerge eval`, `select` and `verify --evidence`, and here a task with "
            "examples.",
        )
    shipped = catalog()
    if has_fixed_columns(text):
        if columns:
            raise UsageError(f"Task {text} defines its own columns.", "Leave --columns out.")
        return read_task(shipped.get(text, Path(text).expanduser()))
    # Imported here because it imports `datasets`, which listing tasks does not need.
    from hubmerge.tasks import custom_task

    path = Path(text).expanduser()
    if text.startswith("hf://"):
        return custom_task.task_from_hub(text, columns or {})
    if is_rows_file(path) and not path.is_dir():
        return custom_task.task_from_file(path, columns or {})
    if "/" in text or path.is_dir():
        return custom_task.task_from_folder(path, columns or {})
    raise UnknownName("task", text, shipped)


def without_broken_rows(task: Task) -> Task:
    """The task without rows that cannot be read; it travels with its steps.

    Raises UsageError for a task of hubmerge, which would be another one under its name.
    """
    if is_shipped(task):
        raise UsageError(
            f"Task {task.name} comes with hubmerge, and everybody measures the same rows of it.",
            "Leave --skip-broken out.",
        )
    data = task.spec.data.model_copy(update={"skip_broken": True})
    return replace(task, spec=task.spec.model_copy(update={"data": data}))


def has_fixed_columns(text: str) -> bool:
    """Whether the task comes with hubmerge or is a YAML file, which defines its columns."""
    return text in catalog() or text.endswith((".yaml", ".yml"))


def is_shipped(task: Task) -> bool:
    """Whether the task comes with hubmerge."""
    return task.folder == CATALOG


def read_task(path: Path) -> Task:
    """The task of a YAML file."""
    return Task(validate_spec(TaskSpec, read_yaml(path), path.name), path.parent)


def all_tasks() -> Iterator[Task]:
    """Every shipped task, in name order."""
    for path in catalog().values():
        yield read_task(path)
