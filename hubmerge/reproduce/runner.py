"""The walk over a plan: what is missing is performed, each unit once those it needs are there."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hubmerge.reproduce.engines.engine import Done, Engine, Trouble
from hubmerge.reproduce.store import Record, Store
from hubmerge.reproduce.unit import Unit

_PAUSES_S = (1.0, 5.0, 30.0)
_NO_ROOM_S = 0.2  # until the engine is asked again, which may have lost all its nodes


@dataclass(frozen=True)
class Event:
    """Something that happened to a unit; the words are of failures and of what is tried again."""

    what: Literal["known", "started", "made", "again", "failed", "skipped"]
    unit: Unit
    seconds: float = 0.0
    words: str = ""


Watch = Callable[[Event], None]


@dataclass(frozen=True)
class Failure:
    """A unit without a result, and why; `trace` is for those who debug."""

    unit: Unit
    message: str
    hint: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a run came to: records by key, old and new; failures; units below a failed one."""

    records: Mapping[str, Record]
    made: tuple[Unit, ...]
    failed: tuple[Failure, ...]
    skipped: tuple[Unit, ...]


def run(
    units: Sequence[Unit],
    engine: Engine,
    store: Store,
    watch: Watch = lambda event: None,
    *,
    retries: int = 2,
    any_code: bool = False,
) -> Outcome:
    """Perform those of the units that are not known, in their order as far as their needs allow.

    Results measured by other code than the store's are made again unless `any_code`. A unit that
    fails stops only those that need it; one in passing trouble is tried `retries` times more. What
    is needed and not among the units must be known. Every result is on disk before it is used.
    """
    walk = _Walk(units, store, watch, retries, any_code)
    engine.check(walk.missing)
    walk.begin()
    while walk.goes_on:
        if unit := walk.next(engine):
            watch(Event("started", unit))
            engine.start(unit, walk.inputs(unit))
        else:
            for done in walk.news(engine):
                walk.end(done)
    return Outcome(walk.records, tuple(walk.made), tuple(walk.failed), tuple(walk.skipped))


