"""Merges of one step of every expert, tuned on validation and evaluated once on test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from hubmerge.choosing.loaded_splits import load_task_splits
from hubmerge.choosing.merge_selection import PreparedSelection, SelectRequest
from hubmerge.flows.select import prepare_selection
from hubmerge.progress import no_progress
from hubmerge.refs import ModelRef
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.work import UnitJob, step_ref
from hubmerge.selection.choice import plain_choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.task_split import TaskSplit
from hubmerge.trials import SELECTION_SPLIT, Trial, TrialLog

TRIALS = "trials.jsonl"


def merge(work: UnitJob) -> Result:
    """The best point of the grid on validation, and its test accuracy.

    Every point is evaluated on all rows of all tasks; the first of equally good points is taken.
    """
    step = work.params["step"]
    refs = [step_ref(run, step) for run in work.experts.values()]
    prepared = prepare_by_digest(work, work.params["method"], refs)
    with work.scratch() as folder:
        evaluators = Evaluators(prepared, folder / TRIALS)
        first, *rest = (plain_choice((0,) * len(refs), p) for p in grid_points(work.params["grid"]))
        best, validation = first, evaluators.validation.measure(first)
        for choice in rest:
            trial = evaluators.validation.measure(choice)
            if trial.accuracy > validation.accuracy:
                best, validation = choice, trial
        test = evaluators.test.measure(best)
    return {
        "params": dict(best.params),
        "rows": [{
            "validation": validation.accuracy,
            "value": test.accuracy,
            "stderr": test.stderr,
            "ended": list(prepared.pool.steps(best)),
            "tasks": dict(zip(work.experts, task_accuracies(test), strict=True)),
            "note": ", ".join(f"{name} {value:g}" for name, value in best.params),
        }],
    }  # fmt: skip


def prepare_by_digest(work: UnitJob, method: str, refs: Sequence[ModelRef]) -> PreparedSelection:
    """A selection among these steps of the experts, with content digests instead of commits.

    Results of units are kept by these ids, which seed DARE's masks and order the sums as well. A
    commit SHA contains a date and so differs between Hubs; the content digest does not.
    """
    request = SelectRequest(tuple(refs), method, tasks=work.tasks, device=work.context.device)
    prepared = prepare_selection(work.hub, request, no_progress)
    pool = prepared.pool
    originals = {expert.source.digest: expert for group in pool.candidates for expert in group}
    candidates = tuple(
        tuple(
            replace(expert, source=replace(expert.source, sha=expert.source.digest))
            for expert in group
        )
        for group in pool.candidates
    )
    by_digest = replace(
        pool,
        candidates=candidates,
        open=lambda candidate: pool.open(originals[candidate.source.digest]),
        content_key=lambda candidate: candidate.source.digest,
    )
    return replace(prepared, opened_pool=replace(prepared.opened_pool, pool=by_digest))


class Evaluators:
    """The evaluators of one pool: validation for choosing, test for reporting."""

    def __init__(self, prepared: PreparedSelection, log: Path) -> None:
        self.prepared, self.log = prepared, log
        self.merger = MemoryMerger(prepared.pool, prepared.method)
        self.validation = self._evaluator(prepared.splits, SELECTION_SPLIT)
        self.test = self._evaluator(load_splits(prepared, "test"), "test")

    def new_validation(self) -> Evaluator:
        """Another evaluator on validation, with its own counts of merges and rows."""
        return self._evaluator(self.prepared.splits, SELECTION_SPLIT)

    def _evaluator(self, task_splits: Sequence[TaskSplit], split: str) -> Evaluator:
        pool, method = self.prepared.pool, self.prepared.method
        return Evaluator(pool, self.merger, method, task_splits, TrialLog(self.log), split)


def grid_points(grid: Mapping[str, Sequence[float]]) -> Iterator[dict[str, float]]:
    """Every point of a grid, the last parameter by name varying fastest; one for an empty grid."""
    names = sorted(grid)
    for values in product(*(grid[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def task_accuracies(trial: Trial) -> list[float]:
    """Accuracy on each task, in the order of the trial."""
    return [rows.mean for rows in trial.rows.values()]


def load_splits(prepared: PreparedSelection, split: str) -> tuple[TaskSplit, ...]:
    """The tasks with their rows of a split, on newly loaded base models."""
    device = prepared.splits[0].loaded_model.device
    return load_task_splits(prepared.opened_pool, split, device)
