"""Scores, the upcycling score made of them, and the append-only log that keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubmerge.durable import append_lines


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

    None for no scores, and for scores of different metrics, which have no mean. Raw on purpose:
    arXiv 2506.14126, appendix A, tells why dividing by the experts' own accuracy misleads when the
    experts themselves change.
    """
    if len({score.metric for score in scores}) != 1:
        return None
    tasks = len(scores)
    value = math.fsum(score.value for score in scores) / tasks
    stderr = math.sqrt(math.fsum(score.stderr**2 for score in scores)) / tasks
    return Upcycling(value, stderr, tasks)


def by_task(scores: Iterable[Score], known: Collection[str | None]) -> dict[str, Score]:
    """Task id -> score; each of the `known` ids for itself, of all others the newest of a name.

    Two known tasks may share a name. An id that is not known may be another version of a task, so
    it counts only where no known one of its name was measured.
    """
    newest = {score.task: score for score in scores}
    own = {task: score for task, score in newest.items() if task in known}
    taken = {score.task_name for score in own.values()}
    others = {s.task_name: s for s in newest.values() if s.task_name not in taken}
    return own | {score.task: score for score in others.values()}


def shown_names(tasks: Iterable[str]) -> dict[str, str]:
    """Task id -> its name, or the whole id where another of these tasks has the same name."""
    names = {task: task.partition("@")[0] for task in tasks}
    seen = Counter(names.values())
    return {task: name if seen[name] == 1 else task for task, name in names.items()}


class ScoreLog:
    """Scores in a JSON Lines file that only grows; the last line for a key counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, scores: Iterable[Score]) -> None:
        """Add scores; whole lines reach the disk before this returns, also beside other writers."""
        lines = "".join(json.dumps(dataclasses.asdict(s), sort_keys=True) + "\n" for s in scores)
        append_lines(self.path, lines)

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


def _parsed(line: str) -> Score | None:
    try:
        return Score(**json.loads(line))
    except (ValueError, TypeError):
        return None
