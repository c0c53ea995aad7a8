"""Merges of one step of every expert, tuned on validation and asked on test once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from hubmerge.choosing.merge_selection import Prepared, Request
from hubmerge.flows.select import prepare
from hubmerge.models.loading import open_model
from hubmerge.refs import ModelRef
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.work import Work, ref, silent
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.memory_merge import Blender
from hubmerge.selection.pool import plain_choice
from hubmerge.selection.task_split import Dressed, Stage
from hubmerge.specs import Kind
from hubmerge.tasks.data import load_split
from hubmerge.trials import CHOSEN_ON, Trial, TrialLog

TRIALS = "trials.jsonl"


def merge(work: Work) -> Result:
    """The best point of the grid on validation, and how good it is on test.

    All rows of all tasks are asked at every point; of equally good points the first is taken.
    """
    step = work.params["step"]
    refs = [ref(run, step) for run in work.experts.values()]
    prepared = prepared_for(work, work.params["method"], refs)
    with work.scratch() as folder:
        arenas = Arenas(prepared, folder / TRIALS)
        first, *rest = (plain_choice((0,) * len(refs), p) for p in points(work.params["grid"]))
        best, told = first, arenas.validation.measure(first)
        for choice in rest:
            found = arenas.validation.measure(choice)
            if found.accuracy > told.accuracy:
                best, told = choice, found
        test = arenas.test.measure(best)
    return {
        "params": dict(best.params),
        "rows": [{
            "validation": told.accuracy,
            "value": test.accuracy,
            "stderr": test.stderr,
            "ended": list(prepared.pool.steps(best)),
            "tasks": dict(zip(work.experts, by_task(test), strict=True)),
            "note": ", ".join(f"{name} {value:g}" for name, value in best.params),
        }],
    }  # fmt: skip


def prepared_for(work: Work, method: str, refs: Sequence[ModelRef]) -> Prepared:
    """A selection among these steps of the unit's experts, known by their bytes.

    A commit has a date. What hangs on the name of an expert, DARE's masks and the order of sums,
    would be another on every Hub if it were that of the commit.
    """
    request = Request(tuple(refs), method, tasks=work.tasks, device=work.shop.device)
    prepared = prepare(work.hub, request, silent)
    pool = prepared.pool
    commits = {one.source.digest: one for its in pool.candidates for one in its}
    candidates = tuple(
        tuple(replace(one, source=replace(one.source, sha=one.source.digest)) for one in its)
        for its in pool.candidates
    )
    by_bytes = replace(
        pool,
        candidates=candidates,
        open=lambda candidate: pool.open(commits[candidate.source.digest]),
    )
    return replace(prepared, gathered=replace(prepared.gathered, pool=by_bytes))


class Arenas:
    """Where choices of one pool are asked: on validation to choose, on test to report."""

    def __init__(self, prepared: Prepared, log: Path) -> None:
        self.prepared, self.log = prepared, log
        self.blender = Blender(prepared.pool, prepared.method)
        self.validation = self._arena(prepared.stages, CHOSEN_ON)
        self.test = self._arena(stages_of(prepared, "test"), "test")

    def fresh(self) -> Evaluator:
        """Another validation arena, which counts for itself what it is asked."""
        return self._arena(self.prepared.stages, CHOSEN_ON)

    def _arena(self, stages: Sequence[Stage], split: str) -> Evaluator:
        pool, method = self.prepared.pool, self.prepared.method
        return Evaluator(pool, self.blender, method, stages, TrialLog(self.log), split)


def points(grid: Mapping[str, Sequence[float]]) -> Iterator[dict[str, float]]:
    """Every point of a grid, the last parameter by name changing first; one of an empty grid."""
    names = sorted(grid)
    for values in product(*(grid[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def by_task(trial: Trial) -> list[float]:
    """Accuracy on each task, in the order of the trial."""
    return [rows.bits.count("1") / len(rows.bits) for rows in trial.rows.values()]


def stages_of(prepared: Prepared, split: str) -> list[Stage]:
    """Every task with its rows of a split, under a base of its own to dress."""
    dressed: dict[Kind, Dressed] = {}
    stages = []
    for stage in prepared.stages:
        kind = stage.task.spec.kind
        if kind not in dressed:
            model = open_model(prepared.gathered.base.folder, kind)
            dressed[kind] = Dressed(model, stage.dressed.device)
        stages.append(Stage(dressed[kind], load_split(stage.task, split)))
    return stages
