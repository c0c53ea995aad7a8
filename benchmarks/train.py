"""The speed of `hubmerge train` as ratios, measured in one run.

speed    steps per second over a bare PyTorch loop and over transformers' Trainer: the same network,
         rows, AdamW, clipping, fp32, batch of 32, and the loss read at every step; in CPU seconds
         of one thread, including preparation of rows. Above 1, hubmerge is faster.
publish  wall time of a run that pushes its steps 2^k to the embedded Hub over the same run, with
         the same evaluations, that saves nothing; and the part that blocks the training thread.
evaluate examples per second over a bare evaluation loop, with rows prepared before.
pack     rows per second with --pack over those without, on prompts and answers of 1 to 60 words.
options  steps per second with --sam 0.05, and with --average ema:0.999, over those without.
wait     share of the wall time of training that is spent waiting for the next batch.

    make bench                                    everything, 20 minutes on an idle machine
    python -m benchmarks.train --only t5/speed    one part of one model
    python -m benchmarks.train --quick            a minute, to see that it runs
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there; the demo trains so, too
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import hubmerge.training.loop
from benchmarks.cases import BUILD, Case, cases, short_texts
from benchmarks.loops import (
    bare_accuracy,
    evaluation_batches,
    make_loops,
    run_hubmerge,
    run_interleaved,
)
from benchmarks.publishing import BLOCKING_PARTS, PARTS, embedded_hub, measure_overhead
from hubmerge.evaluation import Examples, accuracy
from hubmerge.tasks.data import load_split
from hubmerge.training.batches import Batches

OUT = BUILD / "bench-train.json"


@dataclass(frozen=True)
class Row:
    """One line of the table: medians of both sides, and the median of the ratios of each repeat."""

    model: str
    what: str
    ours: float
    theirs: float
    ratio: float
    goal: float
    at_least: bool = True  # whether the ratio should be at least the goal, or at most

    @property
    def met(self) -> bool:
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal


@dataclass(frozen=True)
class Sizes:
    """The amount of work: the number of repeats, and the share of the steps."""

    repeats: int
    share: float

    def steps(self, steps: int) -> int:
        return max(2, round(steps * self.share))


def measure_speed(case: Case, sizes: Sizes) -> Iterator[Row]:
    """Steps per second of the three loops, in turn."""
    steps = sizes.steps(case.steps)
    runs = [run_interleaved(make_loops(case, steps)) for _ in range(sizes.repeats)]
    for _, losses in runs:
        _check_same_work(case, losses)
    per_second = {name: [steps / run[name] for run, _ in runs] for name in runs[0][0]}
    for rival, goal in (("bare", 0.95), ("Trainer", 1.0)):
        yield _row(
            case, f"speed: steps/s over {rival}", per_second["hubmerge"], per_second[rival], goal
        )


def measure_packing(case: Case, sizes: Sizes) -> Iterator[Row]:
    """Rows per second of hubmerge's loop with and without packing, in turn."""
    steps, rows = sizes.steps(case.steps), case.training()
    runs = []
    for _ in range(sizes.repeats):
        loops = {
            name: partial(run_hubmerge, replace(case, pack=name == "packed"), steps, rows)
            for name in ("padded", "packed")
        }
        runs.append(run_interleaved(loops))
        _check_same_work(case, runs[-1][1])
    count = steps * case.spec(steps).batch
    packed, padded = ([count / run[name] for run, _ in runs] for name in ("packed", "padded"))
    yield _row(case, "pack: rows/s over padded", packed, padded, 1.0)


def measure_options(case: Case, sizes: Sizes) -> Iterator[Row]:
    """Steps per second of hubmerge's loop with options that cost time, and without, in turn."""
    steps, rows, runs = sizes.steps(case.steps), case.training(), []
    changed = {
        "plain": case, "sam": replace(case, sam=0.05), "ema": replace(case, average="ema:0.999"),
    }  # fmt: skip
    for _ in range(sizes.repeats):
        loops = {name: partial(run_hubmerge, each, steps, rows) for name, each in changed.items()}
        runs.append(run_interleaved(loops))
    per_second = {name: [steps / run[name] for run, _ in runs] for name in changed}
    for name, goal in (("sam", 0.45), ("ema", 0.9)):
        what = f"options: steps/s of {name} over plain"
        yield _row(case, what, per_second[name], per_second["plain"], goal)


def _check_same_work(case: Case, losses: dict[str, list[float]]) -> None:
    """Check that losses agree: loops have the same rows and differ only in dropout and crops."""
    means = [statistics.mean(values) for values in losses.values()]
    if len({len(values) for values in losses.values()}) > 1 or max(means) > 1.2 * min(means):
        raise SystemExit(f"{case.name}: the loops do not do the same work: {losses}")


