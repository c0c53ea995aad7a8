"""A selection before and after: what was asked for, what it works on, and the lock it becomes."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from hubmerge.choosing.candidates import Gathered
from hubmerge.lock import Lock, LockedTask, Pin, Spent
from hubmerge.merging.registry import Method
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.references import source_of, versions
from hubmerge.refs import ModelRef
from hubmerge.selection import report
from hubmerge.selection.policy_results import LAST, LOCKED, Board, Policy, order
from hubmerge.selection.pool import Choice, Pool
from hubmerge.selection.task_split import Stage
from hubmerge.tasks.task import Task
from hubmerge.trials import CHOSEN_ON


@dataclass(frozen=True)
class Request:
    """What was asked for.

    `policy` is whose choice the lock builds, None for the best; `against` is an earlier lock, whose
    choice is to be beaten instead of the last steps. `merges` and `seconds` are the budget. `band`
    is the noise, in standard errors, within which two choices are equal. `exhaustive` tries every
    point of the grid on every row. `typed` are options that only their own words can repeat.
    """

    repos: tuple[ModelRef, ...]
    method: str
    policy: str | None = None
    tasks: tuple[Task, ...] = ()
    base: ModelRef | None = None
    against: Lock | None = None
    merges: int | None = None
    seconds: float | None = None
    seed: int = 0
    band: float = report.BAND
    exhaustive: bool = False
    device: str | None = None
    typed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A selection that is known to be possible: nothing has been measured yet."""

    request: Request
    gathered: Gathered
    method: Method
    stages: tuple[Stage, ...]
    locked: Choice | None = None

    @property
    def pool(self) -> Pool:
        return self.gathered.pool

    @property
    def rival(self) -> str:
        """The policy to beat."""
        return LOCKED if self.locked else LAST

    @property
    def order(self) -> list[str]:
        """The policies that will be run, in their order."""
        return order(self.pool, self.request.policy, self.locked is not None)


def lock_of(prepared: Prepared, board: Board, chosen: Policy) -> Lock:
    """All that a finished selection knows, with what was chosen."""
    request, pool, arena = prepared.request, prepared.pool, board.search.arena
    policies, rival = list(board.found.values()), prepared.rival
    picks = [report.pick(one, board.found[rival].found, pool, request.seed) for one in policies]
    gain = next(pick.gain for pick in picks if pick.policy == chosen.name)
    keys = sorted({expert.key for pick in picks for expert in pick.experts})
    pins = {key: pin_of(prepared.gathered.open(key), pool) for key in keys}
    return Lock(
        base=pin_of(prepared.gathered.base, pool),
        experts=tuple(pins.values()),
        tasks=tuple(_locked_task(stage) for stage in prepared.stages),
        method=prepared.method.name,
        chosen=chosen.name,
        picks=tuple(report.opened(pick, pins) for pick in picks),
        swaps=report.swaps(board, chosen.found, request.band),
        uniform=report.commons(board.uniform, pool),
        seed=request.seed,
        spent=Spent(arena.merges, sum(arena.asked.values())),
        conclusive=bool(gain and gain[1] > 0),
        rival=rival,
        cut=tuple(board.cut),
        split=CHOSEN_ON,
        budget=budget_of(request),
        command=command_of(request),
        versions=versions(),
    )


def pin_of(opened: Opened, pool: Pool) -> Pin:
    """A checkpoint at hand as a lock pins it."""
    known = {one.source.key: one.source for its in pool.candidates for one in its}
    found = source_of(opened)
    source = known.get(found.key, found)
    said = dataclasses.replace(source, digest=found.digest, licence=found.licence)
    return Pin(str(opened.revision.ref), said, opened.files)


def _locked_task(stage: Stage) -> LockedTask:
    data = stage.task.spec.data
    where = f"{data.id}@{data.revision}" if data.id else None
    return LockedTask(stage.task.id, where, len(stage.order))


def budget_of(request: Request) -> str | None:
    """The budget as it was typed."""
    if request.seconds is not None:
        return f"{request.seconds / 60:g}m"
    return str(request.merges) if request.merges is not None else None


def command_of(request: Request) -> str:
    """The command that repeats the selection."""
    words: list[Any] = ["hubmerge", "select", *request.repos, "--target", request.method]
    if request.policy:
        words += ["--policy", request.policy]
    if request.base:
        words += ["--base", request.base]
    if budget := budget_of(request):
        words += ["--budget", budget]
    if request.seed:
        words += ["--seed", request.seed]
    if request.band != report.BAND:
        words += ["--band", f"{request.band:g}"]
    if request.exhaustive:
        words.append("--exhaustive")
    words += request.typed
    return shlex.join(str(word) for word in words)
