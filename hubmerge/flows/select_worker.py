"""One worker of `hubmerge select`: it opens the pool, then evaluates requests one by one.

Its setup and the requests are lines of JSON on its standard input, replies on its standard output.
The output of libraries goes to its standard error.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from hubmerge.choosing.candidates import PinnedPool, open_pinned_pool
from hubmerge.choosing.loaded_splits import load_task_splits
from hubmerge.errors import HubmergeError
from hubmerge.file_digests import remember_in
from hubmerge.hub.environment import connect, home
from hubmerge.merging.device import named_device
from hubmerge.merging.registry import METHODS
from hubmerge.runs.machine import pick_device
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.row_jobs import LocalRows
from hubmerge.selection.workers import RowReply, RowRequest, error_reply
from hubmerge.typed_json import from_line, to_line


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker opens: the same pool, method and split as its parent.

    `threads` are those of torch in the parent, as another number changes bits; `memory` is what
    merges may take, in bytes.
    """

    hub: str | None
    pool: PinnedPool
    method: str
    split: str
    device: str | None
    threads: int
    memory: int


@contextmanager
def open_rows(setup: WorkerSetup) -> Iterator[Callable[[RowRequest], RowReply]]:
    """The function that evaluates requests, as long as the block lasts."""
    import torch

    torch.set_num_threads(setup.threads)
    remember_in(home())
    with connect(setup.hub) as hub:
        opened_pool = open_pinned_pool(hub, setup.pool)
        pool, method = opened_pool.pool, METHODS[setup.method]
        splits = load_task_splits(opened_pool, setup.split, pick_device(setup.device))
        merger = MemoryMerger(pool, method, setup.memory, named_device(setup.device))
        rows = LocalRows(pool, merger, splits)
        yield lambda request: _evaluate(rows, request)


def _evaluate(rows: LocalRows, request: RowRequest) -> RowReply:
    try:
        return RowReply(tuple(rows.evaluate(request.recipe, request.source, request.jobs)))
    except HubmergeError as error:
        return error_reply(error)


def serve() -> None:
    """Reply to requests until the parent is gone, even in the middle of one."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # A file is buffered in blocks, and a worker is killed: what it printed would be lost.
    sys.stdout = sys.stderr
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    try:
        with open_rows(from_line(WorkerSetup, lines.get())) as evaluate:
            while True:
                reply = evaluate(from_line(RowRequest, lines.get()))
                print(to_line(reply), file=replies, flush=True)
    except HubmergeError as error:
        lines.get()  # the first request, which is answered with the error
        print(to_line(error_reply(error)), file=replies, flush=True)


def _read_lines(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    serve()
