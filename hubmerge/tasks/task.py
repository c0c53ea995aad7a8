"""A task by name, by YAML file or by image folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

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
    def data_path(self) -> Path | None:
        """The local folder of the data, or None if they come from the Hub."""
        return (self.folder / self.spec.data.path).resolve() if self.spec.data.path else None

    @property
    def digest(self) -> str:
        """16 hex digits over everything that can change a score, the place of local data aside."""
        said = self.spec.model_dump(mode="json", exclude={"title", "source", "licence"})
        said["data"].pop("path")
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


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
    if text.endswith((".yaml", ".yml")):
        return read_task(Path(text))
    if "/" in text or Path(text).is_dir():
        return folder_task(Path(text))
    raise UnknownName("task", text, shipped)


def read_task(path: Path) -> Task:
    """The task that a YAML file describes."""
    return Task(validated(TaskSpec, read_yaml(path), path.name), path.parent)


def folder_task(folder: Path) -> Task:
    """A task over an image folder as `datasets` reads it, with the template "a photo of a {}."."""
    if not folder.is_dir():
        raise DataError(
            f"There is no folder {folder}.", "Give a folder of images, or a task's YAML."
        )
    name = re.sub(r"[^A-Za-z0-9-]+", "-", folder.resolve().name).strip("-").lower() or "images"
    said = {"name": name, "title": f"images of {folder.name}", "data": {"path": "."}}
    if not (folder / "test").is_dir():
        said["splits"] = {"test": {"of": "train", "fraction": 0.2, "most": None, "seed": 1}}
    return Task(validated(TaskSpec, said, str(folder)), folder)


def all_tasks() -> Iterator[Task]:
    """Every shipped task, in name order."""
    for path in catalog().values():
        yield read_task(path)
