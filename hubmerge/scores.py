"""Scores, their mean (the upcycling score), and the append-only log of scores."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.durable import append_lines

_NO_SHARES = ("loss", "perplexity", "calibration_error")
# Of lm_eval, some of which happen to be below 1.
_NO_SHARES_OF_LM_EVAL = (
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "likelihood"),
    *("brier_score", "mcc", "bleu", "chrf", "chrf++", "ter", "bypass"),
)


@dataclass(frozen=True)
class Score:
    """One measured number: `value` over `count` examples, and its standard error.

    It is in [0, 1] but for loss, perplexity, some metrics of lm_eval, and functions of one's own,
    which may return any number. `unfinished` counts generated texts that reached the limit of the
    task.

    `model` is the digest of the model's files, `task` is an id: name@digest of its definition.
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
    unfinished: int = 0

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of what is right, which is shown in percent."""
        if "," in self.metric:  # metric,filter
            name = self.metric.partition(",")[0]
            return name not in _NO_SHARES_OF_LM_EVAL and 0 <= self.value <= 1
        return ":" not in self.metric and self.metric not in _NO_SHARES

    @property
    def metric_title(self) -> str:
        """The metric in words; that of lm_eval with its filter, unless that is `none`."""
        return self.metric.removesuffix(",none").replace("_", " ").replace(",", ", ")

    @property
    def task_name(self) -> str:
        return self.task.partition("@")[0]

    @property
    def chosen_metric(self) -> str:
        """The metric that was chosen instead of the task's own; empty for none."""
        return self.task.partition("+")[2]


@dataclass(frozen=True)
class UpcyclingScore:
    """The raw mean accuracy over tasks, not normalised, with its standard error."""

    value: float
    stderr: float
    tasks: int


def upcycling(scores: Sequence[Score]) -> UpcyclingScore | None:
    """The mean over T tasks; its standard error is sqrt(sum of squared standard errors) / T.

    None for no scores, and for scores of different metrics, which have no mean. It is not divided
    by the accuracy of the experts, which misleads when the experts change (arXiv 2506.14126,
    appendix A).
    """
    if len({score.metric for score in scores}) != 1:
        return None
    tasks = len(scores)
    value = math.fsum(score.value for score in scores) / tasks
    stderr = math.sqrt(math.fsum(score.stderr**2 for score in scores)) / tasks
    return UpcyclingScore(value, stderr, tasks)


def by_task(scores: Iterable[Score], known: Collection[str | None]) -> dict[str, Score]:
    """Task id -> score: one for each of the `known` ids, and the newest of each other task name.

    Two known tasks may share a name. Another id may be another version of a task, so it counts only
    if no known id with its name has a score.
    """
    newest = {score.task: score for score in scores}
    scored = {task: score for task, score in newest.items() if task in known}
    names = {score.task_name for score in scored.values()}
    others = {s.task_name: s for s in newest.values() if s.task_name not in names}
    return scored | {score.task: score for score in others.values()}


def display_names(tasks: Iterable[str]) -> dict[str, str]:
    """Task id -> its name, or the full id if another of these tasks has the same name."""
    names = {task: task.partition("@")[0] for task in tasks}
    counts = Counter(names.values())
    return {task: name if counts[name] == 1 else task for task, name in names.items()}


class ScoreLog:
    """An append-only JSON Lines file of scores; the last line for a key counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, scores: Iterable[Score]) -> None:
        """Append scores; they are on disk before this returns. Other processes may append too."""
        lines = "".join(json.dumps(_to_json(s), sort_keys=True) + "\n" for s in scores)
        append_lines(self.path, lines)

    def read(self) -> list[Score]:
        """The newest score for each model, task and split, newest last; skips broken lines."""
        if not self.path.is_file():
            return []
        newest: dict[tuple[str, str, str], Score] = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            if score := _parse_line(line):
                key = (score.model, score.task, score.split)
                newest.pop(key, None)
                newest[key] = score
        return list(newest.values())


def _to_json(score: Score) -> dict[str, Any]:
    fields = dataclasses.asdict(score)
    if not score.unfinished:
        del fields["unfinished"]  # as in logs of the versions before
    return fields


def _parse_line(line: str) -> Score | None:
    try:
        return Score(**json.loads(line))
    except (ValueError, TypeError):
        return None
