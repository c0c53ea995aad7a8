"""hubmerge eval: models x tasks -> scores, each measured once and kept in the log."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import torch

from hubmerge.evaluation import Examples, accuracy
from hubmerge.hub.client import Hub
from hubmerge.learners.factory import make_learner
from hubmerge.learners.learner import Learner, without_network
from hubmerge.manifest import Manifest
from hubmerge.models.adapter import apply_adapter
from hubmerge.models.loading import Model, open_model
from hubmerge.moerging.moe_model import read_mixture
from hubmerge.opening.bases import base_of
from hubmerge.opening.opened_model import Opened, Pinned
from hubmerge.opening.references import open_pinned, pin_task
from hubmerge.opening.task_heads import Heads
from hubmerge.opening.trained_tasks import own_tasks
from hubmerge.predictions import Answers, read_answers
from hubmerge.progress import Progress
from hubmerge.runs.machine import pick_device
from hubmerge.scores import Score, ScoreLog
from hubmerge.specs import Kind
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.task import Task


def evaluate(
    hub: Hub,
    models: Sequence[Pinned],
    tasks: Sequence[Task],
    split: str,
    log: ScoreLog,
    progress: Progress,
    device: str | None = None,
) -> list[Score]:
    """Raw accuracy of every model on every task; without tasks, on those it was trained for.

    What the log knows already is not measured again. All models are opened before the
    first is measured.
    """
    bench = Bench(hub, split, pick_device(device))
    opened = [open_pinned(hub, model) for model in models]
    named = [pin_task(hub, task) for task in tasks]
    wanted = [(model, named or own_tasks(hub, model)) for model in opened]
    total, scores = sum(len(its) for _, its in wanted), list[Score]()
    known = {(score.model, score.task, score.split): score for score in log.read()}
    for model, its in wanted:
        for task in its:
            progress(f"{model.revision.label} on {task.name}", len(scores), total)
            key = (model.digest, task.id, split)
            if key not in known:
                known[key] = bench.measure(model, task)
                log.append([known[key]])
            # The same weights may have been measured under another name.
            scores.append(dataclasses.replace(known[key], label=model.revision.label))
    return scores


class Bench:
    """Measures models on one split, with its rows loaded and prepared once for all of them."""

    def __init__(self, hub: Hub, split: str, device: torch.device) -> None:
        self._hub, self._split, self._device = hub, split, device
        self._splits: dict[str, Split] = {}
        self._examples: dict[tuple[str, str], Examples] = {}
        self._last: tuple[tuple[str, Kind], Model] | None = None
        self._heads = Heads(hub)

    def measure(self, model: Opened, task: Task) -> Score:
        """The score of one model on one task."""
        split, (learner, examples) = self.rows(task), self._at(model, task)
        batches = examples.batches(learner.collate)
        said = accuracy(learner, learner.network, batches, task.spec.metric, self._device)
        manifest, data = model.manifest, task.spec.data
        return Score(
            label=model.revision.label,
            model=model.digest,
            task=task.id,
            split=split.name,
            metric=task.spec.metric,
            value=said["value"],
            count=int(said["count"]),
            stderr=said["stderr"],
            recipe=_recipe(manifest) if manifest else None,
            data=f"{data.id}@{data.revision}" if data.id else None,
        )

    def answers(self, model: Opened, task: Task) -> Answers:
        """What one model says of every row of one task, in their order.

        Raises UsageError for a task without classes.
        """
        learner, examples = self._at(model, task)
        batches = (batch for batch, _ in examples.batches(learner.collate))
        return read_answers(learner, learner.network, batches, self._device)

    def rows(self, task: Task) -> Split:
        """The split of a task, loaded once."""
        if task.id not in self._splits:
            self._splits[task.id] = load_split(task, self._split)
        return self._splits[task.id]

    def _at(self, model: Opened, task: Task) -> tuple[Learner, Examples]:
        """The model at the task, on the device, and the rows as it takes them."""
        split, opened = self.rows(task), self._opened(model, task.spec.kind)
        head = self._heads.of(model, opened, task, split.classes)
        learner = make_learner(opened, task, head, augment=False)
        learner.network.to(self._device)
        return learner, self._prepared(learner, opened, split)

    def _opened(self, model: Opened, kind: Kind) -> Model:
        """The model as a module; the last one stays open for its next task."""
        if self._last is None or self._last[0] != (model.digest, kind):
            self._last = (model.digest, kind), open_expert(self._hub, model, kind)
        return self._last[1]

    def _prepared(self, learner: Learner, model: Model, split: Split) -> Examples:
        """The rows of the split as this learner takes them, prepared once for all that agree."""
        key = (split.task.id, how_it_reads(learner, model))
        if key not in self._examples:
            self._examples[key] = Examples(without_network(learner).for_evaluation, split)
        return self._examples[key]


def _recipe(manifest: Manifest) -> str | None:
    """What a merge or a mixture is known by; the steps of a mixture before its last share its."""
    whole = manifest.is_merge or manifest.step == manifest.last_step
    return manifest.recipe if not manifest.is_expert and whole else None


def how_it_reads(learner: Learner, model: Model) -> str:
    """Two learners of which this is the same prepare an example alike."""
    if hasattr(model, "preprocess"):
        return repr(model.preprocess)
    tokenizer = model.tokenizer
    said = repr(tokenizer)
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # How it cut and padded last is no part of how it reads.
        said = json.dumps({k: v for k, v in state.items() if k not in ("truncation", "padding")})
    limits = [getattr(learner, name, None) for name in ("max_tokens", "positions", "is_seq2seq")]
    ends = tokenizer.eos_token_id, tokenizer.pad_token_id
    return hashlib.sha256(f"{limits}/{ends}/{said}".encode()).hexdigest()


def open_expert(hub: Hub, model: Opened, kind: Kind) -> Model:
    """A model of any kind as a module: whole weights, or an adapter or a mixture upon its base.

    Raises UsageError where that base is not told.
    """
    if model.checkpoint.kind == "full":
        return open_model(model.folder, kind)
    base = base_of(hub, model)
    assert base is not None  # what is nothing without a base, and names none, is refused
    opened = open_model(base.folder, kind)
    if model.checkpoint.is_moe:
        return read_mixture(opened, base.checkpoint, model.folder).model
    return apply_adapter(opened, model.folder).model
