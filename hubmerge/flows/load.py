"""Using a mixture of experts from Python: opening it, predicting with it, and exporting it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from hubmerge.errors import UnknownName, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.environment import connect
from hubmerge.learners.factory import make_learner
from hubmerge.models.loading import load_model
from hubmerge.moerging.export import export_peft_arrow, export_transformers
from hubmerge.moerging.moe_model import MoeModel, read_moe
from hubmerge.opening.bases import open_base
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_ref, pin_task
from hubmerge.opening.task_heads import TaskHeads
from hubmerge.opening.trained_tasks import find_trained_tasks
from hubmerge.refs import parse_ref
from hubmerge.runs.machine import pick_device
from hubmerge.specs import Kind
from hubmerge.tasks.data import load_split
from hubmerge.tasks.examples import RankExample
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.task import Task

FORMATS: Mapping[str, Callable[..., None]] = {
    "peft-arrow": export_peft_arrow,
    "transformers": export_transformers,
}


@dataclass(frozen=True)
class Moe:
    """A mixture of experts ready for use: `moe(inputs, task)` predicts labels.

    `tasks` are the tasks that it can predict, by name: those it was trained on, unless others were
    named. `module` is the model's nn.Module.
    """

    moe_model: MoeModel
    tasks: Mapping[str, Task]
    device: torch.device
    opened: OpenedModel
    heads: TaskHeads
    _predictors: dict[str, _TaskPredictor] = field(default_factory=dict, repr=False)

    @property
    def module(self) -> nn.Module:
        """The library's own model, in which mixtures of experts replace linear layers."""
        module: nn.Module = self.moe_model.model.module
        return module

    @torch.inference_mode()
    def __call__(
        self, inputs: Any, task: str | None = None, batch_size: int = 64
    ) -> list[dict[str, Any]]:
        """Return the likeliest label of each input, and its probability among the task's labels.

        `inputs` is one input or a list of them: PIL images or texts, depending on the task, or
        (prompt, choices) pairs if it ranks choices. `task` may be left out if there is only one; it
        selects the head and does not affect the router. Raises UnknownName for another task,
        UsageError for one without labels.
        """
        known_task = self._find_task(task)
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}.", "Write 1 or more.")
        rows = list(inputs) if isinstance(inputs, list) else [inputs]
        predictor = self.for_task(known_task)
        return [
            prediction
            for start in range(0, len(rows), batch_size)
            for prediction in predictor.predict(rows[start : start + batch_size])
        ]

    def for_task(self, task: Task) -> _TaskPredictor:
        """Return the predictor for a task, made once."""
        if task.name not in self._predictors:
            self._predictors[task.name] = _TaskPredictor(self, task)
        return self._predictors[task.name]

    def _find_task(self, name: str | None) -> Task:
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name is None:
            raise UsageError(f"There are several tasks: {', '.join(self.tasks)}.", "Name one.")
        if name not in self.tasks:
            raise UnknownName("task of the mixture", name, self.tasks)
        return self.tasks[name]


class _TaskPredictor:
    """A mixture of experts with the head of one task."""

    def __init__(self, moe: Moe, task: Task) -> None:
        if task.spec.kind == "target":
            raise UsageError(
                f"{task.name} has no labels to choose from.", "Use `moe.module` to generate."
            )
        self._device, model = moe.device, moe.moe_model.model
        self._classes = task.spec.classes or (
            load_split(task, "validation").classes if task.spec.is_classification else ()
        )
        head = moe.heads.load(moe.opened, model, task, tuple(self._classes))
        self._learner = cast(Any, make_learner(model, task, head, augment=False))
        self._network = self._learner.network.to(self._device).eval()

    def predict(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Predict the labels of one batch."""
        learner = self._learner
        examples = [
            (row, 0) if self._classes else RankExample(row[0], tuple(row[1]), 0) for row in rows
        ]
        batch = learner.collate([learner.for_evaluation(example) for example in examples])
        on_device = {name: tensor.to(self._device) for name, tensor in batch.items()}
        probabilities: Tensor = learner.scores(self._network, on_device).softmax(dim=-1)
        best = probabilities.max(dim=-1)
        labels = [
            (self._classes or row[1])[index]
            for row, index in zip(rows, best.indices.tolist(), strict=True)
        ]
        pairs = zip(labels, best.values.tolist(), strict=True)
        return [{"label": label, "score": probability} for label, probability in pairs]


def load_moe(
    ref: str | Path,
    *,
    tasks: str | Sequence[str] = (),
    hub: str | None = None,
    device: str | None = None,
) -> Moe:
    """Open a mixture of experts, `owner/name@step64` or a folder, on its base, ready for use.

    `tasks` names the tasks to predict, like `--tasks` on the command line; `hub` is "local" for the
    embedded Hub. Raises NotOnHub, IntegrityError, CheckpointError, or UsageError for any other
    kind of model.
    """
    with connect(hub) as connected:
        opened = open_ref(connected, parse_ref(str(ref)))
        moe_model = open_moe(connected, opened)
        names = tasks.split(",") if isinstance(tasks, str) else tasks
        known = [pin_task(connected, find_task(name)) for name in names]
        tasks_by_name = {task.name: task for task in known or find_trained_tasks(connected, opened)}
        torch_device = pick_device(device)
        cast(nn.Module, moe_model.model.module).to(torch_device)
        moe = Moe(moe_model, tasks_by_name, torch_device, opened, TaskHeads(connected))
        for task in tasks_by_name.values():
            if task.spec.kind == "text":  # its labels are embedded by its base, from the Hub
                moe.for_task(task)
        return moe


def open_moe(hub: Hub, opened: OpenedModel) -> MoeModel:
    """Open a mixture of experts on its base; raises UsageError for any other kind of model."""
    if not opened.checkpoint.is_moe:
        raise UsageError(
            f"{opened.revision.label} is not a mixture of experts.",
            "`hubmerge moerge` makes one from adapters.",
        )
    base = open_base(hub, opened)
    assert base is not None  # a mixture names its base
    model = load_model(base.folder, _task_kind(opened))
    return read_moe(model, base.checkpoint, opened.folder)


def _task_kind(opened: OpenedModel) -> Kind:
    kind = opened.manifest.task_kind if opened.manifest else "image"
    # Only tasks of language models are of several kinds.
    return cast(Kind, kind) if kind in get_args(Kind) else "rank"


def export_moe(hub: Hub, ref: str, form: str, out: Path, replace: bool = False) -> Path:
    """Write a mixture in a format that needs no hubmerge; raises UnknownName for another one."""
    if form not in FORMATS:
        raise UnknownName("format", form, FORMATS)
    opened = open_ref(hub, parse_ref(ref))
    FORMATS[form](open_moe(hub, opened), out, replace)
    return out
