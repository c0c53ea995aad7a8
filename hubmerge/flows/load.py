"""A mixture as Python has it: opened from its name, asked for answers, or written for others."""

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
from hubmerge.models.loading import open_model
from hubmerge.moerging.export import export_peft_arrow, export_transformers
from hubmerge.moerging.moe_model import Mixture, read_mixture
from hubmerge.opening.bases import base_of
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.references import open_ref, pin_task
from hubmerge.opening.task_heads import Heads
from hubmerge.opening.trained_tasks import own_tasks
from hubmerge.refs import parse_ref
from hubmerge.runs.machine import pick_device
from hubmerge.specs import Kind
from hubmerge.tasks.data import load_split
from hubmerge.tasks.examples import Ranked
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.task import Task

FORMATS: Mapping[str, Callable[..., None]] = {
    "peft-arrow": export_peft_arrow,
    "transformers": export_transformers,
}


@dataclass(frozen=True)
class Moe:
    """A mixture ready for use: `moe(inputs, task)` answers, `module` is the model's nn.Module.

    `tasks` are those that it can be asked, by name: those it was trained on, if no others were
    named.
    """

    mixture: Mixture
    tasks: Mapping[str, Task]
    device: torch.device
    opened: Opened
    heads: Heads
    _asked: dict[str, _Asked] = field(default_factory=dict, repr=False)

    @property
    def module(self) -> nn.Module:
        """The library's own model, with mixtures for linear layers."""
        module: nn.Module = self.mixture.model.module
        return module

    @torch.inference_mode()
    def __call__(
        self, inputs: Any, task: str | None = None, batch_size: int = 64
    ) -> list[dict[str, Any]]:
        """The likeliest label of each input, with its probability among the task's labels.

        Inputs are PIL images or texts, by the kind of the task, or (prompt, choices) where it ranks
        choices; a single one may stand alone. `task` may be left out if there is only one; the
        router never knows it. Raises UnknownName for another task, UsageError for one that has no
        labels.
        """
        found = self._task(task)
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}.", "Write 1 or more.")
        rows = list(inputs) if isinstance(inputs, list) else [inputs]
        asked = self.at(found)
        return [
            answer
            for start in range(0, len(rows), batch_size)
            for answer in asked.answers(rows[start : start + batch_size])
        ]

    def at(self, task: Task) -> _Asked:
        """The mixture under the task's head, made once."""
        if task.name not in self._asked:
            self._asked[task.name] = _Asked(self, task)
        return self._asked[task.name]

    def _task(self, name: str | None) -> Task:
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name is None:
            raise UsageError(f"Which task? It knows {', '.join(self.tasks)}.", "Name one.")
        if name not in self.tasks:
            raise UnknownName("task of the mixture", name, self.tasks)
        return self.tasks[name]


class _Asked:
    """A mixture at one task."""

    def __init__(self, moe: Moe, task: Task) -> None:
        if task.spec.kind == "target":
            raise UsageError(
                f"{task.name} has no labels to choose from.", "Use `moe.module` to generate."
            )
        self._device, model = moe.device, moe.mixture.model
        self._classes = task.spec.classes or (
            load_split(task, "validation").classes if task.spec.classifies else ()
        )
        head = moe.heads.of(moe.opened, model, task, tuple(self._classes))
        self._learner = cast(Any, make_learner(model, task, head, augment=False))
        self._network = self._learner.network.to(self._device).eval()

    def answers(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """One batch."""
        learner = self._learner
        examples = [(row, 0) if self._classes else Ranked(row[0], tuple(row[1]), 0) for row in rows]
        batch = learner.collate([learner.for_evaluation(example) for example in examples])
        placed = {name: tensor.to(self._device) for name, tensor in batch.items()}
        shares: Tensor = learner.scores(self._network, placed).softmax(dim=-1)
        best = shares.max(dim=-1)
        labels = [
            (self._classes or row[1])[place]
            for row, place in zip(rows, best.indices.tolist(), strict=True)
        ]
        pairs = zip(labels, best.values.tolist(), strict=True)
        return [{"label": label, "score": share} for label, share in pairs]


def load_moe(
    ref: str | Path,
    *,
    tasks: str | Sequence[str] = (),
    hub: str | None = None,
    device: str | None = None,
) -> Moe:
    """Open the mixture `owner/name@step64`, or that of a folder, on its base, ready for use.

    `tasks` names those that do not come with hubmerge, as `--tasks` does; `hub` is "local" for the
    embedded Hub. Raises NotOnHub, IntegrityError, CheckpointError, or
    UsageError for what is no mixture.
    """
    with connect(hub) as connected:
        opened = open_ref(connected, parse_ref(str(ref)))
        mixture = open_mixture(connected, opened)
        named = tasks.split(",") if isinstance(tasks, str) else tasks
        known = [pin_task(connected, find_task(name)) for name in named]
        tasks_by_name = {task.name: task for task in known or own_tasks(connected, opened)}
        place = pick_device(device)
        cast(nn.Module, mixture.model.module).to(place)
        moe = Moe(mixture, tasks_by_name, place, opened, Heads(connected))
        for task in tasks_by_name.values():
            if task.spec.kind == "text":  # whose labels its base embeds, and that is on the Hub
                moe.at(task)
        return moe


def open_mixture(hub: Hub, opened: Opened) -> Mixture:
    """The mixture of an opened folder, on its base; raises UsageError for what is no mixture."""
    if not opened.checkpoint.is_moe:
        raise UsageError(
            f"{opened.revision.label} is no mixture.", "`hubmerge moerge` makes one of adapters."
        )
    base = base_of(hub, opened)
    assert base is not None  # a mixture names its base
    model = open_model(base.folder, _kind(opened))
    return read_mixture(model, base.checkpoint, opened.folder)


def _kind(opened: Opened) -> Kind:
    said = opened.manifest.task_kind if opened.manifest else "image"
    # Of tasks of several kinds only those of language models go together.
    return cast(Kind, said) if said in get_args(Kind) else "rank"


def export(hub: Hub, ref: str, form: str, out: Path, replace: bool = False) -> Path:
    """Write a mixture for people without hubmerge; raises UnknownName for an unknown form."""
    if form not in FORMATS:
        raise UnknownName("format", form, FORMATS)
    opened = open_ref(hub, parse_ref(ref))
    FORMATS[form](open_mixture(hub, opened), out, replace)
    return out