class _Walk:
    """Where a run is: what waits for what, what is ready, what is being performed."""

    def __init__(
        self, units: Sequence[Unit], store: Store, watch: Watch, retries: int, any_code: bool
    ) -> None:
        self._store, self._watch, self._retries = store, watch, retries
        self._place = {unit.key: place for place, unit in enumerate(units)}
        needed = {one.key: one for unit in units for one in unit.needs.values()}
        everything = {unit.key: unit for unit in units} | needed
        self.records = store.known(everything.values(), any_code)
        self.missing = [unit for unit in units if unit.key not in self.records]
        self.made: list[Unit] = []
        self.failed: list[Failure] = []
        self.skipped: list[Unit] = []
        self._ready = _Ready(self._place)
        self._later: list[tuple[float, int, Unit]] = []
        self._flying: dict[str, Unit] = {}
        self._tries: dict[str, int] = {}
        self._lacks = {unit.key: self._unmet(unit) for unit in self.missing}
        self._above: dict[str, list[Unit]] = {}
        for unit in self.missing:
            for key in self._lacks[unit.key]:
                self._above.setdefault(key, []).append(unit)
        self._gone: set[str] = set()
        for unit in units:
            if unit.key in self.records:
                watch(Event("known", unit, self.records[unit.key].seconds))

    def _unmet(self, unit: Unit) -> set[str]:
        return {one.key for one in unit.needs.values() if one.key not in self.records}

    def begin(self) -> None:
        """Make ready what needs nothing more; what needs units that nobody makes has failed."""
        for unit in self.missing:
            if unit.key in self._gone:
                continue
            if absent := sorted(key for key in self._lacks[unit.key] if key not in self._place):
                self._fail(unit, _unmade(absent))
            elif not self._lacks[unit.key]:
                self._ready.add(unit)

    @property
    def goes_on(self) -> bool:
        return bool(self._flying or self._later or self._ready)

    def next(self, engine: Engine) -> Unit | None:
        """The next ready unit that the engine has room for, if there is one."""
        while self._later and self._later[0][0] <= time.monotonic():
            self._ready.add(heapq.heappop(self._later)[-1])
        if unit := self._ready.pop(engine):
            self._flying[unit.key] = unit
        return unit

    def inputs(self, unit: Unit) -> dict[str, dict[str, object]]:
        """The results that a unit is made from, by role."""
        return {role: self.records[needed.key].result for role, needed in unit.needs.items()}

    def news(self, engine: Engine) -> Sequence[Done]:
        """What came to an end, as soon as anything did or a unit is to be tried again."""
        pause_s = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
        if self._flying:
            return engine.wait(pause_s)
        time.sleep(pause_s or _NO_ROOM_S)
        return ()

    def end(self, done: Done) -> None:
        """Keep the result of a unit, or see what its trouble comes to."""
        unit = self._flying.pop(done.key)
        if done.trouble is None:
            assert done.result is not None
            self._keep(unit, done.result, done.seconds)
        elif done.trouble.passing and self._tries.get(unit.key, 0) < self._retries:
            self._again(unit, done.trouble)
        else:
            self._fail(unit, done.trouble)

    def _keep(self, unit: Unit, result: dict[str, object], seconds: float) -> None:
        inputs = [self.records[needed.key] for needed in unit.needs.values()]
        self.records[unit.key] = self._store.put(unit, result, seconds, inputs)
        self.made.append(unit)
        self._watch(Event("made", unit, seconds))
        for above in self._above.get(unit.key, ()):
            lacks = self._lacks[above.key]
            lacks.discard(unit.key)
            if not lacks and above.key not in self._gone:
                self._ready.add(above)

    def _again(self, unit: Unit, trouble: Trouble) -> None:
        tries = self._tries[unit.key] = self._tries.get(unit.key, 0) + 1
        pause_s = _PAUSES_S[min(tries, len(_PAUSES_S)) - 1]
        entry = (time.monotonic() + pause_s, self._place[unit.key], unit)
        heapq.heappush(self._later, entry)
        self._watch(Event("again", unit, pause_s, trouble.message))

    def _fail(self, unit: Unit, trouble: Trouble) -> None:
        """Note a failure, and what cannot be made for it: all that needs it, however far above."""
        self.failed.append(Failure(unit, trouble.message, trouble.hint, trouble.trace))
        self._gone.add(unit.key)
        self._watch(Event("failed", unit, words=trouble.message))
        below = [unit]
        while below:
            for above in self._above.get(below.pop().key, ()):
                if above.key not in self._gone:
                    self._gone.add(above.key)
                    self.skipped.append(above)
                    self._watch(Event("skipped", above))
                    below.append(above)


class _Ready:
    """Units that could be started, in plan order among those that ask for the same.

    Apart by what they ask for, so that a thousand units that wait for a GPU are not looked
    through for one that needs none.
    """

    def __init__(self, place: Mapping[str, int]) -> None:
        self._place = place
        self._queues: dict[tuple[int, float], list[tuple[int, Unit]]] = {}

    def __bool__(self) -> bool:
        return any(self._queues.values())

    def add(self, unit: Unit) -> None:
        queue = self._queues.setdefault((unit.cpus, unit.gpus), [])
        heapq.heappush(queue, (self._place[unit.key], unit))

    def pop(self, engine: Engine) -> Unit | None:
        """The first in the plan of those that there is room for."""
        waiting = [queue for queue in self._queues.values() if queue]
        queue = min((one for one in waiting if engine.room(one[0][1])), default=None)
        return heapq.heappop(queue)[1] if queue else None


def _unmade(keys: Sequence[str]) -> Trouble:
    return Trouble(
        f"It needs {', '.join(keys)}, not made yet.",
        "Leave --only out, or name these too.",
    )
