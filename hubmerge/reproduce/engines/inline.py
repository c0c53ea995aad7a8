"""The engine for tests: it performs units in this process, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hubmerge.reproduce.engines.engine import Perform, UnitOutcome
from hubmerge.reproduce.engines.job import decode_outcome, encode_job, run_job
from hubmerge.reproduce.unit import Result, Unit, WorkContext


class InlineEngine:
    """Performs a unit when `wait` is called, with the threads that the process has."""

    def __init__(self, perform: Perform, context: WorkContext) -> None:
        self._perform, self._context = perform, context
        self._job: str | None = None

    def check(self, units: Sequence[Unit]) -> None:
        pass

    def has_room(self, unit: Unit) -> bool:
        return self._job is None

    def start(self, unit: Unit, inputs: Mapping[str, Result]) -> None:
        self._job = encode_job(unit, inputs, self._context)

    def wait(self, timeout_s: float | None) -> Sequence[UnitOutcome]:
        if self._job is None:
            return []
        job, self._job = self._job, None
        return [decode_outcome(run_job(job, self._perform))]

    def close(self) -> None:
        self._job = None
