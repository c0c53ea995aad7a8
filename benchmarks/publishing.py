"""What publishing costs a run: `hubmerge train` over the same run that saves nothing."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import hubmerge.flows.train
import hubmerge.opening.publication
import hubmerge.runs.step_folders
import hubmerge.training.position
from benchmarks.cases import Case
from hubmerge.hub.client import Hub
from hubmerge.hub.environment import connect, home
from hubmerge.hub.outbox import Publisher
from hubmerge.runs.expert_job import prepare
from hubmerge.runs.expert_model import Trainee
from hubmerge.runs.machine import Machine, make_accelerator
from hubmerge.runs.run import Run
from hubmerge.training.fit import Fit, make_fit
from hubmerge.training.inputs import Data, Watch
from hubmerge.training.loop import train

# Where the time of a run goes. What stands under another is part of it; `publish` is what the
# thread in the background needs, all else holds training up.
PARTS = {
    "save a step": (hubmerge.flows.train, "keep_step"),
    "- write weights": (Trainee, "save"),
    "- hash and card": (hubmerge.runs.step_folders, "seal"),
    "copy the position": (Fit, "state"),
    "write the position": (hubmerge.training.position, "write_position"),
    "wait for the last push": (Publisher, "close"),
    "publish, in background": (Publisher, "_publish"),
    "- draw the curve": (hubmerge.opening.publication, "training_picture"),
}
HOLDING_UP = (
    "save a step",
    "copy the position",
    "write the position",
    "wait for the last push",
)


@contextmanager
def embedded_hub(folder: Path) -> Iterator[Hub]:
    """The embedded Hub of a new home."""
    with mock.patch.dict(os.environ, {"HUBMERGE_HOME": str(folder)}), connect("local") as hub:
        yield hub


def overhead(hub: Hub, case: Case, steps: int, number: int) -> tuple[float, float, Counter[str]]:
    """Seconds of a run that publishes and of one that saves nothing, and where they went."""
    spec = case.spec(steps, f"bench/{case.name}{number}")
    run = prepare(hub, spec, case.task, home() / "runs", None, Machine())
    spent: Counter[str] = Counter()

    def published() -> None:
        with clocked(PARTS, spent):
            hubmerge.flows.train.train(hub, run, lambda *said: None)

    works = {"published": published, "nothing saved": lambda: _nothing_saved(run)}
    seconds: dict[str, float] = {}
    for what in sorted(works, reverse=number % 2 == 1):  # each comes first in turn
        began, cpu = time.perf_counter(), time.process_time()
        works[what]()
        seconds[what] = time.perf_counter() - began
        spent[f"CPU of this process, {what}"] = time.process_time() - cpu
    return seconds["published"], seconds["nothing saved"], spent


def _nothing_saved(run: Run) -> None:
    """The same training, with the same evaluations, and nothing else."""
    begun = run.job.begin()
    accelerator = make_accelerator(run.machine, run.spec.precision, run.outbox.folder, {})
    fit = make_fit(begun.learner, run.spec, accelerator)
    data = Data(begun.training, begun.watched)
    watch = Watch(track=lambda said, step: accelerator.log(dict(said), step))
    for _ in train(fit, data, run.planned, watch):
        pass


@contextmanager
def clocked(places: dict[str, tuple[Any, str]], spent: Counter[str]) -> Iterator[None]:
    """Count the seconds that these functions take while the block runs."""

    def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*said: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*said, **more)
            finally:
                spent[what] += time.perf_counter() - began

        return call

    with ExitStack() as stack:
        for what, (place, name) in places.items():
            changed = timed(what, getattr(place, name))
            stack.enter_context(mock.patch.object(place, name, changed))
        yield
