"""Accuracy of experts and of their merges, each measured once and kept in a growing file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from hubmerge.flows.evaluate import Bench
from hubmerge.hub.client import Hub
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import METHODS, parse_params
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.references import open_ref
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.tasks.lookup import find_task
from recipes.early_stopping.runs import BASE, TASKS

Accuracies = list[float]
"""One for each task, in [0, 1]."""


class Laboratory:
    """Measures experts of the four tasks, given as their folders in the tasks' order."""

    def __init__(self, hub: Hub, root: Path) -> None:
        self._hub, self._log = hub, root / "measured.jsonl"
        self._base = open_ref(hub, parse_ref(BASE)).checkpoint
        self._tasks = [find_task(name) for name in TASKS]
        self._benches = {s: Bench(hub, s, torch.device("cpu")) for s in ("validation", "test")}
        self._open = cache(lambda folder: open_ref(hub, ModelRef(path=folder)))
        lines = self._log.read_text().splitlines() if self._log.is_file() else []
        self._known: dict[str, Accuracies] = dict(map(json.loads, lines))

    def experts(self, folders: Sequence[Path], split: str) -> Accuracies:
        """The accuracy of each expert on its own task."""
        experts = [self._open(folder) for folder in folders]
        key = _key(experts, split, "experts", {})
        if key not in self._known:
            models = zip(experts, self._tasks, strict=True)
            self._keep(key, [self._benches[split].measure(*pair).value for pair in models])
        return self._known[key]

    def merged(
        self, folders: Sequence[Path], split: str, method: str, params: Mapping[str, float]
    ) -> Accuracies:
        """The accuracy of the experts' merge on each task."""
        experts = [self._open(folder) for folder in folders]
        key = _key(experts, split, method, params)
        if key not in self._known:
            self._keep(key, self._measure_merged(experts, split, method, params))
        return self._known[key]

    def _measure_merged(
        self, experts: Sequence[Opened], split: str, method: str, params: Mapping[str, float]
    ) -> Accuracies:
        of_method = METHODS[method]
        shares = tuple(Expert(one.checkpoint, sha=one.digest) for one in experts)
        plan = MergePlan(self._base, shares, of_method, parse_params(of_method, params))
        with tempfile.TemporaryDirectory() as place:
            merge(plan, Path(place) / "merged")
            model = open_ref(self._hub, ModelRef(path=Path(place) / "merged"))
            return [self._benches[split].measure(model, task).value for task in self._tasks]

    def _keep(self, key: str, found: Accuracies) -> None:
        self._known[key] = found
        with self._log.open("a") as log:
            log.write(json.dumps([key, found]) + "\n")


def _key(experts: Sequence[Opened], split: str, method: str, params: Mapping[str, float]) -> str:
    """What decides a measurement: the experts' bytes, not where they lie."""
    return json.dumps([[one.digest for one in experts], split, method, params], sort_keys=True)
