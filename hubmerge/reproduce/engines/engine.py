"""What the runner asks of an engine: perform units somewhere, and tell how each came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hubmerge.reproduce.unit import Result, Shop, Unit

# Makes one unit in the process that calls it, from the results of the units it needs, by role.
Perform = Callable[[Unit, Mapping[str, Result], Shop], Result]


@dataclass(frozen=True)
class Trouble:
    """Why a unit has no result; `passing` is what may be gone at another try."""

    message: str
    hint: str = ""
    passing: bool = False
    trace: str = ""


@dataclass(frozen=True)
class Done:
    """The end of one unit: its result and the seconds it took, or what was in the way."""

    key: str
    seconds: float = 0.0
    result: Result | None = None
    trouble: Trouble | None = None


class Engine(Protocol):
    """Performs units elsewhere. Every unit that was started is told of once by `wait`."""

    def check(self, units: Sequence[Unit]) -> None:
        """Raise UsageError for units that it could never perform, before any is started."""

    def room(self, unit: Unit) -> bool:
        """Whether the unit would be performed at once."""

    def start(self, unit: Unit, inputs: Mapping[str, Result]) -> None:
        """Perform the unit, without waiting for it."""

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        """What came to an end, as soon as anything did; nothing once the time is up."""

    def close(self) -> None:
        """Stop at once: what is being performed is lost."""
