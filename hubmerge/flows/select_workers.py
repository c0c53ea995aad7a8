"""The workers of a selection: processes on this machine, each with its own merge in memory."""

from __future__ import annotations

import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from hubmerge.choosing.merge_selection import PreparedSelection
from hubmerge.evaluation import rows_together
from hubmerge.flows.select_worker import WorkerSetup
from hubmerge.selection.workers import RowReply, RowRequest, WorkerDied, WorkerRows
from hubmerge.trials import SELECTION_SPLIT
from hubmerge.typed_json import from_line, to_line

_MODULE = "hubmerge.flows.select_worker"


@dataclass(frozen=True)
class WorkerPlace:
    """Where the processes of workers run.

    `environment` is theirs, with the module search path of this process; `gpus` are the ids of the
    devices that they share, and `logs` is the folder for the output of libraries.
    """

    environment: Mapping[str, str]
    logs: Path
    gpus: tuple[str, ...] = ()

    def environment_of(self, number: int) -> dict[str, str]:
        """The environment of a worker, which sees one GPU at most."""
        device = {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]} if self.gpus else {}
        # Waiting threads of OpenMP would take cores from the other workers; bits do not change.
        return {**self.environment, "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", **device}


def worker_setup(prepared: PreparedSelection, hub: str | None, count: int) -> WorkerSetup:
    """What `count` workers open; they and this process share the memory for merges."""
    request = prepared.request
    memory = request.memory or psutil.virtual_memory().available // 2
    return WorkerSetup(
        hub=hub,
        pool=prepared.opened_pool.pinned,
        method=prepared.method.name,
        split=SELECTION_SPLIT,
        device=request.device,
        threads=torch.get_num_threads(),
        memory=memory // (count + 1),
    )


@contextmanager
def local_workers(
    prepared: PreparedSelection, hub: str | None, count: int, place: WorkerPlace
) -> Iterator[WorkerRows]:
    """`count` processes that evaluate rows of a selection, until the block ends."""
    setup = worker_setup(prepared, hub, count)
    sizes = [rows_together(task) for task in prepared.pool.tasks]
    rows = WorkerRows(count, sizes, partial(LocalWorker, setup, place), wait_for_any)
    try:
        yield rows
    finally:
        rows.close()


class LocalWorker:
    """A worker in a process of its own, which ends when this one does."""

    def __init__(self, setup: WorkerSetup, place: WorkerPlace, number: int) -> None:
        place.logs.mkdir(parents=True, exist_ok=True)
        self._log = place.logs / f"worker-{number + 1}.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=place.environment_of(number),
                start_new_session=True,  # Ctrl-C reaches only this process, which stops them
            )
        assert self.process.stdin
        assert self.process.stdout
        self._requests, self.replies = self.process.stdin, self.process.stdout
        # It reads its setup once it has imported torch; meanwhile the next worker starts.
        self._starting = threading.Thread(target=self._write, args=(to_line(setup),), daemon=True)
        self._starting.start()

    def send(self, request: RowRequest) -> None:
        self._starting.join()
        self._write(to_line(request))

    def receive(self) -> RowReply:
        line = self.replies.readline()
        if not line.endswith(b"\n"):
            raise WorkerDied(self._describe_end())
        return from_line(RowReply, line.decode())

    def close(self) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self._requests.close()
        self.replies.close()
        self.process.wait()

    def _write(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it died, which `receive` notices
            self._requests.write(f"{line}\n".encode())
            self._requests.flush()

    def _describe_end(self) -> str:
        code = self.process.wait()
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"{end}, and its output is in {self._log}"


def wait_for_any(workers: Sequence[LocalWorker]) -> Sequence[LocalWorker]:
    """Wait until one of these workers has replied or died."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.replies, selectors.EVENT_READ, worker)
        return [key.data for key, _ in selector.select()]
