"""The progress of a run: a bar on a terminal, else a line for each unit."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hubmerge.refs import printable

if TYPE_CHECKING:
    from hubmerge.cli.session import Session
    from hubmerge.reproduce.plan_cost import DurationEstimator
    from hubmerge.reproduce.runner import UnitEvent
    from hubmerge.reproduce.unit import Unit

_FINAL_EVENTS = ("known", "completed", "failed", "skipped")


class RunProgress:
    """Prints the events of a run with the time left.

    The estimate uses the seconds that units of each kind took, and the most units that ran at once.
    """

    def __init__(self, session: Session, units: Sequence[Unit], pace: DurationEstimator) -> None:
        from hubmerge.reproduce.plan_cost import RemainingTime

        self._session, self._pace = session, pace
        self._left = RemainingTime(units, pace)
        self._running: dict[str, tuple[Unit, float]] = {}
        self._most_at_once = 1
        self._ended_count = 0
        self._total = len(units)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=Console(stderr=True),
            disable=session.quiet or not sys.stderr.isatty(),
            transient=True,
        )
        self._line = self._bar.add_task("", total=len(units), left="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, event: UnitEvent) -> None:
        self._count(event)
        if self._bar.disable:
            self._print_line(event)
        else:
            self._update_bar(event)

    def _count(self, event: UnitEvent) -> None:
        unit = event.unit
        if event.status == "started":
            self._running[unit.key] = (unit, time.monotonic())
            self._most_at_once = max(self._most_at_once, len(self._running))
            return
        self._running.pop(unit.key, None)
        if event.status in _FINAL_EVENTS:
            self._ended_count += 1
            self._left.remove(unit)
        if event.status in ("known", "completed"):
            self._pace.record(unit, event.seconds)

    @property
    def _seconds_left(self) -> float:
        now = time.monotonic()
        done = (
            min(now - start, self._pace.seconds(unit)) for unit, start in self._running.values()
        )
        return max(0.0, self._left.seconds - sum(done)) / self._most_at_once

    def _print_line(self, event: UnitEvent) -> None:
        """Print a line for a unit that ended or failed, except for units known before the run."""
        name = f"{event.unit.kind}: {event.unit.about}"
        count = f"[{self._ended_count}/{self._total}]"
        if event.status == "completed":
            left = f", about {format_duration(self._seconds_left)} left" if self._running else ""
            self._session.print_message(f"{count} {name} ({format_duration(event.seconds)}{left})")
        elif event.status == "retrying":
            self._session.print_message(f"{count} {name}: {event.message} It is retried.")
        elif event.status == "failed":
            self._session.print_message(f"{count} {name} failed: {event.message}")

    def _update_bar(self, event: UnitEvent) -> None:
        if event.status in ("retrying", "failed"):
            self._bar.console.print(
                printable(f"{event.unit.kind}: {event.unit.about}: {event.message}"), markup=False
            )
        unit, _ = next(reversed(self._running.values()), (event.unit, 0.0))
        left = f"about {format_duration(self._seconds_left)} left" if self._running else ""
        self._bar.update(
            self._line,
            description=printable(f"{unit.kind}: {unit.about}"),
            completed=self._ended_count,
            left=left,
        )


def format_duration(seconds: float) -> str:
    """Seconds as text: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
