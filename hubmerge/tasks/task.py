"""A task: its spec, and the location of its local data."""

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
from hubmerge.tasks.lm_eval_name import LmEvalTask

# Keys that tasks did not have at first: unless they are used, a task keeps its digest.
_LATER_KEYS = (
    *("join", "eos", "chat", "format", "max_new_tokens", "stop"),
    *("anchor", "positive", "negative", "relevant", "corpus"),
)


@dataclass(frozen=True)
class Task:
    """A task: its spec, and the folder that its data path is relative to.

    `chosen_metric` is what it is measured by instead of the metric of its spec: the id of a metric.
    A task of `lm_eval` only measures models: of its spec nothing but the kind is used.
    """

    spec: TaskSpec
    folder: Path
    chosen_metric: str | None = None
    lm_eval: LmEvalTask | None = None

    @property
    def name(self) -> str:
        return self.lm_eval.label if self.lm_eval else self.spec.name

    @property
    def id(self) -> str:
        """The id in scores and manifests: name@digest, and +metric if another one was chosen."""
        chosen = f"+{self.chosen_metric}" if self.chosen_metric else ""
        return f"{self.name}@{self.digest}{chosen}"

    @property
    def metric(self) -> str:
        """The name of the metric; that of a function of one's own is module:function."""
        own = self.lm_eval.metrics[0] if self.lm_eval else self.spec.metric
        return (self.chosen_metric or own).partition("#")[0]

    @property
    def data_path(self) -> Path | None:
        """The local folder or file of the data, or None for a Hub data set.

        Of a task of lm_eval it is the folder of its YAML, None for one that comes with lm_eval.
        """
        if self.lm_eval:
            return self.lm_eval.include_path
        path = self.spec.data.path
        return (self.folder / path.expanduser()).resolve() if path else None

    @cached_property
    def digest(self) -> str:
        """16 hex digits that depend on everything that can change a score.

        For local data this includes all bytes, but not their location. Raises DataError if the data
        do not exist.
        """
        if self.lm_eval:
            return self.lm_eval.digest
        fields: dict[str, Any] = self.spec.model_dump(
            mode="json", exclude={"title", "source", "licence"}
        )
        for key in _LATER_KEYS:
            if getattr(self.spec, key) == TaskSpec.model_fields[key].default:
                del fields[key]
        for key in ("columns", "range", "encoding", "delimiter", "skip_broken"):
            if not fields["data"][key]:
                del fields["data"][key]
        for split in fields["splits"].values():
            if isinstance(split, dict) and not split["stratify"]:
                del split["stratify"]
        if fields["data"].pop("path"):
            files = self._data_files()
            fields["bytes"] = {file.as_posix(): hash_file(path) for file, path in files}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def _data_files(self) -> Iterator[tuple[Path, Path]]:
        """(name within the data folder, path) of every local data file."""
        root = local_data_path(self)
        if root.is_file():
            yield Path(root.name), root
            return
        patterns = (self.spec.data.files or {"": "**/*"}).values()
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            if path.is_file():
                yield path.relative_to(root), path


def local_data_path(task: Task) -> Path:
    """The folder or file of a task's local data; raises DataError if it does not exist."""
    if task.data_path is None or not task.data_path.exists():
        raise DataError(f"Task {task.name}: there is no folder {task.data_path}.")
    return task.data_path
