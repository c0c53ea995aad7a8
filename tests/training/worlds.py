"""The shipped tiny CLIP and task, and a run of a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save

import hubmerge
from hubmerge.models.vision_text import VisionText, open_model
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.training.loop import Point, train

MINI = Path(hubmerge.__file__).parent / "mini" / "base"


def spec(**values: Any) -> TrainSpec:
    few = {"base": "base", "task": "task", "to": "me/it", "steps": 4, "batch": 8, "lr": 5e-4}
    return TrainSpec(**{**few, "schedule": "constant", "augment": False, **values})


def running(
    model: VisionText, asked: TrainSpec, training: Split, validation: Split
) -> Iterator[Point]:
    return train(model, asked, training, validation, Accelerator(cpu=True), lambda *_: None)


def trained(asked: TrainSpec, training: Split, validation: Split) -> tuple[VisionText, list[Point]]:
    model = open_model(MINI)
    return model, list(running(model, asked, training, validation))


def weights(model: VisionText) -> bytes:
    return save({name: weight.detach() for name, weight in model.encoder.named_parameters()})
