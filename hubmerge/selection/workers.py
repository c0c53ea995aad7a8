"""Evaluates the rows of merges by several workers, each of which holds its own merge in memory.

Rows are cut at the same batches as in one process, and every batch always goes to the same worker,
which keeps the rows that it prepared. If a worker dies, another one does its jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hubmerge import errors
from hubmerge.errors import HubmergeError, UnknownName
from hubmerge.selection.row_jobs import RowJob, TensorSource
from hubmerge.selection.task_split import EvaluatedRows
from hubmerge.trials import RowValues, join_rows

_MOST_DEATHS = 3  # of workers in one evaluation; then the machine is too small


@dataclass(frozen=True)
class RowRequest:
    """Jobs for one worker, all on the same merge."""

    recipe: str
    source: TensorSource
    jobs: tuple[RowJob, ...]


@dataclass(frozen=True)
class RowReply:
    """The results of each job of a request, or the name, message and hint of an error."""

    measured: tuple[EvaluatedRows, ...] = ()
    error: tuple[str, str, str] | None = None

    def check(self) -> None:
        """Raise the error of a worker as in one process."""
        if self.error is not None:
            name, message, hint = self.error
            raise getattr(errors, name)(message, hint)


def error_reply(error: HubmergeError) -> RowReply:
    """The reply of a worker that cannot evaluate a request."""
    kind = "UsageError" if isinstance(error, UnknownName) else type(error).__name__
    return RowReply(error=(kind, error.message, error.hint))


class WorkerDied(Exception):
    """Raised for a worker that is gone; the text says how, and where its output is."""


class Worker(Protocol):
    """A process that evaluates one request at a time."""

    def send(self, request: RowRequest) -> None:
        """Start a request; the death of the worker is noticed by `receive`."""
        ...

    def receive(self) -> RowReply:
        """Return the reply to the request; raises WorkerDied."""
        ...

    def close(self) -> None:
        """End the worker."""
        ...


class WorkerRows:
    """Evaluates jobs by `count` workers, started by `start(number)` and replaced when they die.

    `wait` returns those of busy workers that have replied or died, at least one. `batch_sizes` are
    the rows of each task that are measured together, in order.
    """

    def __init__(
        self,
        count: int,
        batch_sizes: Sequence[int],
        start: Callable[[int], Worker],
        wait: Callable[[Sequence[Any]], Sequence[Any]],
    ) -> None:
        self._start, self._wait = start, wait
        self._batch_sizes = tuple(batch_sizes)
        self._workers = [start(number) for number in range(count)]

    def evaluate(
        self, recipe: str, source: TensorSource, jobs: Sequence[RowJob]
    ) -> list[EvaluatedRows]:
        """One result per row of each job, as `LocalRows` gives them.

        Raises the error of a worker, or HubmergeError if workers die again and again.
        """
        shares: dict[int, list[tuple[int, list[RowJob]]]] = {}
        for number, job in enumerate(jobs):
            for worker, batches in self._share(job).items():
                shares.setdefault(worker, []).append((number, batches))
        replies = self._run(
            {
                worker: RowRequest(recipe, source, tuple(_joined(batches) for _, batches in share))
                for worker, share in shares.items()
            }
        )
        by_start: list[dict[int, RowValues]] = [{} for _ in jobs]
        unfinished = [0] * len(jobs)
        for worker, share in shares.items():
            for (number, batches), evaluated in zip(share, replies[worker].measured, strict=True):
                by_start[number] |= _rows_by_start(batches, evaluated.values)
                unfinished[number] += evaluated.unfinished
        return [
            EvaluatedRows(join_rows([rows[start] for start in sorted(rows)]), count)
            for rows, count in zip(by_start, unfinished, strict=True)
        ]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.close()

    def _share(self, job: RowJob) -> dict[int, list[RowJob]]:
        """The batches of a job by the number of the worker that evaluates them."""
        size, share = self._batch_sizes[job.task], dict[int, list[RowJob]]()
        for first in range(0, len(job.rows), size):
            batch = replace(job, start=job.start + first, rows=job.rows[first : first + size])
            worker = (job.task + batch.start // size) % len(self._workers)
            share.setdefault(worker, []).append(batch)
        return share

    def _run(self, requests: dict[int, RowRequest]) -> dict[int, RowReply]:
        """Have every worker do its request; those of a dead worker are done by a new one."""
        for number, request in requests.items():
            self._workers[number].send(request)
        replies: dict[int, RowReply] = {}
        deaths = 0
        while len(replies) < len(requests):
            busy = {self._workers[n]: n for n in requests if n not in replies}
            for worker in self._wait(list(busy)):
                number = busy[worker]
                try:
                    replies[number] = worker.receive()
                except WorkerDied as death:
                    deaths += 1
                    if deaths >= _MOST_DEATHS:
                        raise _too_many_deaths(deaths, death) from death
                    worker.close()
                    self._workers[number] = self._start(number)
                    self._workers[number].send(requests[number])
        for reply in replies.values():
            reply.check()
        return replies


def _joined(batches: Sequence[RowJob]) -> RowJob:
    """Batches of a job as one job; all but the last are full, so it is cut at the same rows."""
    return replace(batches[0], rows=tuple(row for batch in batches for row in batch.rows))


def _rows_by_start(batches: Sequence[RowJob], measured: RowValues) -> dict[int, RowValues]:
    """The results of each batch, by the position of its first row."""
    by_start, done = dict[int, RowValues](), 0
    for batch in batches:
        by_start[batch.start] = measured[done : done + len(batch.rows)]
        done += len(batch.rows)
    return by_start


def _too_many_deaths(deaths: int, death: WorkerDied) -> HubmergeError:
    return HubmergeError(
        f"{deaths} workers died while they evaluated one merge; the last one {death}.",
        "If memory ran out, use fewer --workers or less --memory; what was measured is kept.",
    )
