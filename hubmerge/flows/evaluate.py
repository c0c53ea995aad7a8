"""hubmerge eval: models x tasks -> scores, each measured once and kept in the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hubmerge.errors import UsageError
from hubmerge.evaluation import Examples, accuracy, classifier
from hubmerge.flows.sources import Opened, open_ref, pin_task
from hubmerge.hub.client import Hub
from hubmerge.models.vision_text import VisionText, open_model
from hubmerge.refs import ModelRef
from hubmerge.scores import Score, ScoreLog
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.task import Task, catalog, find_task

Progress = Callable[[str, int, int], None]


def evaluate(
    hub: Hub,
    refs: Sequence[ModelRef],
    task_names: Sequence[str],
    split: str,
    log: ScoreLog,
    progress: Progress,
    device: str | None = None,
) -> list[Score]:
    """Raw accuracy of every model on every task; without tasks, on those it was trained for.

    What the log knows already is not measured again. All references are opened, and all tasks
    found, before the first is measured.
    """
    models = [open_ref(hub, ref) for ref in refs]
    wanted = [(model, name) for model in models for name in task_names or own_tasks(model)]
    tasks = {name: pin_task(hub, find_task(name)) for _, name in wanted}
    bench = Bench(split, torch.device(device or _best_device()))
    known = {(score.model, score.task, score.split): score for score in log.read()}
    scores = []
    for done, (model, name) in enumerate(wanted):
        progress(f"{model.revision.label} on {name}", done, len(wanted))
        key = (model.checkpoint.digest(), _task_id(tasks[name]), split)
        if key not in known:
            known[key] = bench.measure(model, tasks[name])
            log.append([known[key]])
        scores.append(known[key])
    progress("done", len(wanted), len(wanted))
    return scores


def own_tasks(model: Opened) -> tuple[str, ...]:
    """The shipped tasks that a model's manifest names: its own, or those of its experts."""
    manifest = model.manifest
    names = [expert.task for expert in manifest.experts] if manifest else []
    if manifest and manifest.task:
        names.append(manifest.task.get("name"))
    missing = sorted({str(name) for name in names if name not in catalog()})
    if missing or not names:
        raise UsageError(
            f"{model.revision.label} does not say where its task can be found"
            + (f" ({', '.join(missing)})." if missing else "."),
            "Write --tasks with names of `hubmerge tasks` or YAML files, separated by commas.",
        )
    return tuple(dict.fromkeys(str(name) for name in names))


class Bench:
    """Measures models on one split, with its images loaded and prepared once for all of them."""

    def __init__(self, split: str, device: torch.device) -> None:
        self._split, self._device = split, device
        self._splits: dict[str, Split] = {}
        self._examples: dict[tuple[str, str], Examples] = {}

    def measure(self, model: Opened, task: Task) -> Score:
        """The score of one model on one task."""
        if task.name not in self._splits:
            self._splits[task.name] = load_split(task, self._split)
        split, vision_text = self._splits[task.name], open_model(model.folder)
        network = classifier(vision_text, split).to(self._device)
        batches = self._prepared(vision_text, split).batches()
        said = accuracy(network, batches, task.spec.metric)
        manifest, data = model.manifest, task.spec.data
        return Score(
            label=model.revision.label,
            model=model.checkpoint.digest(),
            task=_task_id(task),
            split=split.name,
            metric=task.spec.metric,
            value=said["value"],
            count=int(said["count"]),
            stderr=said["stderr"],
            recipe=manifest.recipe if manifest and manifest.kind == "merge" else None,
            data=f"{data.id}@{data.revision}" if data.id else None,
        )

    def _prepared(self, model: VisionText, split: Split) -> Examples:
        key = (split.task.name, repr(model.preprocess))
        if key not in self._examples:
            self._examples[key] = Examples(model.transform(augment=False), split)
        return self._examples[key]


def _task_id(task: Task) -> str:
    return f"{task.name}@{task.digest}"


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
