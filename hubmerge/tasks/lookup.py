"""A task by name, by YAML file, or by the data it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from hubmerge.errors import UnknownName, UsageError
from hubmerge.specs import TaskSpec, read_yaml, validated
from hubmerge.tasks.files import is_rows
from hubmerge.tasks.task import Task

CATALOG = Path(str(files("hubmerge") / "tasks" / "catalog"))


def catalog() -> dict[str, Path]:
    """Name -> YAML file of the tasks that hubmerge ships."""
    return {path.stem: path for path in sorted(CATALOG.glob("*.yaml"))}


def find_task(text: str, columns: Mapping[str, str] | None = None) -> Task:
    """The task of that catalog name, YAML file, folder, file of rows, or `hf://datasets/...`.

    A folder holds images by class, or train.csv and such. `columns` says which columns of rows are
    `image` or `text`, and `label`, or `prompt` and `target`; what it leaves out is guessed from
    their names. Raises UnknownName with near names, UsageError for what is no task or cannot be
    guessed, DataError for data that are not there.
    """
    shipped = catalog()
    if names_its_columns(text):
        if columns:
            raise UsageError(f"Task {text} names its columns itself.", "Leave --columns out.")
        return read_task(shipped.get(text, Path(text).expanduser()))
    # Asks `datasets`, which the shipped tasks can be listed without.
    from hubmerge.tasks import custom_task

    path = Path(text).expanduser()
    if text.startswith("hf://"):
        return custom_task.hub_task(text, columns or {})
    if is_rows(path) and not path.is_dir():
        return custom_task.file_task(path, columns or {})
    if "/" in text or path.is_dir():
        return custom_task.folder_task(path, columns or {})
    raise UnknownName("task", text, shipped)


def names_its_columns(text: str) -> bool:
    """Whether that task comes with hubmerge or is a YAML, and so says all there is to say."""
    return text in catalog() or text.endswith((".yaml", ".yml"))


def read_task(path: Path) -> Task:
    """The task that a YAML file describes."""
    return Task(validated(TaskSpec, read_yaml(path), path.name), path.parent)


def all_tasks() -> Iterator[Task]:
    """Every shipped task, in name order."""
    for path in catalog().values():
        yield read_task(path)
