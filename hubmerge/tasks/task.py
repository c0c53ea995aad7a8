"""A task by name, by YAML file or by image folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from hubmerge.durable import hash_file
from hubmerge.errors import DataError, UnknownName
from hubmerge.specs import TaskSpec, read_yaml, validated

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
        """The local folder of the data, or None if they come from the Hub."""
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
        root = local_folder(self)
        patterns = (self.spec.data.files or {"": "**/*"}).values()
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            if path.is_file():
                yield path.relative_to(root), path


def local_folder(task: Task) -> Path:
    """The folder of a task's local data; raises DataError if it is not there."""
    if task.data_path is None or not task.data_path.is_dir():
        raise DataError(f"Task {task.name}: there is no folder {task.data_path}.")
    return task.data_path


def catalog() -> dict[str, Path]:
    """Name -> YAML file of the tasks that hubmerge ships."""
    return {path.stem: path for path in sorted(CATALOG.glob("*.yaml"))}


def find_task(text: str) -> Task:
    """The task of that catalog name, YAML file, or folder of images (one folder per class).

    Raises UnknownName with near names, UsageError for a YAML that is no task, DataError for a
    folder that is not there.
    """
    if text in (shipped := catalog()):
        return read_task(shipped[text])
    path = Path(text).expanduser()
    if text.endswith((".yaml", ".yml")):
        return read_task(path)
    if "/" in text or path.is_dir():
        return folder_task(path)
    raise UnknownName("task", text, shipped)


def read_task(path: Path) -> Task:
    """The task that a YAML file describes."""
    return Task(validated(TaskSpec, read_yaml(path), path.name), path.parent)


def folder_task(folder: Path) -> Task:
    """A task over images in train/CLASS/ or just CLASS/, under the template "a photo of a {}.".

    Without a test/ folder a fifth of train becomes test; without validation/, a tenth of the rest.
    """
    if not folder.is_dir() or not any(path.is_dir() for path in folder.iterdir()):
        raise DataError(
            f"There is no folder of images by class at {folder}.",
            "Give one as CLASS/*.png or train/CLASS/*.png, or a task's YAML.",
        )
    name = re.sub(r"[^A-Za-z0-9-]+", "-", folder.resolve().name).strip("-").lower() or "images"
    splits: dict[str, object] = {}
    by_split = (folder / "train").is_dir()  # else every folder is a class, whatever its name
    if by_split and (folder / "validation").is_dir():
        splits["validation"] = "validation"
    if not (by_split and (folder / "test").is_dir()):
        splits["test"] = {"of": "train", "fraction": 0.2, "most": None, "seed": 1}
    said = {
        "name": name,
        "title": f"images of {folder.name}",
        "data": {"path": "."},
        "splits": splits,
    }
    return Task(validated(TaskSpec, said, str(folder)), folder)


def all_tasks() -> Iterator[Task]:
    """Every shipped task, in name order."""
    for path in catalog().values():
        yield read_task(path)
