"""What a plan costs: steps, seconds, commits and bytes; measured where units are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hubmerge.reproduce.store import Record
from hubmerge.reproduce.unit import Unit

_FREE = ("base",)  # looked up or put there once


class Assumed(Protocol):
    """What is believed of a setting before anything was measured."""

    @property
    def seconds_per_step(self) -> float: ...

    @property
    def seconds_per_merge(self) -> float: ...

    @property
    def bytes_per_step(self) -> float: ...


@dataclass(frozen=True)
class Group:
    """Units that take alike: a step of one suite is not one of another, nor training a look-up."""

    suite: str
    kind: str
    trains: bool


class Pace:
    """How long units take: as those of their group did, else as is assumed.

    `suites` says of which suite the unit of a key is, `assumed` what is believed of a suite.
    """

    def __init__(self, suites: Mapping[str, str], assumed: Mapping[str, Assumed]) -> None:
        self._suites, self._assumed = suites, assumed
        self._seconds: dict[Group, float] = defaultdict(float)
        self._worth: dict[Group, float] = defaultdict(float)

    def group(self, unit: Unit) -> Group:
        return Group(self._suites[unit.key], unit.kind, unit.steps > 0)

    def learn(self, unit: Unit, seconds: float) -> None:
        """Take the seconds of a unit that was made into account."""
        self._seconds[self.group(unit)] += seconds
        self._worth[self.group(unit)] += worth(unit)

    def is_measured(self, unit: Unit) -> bool:
        """Whether units of its group were made."""
        return self.group(unit) in self._worth

    def seconds(self, unit: Unit) -> float:
        """What the unit will take."""
        return self.rate(self.group(unit)) * worth(unit)

    def rate(self, group: Group) -> float:
        """Seconds of a step, or of a unit that has none."""
        if group in self._worth:
            return self._seconds[group] / self._worth[group]
        assumed = self._assumed[group.suite]
        if group.trains:
            return assumed.seconds_per_step
        return 0.0 if group.kind in _FREE else assumed.seconds_per_merge

    def bytes(self, unit: Unit) -> float:
        """What the unit pushes."""
        return commits(unit) * self._assumed[self._suites[unit.key]].bytes_per_step


class Left:
    """What is left of a plan, by group: told at once however many units there are."""

    def __init__(self, units: Iterable[Unit], pace: Pace) -> None:
        self._pace = pace
        self._worth: dict[Group, int] = defaultdict(int)
        for unit in units:
            self._worth[pace.group(unit)] += worth(unit)

    def drop(self, unit: Unit) -> None:
        self._worth[self._pace.group(unit)] -= worth(unit)

    @property
    def seconds(self) -> float:
        return sum(self._pace.rate(group) * much for group, much in self._worth.items())


@dataclass(frozen=True)
class Cost:
    """What units of one kind come to; steps, seconds, commits and bytes are of those not known."""

    kind: str
    units: int
    known: int
    steps: int
    seconds: float
    commits: int
    bytes: float
    measured: bool


def costs(units: Sequence[Unit], records: Mapping[str, Record], pace: Pace) -> list[Cost]:
    """The cost of each kind of unit, in plan order; the pace learns from what is known."""
    learn(units, records, pace)
    kinds: dict[str, list[Unit]] = {}
    for unit in units:
        kinds.setdefault(unit.kind, []).append(unit)
    return [_cost(kind, its, records, pace) for kind, its in kinds.items()]


def learn(units: Iterable[Unit], records: Mapping[str, Record], pace: Pace) -> None:
    """Let a pace learn from the units that are known."""
    for unit in units:
        if record := records.get(unit.key):
            pace.learn(unit, record.seconds)


def worth(unit: Unit) -> int:
    """Steps, or one."""
    return unit.steps or 1


def commits(unit: Unit) -> int:
    """How many commits a unit pushes: one a step of a training run."""
    return len(unit.params.get("pushed", ()))


def _cost(kind: str, units: Sequence[Unit], records: Mapping[str, Record], pace: Pace) -> Cost:
    left = [unit for unit in units if unit.key not in records]
    return Cost(
        kind=kind,
        units=len(units),
        known=len(units) - len(left),
        steps=sum(unit.steps for unit in left),
        seconds=sum(pace.seconds(unit) for unit in left),
        commits=sum(commits(unit) for unit in left),
        bytes=sum(pace.bytes(unit) for unit in left),
        measured=all(pace.is_measured(unit) for unit in left),
    )
