"""A task: what its YAML says, and where its local data are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubmerge.durable import hash_file
from hubmerge.errors import DataError
from hubmerge.specs import TaskSpec


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
