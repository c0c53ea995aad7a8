"""Builders of short training runs with the tiny CLIP that comes with hubmerge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save

import hubmerge
from hubmerge.evaluation import Examples
from hubmerge.learners.factory import initial_head, make_learner
from hubmerge.learners.learner import Learner
from hubmerge.models.adapter import add_adapter
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.training.events import CheckpointEvent
from hubmerge.training.fit import Fit, make_fit
from hubmerge.training.inputs import TrainingCallbacks, TrainingData, ValidationTask
from hubmerge.training.loop import train
from hubmerge.training.position import Position
from hubmerge.training.schedule import push_steps
from hubmerge.training_curve import ValidationPoint
from tests.models.builders import load_copy

MINI = Path(hubmerge.__file__).parent / "mini" / "base"


def make_spec(**values: Any) -> TrainSpec:
    defaults = {"base": "base", "task": "task", "to": "me/it", "steps": 4, "batch": 8, "lr": 5e-4}
    schedule = None if {"anneal", "early_stop"} & set(values) else "constant"
    return TrainSpec(**{**defaults, "schedule": schedule, "augment": False, **values})


def make_learner_of(spec: TrainSpec, split: Split, folder: Path = MINI) -> Learner:
    """The learner for the split's task from the base in `folder`, set up for this spec."""
    model: Any = load_copy(folder, split.task.spec.kind)
    head = initial_head(model, split.task, split.classes)
    if spec.tune != "full":
        model = add_adapter(model, spec, "hubmerge/tiny", "0" * 40).model
    return make_learner(model, split.task, head, spec.augment)


def make_tiny_fit(spec: TrainSpec, split: Split, learner: Learner | None = None) -> Fit:
    return make_fit(learner or make_learner_of(spec, split), spec, Accelerator(cpu=True))


def iterate_training(
    fit: Fit,
    training: Any,
    validation: Split,
    start: Position | None = None,
    callbacks: TrainingCallbacks | None = None,
    workers: int = 0,
) -> Iterator[CheckpointEvent]:
    task = ValidationTask(fit.learner, Examples(fit.learner.for_evaluation, validation))
    data = TrainingData(training, (task,), workers)
    pushed = push_steps(fit.spec.push_every, fit.spec.steps)
    return train(fit, data, pushed, callbacks or TrainingCallbacks(), start)


def run_training(
    spec: TrainSpec, training: Any, validation: Split, **options: Any
) -> tuple[bytes, list[CheckpointEvent]]:
    """The trained weights at the end, and all events."""
    fit = make_tiny_fit(spec, validation)
    events = list(iterate_training(fit, training, validation, **options))
    return weight_bytes(fit), events


def curve(events: list[CheckpointEvent]) -> list[ValidationPoint]:
    return [event.curve[-1] for event in events]


def weight_bytes(fit: Fit) -> bytes:
    return save({n: t for n, t in fit.state().items() if n.startswith("weight.")})
