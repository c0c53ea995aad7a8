"""The rows of merges to evaluate, as jobs that any process with the same pool can do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import Choice
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool
from hubmerge.selection.task_split import EvaluatedRows, TaskSplit, load_merge
from hubmerge.weights.dtypes import Array
from hubmerge.weights.kept_heads import KeptHead, kept_head


@dataclass(frozen=True)
class ChoiceTensors:
    """The merge of a choice."""

    choice: Choice

    def tensors(self, pool: Pool, merger: MemoryMerger) -> Iterable[tuple[str, Array]]:
        """Name and values of every tensor that differs from the base."""
        return merger.merged_tensors(self.choice)


@dataclass(frozen=True)
class CandidateTensors:
    """The candidate at `index` of the task at index `task`, which is not merged."""

    task: int
    index: int

    def tensors(self, pool: Pool, merger: MemoryMerger) -> Iterable[tuple[str, Array]]:
        """Name and values of every tensor that differs from the base."""
        return merger.expert_tensors(pool.candidates[self.task][self.index])


@dataclass(frozen=True)
class BaseTensors:
    """The base itself."""

    def tensors(self, pool: Pool, merger: MemoryMerger) -> Iterable[tuple[str, Array]]:
        """No tensor differs from the base."""
        return ()


# What a trial evaluates, as plain values: the same tensors in every process with the same pool.
TensorSource = ChoiceTensors | CandidateTensors | BaseTensors


@dataclass(frozen=True)
class RowJob:
    """Rows of the task at index `task`, evaluated with the head of its candidate at `index`.

    `start` is the position of the first row in the order of the task.
    """

    task: int
    index: int
    start: int
    rows: tuple[int, ...]


class RowEvaluator(Protocol):
    """Evaluates jobs; the results do not depend on where."""

    def evaluate(
        self, recipe: str, source: TensorSource, jobs: Sequence[RowJob]
    ) -> list[EvaluatedRows]:
        """The results of each job, row by row; `recipe` identifies `source`."""
        ...


class LocalRows:
    """Evaluates jobs in this process: a merge is loaded into the open models of all tasks."""

    def __init__(self, pool: Pool, merger: MemoryMerger, splits: Sequence[TaskSplit]) -> None:
        self._pool, self._merger, self._splits = pool, merger, splits
        self._loaded_recipe: str | None = None

    def evaluate(
        self, recipe: str, source: TensorSource, jobs: Sequence[RowJob]
    ) -> list[EvaluatedRows]:
        if self._loaded_recipe != recipe:
            self._loaded_recipe = None
            tensors = source.tensors(self._pool, self._merger)
            load_merge((split.loaded_model for split in self._splits), tensors)
            self._loaded_recipe = recipe
        return [self._evaluate_rows(job) for job in jobs]

    def _evaluate_rows(self, job: RowJob) -> EvaluatedRows:
        split, candidate = self._splits[job.task], self._pool.candidates[job.task][job.index]
        return split.evaluate(job.rows, *self._expert_head(split, candidate))

    def _expert_head(self, split: TaskSplit, candidate: Candidate) -> tuple[Path, KeptHead | None]:
        """Return the folder of an expert, and its own head if the task is measured with that."""
        folder = self._pool.open(candidate).folder
        if split.loaded_model.classifier is None:
            return folder, None
        return folder, kept_head(self._pool.task_vector(candidate))
