"""Units as jobs for a cluster: the levels of the plan, divided into jobs of about one hour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from hubmerge.reproduce.plan_cost import DurationEstimator
from hubmerge.reproduce.unit import Unit

TARGET_JOB_S = 3600.0  # a much shorter job waits longer in the queue than it runs
_MIN_LIMIT_S = 1800.0
_LIMIT_FACTOR = 3  # a job that takes so many times its estimate counts as stuck


@dataclass(frozen=True)
class Batch:
    """Jobs that may run at once with the same resources; `jobs` has the unit keys of each job.

    `seconds` is the estimate for the longest of them.
    """

    level: int
    cpus: int
    gpus: int
    jobs: tuple[tuple[str, ...], ...]
    seconds: float

    @property
    def limit_s(self) -> int:
        """The time limit of a job, in seconds that are whole minutes."""
        return 60 * math.ceil(max(_MIN_LIMIT_S, _LIMIT_FACTOR * self.seconds) / 60)


def make_batches(units: Sequence[Unit], estimator: DurationEstimator, max_jobs: int) -> list[Batch]:
    """The units as batches of at most `max_jobs` jobs; each level needs the levels before it."""
    batches = []
    for number, level in enumerate(group_by_level(units)):
        for cpus, gpus in sorted({_resources(unit) for unit in level}):
            alike = [unit for unit in level if _resources(unit) == (cpus, gpus)]
            jobs = list(_fill_jobs(alike, estimator.seconds))
            for start in range(0, len(jobs), max_jobs):
                part = jobs[start : start + max_jobs]
                batches.append(_make_batch(number, cpus, gpus, part, estimator))
    return batches


def group_by_level(units: Iterable[Unit]) -> list[list[Unit]]:
    """Group units by the longest chain of units before them; units come after those they need."""
    level_by_key: dict[str, int] = {}
    levels: list[list[Unit]] = []
    for unit in units:
        below = [level_by_key[n.key] for n in unit.needs.values() if n.key in level_by_key]
        level = level_by_key[unit.key] = max(below, default=-1) + 1
        if level == len(levels):
            levels.append([])
        levels[level].append(unit)
    return levels


def _resources(unit: Unit) -> tuple[int, int]:
    """CPUs and whole GPUs, since schedulers do not share a GPU between jobs."""
    return unit.cpus, math.ceil(unit.gpus)


def _fill_jobs(units: Sequence[Unit], seconds: Callable[[Unit], float]) -> Iterator[list[Unit]]:
    """Divide the units into jobs, each as many consecutive units as fit into the target time."""
    job: list[Unit] = []
    for unit in units:
        if job and sum(map(seconds, job)) + seconds(unit) > TARGET_JOB_S:
            yield job
            job = []
        job.append(unit)
    if job:
        yield job


def _make_batch(
    level: int,
    cpus: int,
    gpus: int,
    jobs: Sequence[Sequence[Unit]],
    estimator: DurationEstimator,
) -> Batch:
    longest = max(sum(map(estimator.seconds, job)) for job in jobs)
    keys = tuple(tuple(unit.key for unit in job) for job in jobs)
    return Batch(level, cpus, gpus, keys, longest)