def measure_publishing(case: Case, sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Wall time with and without pushes; prints the time of each part."""
    steps = sizes.steps(case.full_steps)
    with embedded_hub(folder / f"home-{case.name}") as hub:
        runs = [measure_overhead(hub, case, steps, number) for number in range(sizes.repeats)]
    published, nothing, spent = zip(*runs, strict=True)
    print(f"\n{case.name}, {steps} steps, seconds of one run in which steps are published:")
    for what in [*PARTS, *sorted(spent[0].keys() - PARTS.keys())]:
        print(f"  {what:38}{statistics.median(seconds[what] for seconds in spent):8.2f}")
    what = f"publish: s of {steps} steps"
    yield _row(case, what, published, nothing, 1.05, at_least=False)
    held = [sum(seconds[what] for what in BLOCKING_PARTS) for seconds in spent]
    yield _row(case, "publish: s that hold training up", held, nothing, 0.05, at_least=False)


def measure_evaluation(case: Case, sizes: Sizes) -> Iterator[Row]:
    """Examples per second of evaluation."""
    learner, split = case.learner(), load_split(case.task, "test")
    kept, rows = Examples(learner.for_evaluation, split), evaluation_batches(learner, split)
    device, metric = torch.device("cpu"), case.task.spec.metric

    def by_us() -> float:
        batches = kept.batches(learner.collate)
        return accuracy(learner, learner.network, batches, metric, device)["value"]

    ours_s, theirs_s = [], []
    for _ in range(sizes.repeats + 1):
        seconds, value = _cpu_seconds(by_us)
        ours_s.append(len(split) / seconds)
        seconds, again = _cpu_seconds(lambda: bare_accuracy(learner, rows))
        theirs_s.append(len(split) / seconds)
        if abs(value - again) > 0.01:
            raise SystemExit(f"{case.name}: the evaluations do not agree: {value}, {again}")
    # The first time rows are prepared, which is done once a run.
    yield _row(case, "evaluate: examples/s over bare", ours_s[1:], theirs_s[1:], 0.95)


def measure_waiting(case: Case, sizes: Sizes) -> Iterator[Row]:
    """Seconds of waiting for batches, and in total."""
    for workers in (0, 2) if case.augment else (0,):
        runs = [_time_waiting(case, sizes.steps(case.steps), workers) for _ in range(sizes.repeats)]
        waited, whole = zip(*runs, strict=True)
        what = f"wait: s for batches, {workers} workers"
        yield _row(case, what, waited, whole, 0.1, at_least=False)


def _time_waiting(case: Case, steps: int, workers: int) -> tuple[float, float]:
    waits, ticks = [0.0], list[float]()

    class Clocked(Batches):
        def for_steps(self, steps: range) -> Iterator[Any]:
            batches, end = super().for_steps(steps), object()
            while True:
                began = time.perf_counter()
                batch = next(batches, end)
                waits[0] += time.perf_counter() - began
                if batch is end:
                    return
                yield batch

    with mock.patch.object(hubmerge.training.loop, "Batches", Clocked):
        run_hubmerge(
            case, steps, case.training(), lambda: ticks.append(time.perf_counter()), workers
        )
    return waits[0], ticks[-1] - ticks[0]


def _cpu_seconds(work: Callable[[], float]) -> tuple[float, float]:
    began = time.thread_time()
    result = work()
    return time.thread_time() - began, result


def _row(
    case: Case,
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    goal: float,
    at_least: bool = True,
) -> Row:
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    medians = statistics.median(ours), statistics.median(theirs)
    return Row(case.name, what, *medians, ratio, goal, at_least)


def _measured(sizes: Sizes, only: str, folder: Path) -> Iterator[Row]:
    for case in cases(folder):
        parts = {
            "speed": lambda case=case: measure_speed(case, sizes),
            "evaluate": lambda case=case: measure_evaluation(case, sizes),
            "options": lambda case=case: measure_options(case, sizes),
            "wait": lambda case=case: measure_waiting(case, sizes),
            "publish": lambda case=case: measure_publishing(case, sizes, folder),
        }
        if case.augment:  # the same model once more: only its batches differ
            del parts["evaluate"], parts["publish"], parts["options"]
        if case.name == "t5":
            del parts["publish"]
        for name, part in parts.items():
            if only in f"{case.name}/{name}":
                yield from part()
    measures = {"llama/pack": measure_packing, "llama/options": measure_options}
    if wanted := [measure for name, measure in measures.items() if only in name]:
        short = short_texts(folder)
        for measure in wanted:
            yield from measure(short, sizes)


def main() -> None:
    """Print every row as it is measured, and write all rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps, once")
    parser.add_argument("--only", default="", help="part of MODEL/PART, such as clip/ or /wait")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    sizes = Sizes(1, 1 / 16) if options.quick else Sizes(options.repeats, 1.0)
    print(f"{'model':12}{'what':38}{'ours':>9}{'theirs':>9}{'ratio':>8}{'goal':>9}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in _measured(sizes, options.only, Path(folder)):
            rows.append(row)
            print(_line(row), flush=True)
    BUILD.mkdir(exist_ok=True)
    value = {**_settings(sizes), "rows": [{**asdict(row), "met": row.met} for row in rows]}
    OUT.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    goal = f"{'>=' if row.at_least else '<='} {row.goal:.2f}"
    return (
        f"{row.model:12}{row.what:38}{row.ours:9.2f}{row.theirs:9.2f}{row.ratio:8.3f}{goal:>9}"
        f"  {'met' if row.met else 'NOT MET'}"
    )


def _settings(sizes: Sizes) -> dict[str, object]:
    return {
        "sizes": asdict(sizes),
        "load": os.getloadavg(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
    }


if __name__ == "__main__":
    main()
