"""Scores, the upcycling score made of them, and the append-only log that keeps them."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Score:
    """One measured number: `value` in [0, 1] over `count` examples, binomial standard error.

    `model` is the digest of the model's files, `task` has the digest of its definition behind an @,
    `recipe` identifies a merge before it is made, and `data` is a Hub data set and its commit, as
    owner/name@sha.
    """

    label: str
    model: str
    task: str
    split: str
    metric: str
    value: float
    count: int
    stderr: float
    recipe: str | None = None
    data: str | None = None

    @property
    def task_name(self) -> str:
        return self.task.partition("@")[0]


@dataclass(frozen=True)
class Upcycling:
    """The upcycling score: the raw, un-normalised mean accuracy over tasks, with standard error."""

    value: float
    stderr: float
    tasks: int


def upcycling(scores: Sequence[Score]) -> Upcycling | None:
    """Mean over tasks; its standard error is sqrt(sum of squared standard errors) / T.

    None for no scores. Raw on purpose: arXiv 2506.14126, appendix A, tells why dividing by the
    experts' own accuracy misleads when the experts themselves change.
    """
    if not scores:
        return None
    tasks = len(scores)
    value = math.fsum(score.value for score in scores) / tasks
    stderr = math.sqrt(math.fsum(score.stderr**2 for score in scores)) / tasks
    return Upcycling(value, stderr, tasks)


def by_task(scores: Iterable[Score]) -> dict[str, Score]:
    """Task name -> score; where a task was measured in two versions, the newest counts."""
    return {score.task_name: score for score in scores}


class ScoreLog:
    """Scores in a JSON Lines file that only grows; the last line for a key counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, scores: Iterable[Score]) -> None:
        """Add scores; whole lines reach the disk before this returns, also beside other writers."""
        lines = "".join(json.dumps(dataclasses.asdict(s), sort_keys=True) + "\n" for s in scores)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A crash may have left half a line: it must not swallow the first of ours.
            file.write(b"" if self._ends_whole() else b"\n")
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Score]:
        """Every score that is whole, the newest for each model, task and split, newest last."""
        if not self.path.is_file():
            return []
        newest: dict[tuple[str, str, str], Score] = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            if score := _parsed(line):
                key = (score.model, score.task, score.split)
                newest.pop(key, None)
                newest[key] = score
        return list(newest.values())

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def _parsed(line: str) -> Score | None:
    try:
        return Score(**json.loads(line))
    except (ValueError, TypeError):
        return None
