"""The training loop: it knows no Hub and no folders, it yields what others save and publish."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import cast

from torch import Tensor

from hubmerge.errors import CheckpointError
from hubmerge.evaluation import accuracy
from hubmerge.manifest import Point
from hubmerge.training.batches import Batches, Share
from hubmerge.training.events import Moment
from hubmerge.training.fit import EXPLOSIVE, Fit, check_bounded, diverged
from hubmerge.training.inputs import UNWATCHED, Data, Watch, Watched
from hubmerge.training.position import Position
from hubmerge.training.schedule import branch_points, cooldown_length, cooling, rate
from hubmerge.training.stopping import outlasted, plateau


def train(
    fit: Fit,
    data: Data,
    pushed: tuple[int, ...],
    watch: Watch = UNWATCHED,
    start: Position | None = None,
) -> Iterator[Moment]:
    """Train one line from its beginning, or on from a position, annealed as the spec says.

    Yields at step 0, which may be a pushed one, at every pushed step, and every `evaluate_every`
    steps. (For `independent`, each pushed step is a line of its own.) The same spec, data and
    machine give the same weights, wherever the line was interrupted. Raises TrainingDiverged and
    OutOfMemory.
    """
    line = _Line(fit, data, pushed, watch)
    if start is None:
        line.measure()
        yield line.moment(pushed=0 in pushed)
    else:
        line.go_to(start)
    yield from line.branches() if fit.spec.anneal == "branch" else line.along()


class _Line:
    """Where a line of training stands, and how it goes on."""

    def __init__(self, fit: Fit, data: Data, pushed: tuple[int, ...], watch: Watch) -> None:
        self.fit, self.spec, self.data, self.pushed = fit, fit.spec, data, pushed
        self.watch = watch
        accelerator = fit.accelerator
        self.share = Share(accelerator.process_index, accelerator.num_processes)
        self.batches = Batches(fit.learner, data.training, fit.spec, self.share, data.workers)
        self.step, self.rate = 0, 0.0
        self.curve: list[Point] = []
        self.losses: list[float] = []
        self.first: float | None = None
        self.recent: deque[float] = deque(maxlen=EXPLOSIVE)
        self.made, self.began = 0, time.monotonic()

    def along(self) -> Iterator[Moment]:
        """One run under its schedule, until its end or until early stopping."""
        for _ in self.updates(self.pushed[-1], self.lr):
            if self.step in self.pushed or self.is_due():
                self.measure()
                stopped = self.stops() and self.step < self.pushed[-1]
                yield self.moment(self.step in self.pushed or stopped, stopped)
                if stopped:
                    return
            self.watch.keep(self.step, self.position)

    def branches(self) -> Iterator[Moment]:
        """A trunk at constant rate, left before each pushed step for a short cool-down."""
        later = tuple(step for step in self.pushed if step > 0)
        for at, steps in branch_points(later, self.spec.cooldown).items():
            if at < self.step:
                continue  # gone on from a later position
            for _ in self.updates(at, self.lr):
                if self.is_due():
                    self.measure()
                    yield self.moment()
                self.watch.keep(self.step, self.position)
            trunk = self.position()
            for step in steps:
                for _ in self.updates(step, partial(self.cooled, step)):
                    pass
                self.measure()
                yield replace(self.moment(pushed=True), position=partial(_same, trunk))
                self.go_to(trunk)

    def updates(self, to: int, lr: Callable[[int], float]) -> Iterator[None]:
        """Make the updates up to step `to`, each under its rate."""
        for micros in self.batches.of(range(self.step + 1, to + 1)):
            self.rate = lr(self.step + 1)
            loss = self.fit.update(self.step + 1, micros, self.rate)
            self.step, self.made = self.step + 1, self.made + 1
            self.first = loss if self.first is None else self.first
            self.losses.append(loss)
            self.recent.append(loss)
            check_bounded(self.recent, self.first, self.step)
            self.watch.track({"loss": loss, "lr": self.rate}, self.step)
            self.watch.progress(self.told(loss), self.step, self.pushed[-1])
            yield

    def measure(self) -> None:
        """Add a point to the curve."""
        said = {}
        for watched in self.data.validation:
            said[watched.task] = self.accuracy(watched)
            watched.after(self.total)
        values = {task: one["value"] for task, one in said.items()}
        count = sum(int(one["count"]) for one in said.values())
        mean, tasks = sum(values.values()) / len(values), values if len(values) > 1 else {}
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        self.curve.append(Point(self.step, loss, mean, count, self.rate, tasks))
        self.losses.clear()
        each = {f"validation_accuracy/{task}": value for task, value in tasks.items()}
        self.watch.track({"validation_accuracy": mean, **each, **self.watch.also()}, self.step)

    def accuracy(self, watched: Watched) -> dict[str, float]:
        """Value in [0, 1] and count of one task."""
        fit, learner, examples = self.fit, watched.learner, watched.examples
        batches = examples.batches(learner.collate, self.share.rank, self.share.world)
        metric = examples.split.task.spec.metric
        try:
            return accuracy(
                learner, fit.network, batches, metric, fit.accelerator.device, self.gathered
            )
        except CheckpointError as error:
            if self.step == 0:
                raise  # the base came like that
            raise diverged(f"The model's answer is no number at step {self.step}.") from error

    def total(self, own: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.share.world == 1:
            return own
        return cast(Tensor, self.fit.accelerator.reduce(own))

    def gathered(self, told: Tensor) -> Tensor:
        """Answers [B, K, 2] of all processes."""
        if self.share.world == 1:
            return told
        accelerator = self.fit.accelerator
        padded = accelerator.pad_across_processes(told, dim=1, pad_index=-1)
        return Tensor(accelerator.gather(padded))

    def lr(self, step: int) -> float:
        """The learning rate of update number `step` under the schedule."""
        spec, total = self.spec, self.pushed[-1]
        warmup, cooldown = spec.warmup_length(total), cooldown_length(total, spec.cooldown)
        share = rate(step - 1, total, warmup, spec.shape, cooldown)
        if spec.shape == "plateau":
            share *= plateau(self.watched(), spec.evaluations, spec.factor)
        return spec.peak * share

    def cooled(self, end: int, step: int) -> float:
        """The learning rate of update number `step` of the cool-down that ends at step `end`."""
        length = cooldown_length(end, self.spec.cooldown)
        return self.lr(step) * cooling(step - 1 - (end - length), length)

    def is_due(self) -> bool:
        return bool(self.spec.cadence) and self.step % (self.spec.cadence or 1) == 0

    def watched(self) -> list[float]:
        """The accuracies that slow down or stop: after warm-up, and those of the cadence alone, so
        that a run does not depend on which of its steps are pushed.
        """
        warmup, cadence = self.spec.warmup_length(self.pushed[-1]), self.spec.cadence or 1
        return [p.accuracy for p in self.curve if p.step >= warmup and p.step % cadence == 0]

    def stops(self) -> bool:
        """Whether early stopping ends the run here."""
        spec, watched = self.spec, self.watched()
        if spec.early_stop == "plateau":
            return plateau(watched, spec.evaluations, spec.factor) < spec.min_lr
        if spec.early_stop == "noise":
            return outlasted(watched, self.curve[-1].count, spec.evaluations, spec.band)
        return False

    def moment(self, pushed: bool = False, stopped: bool = False) -> Moment:
        return Moment(tuple(self.curve), pushed, stopped, self.position)

    def position(self) -> Position:
        losses = tuple(self.losses)
        return Position(self.step, tuple(self.curve), losses, self.first, self.fit.state())

    def go_to(self, position: Position) -> None:
        """Stand where the line stood then."""
        self.fit.restore(position.state)
        self.step, self.first = position.step, position.first
        self.curve, self.losses = list(position.curve), list(position.losses)

    def told(self, loss: float) -> str:
        """What a watcher reads beside the bar."""
        speed = self.made / max(1e-9, time.monotonic() - self.began)
        accuracy = 100 * self.curve[-1].accuracy
        return f"loss {loss:.3f}, lr {self.rate:.1e}, val {accuracy:.1f} %, {speed:.1f} steps/s"


def _same(position: Position) -> Position:
    return position
