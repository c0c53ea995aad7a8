"""The overhead of publishing: `hubmerge train` compared with the same run that saves nothing."""

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
from hubmerge.runs.expert_job import prepare_expert_run
from hubmerge.runs.expert_model import ExpertModel
from hubmerge.runs.machine import Machine, make_accelerator
from hubmerge.runs.run import Run
from hubmerge.training.fit import Fit, make_fit
from hubmerge.training.inputs import TrainingCallbacks, TrainingData
from hubmerge.training.loop import train

# The parts of the time of a run. A part with a dash is contained in the one above it; `publish`
# is the time of the background thread, all others block training.
PARTS = {
    "save a step": (hubmerge.flows.train, "save_step"),
    "- write weights": (ExpertModel, "save"),
    "- hash and card": (hubmerge.runs.step_folders, "finalize_folder"),
    "copy the position": (Fit, "state"),
    "write the position": (hubmerge.training.position, "write_position"),
    "wait for the last push": (Publisher, "close"),
    "publish, in background": (Publisher, "_publish"),
    "- draw the curve": (hubmerge.opening.publication, "training_curve_png"),
}
BLOCKING_PARTS = (
    "save a step",
    "copy the position",
    "write the position",
    "wait for the last push",
)


@contextmanager
def embedded_hub(folder: Path) -> Iterator[Hub]:
    """An embedded Hub in a new home folder."""
    with mock.patch.dict(os.environ, {"HUBMERGE_HOME": str(folder)}), connect("local") as hub:
        yield hub


def measure_overhead(
    hub: Hub, case: Case, steps: int, number: int
) -> tuple[float, float, Counter[str]]:
    """Seconds of a run that publishes and of one that saves nothing, and seconds by part."""
    spec = case.spec(steps, f"bench/{case.name}{number}")
    run = prepare_expert_run(hub, spec, case.task, home() / "runs", None, Machine())
    spent: Counter[str] = Counter()

    def published() -> None:
        with time_functions(PARTS, spent):
            hubmerge.flows.train.train(hub, run, lambda *values: None)

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
    ready = run.job.build()
    accelerator = make_accelerator(run.machine, run.spec.precision, run.outbox.folder, {})
    fit = make_fit(ready.learner, run.spec, accelerator)
    data = TrainingData(ready.training, ready.validation_tasks)
    watch = TrainingCallbacks(log_metrics=lambda values, step: accelerator.log(dict(values), step))
    for _ in train(fit, data, run.planned_steps, watch):
        pass


@contextmanager
def time_functions(functions: dict[str, tuple[Any, str]], spent: Counter[str]) -> Iterator[None]:
    """Add up the seconds that these functions take while the block runs."""

    def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*values, **more)
            finally:
                spent[what] += time.perf_counter() - began

        return call

    with ExitStack() as stack:
        for what, (owner, name) in functions.items():
            replacement = timed(what, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield
