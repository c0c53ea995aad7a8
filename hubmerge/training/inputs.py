"""Who is told of a training run, and what it is trained on and watched by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hubmerge.evaluation import Examples
from hubmerge.learners.learner import Learner
from hubmerge.progress import Progress
from hubmerge.training.batches import Rows
from hubmerge.training.position import Position

Track = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class Watch:
    """Who is told of what happens: a progress bar, trackers, and whoever keeps positions.

    `also` gives further numbers for trackers, asked in every process right after a validation.
    """

    progress: Progress = lambda what, done, total: None
    track: Track = lambda said, step: None
    keep: Callable[[int, Callable[[], Position]], None] = lambda step, position: None
    also: Callable[[], Mapping[str, float]] = lambda: {}


UNWATCHED = Watch()


@dataclass(frozen=True)
class Watched:
    """A task that is validated on: who answers it, by the network in training, and its rows.

    `after` is called once all rows were answered, with what adds a tensor up over the processes.
    """

    learner: Learner
    examples: Examples
    after: Callable[[Callable[[Tensor], Tensor]], None] = lambda total: None

    @property
    def task(self) -> str:
        return self.examples.split.task.name


@dataclass(frozen=True)
class Data:
    """What a run is trained on and watched by, and how many processes prepare its batches."""

    training: Rows
    validation: Sequence[Watched]
    workers: int = 0
