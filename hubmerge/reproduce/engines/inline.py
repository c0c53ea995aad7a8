"""The engine that is none: units are performed in this very process, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hubmerge.reproduce.engines.engine import Done, Perform
from hubmerge.reproduce.engines.job import do_job, read_done, say_job
from hubmerge.reproduce.unit import Result, Shop, Unit


class Inline:
    """Performs a unit when its end is waited for; with as many threads as the process has."""

    def __init__(self, perform: Perform, shop: Shop) -> None:
        self._perform, self._shop = perform, shop
        self._job: str | None = None

    def check(self, units: Sequence[Unit]) -> None:
        pass

    def room(self, unit: Unit) -> bool:
        return self._job is None

    def start(self, unit: Unit, inputs: Mapping[str, Result]) -> None:
        self._job = say_job(unit, inputs, self._shop)

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        if self._job is None:
            return []
        job, self._job = self._job, None
        return [read_done(do_job(job, self._perform))]

    def close(self) -> None:
        self._job = None
