"""Simulated outcomes for the real search: which rows a merge gets right is drawn, not evaluated.

A world has four tasks with eight steps each, merged by task arithmetic. Every row has a position on
a circle of length 1 for every choice, and is right if that is below the choice's true accuracy. So
the true accuracy is known exactly. From a choice to a neighbour (one step of one expert, or one
value of the grid) the row is drawn again with probability 1 - `correlation`: that is the
correlation of being right between neighbours of equal accuracy, and it falls by the same factor
with every further move. In worlds of which any two choices correlate alike, each choice draws a row
again with probability 1 - sqrt(`correlation`). Only the merger and the rows are replaced;
evaluator, search, policies and report are hubmerge's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from hubmerge.merging.registry import method
from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import Choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.pool import Pool
from hubmerge.selection.task_split import EvaluatedRows
from hubmerge.source import Source
from hubmerge.tasks.lookup import find_task
from hubmerge.training_curve import ValidationPoint
from hubmerge.trials import Trial, TrialLog

from .builders import fake_sha

TASKS = tuple(find_task(f"mini-{name}") for name in ("mnist", "fashion", "hebrew", "texture"))
STEPS = tuple(2**power for power in range(8))
METHOD = method("task_arithmetic")
_SCALE_UNIT = 0.05  # the distance of two values in the grid
_WEIGHT_UNIT = math.log(1.2)  # the smallest factor by which a weight is moved
_SCALES, _WEIGHTS = 41, 41  # positions that are told apart, the weight 1 in the middle
_ALONE_CORRELATION = 0.5  # between an expert alone on its own task, and merged


@dataclass(frozen=True)
class World:
    """A world: rows of each task, correlation of neighbours, and the true accuracy of a choice.

    `height` is by how much the best choice beats the last steps: a parabola for each expert around
    the step `peak` (an index), and one for the scale. All choices are equal at height 0.
    `correlation` is that of neighbours, or with `any_two` that of any two choices.
    """

    rows: int
    correlation: float
    height: float = 0.0
    peak: int = 5
    accuracy: float = 0.6
    own_accuracy: float = 0.8
    base_accuracy: float = 0.4
    any_two: bool = False

    def true_accuracy(self, choice: Choice) -> float:
        """Return the true mean accuracy of a choice."""
        reach = len(STEPS) - 1 - self.peak
        distances = [(index - self.peak) / reach for index in choice.indices]
        steps = sum(distance**2 for distance in distances) / len(distances)
        scale = (dict(choice.params)["scale"] - 0.5) / 0.25
        weights = sum((weight - 1) ** 2 for weight in choice.weights) / len(choice.weights)
        lost = self.height * (steps + scale**2 + 4 * weights)
        return max(self.accuracy - lost, self.accuracy - 0.4)


class SimulatedModel:
    """Holds the choice or expert that was loaded last, instead of tensors; None for the base."""

    classifier = None

    def __init__(self) -> None:
        self.choice: Any = None

    def load_tensor(self, name: str, values: Any) -> None:
        self.choice = values

    def finish_merge(self, loaded: set[str]) -> None:
        if not loaded:
            self.choice = None


class SimulatedDeltas:
    """Task vectors of which only the norm is known: it grows with the square root of the step."""

    def norm(self, candidate: Candidate) -> float:
        return math.sqrt(candidate.step)


class SimulatedMerger:
    """Merges nothing: the choice itself is the only tensor."""

    method, deltas = METHOD, SimulatedDeltas()

    def merged_tensors(self, choice: Choice) -> Iterator[tuple[str, Any]]:
        yield "choice", choice

    def expert_tensors(self, candidate: Candidate) -> Iterator[tuple[str, Any]]:
        yield "expert", candidate

    def merge_norm(self, choice: Choice) -> float:
        return math.sqrt(sum(STEPS[index] for index in choice.indices))


class SimulatedRows:
    """The rows of one task: where each is on the circle, for every choice."""

    def __init__(self, world: World, number: int, model: SimulatedModel, seed: int) -> None:
        self.task, self.loaded_model = TASKS[number], model
        self.row_order = list(range(world.rows))
        self._world, self._last = world, cast(Any, ("nothing", None))
        random = np.random.default_rng([seed, number])
        self._start, self._seed = random.random(world.rows), (seed, number)
        kept = 1.0 if world.any_two else world.correlation
        self._steps = [self._walk(random, len(STEPS), kept) for _ in TASKS]
        self._scale = self._walk(random, _SCALES, kept)
        self._weights = [self._walk(random, _WEIGHTS, kept) for _ in TASKS]
        moved = random.random(world.rows) >= _ALONE_CORRELATION
        self.alone = moved * random.random(world.rows)

    def _walk(self, random: np.random.Generator, positions: int, kept: float) -> Any:
        """Return how far each row has moved at each position, position by position."""
        shape = (positions - 1, self._world.rows)
        jumps = (random.random(shape) >= kept) * random.random(shape)
        return np.concatenate([np.zeros((1, self._world.rows)), np.cumsum(jumps, axis=0)])

    def row_count(self, share: float) -> int:
        return max(1, round(share * self._world.rows))

    def position(self, choice: Choice) -> Any:
        """Return where each row is on the circle."""
        moved = self._start + self._scale[_scale_index(choice)]
        for walk, index in zip(self._steps, choice.indices, strict=True):
            moved = moved + walk[index]
        for walk, weight in zip(self._weights, choice.weights, strict=True):
            moved = moved + walk[_weight_index(weight)]
        return (moved + self._own_jumps(choice) if self._world.any_two else moved) % 1.0

    def _own_jumps(self, choice: Choice) -> Any:
        """Return how far this choice alone moves each row."""
        weights = map(_weight_index, choice.weights)
        place = (*choice.indices, _scale_index(choice), *weights)
        random = np.random.default_rng([*self._seed, *place])
        jumps = random.random(self._world.rows) >= math.sqrt(self._world.correlation)
        return jumps * random.random(self._world.rows)

    def _right(self, loaded: Choice | Candidate | None) -> Any:
        if isinstance(loaded, Choice):
            return self.position(loaded) < self._world.true_accuracy(loaded)
        alone = (self._start + self.alone) % 1.0
        own = loaded is not None and loaded.source.task == self.task.id
        return alone < (self._world.own_accuracy if own else self._world.base_accuracy)

    def evaluate(self, rows: Sequence[int], folder: Path, head: None) -> EvaluatedRows:
        choice = self.loaded_model.choice
        if self._last[0] != choice:
            right = self._right(choice)
            self._last = (choice, right)
        return EvaluatedRows("".join(np.where(self._last[1][list(rows)], "1", "0").tolist()))

    def count_texts(self, evaluated: EvaluatedRows) -> None:
        """Nothing is generated."""


def _scale_index(choice: Choice) -> int:
    return min(round(dict(choice.params)["scale"] / _SCALE_UNIT), _SCALES - 1)


def _weight_index(weight: float) -> int:
    if not weight:  # left out
        return 0
    middle = _WEIGHTS // 2
    return min(max(middle + round(math.log(weight) / _WEIGHT_UNIT), 0), _WEIGHTS - 1)


class EmptyLog(TrialLog):
    """A log that keeps nothing: no world is simulated twice."""

    def append(self, trials: Iterable[Trial]) -> None:
        return None


def make_evaluator(world: World, seed: int) -> Evaluator:
    """Return an evaluator of a world whose outcomes are drawn with `seed`."""
    model = SimulatedModel()
    splits = [SimulatedRows(world, number, model, seed) for number in range(len(TASKS))]
    pool = _make_pool(world, splits)
    merger = cast(Any, SimulatedMerger())
    return Evaluator(pool, merger, METHOD, cast(Any, splits), EmptyLog(Path()), "validation")


def _make_pool(world: World, splits: Sequence[SimulatedRows]) -> Pool:
    start = (ValidationPoint(0, None, 0.1, world.rows, 0.0),)
    candidates = []
    for number, (task, split) in enumerate(zip(TASKS, splits, strict=True)):
        steps = []
        for index, step in enumerate(STEPS):
            label = f"me/e{number}@step{step}"
            source = Source(label, fake_sha(label), "", step, task.id)
            own = _own_accuracy(world, split, index)
            steps.append(Candidate(source, own, curve=start))
        candidates.append(tuple(steps))
    return Pool(
        base=Source("me/base@main", fake_sha("base"), ""),
        base_checkpoint=cast(Any, None),
        tasks=TASKS,
        candidates=tuple(candidates),
        open=lambda candidate: cast(Any, SimpleNamespace(folder=Path())),
    )


def _own_accuracy(world: World, split: SimulatedRows, index: int) -> float:
    """Return what an expert reaches alone on its own task, on the rows that merges use too."""
    ones = (1.0,) * len(TASKS)
    same = Choice((index,) * len(TASKS), ones, ones, ones, (("scale", 0.5),))
    return float(np.mean((split.position(same) + split.alone) % 1.0 < world.own_accuracy))
