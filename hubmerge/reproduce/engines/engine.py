"""The interface of engines: they perform units somewhere and return how each of them ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hubmerge.reproduce.unit import Result, Unit, WorkContext

# Performs one unit in the calling process, given the results of the units it needs, by role.
Perform = Callable[[Unit, Mapping[str, Result], WorkContext], Result]


@dataclass(frozen=True)
class UnitError:
    """Why a unit has no result; a `transient` error may be gone at the next try."""

    message: str
    hint: str = ""
    transient: bool = False
    trace: str = ""


@dataclass(frozen=True)
class UnitOutcome:
    """The end of one unit: its result and the seconds it took, or an error."""

    key: str
    seconds: float = 0.0
    result: Result | None = None
    error: UnitError | None = None


class Engine(Protocol):
    """Performs units; `wait` returns the outcome of every started unit once."""

    def check(self, units: Sequence[Unit]) -> None:
        """Raise UsageError for units that this engine can never perform."""

    def has_room(self, unit: Unit) -> bool:
        """Whether the unit would be performed immediately."""

    def start(self, unit: Unit, inputs: Mapping[str, Result]) -> None:
        """Perform the unit, without waiting for it."""

    def wait(self, timeout_s: float | None) -> Sequence[UnitOutcome]:
        """The units that ended, as soon as any did; empty when the time is up."""

    def close(self) -> None:
        """Stop immediately; units in progress are lost."""
