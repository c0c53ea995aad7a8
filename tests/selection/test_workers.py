"""Rows shared between workers: the same batches and bits as in one process, also after deaths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hubmerge.errors import CheckpointError, HubmergeError
from hubmerge.evaluation import rows_together
from hubmerge.selection.choice import plain_choice
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.policies import coordinate, last
from hubmerge.selection.row_jobs import (
    BaseTensors,
    CandidateTensors,
    ChoiceTensors,
    LocalRows,
    RowJob,
    TensorSource,
)
from hubmerge.selection.task_split import EvaluatedRows
from hubmerge.selection.workers import RowReply, RowRequest, WorkerDied, WorkerRows, error_reply
from hubmerge.typed_json import from_line, to_line

from .test_search import SearchSetup

BATCH = 256


class InProcessWorker:
    """A worker of this process, which gets and gives lines of JSON; it dies at some requests."""

    def __init__(self, rows: LocalRows, dies: Callable[[], bool]) -> None:
        self._rows, self._dies = rows, dies
        self.requests: list[RowRequest] = []
        self.is_closed = False

    def send(self, request: RowRequest) -> None:
        self.requests.append(from_line(RowRequest, to_line(request)))

    def receive(self) -> RowReply:
        if self._dies():
            raise WorkerDied("was killed")
        request = self.requests[-1]
        try:
            bits = self._rows.evaluate(request.recipe, request.source, request.jobs)
        except HubmergeError as error:
            return from_line(RowReply, to_line(error_reply(error)))
        return from_line(RowReply, to_line(RowReply(tuple(bits))))

    def close(self) -> None:
        self.is_closed = True


class ReadyWorker:
    """A worker with one reply to whatever it is asked."""

    def __init__(self, reply: RowReply) -> None:
        self._reply = reply

    def send(self, request: RowRequest) -> None:
        pass

    def receive(self) -> RowReply:
        return from_line(RowReply, to_line(self._reply))

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "source",
    [BaseTensors(), CandidateTensors(1, 2), ChoiceTensors(plain_choice((0, 1), {"scale": 0.3}))],
)
def test_a_request_is_read_as_it_was_written(source: TensorSource) -> None:
    request = RowRequest("recipe", source, (RowJob(0, 1, 2, (3, 4)),))
    assert from_line(RowRequest, to_line(request)) == request


class SharedSetup(SearchSetup):
    """A search setup with workers, of which the first `deaths` replies fail."""

    def __init__(self, root: Path, deaths: int = 0) -> None:
        super().__init__(root)
        self.deaths, self.started = deaths, list[InProcessWorker]()

    def dies(self) -> bool:
        self.deaths -= 1
        return self.deaths >= 0

    def start(self, number: int) -> InProcessWorker:
        rows = LocalRows(self.pool, MemoryMerger(self.pool, self.method), self.splits)
        self.started.append(InProcessWorker(rows, self.dies))
        return self.started[-1]

    def worker_rows(self, count: int) -> WorkerRows:
        sizes = [rows_together(task) for task in self.pool.tasks]
        return WorkerRows(count, sizes, self.start, wait_for_last)


def wait_for_last(workers: Sequence[InProcessWorker]) -> Sequence[InProcessWorker]:
    return workers[-1:]


def whole_jobs(setup: SearchSetup) -> list[RowJob]:
    return [RowJob(task, 1, 0, tuple(split.row_order)) for task, split in enumerate(setup.splits)]


SOURCE = ChoiceTensors(plain_choice((1, 1), {"scale": 0.7}))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_workers_give_the_bits_of_one_process(tmp_path: Path, count: int, deaths: int) -> None:
    setup = SharedSetup(tmp_path, deaths)
    rows, jobs = setup.worker_rows(count), whole_jobs(setup)
    alone = LocalRows(setup.pool, MemoryMerger(setup.pool, setup.method), setup.splits)
    assert rows.evaluate("r", SOURCE, jobs) == alone.evaluate("r", SOURCE, jobs)
    assert len(setup.started) == count + deaths
    assert sum(worker.is_closed for worker in setup.started) == deaths
    single = [RowJob(1, 2, 0, tuple(setup.splits[1].row_order[:5]))]
    source = CandidateTensors(1, 2)
    assert rows.evaluate("s", source, single) == alone.evaluate("s", source, single)


def test_unfinished_texts_of_all_workers_are_counted(tmp_path: Path) -> None:
    setup = SharedSetup(tmp_path)
    job = whole_jobs(setup)[0]
    half = len(job.rows) // 2
    job = RowJob(0, 1, 0, job.rows[: 2 * half])
    reply = RowReply((EvaluatedRows("1" * half, 2),))
    rows = WorkerRows(2, [half], lambda number: ReadyWorker(reply), list)
    evaluated = rows.evaluate("r", SOURCE, [job])[0]
    assert (evaluated.values, evaluated.unfinished) == ("1" * 2 * half, 4)


def test_batches_are_cut_where_one_process_cuts_them(tmp_path: Path) -> None:
    setup = SharedSetup(tmp_path)
    rows = tuple(range(3 * BATCH + 10))
    shares = setup.worker_rows(2)._share(RowJob(0, 0, BATCH, rows))
    by_start = {batch.start: batch.rows for share in shares.values() for batch in share}
    assert by_start == {BATCH + first: rows[first : first + BATCH] for first in (0, 256, 512, 768)}
    assert sorted(len(share) for share in shares.values()) == [2, 2]


def test_a_machine_that_kills_every_worker_ends_the_selection(tmp_path: Path) -> None:
    setup = SharedSetup(tmp_path, deaths=100)
    with pytest.raises(HubmergeError, match="3 workers died") as caught:
        setup.worker_rows(2).evaluate("r", SOURCE, whole_jobs(setup))
    assert "fewer --workers" in caught.value.hint


def test_the_error_of_a_worker_is_that_of_one_process(tmp_path: Path) -> None:
    setup = SharedSetup(tmp_path)
    source = ChoiceTensors(plain_choice((1, 1), {"scale": 1e39}))
    with pytest.raises(CheckpointError, match="not finite") as caught:
        setup.worker_rows(2).evaluate("r", source, whole_jobs(setup))
    assert "diverged" in caught.value.hint


def test_a_search_with_workers_takes_the_same_way(tmp_path: Path) -> None:
    alone, shared = SearchSetup(tmp_path / "alone"), SharedSetup(tmp_path / "shared", deaths=2)
    found = coordinate(alone.search(), last(alone.search()))
    search = shared.search(rows=shared.worker_rows(3))
    start = last(search)
    assert coordinate(search, start).choice == found.choice
    assert len(shared.log.read()) == len(alone.log.read())
