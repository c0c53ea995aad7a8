"""The shipped tiny CLIP and task, and a run of a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save

import hubmerge
from hubmerge.evaluation import Examples
from hubmerge.learners.factory import first_head, make_learner
from hubmerge.learners.learner import Learner
from hubmerge.manifest import Point
from hubmerge.models.adapter import adapt
from hubmerge.models.loading import open_model
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.training.events import Moment, Position, train
from hubmerge.training.fit import Fit, make_fit
from hubmerge.training.inputs import Data, Watch, Watched
from hubmerge.training.schedule import push_steps

MINI = Path(hubmerge.__file__).parent / "mini" / "base"


def spec(**values: Any) -> TrainSpec:
    few = {"base": "base", "task": "task", "to": "me/it", "steps": 4, "batch": 8, "lr": 5e-4}
    schedule = None if {"anneal", "early_stop"} & set(values) else "constant"
    return TrainSpec(**{**few, "schedule": schedule, "augment": False, **values})


def learner(asked: TrainSpec, split: Split, folder: Path = MINI) -> Learner:
    """A base at the split's task, ready to be trained as asked."""
    model: Any = open_model(folder, split.task.spec.kind)
    head = first_head(model, split.task, split.classes)
    if asked.tune != "full":
        model = adapt(model, asked, "hubmerge/tiny", "0" * 40).model
    return make_learner(model, split.task, head, asked.augment)


def fit(asked: TrainSpec, split: Split, of: Learner | None = None) -> Fit:
    return make_fit(of or learner(asked, split), asked, Accelerator(cpu=True))


def running(
    trained: Fit,
    training: Any,
    validation: Split,
    start: Position | None = None,
    watch: Watch | None = None,
    workers: int = 0,
) -> Iterator[Moment]:
    watched = Watched(trained.learner, Examples(trained.learner.for_evaluation, validation))
    data = Data(training, (watched,), workers)
    pushed = push_steps(trained.spec.push_every, trained.spec.steps)
    return train(trained, data, pushed, watch or Watch(), start)


def ran(
    asked: TrainSpec, training: Any, validation: Split, **more: Any
) -> tuple[bytes, list[Moment]]:
    """The trained weights at the end, and every moment."""
    trained = fit(asked, validation)
    moments = list(running(trained, training, validation, **more))
    return weights(trained), moments


def curve(moments: list[Moment]) -> list[Point]:
    return [moment.curve[-1] for moment in moments]


def weights(of: Fit) -> bytes:
    return save({n: t for n, t in of.state().items() if n.startswith("weight.")})
