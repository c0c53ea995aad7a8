"""The training loop. It knows no Hub and no folders: it yields what callers save and publish."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from hubmerge.errors import CheckpointError
from hubmerge.evaluation import accuracy
from hubmerge.row_values import has_row_metric, measure_rows
from hubmerge.training.averaging import make_average
from hubmerge.training.batches import Batches, ProcessShard
from hubmerge.training.events import CheckpointEvent
from hubmerge.training.fit import EXPLOSION_WINDOW, Fit, check_not_exploding, divergence_error
from hubmerge.training.inputs import NO_CALLBACKS, TrainingCallbacks, TrainingData, ValidationTask
from hubmerge.training.position import Position
from hubmerge.training.schedule import branch_points, cooldown_factor, cooldown_length, lr_factor
from hubmerge.training.stopping import patience_exhausted, plateau_factor
from hubmerge.training_curve import ValidationPoint


def train(
    fit: Fit,
    data: TrainingData,
    pushed: tuple[int, ...],
    callbacks: TrainingCallbacks = NO_CALLBACKS,
    start: Position | None = None,
) -> Iterator[CheckpointEvent]:
    """Train from step 0, or from the position `start`, with the annealing that the spec sets.

    Yields at step 0 (which may be a pushed step), at every pushed step, and every `evaluate_every`
    steps. (With `anneal: independent`, the caller trains once for each pushed step.) The same spec,
    data and machine give the same weights, even if training was interrupted and resumed. Raises
    TrainingDiverged and OutOfMemory.
    """
    loop = _TrainingLoop(fit, data, pushed, callbacks)
    if start is None:
        loop.validate()
        yield loop.event(pushed=0 in pushed)  # the base: a mean has nothing to average yet
    else:
        loop.restore(start)
        if not loop.curve:  # a run that continues one of another task
            loop.validate()
    yield from loop.run_branches() if fit.spec.anneal == "branch" else loop.run_schedule()


class _TrainingLoop:
    """The state of one call of `train`, and its updates, validations and branches."""

    def __init__(
        self, fit: Fit, data: TrainingData, pushed: tuple[int, ...], callbacks: TrainingCallbacks
    ) -> None:
        self.fit, self.spec, self.data, self.pushed = fit, fit.spec, data, pushed
        self.callbacks = callbacks
        accelerator = fit.accelerator
        self.shard = ProcessShard(accelerator.process_index, accelerator.num_processes)
        self.batches = Batches(fit.learner, data.training, fit.spec, self.shard, data.workers)
        self.average = make_average(fit)
        self.step, self.current_lr = 0, 0.0
        self.curve: list[ValidationPoint] = []
        self.losses: list[float] = []
        self.first_loss: float | None = None
        self.recent_losses: deque[float] = deque(maxlen=EXPLOSION_WINDOW)
        self.updates_made, self.start_time = 0, time.monotonic()

    def run_schedule(self) -> Iterator[CheckpointEvent]:
        """Train on the schedule until the last pushed step or early stopping."""
        for _ in self.updates(self.pushed[-1], self.lr):
            if self.step in self.pushed or self.is_due():
                with self.averaged():
                    self.validate()
                    stopped = self.should_stop() and self.step < self.pushed[-1]
                    yield self.event(self.step in self.pushed or stopped, stopped)
                if stopped:
                    return
            self.callbacks.save_position(self.step, self.position)

    def run_branches(self) -> Iterator[CheckpointEvent]:
        """Train a trunk at constant rate; before each pushed step, branch off for a cool-down."""
        pushed = tuple(step for step in self.pushed if step > 0)
        for branch_step, ends in branch_points(pushed, self.spec.cooldown).items():
            if branch_step < self.step:
                continue  # resumed from a later position
            for _ in self.updates(branch_step, self.lr):
                if self.is_due():
                    self.validate()
                    yield self.event()
                self.callbacks.save_position(self.step, self.position)
            trunk = self.position()
            for end in ends:
                for _ in self.updates(end, partial(self.cooldown_lr, end)):
                    pass
                self.validate()
                yield replace(self.event(pushed=True), position=partial(_identity, trunk))
                self.restore(trunk)

    def updates(self, end: int, lr: Callable[[int], float]) -> Iterator[None]:
        """Make the updates up to step `end`; yields after each. `lr` maps a step to its rate."""
        for micro_batches in self.batches.for_steps(range(self.step + 1, end + 1)):
            self.current_lr = lr(self.step + 1)
            loss = self.fit.update(self.step + 1, micro_batches, self.current_lr)
            if self.average is not None:
                self.average.record_update()
            self.step, self.updates_made = self.step + 1, self.updates_made + 1
            self.first_loss = loss if self.first_loss is None else self.first_loss
            self.losses.append(loss)
            self.recent_losses.append(loss)
            check_not_exploding(self.recent_losses, self.first_loss, self.step)
            self.callbacks.log_metrics({"loss": loss, "lr": self.current_lr}, self.step)
            self.callbacks.progress(self.progress_line(loss), self.step, self.pushed[-1])
            yield

    def averaged(self) -> AbstractContextManager[None]:
        """The network with the mean of its weights, if the spec names one, while a block lasts."""
        if self.average is None:
            return nullcontext()
        self.average.record_evaluation()
        return self.average.applied()

    def validate(self) -> None:
        """Evaluate all validation tasks, and add a point to the curve."""
        results = {}
        for task in self.data.validation:
            results[task.task_name] = self.accuracy(task)
            task.after_evaluation(self.sum_over_processes)
        values = {name: result["value"] for name, result in results.items()}
        count = sum(int(result["count"]) for result in results.values())
        mean, tasks = sum(values.values()) / len(values), values if len(values) > 1 else {}
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        self.curve.append(ValidationPoint(self.step, loss, mean, count, self.current_lr, tasks))
        self.losses.clear()
        metrics = {"validation_accuracy": mean}
        metrics |= {f"validation_accuracy/{name}": value for name, value in tasks.items()}
        self.callbacks.log_metrics(metrics | {**self.callbacks.extra_metrics()}, self.step)

    def accuracy(self, task: ValidationTask) -> dict[str, float]:
        """The accuracy of one task: `value` in [0, 1] and `count` of examples."""
        learner, examples = task.learner, task.examples
        if has_row_metric(examples.split.task):
            return self.mean_of_rows(task)
        batches = examples.batches(learner.collate, self.shard.rank, self.shard.world_size)
        metric, device = examples.split.task.metric, self.fit.accelerator.device
        try:
            return accuracy(
                learner, self.fit.network, batches, metric, device, self.gather_predictions
            )
        except CheckpointError as error:
            if self.step == 0:
                raise  # the base model itself is broken
            raise divergence_error(
                f"The model's predictions are not finite at step {self.step}."
            ) from error

    def mean_of_rows(self, task: ValidationTask) -> dict[str, float]:
        """The mean over rows of a metric with a number for each; each process measures a share."""
        examples, device = task.examples, self.fit.accelerator.device
        network, count = self.fit.network, len(examples.split)
        rows = range(count)[self.shard.rank :: self.shard.world_size]
        was_training = network.training
        values = measure_rows(task.learner, network, examples, rows, device).values if rows else ()
        network.train(was_training)
        total = torch.tensor(sum(values), dtype=torch.float64, device=device)
        return {"value": float(self.sum_over_processes(total)) / count, "count": count}

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        if self.shard.world_size == 1:
            return tensor
        return cast(Tensor, self.fit.accelerator.reduce(tensor))

    def gather_predictions(self, predictions: Tensor) -> Tensor:
        """Predictions and references [B, K, 2] of all processes."""
        if self.shard.world_size == 1:
            return predictions
        accelerator = self.fit.accelerator
        padded = accelerator.pad_across_processes(predictions, dim=1, pad_index=-1)
        return Tensor(accelerator.gather(padded))

    def lr(self, step: int) -> float:
        """The learning rate of update number `step` under the schedule."""
        spec, total = self.spec, self.pushed[-1]
        warmup, cooldown = spec.warmup_length(total), cooldown_length(total, spec.cooldown)
        factor = lr_factor(step - 1, total, warmup, spec.lr_schedule, cooldown)
        if spec.lr_schedule == "plateau":
            accuracies = self.monitored_accuracies()
            factor *= plateau_factor(accuracies, spec.stopping_patience, spec.factor)
        return spec.peak_lr * factor

    def cooldown_lr(self, end: int, step: int) -> float:
        """The learning rate of update number `step` of the cool-down that ends at step `end`."""
        length = cooldown_length(end, self.spec.cooldown)
        return self.lr(step) * cooldown_factor(step - 1 - (end - length), length)

    def is_due(self) -> bool:
        interval = self.spec.evaluation_interval
        return bool(interval) and self.step % (interval or 1) == 0

    def monitored_accuracies(self) -> list[float]:
        """The accuracies that early stopping looks at: after warm-up, every `interval` steps.

        Other points of the curve are left out, so that a run does not depend on its pushed steps.
        """
        warmup = self.spec.warmup_length(self.pushed[-1])
        interval = self.spec.evaluation_interval or 1
        return [p.accuracy for p in self.curve if p.step >= warmup and p.step % interval == 0]

    def should_stop(self) -> bool:
        """Whether early stopping ends the run here."""
        spec, accuracies = self.spec, self.monitored_accuracies()
        patience = spec.stopping_patience
        if spec.early_stop == "plateau":
            return plateau_factor(accuracies, patience, spec.factor) < spec.min_lr
        if spec.early_stop == "noise":
            return patience_exhausted(accuracies, self.curve[-1].count, patience, spec.band)
        return False

    def event(self, pushed: bool = False, stopped: bool = False) -> CheckpointEvent:
        return CheckpointEvent(tuple(self.curve), pushed, stopped, self.position)

    def position(self) -> Position:
        losses, state = tuple(self.losses), self.fit.state()
        if self.average is not None:
            state |= self.average.state()
        return Position(self.step, tuple(self.curve), losses, self.first_loss, state)

    def restore(self, position: Position) -> None:
        """Continue from this position."""
        self.fit.restore(position.state)
        if self.average is not None:
            self.average.restore(position.state)
        self.step, self.first_loss = position.step, position.first_loss
        self.curve, self.losses = list(position.curve), list(position.losses)

    def progress_line(self, loss: float) -> str:
        """The text next to the progress bar."""
        speed = self.updates_made / max(1e-9, time.monotonic() - self.start_time)
        accuracy = 100 * self.curve[-1].accuracy
        return (
            f"loss {loss:.3f}, lr {self.current_lr:.1e}, val {accuracy:.1f} %, {speed:.1f} steps/s"
        )


def _identity(position: Position) -> Position:
    return position
