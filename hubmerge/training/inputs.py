"""What the training loop takes: training data, validation tasks, and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hubmerge.evaluation import Examples
from hubmerge.learners.learner import Learner
from hubmerge.progress import Progress
from hubmerge.training.batches import TrainingRows
from hubmerge.training.position import Position

LogMetrics = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class TrainingCallbacks:
    """What is called during training: progress bar, experiment trackers, saving of positions.

    `save_position(step, position)` is called after every update; `position()` builds the position.
    `extra_metrics` is called in every process after each validation and adds to its metrics.
    """

    progress: Progress = lambda description, done, total: None
    log_metrics: LogMetrics = lambda metrics, step: None
    save_position: Callable[[int, Callable[[], Position]], None] = lambda step, position: None
    extra_metrics: Callable[[], Mapping[str, float]] = lambda: {}


NO_CALLBACKS = TrainingCallbacks()


@dataclass(frozen=True)
class ValidationTask:
    """A task to validate on: its rows, and the learner that predicts with the network in training.

    `after_evaluation` is called after all rows, with a function that sums a tensor over processes.
    """

    learner: Learner
    examples: Examples
    after_evaluation: Callable[[Callable[[Tensor], Tensor]], None] = lambda total: None

    @property
    def task_name(self) -> str:
        return self.examples.split.task.name


@dataclass(frozen=True)
class TrainingData:
    """The training rows, the validation tasks, and how many processes prepare the batches."""

    training: TrainingRows
    validation: Sequence[ValidationTask]
    workers: int = 0
