"""The engine of one machine: processes that live long, so that imports are paid for once each.

A worker is made for units of one shape: it has as many threads as they ask CPUs for and sees their
GPUs alone, both said in its environment before torch is imported. So a unit comes to the same bits
whatever the number of workers.
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
from hubmerge.reproduce.engines.engine import Done, Perform, Trouble
from hubmerge.reproduce.engines.gpus import Gpus
from hubmerge.reproduce.engines.job import name_of, read_done, say_job
from hubmerge.reproduce.engines.threads import threads
from hubmerge.reproduce.unit import Result, Shop, Unit

_WORKER = "hubmerge.reproduce.engines.worker"


@dataclass(eq=False)
class _Worker:
    """A process, what it was made for, and the unit it is at."""

    process: subprocess.Popen[bytes]
    cpus: int
    gpus: tuple[str, ...]
    log: Path
    unit: Unit | None = field(default=None)


class Local:
    """Performs units in workers on this machine.

    At most `workers` units at once; if that is None, as many as `cores` have room for by the CPUs
    they ask for. `gpus` are the ids of the devices to share out, `environment` is what workers
    inherit. What libraries print is kept in `logs`, one file a worker, from the last run.
    """

    def __init__(
        self,
        perform: Perform,
        shop: Shop,
        *,
        cores: int,
        logs: Path,
        environment: Mapping[str, str],
        workers: int | None = None,
        gpus: Iterable[str] = (),
    ) -> None:
        self._perform, self._shop = name_of(perform), shop
        self._cores, self._most = cores, workers
        self._gpus = Gpus(gpus)
        self._environment, self._logs = dict(environment), logs
        self._busy: dict[str, _Worker] = {}
        self._idle: list[_Worker] = []
        self._hired = 0
        self._pipes = selectors.DefaultSelector()

    def check(self, units: Sequence[Unit]) -> None:
        asked = max((unit.gpus for unit in units), default=0.0)
        problems = []
        if asked > len(self._gpus):
            problems.append(
                f"Units ask for {asked:g} GPUs, and {len(self._gpus)} can be seen on this machine."
            )
        raise_together(
            UsageError, problems, "Choose a profile that computes on CPUs, or another machine."
        )

    def room(self, unit: Unit) -> bool:
        if not self._gpus.free(unit.gpus):
            return False
        if self._most is not None:
            return len(self._busy) < self._most
        taken = sum(self._share(worker.cpus) for worker in self._busy.values())
        return taken + self._share(unit.cpus) <= self._cores

    def _share(self, cpus: int) -> int:
        """The cores that a unit takes: one that asks for more than there are has all of them."""
        return min(cpus, self._cores)

    def start(self, unit: Unit, inputs: Mapping[str, Result]) -> None:
        worker = self._worker(unit.cpus, self._gpus.take(unit.gpus))
        worker.unit = unit
        self._busy[unit.key] = worker
        assert worker.process.stdin
        with suppress(BrokenPipeError):  # it died meanwhile, which `wait` will see
            worker.process.stdin.write(f"{say_job(unit, inputs, self._shop)}\n".encode())
            worker.process.stdin.flush()

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        ended = (self._end(key.data) for key, _ in self._pipes.select(timeout_s))
        return [done for done in ended if done]

    def close(self) -> None:
        for worker in (*self._busy.values(), *self._idle):
            worker.process.kill()
            self._bury(worker)
        self._busy.clear()
        self._idle.clear()
        self._pipes.close()

    def _end(self, worker: _Worker) -> Done | None:
        """The end of a worker's unit, or of the worker; None if it had nothing to do."""
        unit, worker.unit = worker.unit, None
        if unit is None:
            self._idle.remove(worker)
            self._dismiss(worker)
            return None
        assert worker.process.stdout
        line = worker.process.stdout.readline()
        del self._busy[unit.key]
        self._gpus.give(unit.gpus, worker.gpus)
        if line.endswith(b"\n"):
            self._idle.append(worker)
            return read_done(line)
        self._pipes.unregister(worker.process.stdout)
        self._bury(worker)
        return Done(unit.key, trouble=_death(worker))

    def _worker(self, cpus: int, gpus: tuple[str, ...]) -> _Worker:
        """A worker of that shape that has nothing to do, or a new one in place of another."""
        for worker in self._idle:
            if (worker.cpus, worker.gpus) == (cpus, gpus) and worker.process.poll() is None:
                self._idle.remove(worker)
                return worker
        for worker in self._idle:  # they would only take up memory
            self._dismiss(worker)
        self._idle.clear()
        return self._hire(cpus, gpus)

    def _hire(self, cpus: int, gpus: tuple[str, ...]) -> _Worker:
        self._hired += 1
        log = self._logs / f"worker-{self._hired}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _WORKER, self._perform],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment
                | threads(cpus)
                | {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "PYTHONPATH": _importable()},
                start_new_session=True,  # Ctrl-C is for the runner alone, which then stops them
            )
        worker = _Worker(process, cpus, gpus, log)
        assert process.stdout
        self._pipes.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _dismiss(self, worker: _Worker) -> None:
        assert worker.process.stdout
        self._pipes.unregister(worker.process.stdout)
        worker.process.kill()
        self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        for pipe in (worker.process.stdin, worker.process.stdout):
            assert pipe
            with suppress(BrokenPipeError):  # a job that it did not live to read
                pipe.close()
        worker.process.wait()


def _death(worker: _Worker) -> Trouble:
    code = worker.process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    hint = f"What it printed is in {worker.log}."
    if code == -signal.SIGKILL:
        hint = f"A machine that runs out of memory does that: try fewer --workers. {hint}"
    return Trouble(f"Its worker {how}.", hint, passing=True)


def _importable() -> str:
    """Where this process finds modules, for workers to find the same."""
    return os.pathsep.join(place for place in sys.path if place)
