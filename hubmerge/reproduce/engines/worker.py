"""One worker of the local engine: a process that performs one unit after the other.

A job is a line on its standard input, the answer a line on its standard output. What libraries
print goes to its standard error. Its environment was made for it before Python started, so torch
finds the threads and the GPU it may use.
"""

from __future__ import annotations

import os
import sys
import threading
from queue import SimpleQueue

from hubmerge.reproduce.engines.job import do_job, find


def work(name: str) -> None:
    """Perform jobs with the function of that name for as long as the engine lives."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    jobs: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    perform = find(name)
    while True:
        print(do_job(jobs.get(), perform), file=answers, flush=True)


def _listen(jobs: SimpleQueue[str]) -> None:
    """Take in jobs; without an engine nobody wants the rest of the unit either."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    work(sys.argv[1])
