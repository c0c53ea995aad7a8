"""hubmerge eval: models x tasks -> scores, each measured once and kept in the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from hubmerge.errors import UsageError
from hubmerge.evaluation import Examples, accuracy, classifier
from hubmerge.flows.device import pick_device
from hubmerge.flows.sources import Opened, Pinned, open_pinned, pin_task
from hubmerge.hub.client import Hub
from hubmerge.models.vision_text import VisionText, open_model
from hubmerge.progress import Progress
from hubmerge.scores import Score, ScoreLog
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.task import Task, catalog, find_task


def evaluate(
    hub: Hub,
    models: Sequence[Pinned],
    task_names: Sequence[str],
    split: str,
    log: ScoreLog,
    progress: Progress,
    device: str | None = None,
) -> list[Score]:
    """Raw accuracy of every model on every task; without tasks, on those it was trained for.

    What the log knows already is not measured again. All models are opened, and all tasks found,
    before the first is measured.
    """
    bench = Bench(split, pick_device(device))
    opened = [open_pinned(hub, model) for model in models]
    named = {name: pin_task(hub, find_task(name)) for name in task_names}
    wanted = [(model, list(named.values()) or own_tasks(hub, model)) for model in opened]
    total, scores = sum(len(tasks) for _, tasks in wanted), list[Score]()
    known = {(score.model, score.task, score.split): score for score in log.read()}
    for model, tasks in wanted:
        for task in tasks:
            progress(f"{model.revision.label} on {task.name}", len(scores), total)
            key = (model.digest, task.id, split)
            if key not in known:
                known[key] = bench.measure(model, task)
                log.append([known[key]])
            # The same weights may have been measured under another name.
            scores.append(dataclasses.replace(known[key], label=model.revision.label))
    return scores


def own_tasks(hub: Hub, model: Opened) -> list[Task]:
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
    """Measures models on one split, with its images loaded and prepared once for all of them."""

    def __init__(self, split: str, device: torch.device) -> None:
        self._split, self._device = split, device
        self._splits: dict[str, Split] = {}
        self._examples: dict[tuple[str, str], Examples] = {}
        self._last: tuple[str, VisionText] | None = None

    def measure(self, model: Opened, task: Task) -> Score:
        """The score of one model on one task."""
        vision_text = self._opened(model)
        if task.id not in self._splits:
            self._splits[task.id] = load_split(task, self._split)
        split = self._splits[task.id]
        network = classifier(vision_text, split).to(self._device)
        batches = self._prepared(vision_text, split).batches()
        said = accuracy(network, batches, task.spec.metric)
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

    def _opened(self, model: Opened) -> VisionText:
        """The model as a module; the last one stays open for its next task."""
        if self._last is None or self._last[0] != model.digest:
            self._last = model.digest, open_model(model.folder)
        return self._last[1]

    def _prepared(self, model: VisionText, split: Split) -> Examples:
        key = (split.task.id, repr(model.preprocess))
        if key not in self._examples:
            self._examples[key] = Examples(model.transform(augment=False), split)
        return self._examples[key]
