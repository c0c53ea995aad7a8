"""What is seen of a run: a bar over the whole plan on a terminal, else a line a unit."""

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
    from hubmerge.reproduce.plan_cost import Pace
    from hubmerge.reproduce.runner import Event
    from hubmerge.reproduce.unit import Unit

_ENDS = ("known", "made", "failed", "skipped")


class Watching:
    """Takes in the events of a run and tells of them, with the time that is left.

    That is estimated by the seconds that units of each kind took, and by how many there were at
    once.
    """

    def __init__(self, session: Session, units: Sequence[Unit], pace: Pace) -> None:
        from hubmerge.reproduce.plan_cost import Left

        self._session, self._pace = session, pace
        self._left = Left(units, pace)
        self._flying: dict[str, tuple[Unit, float]] = {}
        self._widest = 1
        self._ended = 0
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

    def __enter__(self) -> Watching:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        self._count(event)
        if self._bar.disable:
            self._say(event)
        else:
            self._show(event)

    def _count(self, event: Event) -> None:
        unit = event.unit
        if event.what == "started":
            self._flying[unit.key] = (unit, time.monotonic())
            self._widest = max(self._widest, len(self._flying))
            return
        self._flying.pop(unit.key, None)
        if event.what in _ENDS:
            self._ended += 1
            self._left.drop(unit)
        if event.what in ("known", "made"):
            self._pace.learn(unit, event.seconds)

    @property
    def _seconds_left(self) -> float:
        now = time.monotonic()
        behind = (
            min(now - begun, self._pace.seconds(unit)) for unit, begun in self._flying.values()
        )
        return max(0.0, self._left.seconds - sum(behind)) / self._widest

    def _say(self, event: Event) -> None:
        """A line for what came to an end; what was known is told of by number, before."""
        what = f"{event.unit.kind}: {event.unit.about}"
        count = f"[{self._ended}/{self._total}]"
        if event.what == "made":
            left = f", about {lasting(self._seconds_left)} left" if self._flying else ""
            self._session.say(f"{count} {what} ({lasting(event.seconds)}{left})")
        elif event.what == "again":
            self._session.say(f"{count} {what}: {event.words} It is tried again.")
        elif event.what == "failed":
            self._session.say(f"{count} {what} failed: {event.words}")

    def _show(self, event: Event) -> None:
        if event.what in ("again", "failed"):
            self._bar.console.print(
                printable(f"{event.unit.kind}: {event.unit.about}: {event.words}"), markup=False
            )
        unit, _ = next(reversed(self._flying.values()), (event.unit, 0.0))
        left = f"about {lasting(self._seconds_left)} left" if self._flying else ""
        self._bar.update(
            self._line,
            description=printable(f"{unit.kind}: {unit.about}"),
            completed=self._ended,
            left=left,
        )


def lasting(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
