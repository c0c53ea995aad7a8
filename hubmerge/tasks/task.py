"""A task by name, by YAML file, or by the data it is about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from hubmerge.durable import hash_file
from hubmerge.errors import DataError, UnknownName, UsageError
from hubmerge.specs import TaskSpec, read_yaml, validated
from hubmerge.tasks.files import is_rows

CATALOG = Path(str(files("hubmerge") / "tasks" / "catalog"))


@dataclass(frozen=True)
class Task:
    """A task ready for use: its spec, and the folder its relative data path starts from."""

    spec: TaskSpec
    folder: Path

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def id(self) -> str:
        """What scores and manifests call it: the name, and behind an @ the digest."""
        return f"{self.name}@{self.digest}"

    @property
    def data_path(self) -> Path | None:
        """The local folder or file of the data, or None if they come from the Hub."""
        path = self.spec.data.path
        return (self.folder / path.expanduser()).resolve() if path else None

    @cached_property
    def digest(self) -> str:
        """16 hex digits over everything that can change a score.

        Of local data that is every byte, but not the place. Raises DataError if they are not there.
        """
        said: dict[str, Any] = self.spec.model_dump(
            mode="json", exclude={"title", "source", "licence"}
        )
        if said["data"].pop("path"):
            said["bytes"] = {file.as_posix(): hash_file(path) for file, path in self._files()}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def _files(self) -> Iterator[tuple[Path, Path]]:
        """Name inside the data folder -> path of every local file of the data."""
        root = local_data(self)
        if root.is_file():
            yield Path(root.name), root
            return
        patterns = (self.spec.data.files or {"": "**/*"}).values()
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            if path.is_file():
                yield path.relative_to(root), path


def local_data(task: Task) -> Path:
    """The folder or file of a task's local data; raises DataError if it is not there."""
    if task.data_path is None or not task.data_path.exists():
        raise DataError(f"Task {task.name}: there is no folder {task.data_path}.")
    return task.data_path


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
    from hubmerge.tasks import own

    path = Path(text).expanduser()
    if text.startswith("hf://"):
        return own.hub_task(text, columns or {})
    if is_rows(path) and not path.is_dir():
        return own.file_task(path, columns or {})
    if "/" in text or path.is_dir():
        return own.folder_task(path, columns or {})
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
