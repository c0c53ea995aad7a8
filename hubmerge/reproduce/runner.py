"""The runner of a plan: it performs missing units, each once the units that it needs are there."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hubmerge.reproduce.engines.engine import Engine, UnitError, UnitOutcome
from hubmerge.reproduce.store import ResultStore, UnitRecord
from hubmerge.reproduce.unit import Unit

_RETRY_PAUSES_S = (1.0, 5.0, 30.0)
_POLL_S = 0.2  # until an engine without room is asked again; it may have lost all its nodes


@dataclass(frozen=True)
class UnitEvent:
    """Something that happened to a unit; `message` is set for failures and retries."""

    status: Literal["known", "started", "completed", "retrying", "failed", "skipped"]
    unit: Unit
    seconds: float = 0.0
    message: str = ""


EventCallback = Callable[[UnitEvent], None]


@dataclass(frozen=True)
class Failure:
    """A unit without a result, and why; `trace` is for debugging."""

    unit: Unit
    message: str
    hint: str = ""
    trace: str = ""


@dataclass(frozen=True)
class RunOutcome:
    """The end of a run: records by key, old and new, and the units that ended in each way.

    `skipped` are units that need a failed one.
    """

    records: Mapping[str, UnitRecord]
    completed: tuple[Unit, ...]
    failed: tuple[Failure, ...]
    skipped: tuple[Unit, ...]


def run(
    units: Sequence[Unit],
    engine: Engine,
    store: ResultStore,
    on_event: EventCallback = lambda event: None,
    *,
    retries: int = 2,
    any_code: bool = False,
) -> RunOutcome:
    """Perform the units without a result, in their order as far as their needs allow.

    Results that were measured by other code than the store's are measured again unless `any_code`.
    A failed unit stops only the units that need it; transient failures are retried `retries` times.
    Needed units that are not among `units` must have results. Every result is on disk before it is
    used.
    """
    plan_run = _PlanRun(units, store, on_event, retries, any_code)
    engine.check(plan_run.missing)
    plan_run.start()
    while plan_run.is_active:
        if unit := plan_run.next_unit(engine):
            on_event(UnitEvent("started", unit))
            engine.start(unit, plan_run.inputs(unit))
        else:
            for outcome in plan_run.wait(engine):
                plan_run.finish(outcome)
    return RunOutcome(
        plan_run.records,
        tuple(plan_run.completed),
        tuple(plan_run.failed),
        tuple(plan_run.skipped),
    )


class _PlanRun:
    """The state of a run: which units wait, are ready, or are being performed."""

    def __init__(
        self,
        units: Sequence[Unit],
        store: ResultStore,
        on_event: EventCallback,
        retries: int,
        any_code: bool,
    ) -> None:
        self._store, self._on_event, self._retries = store, on_event, retries
        self._order = {unit.key: number for number, unit in enumerate(units)}
        needed = {need.key: need for unit in units for need in unit.needs.values()}
        everything = {unit.key: unit for unit in units} | needed
        self.records = store.records(everything.values(), any_code)
        self.missing = [unit for unit in units if unit.key not in self.records]
        self.completed: list[Unit] = []
        self.failed: list[Failure] = []
        self.skipped: list[Unit] = []
        self._ready = _ReadyQueue(self._order)
        self._retry_queue: list[tuple[float, int, Unit]] = []  # when, order, unit
        self._running: dict[str, Unit] = {}
        self._tries: dict[str, int] = {}
        self._waits_for = {unit.key: self._missing_needs(unit) for unit in self.missing}
        self._dependents: dict[str, list[Unit]] = {}
        for unit in self.missing:
            for key in self._waits_for[unit.key]:
                self._dependents.setdefault(key, []).append(unit)
        self._given_up: set[str] = set()  # keys of failed and skipped units
        for unit in units:
            if unit.key in self.records:
                on_event(UnitEvent("known", unit, self.records[unit.key].seconds))

    def _missing_needs(self, unit: Unit) -> set[str]:
        return {need.key for need in unit.needs.values() if need.key not in self.records}

    def start(self) -> None:
        """Queue the units that need nothing more; fail those that need units nobody performs."""
        for unit in self.missing:
            if unit.key in self._given_up:
                continue
            waits_for = self._waits_for[unit.key]
            if absent := sorted(key for key in waits_for if key not in self._order):
                self._fail(unit, _missing_error(absent))
            elif not waits_for:
                self._ready.add(unit)

    @property
    def is_active(self) -> bool:
        return bool(self._running or self._retry_queue or self._ready)

    def next_unit(self, engine: Engine) -> Unit | None:
        """The next ready unit that the engine has room for, if there is one."""
        while self._retry_queue and self._retry_queue[0][0] <= time.monotonic():
            self._ready.add(heapq.heappop(self._retry_queue)[-1])
        if unit := self._ready.pop(engine):
            self._running[unit.key] = unit
        return unit

    def inputs(self, unit: Unit) -> dict[str, dict[str, object]]:
        """The results that a unit is made from, by role."""
        return {role: self.records[need.key].result for role, need in unit.needs.items()}

    def wait(self, engine: Engine) -> Sequence[UnitOutcome]:
        """Wait until units end or one is to be retried; returns the units that ended."""
        pause_s = None
        if self._retry_queue:
            pause_s = max(0.0, self._retry_queue[0][0] - time.monotonic())
        if self._running:
            return engine.wait(pause_s)
        time.sleep(pause_s or _POLL_S)
        return ()

    def finish(self, outcome: UnitOutcome) -> None:
        """Store the result of a unit, or retry or fail it."""
        unit = self._running.pop(outcome.key)
        if outcome.error is None:
            assert outcome.result is not None
            self._store_result(unit, outcome.result, outcome.seconds)
        elif outcome.error.transient and self._tries.get(unit.key, 0) < self._retries:
            self._retry(unit, outcome.error)
        else:
            self._fail(unit, outcome.error)

    def _store_result(self, unit: Unit, result: dict[str, object], seconds: float) -> None:
        inputs = [self.records[need.key] for need in unit.needs.values()]
        self.records[unit.key] = self._store.put(unit, result, seconds, inputs)
        self.completed.append(unit)
        self._on_event(UnitEvent("completed", unit, seconds))
        for dependent in self._dependents.get(unit.key, ()):
            waits_for = self._waits_for[dependent.key]
            waits_for.discard(unit.key)
            if not waits_for and dependent.key not in self._given_up:
                self._ready.add(dependent)

    def _retry(self, unit: Unit, error: UnitError) -> None:
        tries = self._tries[unit.key] = self._tries.get(unit.key, 0) + 1
        pause_s = _RETRY_PAUSES_S[min(tries, len(_RETRY_PAUSES_S)) - 1]
        entry = (time.monotonic() + pause_s, self._order[unit.key], unit)
        heapq.heappush(self._retry_queue, entry)
        self._on_event(UnitEvent("retrying", unit, pause_s, error.message))

    def _fail(self, unit: Unit, error: UnitError) -> None:
        """Record a failure, and skip all units that need this one directly or indirectly."""
        self.failed.append(Failure(unit, error.message, error.hint, error.trace))
        self._given_up.add(unit.key)
        self._on_event(UnitEvent("failed", unit, message=error.message))
        stack = [unit]
        while stack:
            for dependent in self._dependents.get(stack.pop().key, ()):
                if dependent.key not in self._given_up:
                    self._given_up.add(dependent.key)
                    self.skipped.append(dependent)
                    self._on_event(UnitEvent("skipped", dependent))
                    stack.append(dependent)


class _ReadyQueue:
    """Units that could be started, in plan order, with one queue for each CPU and GPU demand.

    So a thousand units that wait for a GPU are not searched for one that needs none.
    """

    def __init__(self, order: Mapping[str, int]) -> None:
        self._order = order
        self._queues: dict[tuple[int, float], list[tuple[int, Unit]]] = {}

    def __bool__(self) -> bool:
        return any(self._queues.values())

    def add(self, unit: Unit) -> None:
        queue = self._queues.setdefault((unit.cpus, unit.gpus), [])
        heapq.heappush(queue, (self._order[unit.key], unit))

    def pop(self, engine: Engine) -> Unit | None:
        """The first unit in plan order that the engine has room for."""
        waiting = [queue for queue in self._queues.values() if queue]
        queue = min((queue for queue in waiting if engine.has_room(queue[0][1])), default=None)
        return heapq.heappop(queue)[1] if queue else None


def _missing_error(keys: Sequence[str]) -> UnitError:
    return UnitError(
        f"It needs {', '.join(keys)}, which has no result yet.",
        "Leave --only out, or name these units too.",
    )
