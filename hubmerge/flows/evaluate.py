"""hubmerge eval: models x tasks -> scores, each measured once and kept in the log."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn

from hubmerge.errors import UsageError
from hubmerge.evaluation import Examples, accuracy
from hubmerge.flows.bases import base_of
from hubmerge.flows.machine import pick_device
from hubmerge.flows.sources import Opened, Pinned, open_pinned, pin_task
from hubmerge.hub.client import Hub
from hubmerge.learners.learner import Learner, without_network
from hubmerge.learners.making import first_head, make_learner, trained_head
from hubmerge.models.adapter import apply_adapter
from hubmerge.models.opening import Model, open_model
from hubmerge.progress import Progress
from hubmerge.scores import Score, ScoreLog
from hubmerge.specs import Kind
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.task import Task, catalog, find_task


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


def own_tasks(hub: Hub, model: Opened | Pinned) -> list[Task]:
    """The shipped tasks that a model's manifest names: its own, or those of its experts.

    Raises UsageError if it names none, or one that is not among the shipped ones.
    """
    manifest = model.manifest
    sources = manifest.experts if manifest else ()
    said = [source.task for source in sources] or [manifest.task if manifest else None]
    names = {str(task_id).partition("@")[0] for task_id in said}
    shipped = {name: find_task(name) for name in names & catalog().keys()}
    found = [_same(hub, shipped, task_id) for task_id in dict.fromkeys(said)]
    tasks = [task for task in found if task]
    if len(tasks) < len(found):
        trained_for = f" but for {', '.join(sorted(names))}" if any(said) else ""
        raise UsageError(
            f"{model.revision.label} was not trained for tasks that come with hubmerge"
            f"{trained_for}.",
            "Write --tasks with names of `hubmerge tasks`, YAML files or image folders, separated "
            "by commas.",
        )
    return tasks


def _same(hub: Hub, shipped: dict[str, Task], task_id: str | None) -> Task | None:
    """The shipped task of that id: the same name may mean other images elsewhere."""
    task = shipped.get((task_id or "").partition("@")[0])
    pinned = pin_task(hub, task) if task else None
    return pinned if pinned and pinned.id == task_id else None


class Bench:
    """Measures models on one split, with its rows loaded and prepared once for all of them."""

    def __init__(self, hub: Hub, split: str, device: torch.device) -> None:
        self._hub, self._split, self._device = hub, split, device
        self._splits: dict[str, Split] = {}
        self._examples: dict[tuple[str, str], Examples] = {}
        self._last: tuple[tuple[str, Kind], Model] | None = None
        self._heads: dict[tuple[str, str], nn.Module | None] = {}

    def measure(self, model: Opened, task: Task) -> Score:
        """The score of one model on one task."""
        if task.id not in self._splits:
            self._splits[task.id] = load_split(task, self._split)
        split, opened = self._splits[task.id], self._opened(model, task.spec.kind)
        head = self._head(model, opened, split)
        learner = make_learner(opened, task, head, augment=False)
        network = learner.network.to(self._device)
        examples = self._prepared(learner, opened, split)
        batches = examples.batches(learner.collate)
        said = accuracy(learner, network, batches, task.spec.metric, self._device)
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
            recipe=manifest.recipe if manifest and manifest.kind == "merge" else None,
            data=f"{data.id}@{data.revision}" if data.id else None,
        )

    def _opened(self, model: Opened, kind: Kind) -> Model:
        """The model as a module; the last one stays open for its next task."""
        if self._last is None or self._last[0] != (model.digest, kind):
            self._last = (model.digest, kind), open_expert(self._hub, model, kind)
        return self._last[1]

    def _head(self, model: Opened, opened: Model, split: Split) -> nn.Module | None:
        """The head of a classification task: a trained one from the model's folder, or labels.

        A text encoder that was trained embeds labels anew, so theirs are embedded by its base.
        """
        spec = split.task.spec
        if not spec.classifies:
            return None
        if spec.head == "trained":
            return trained_head(opened, split.task, split.classes, model.folder)
        if spec.kind == "image":
            return first_head(opened, split.task, split.classes)
        base = base_of(self._hub, model) or model
        key = (base.digest, split.task.id)
        if key not in self._heads:
            anew = open_model(base.folder, spec.kind)
            self._heads[key] = first_head(anew, split.task, split.classes)
        return self._heads[key]

    def _prepared(self, learner: Learner, model: Model, split: Split) -> Examples:
        """The rows of the split as this learner takes them, prepared once for all that agree."""
        key = (split.task.id, how_it_reads(learner, model))
        if key not in self._examples:
            self._examples[key] = Examples(without_network(learner).for_evaluation, split)
        return self._examples[key]


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
    """A model of any kind as a module: whole weights, or an adapter upon its base.

    Raises UsageError for an adapter whose base is not told.
    """
    if model.checkpoint.kind == "full":
        return open_model(model.folder, kind)
    base = base_of(hub, model)
    assert base is not None  # an adapter that names none is refused
    return apply_adapter(open_model(base.folder, kind), model.folder).model
