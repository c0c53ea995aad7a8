"""Accuracy of experts and of their merges, each measured once and stored in a log."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from hubmerge.flows.evaluate import ModelEvaluator
from hubmerge.hub.client import Hub
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import METHODS, parse_params
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_ref
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.tasks.lookup import find_task
from recipes.studies.early_stopping.runs import BASE, TASKS

Accuracies = list[float]
"""One for each task, in [0, 1]."""


class CachedEvaluator:
    """Evaluates experts of the four tasks, given as folders in the order of the tasks."""

    def __init__(self, hub: Hub, root: Path) -> None:
        self._hub, self._log = hub, root / "measured.jsonl"
        self._base = open_ref(hub, parse_ref(BASE)).checkpoint
        self._tasks = [find_task(name) for name in TASKS]
        self._benches = {
            s: ModelEvaluator(hub, s, torch.device("cpu")) for s in ("validation", "test")
        }
        self._open = cache(lambda folder: open_ref(hub, ModelRef(path=folder)))
        lines = self._log.read_text().splitlines() if self._log.is_file() else []
        self._known: dict[str, Accuracies] = dict(map(json.loads, lines))

    def expert_accuracies(self, folders: Sequence[Path], split: str) -> Accuracies:
        """The accuracy of each expert on its own task."""
        experts = [self._open(folder) for folder in folders]
        key = _key(experts, split, "experts", {})
        if key not in self._known:
            models = zip(experts, self._tasks, strict=True)
            self._record(key, [self._benches[split].measure(*pair).value for pair in models])
        return self._known[key]

    def merge_accuracies(
        self, folders: Sequence[Path], split: str, method: str, params: Mapping[str, float]
    ) -> Accuracies:
        """The accuracy of the experts' merge on each task."""
        experts = [self._open(folder) for folder in folders]
        key = _key(experts, split, method, params)
        if key not in self._known:
            self._record(key, self._measure_merge(experts, split, method, params))
        return self._known[key]

    def _measure_merge(
        self, experts: Sequence[OpenedModel], split: str, method: str, params: Mapping[str, float]
    ) -> Accuracies:
        of_method = METHODS[method]
        shares = tuple(Expert(model.checkpoint, sha=model.digest) for model in experts)
        plan = MergePlan(self._base, shares, of_method, parse_params(of_method, params))
        with tempfile.TemporaryDirectory() as scratch:
            merge(plan, Path(scratch) / "merged")
            model = open_ref(self._hub, ModelRef(path=Path(scratch) / "merged"))
            return [self._benches[split].measure(model, task).value for task in self._tasks]

    def _record(self, key: str, accuracies: Accuracies) -> None:
        self._known[key] = accuracies
        with self._log.open("a") as log:
            log.write(json.dumps([key, accuracies]) + "\n")


def _key(
    experts: Sequence[OpenedModel], split: str, method: str, params: Mapping[str, float]
) -> str:
    """The key of a measurement: it depends on the experts' bytes, not on their folders."""
    return json.dumps([[model.digest for model in experts], split, method, params], sort_keys=True)
