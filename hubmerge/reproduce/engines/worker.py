"""One worker of the local engine: a process that performs one unit after the other.

A job is a line on its standard input, the outcome a line on its standard output. The output of
libraries goes to its standard error. Its environment was set before Python started, so torch uses
the threads and the GPUs that it should.
"""

from __future__ import annotations

import os
import sys
import threading
from queue import SimpleQueue

from hubmerge.reproduce.engines.job import find_function, run_job


def serve_jobs(name: str) -> None:
    """Perform jobs with the function of that name until the engine ends."""
    outcomes = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # A file is buffered in blocks, and a worker is killed: what it printed would be lost.
    sys.stdout = sys.stderr
    jobs: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    perform = find_function(name)
    while True:
        print(run_job(jobs.get(), perform), file=outcomes, flush=True)


def _read_jobs(jobs: SimpleQueue[str]) -> None:
    """Queue jobs from standard input; when the engine is gone, exit even in the middle of one."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    serve_jobs(sys.argv[1])
