"""The engine for one machine: long-lived worker processes, each of which imports torch once.

A worker is for units with the same CPUs and GPUs: its environment gives it that number of threads
and only those GPUs before torch is imported. So a unit has the same bits for any number of workers.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hubmerge.errors import UsageError, raise_together
from hubmerge.reproduce.engines.engine import Perform, UnitError, UnitOutcome
from hubmerge.reproduce.engines.gpus import GpuPool
from hubmerge.reproduce.engines.job import decode_outcome, encode_job, function_name
from hubmerge.reproduce.engines.threads import thread_environment
from hubmerge.reproduce.unit import Result, Unit, WorkContext

_WORKER = "hubmerge.reproduce.engines.worker"


@dataclass(eq=False)
class _Worker:
    """A process, its CPUs and GPUs, and the unit that it performs."""

    process: subprocess.Popen[bytes]
    cpus: int
    gpus: tuple[str, ...]
    log: Path
    unit: Unit | None = field(default=None)


class LocalEngine:
    """Performs units in workers on this machine.

    At most `workers` units run at once; if that is None, as many as `cores` allow by the CPUs of
    the units. `gpus` are the ids of the devices to use, `environment` is inherited by workers. The
    output of libraries goes to `logs`, one file per worker, overwritten by the next run.
    """

    def __init__(
        self,
        perform: Perform,
        context: WorkContext,
        *,
        cores: int,
        logs: Path,
        environment: Mapping[str, str],
        workers: int | None = None,
        gpus: Iterable[str] = (),
    ) -> None:
        self._perform, self._context = function_name(perform), context
        self._cores, self._max_workers = cores, workers
        self._gpus = GpuPool(gpus)
        self._environment, self._logs = dict(environment), logs
        self._busy: dict[str, _Worker] = {}
        self._idle: list[_Worker] = []
        self._started_count = 0
        self._pipes = selectors.DefaultSelector()

    def check(self, units: Sequence[Unit]) -> None:
        needed = max((unit.gpus for unit in units), default=0.0)
        problems = []
        if needed > len(self._gpus):
            problems.append(
                f"Units need {needed:g} GPUs, and this machine shows {len(self._gpus)}."
            )
        raise_together(
            UsageError, problems, "Choose a profile that computes on CPUs, or another machine."
        )

    def has_room(self, unit: Unit) -> bool:
        if not self._gpus.has_free(unit.gpus):
            return False
        if self._max_workers is not None:
            return len(self._busy) < self._max_workers
        used = sum(self._cores_of(worker.cpus) for worker in self._busy.values())
        return used + self._cores_of(unit.cpus) <= self._cores

    def _cores_of(self, cpus: int) -> int:
        """The cores that a unit occupies: all of them if it asks for more than there are."""
        return min(cpus, self._cores)

    def start(self, unit: Unit, inputs: Mapping[str, Result]) -> None:
        worker = self._get_worker(unit.cpus, self._gpus.acquire(unit.gpus))
        worker.unit = unit
        self._busy[unit.key] = worker
        assert worker.process.stdin
        with suppress(BrokenPipeError):  # it died meanwhile, which `wait` will detect
            worker.process.stdin.write(f"{encode_job(unit, inputs, self._context)}\n".encode())
            worker.process.stdin.flush()

    def wait(self, timeout_s: float | None) -> Sequence[UnitOutcome]:
        outcomes = (self._read_outcome(key.data) for key, _ in self._pipes.select(timeout_s))
        return [outcome for outcome in outcomes if outcome]

    def close(self) -> None:
        for worker in (*self._busy.values(), *self._idle):
            worker.process.kill()
            self._reap(worker)
        self._busy.clear()
        self._idle.clear()
        self._pipes.close()

    def _read_outcome(self, worker: _Worker) -> UnitOutcome | None:
        """The outcome of a worker's unit; None if the worker was idle and has died."""
        unit, worker.unit = worker.unit, None
        if unit is None:
            self._idle.remove(worker)
            self._stop_worker(worker)
            return None
        assert worker.process.stdout
        line = worker.process.stdout.readline()
        del self._busy[unit.key]
        self._gpus.release(unit.gpus, worker.gpus)
        if line.endswith(b"\n"):
            self._idle.append(worker)
            return decode_outcome(line)
        self._pipes.unregister(worker.process.stdout)
        self._reap(worker)
        return UnitOutcome(unit.key, error=_death_error(worker))

    def _get_worker(self, cpus: int, gpus: tuple[str, ...]) -> _Worker:
        """An idle worker with these CPUs and GPUs, or a new one instead of the idle ones."""
        for worker in self._idle:
            if (worker.cpus, worker.gpus) == (cpus, gpus) and worker.process.poll() is None:
                self._idle.remove(worker)
                return worker
        for worker in self._idle:  # they would only occupy memory
            self._stop_worker(worker)
        self._idle.clear()
        return self._start_worker(cpus, gpus)

    def _start_worker(self, cpus: int, gpus: tuple[str, ...]) -> _Worker:
        self._started_count += 1
        log = self._logs / f"worker-{self._started_count}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _WORKER, self._perform],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment
                | thread_environment(cpus)
                | {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "PYTHONPATH": _python_path()},
                start_new_session=True,  # so that Ctrl-C reaches only the runner, which stops them
            )
        worker = _Worker(process, cpus, gpus, log)
        assert process.stdout
        self._pipes.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _stop_worker(self, worker: _Worker) -> None:
        assert worker.process.stdout
        self._pipes.unregister(worker.process.stdout)
        worker.process.kill()
        self._reap(worker)

    def _reap(self, worker: _Worker) -> None:
        for pipe in (worker.process.stdin, worker.process.stdout):
            assert pipe
            with suppress(BrokenPipeError):  # it died before it read a job
                pipe.close()
        worker.process.wait()


def _death_error(worker: _Worker) -> UnitError:
    code = worker.process.returncode
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    hint = f"Its output is in {worker.log}."
    if code == -signal.SIGKILL:
        hint = f"A machine that runs out of memory does that: try fewer --workers. {hint}"
    return UnitError(f"Its worker {end}.", hint, transient=True)


def _python_path() -> str:
    """The module search path of this process, for its workers."""
    return os.pathsep.join(folder for folder in sys.path if folder)
