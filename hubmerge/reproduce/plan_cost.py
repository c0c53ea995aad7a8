"""The cost of a plan in steps, seconds, commits and bytes, from measured times where available."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hubmerge.reproduce.store import UnitRecord
from hubmerge.reproduce.unit import Unit

_FREE_KINDS = ("base",)  # looked up or uploaded once


class AssumedCosts(Protocol):
    """The costs that settings assume before anything was measured."""

    @property
    def seconds_per_step(self) -> float: ...

    @property
    def seconds_per_merge(self) -> float: ...

    @property
    def bytes_per_step(self) -> float: ...


@dataclass(frozen=True)
class UnitGroup:
    """Units with comparable times: of the same suite and kind, with or without training."""

    suite: str
    kind: str
    trains: bool


class DurationEstimator:
    """Estimates how long units take, from other units of their group or else from assumptions.

    `suites` maps unit key -> suite, `assumed` maps suite -> assumed costs.
    """

    def __init__(self, suites: Mapping[str, str], assumed: Mapping[str, AssumedCosts]) -> None:
        self._suites, self._assumed = suites, assumed
        self._seconds: dict[UnitGroup, float] = defaultdict(float)
        self._work: dict[UnitGroup, float] = defaultdict(float)

    def group(self, unit: Unit) -> UnitGroup:
        return UnitGroup(self._suites[unit.key], unit.kind, unit.steps > 0)

    def record(self, unit: Unit, seconds: float) -> None:
        """Use the measured seconds of a unit in later estimates."""
        self._seconds[self.group(unit)] += seconds
        self._work[self.group(unit)] += work_amount(unit)

    def is_measured(self, unit: Unit) -> bool:
        """Whether times of its group were recorded."""
        return self.group(unit) in self._work

    def seconds(self, unit: Unit) -> float:
        """The estimated seconds of a unit."""
        return self.rate(self.group(unit)) * work_amount(unit)

    def rate(self, group: UnitGroup) -> float:
        """Seconds per step, or per unit for units without steps."""
        if group in self._work:
            return self._seconds[group] / self._work[group]
        assumed = self._assumed[group.suite]
        if group.trains:
            return assumed.seconds_per_step
        return 0.0 if group.kind in _FREE_KINDS else assumed.seconds_per_merge

    def bytes(self, unit: Unit) -> float:
        """The bytes that a unit pushes."""
        return count_commits(unit) * self._assumed[self._suites[unit.key]].bytes_per_step


class RemainingTime:
    """The estimated time for the units that are left, kept by group so that reading it is fast."""

    def __init__(self, units: Iterable[Unit], pace: DurationEstimator) -> None:
        self._pace = pace
        self._worth: dict[UnitGroup, int] = defaultdict(int)
        for unit in units:
            self._worth[pace.group(unit)] += work_amount(unit)

    def remove(self, unit: Unit) -> None:
        self._worth[self._pace.group(unit)] -= work_amount(unit)

    @property
    def seconds(self) -> float:
        return sum(self._pace.rate(group) * much for group, much in self._worth.items())


@dataclass(frozen=True)
class PlanCost:
    """The cost of the units of one kind.

    `known` of the `units` have results already; steps, seconds, commits and bytes are those of the
    others. `measured` is false if any of the seconds are assumed.
    """

    kind: str
    units: int
    known: int
    steps: int
    seconds: float
    commits: int
    bytes: float
    measured: bool


def plan_costs(
    units: Sequence[Unit], records: Mapping[str, UnitRecord], estimator: DurationEstimator
) -> list[PlanCost]:
    """The cost of each kind of unit, in plan order; the estimator uses the records first."""
    record_all(units, records, estimator)
    kinds: dict[str, list[Unit]] = {}
    for unit in units:
        kinds.setdefault(unit.kind, []).append(unit)
    return [_kind_cost(kind, of_kind, records, estimator) for kind, of_kind in kinds.items()]


def record_all(
    units: Iterable[Unit], records: Mapping[str, UnitRecord], estimator: DurationEstimator
) -> None:
    """Record the seconds of all units that have results."""
    for unit in units:
        if record := records.get(unit.key):
            estimator.record(unit, record.seconds)


def work_amount(unit: Unit) -> int:
    """The number of steps, or 1 for a unit without steps."""
    return unit.steps or 1


def count_commits(unit: Unit) -> int:
    """How many commits a unit pushes: one for each published step of a training run."""
    return len(unit.params.get("pushed", ()))


def _kind_cost(
    kind: str, units: Sequence[Unit], records: Mapping[str, UnitRecord], pace: DurationEstimator
) -> PlanCost:
    left = [unit for unit in units if unit.key not in records]
    return PlanCost(
        kind=kind,
        units=len(units),
        known=len(units) - len(left),
        steps=sum(unit.steps for unit in left),
        seconds=sum(pace.seconds(unit) for unit in left),
        commits=sum(count_commits(unit) for unit in left),
        bytes=sum(pace.bytes(unit) for unit in left),
        measured=all(pace.is_measured(unit) for unit in left),
    )
