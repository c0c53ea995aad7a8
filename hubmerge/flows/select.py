"""hubmerge select: repositories of experts -> the best step of each for a merge, as a lock."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any

from hubmerge.errors import IntegrityError, UnknownName, UsageError, raise_together
from hubmerge.flows.machine import pick_device
from hubmerge.flows.pool import Gathered, gather
from hubmerge.flows.sources import Opened, source_of, versions
from hubmerge.hub.client import Hub
from hubmerge.lock import Lock, LockedTask, Pin, Spent
from hubmerge.merging.plan import Expert, MergePlan, check
from hubmerge.merging.registry import Method, parse_params
from hubmerge.merging.registry import method as find_method
from hubmerge.models.opening import open_model
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef
from hubmerge.selection import report
from hubmerge.selection.arena import Arena
from hubmerge.selection.blending import Blender
from hubmerge.selection.board import LAST, LOCKED, POLICIES, Board, Policy, order
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.pool import Choice, Pool, as_params
from hubmerge.selection.search import Budget, Found, Search
from hubmerge.selection.stage import Dressed, Stage
from hubmerge.specs import Kind
from hubmerge.tasks.data import load_split
from hubmerge.tasks.task import Task
from hubmerge.trials import CHOSEN_ON, TrialLog

SPLIT = CHOSEN_ON  # of test, nothing is ever read here
MIXTURE = "moe"


@dataclass(frozen=True)
class Request:
    """What was asked for.

    `policy` is whose choice the lock builds, None for the best; `against` is an earlier lock, whose
    choice is to be beaten instead of the last steps. `merges` and `seconds` are the budget. `band`
    is the noise, in standard errors, within which two choices are equal. `exhaustive` tries every
    point of the grid on every row.
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


@dataclass(frozen=True)
class Selected:
    """What came out: the lock, and the policies that the budget cut short."""

    lock: Lock
    cut: tuple[str, ...]


def prepare(hub: Hub, request: Request, progress: Progress) -> Prepared:
    """Check names, bases, tasks, data and headers; of experts, only the last steps are fetched.

    Raises UsageError, NotOnHub, IntegrityError, DataError or CheckpointError.
    """
    if request.policy is not None and request.policy not in POLICIES:
        raise UnknownName("policy", request.policy, POLICIES)
    if request.method == MIXTURE:
        raise UsageError(
            "A mixture of experts is trained before it can be measured, which hubmerge does not do "
            "yet.",
            "The paper starts one from early-stopped adapters: choose them by their own runs, "
            "`hubmerge steps` marks them.",
        )
    method = find_method(request.method)
    gathered = gather(hub, request.repos, request.tasks, request.base, progress)
    pool = gathered.pool
    if len(pool.tasks) < 2:
        raise UsageError(
            "There is only one task, and so nothing to merge.", "Name experts of several tasks."
        )
    _check_headers(gathered, method)
    locked = choice_of(pool, request.against) if request.against else None
    prepared = Prepared(request, gathered, method, _stages(gathered, request.device), locked)
    if request.policy is not None and request.policy not in prepared.order:
        raise UsageError(
            f"Policy {request.policy} has nothing to choose from here.",
            f"These do: {', '.join(prepared.order)}.",
        )
    return prepared


def select(prepared: Prepared, log: TrialLog, progress: Progress) -> Selected:
    """Run every policy within the budget, choose, and say all that is known as a lock.

    What the log knows is not measured again, and what is measured is in the log at once. Raises
    UsageError for a budget that does not reach the policy that was asked for.
    """
    request, pool, method = prepared.request, prepared.pool, prepared.method
    blender = Blender(pool, method)
    arena = Arena(pool, blender, method, prepared.stages, log, SPLIT)
    budget = Budget(request.merges, request.seconds)
    budget.reserve(2 * len(pool.tasks))
    search = Search(arena, GRIDS[method.name], budget, exhaustive=request.exhaustive)
    board = Board(search, prepared.locked)
    for name in prepared.order:
        search.tell = partial(_tell, progress, name, arena, request.merges)
        board.run(name)
    chosen = _chosen(prepared, board)
    budget.release()
    board.look_around(chosen.found)
    return Selected(_lock(prepared, board, chosen, budget), tuple(board.cut))


def _tell(progress: Progress, name: str, arena: Arena, most: int | None, found: Found) -> None:
    progress(f"{name}: {100 * found.accuracy:.1f} %", arena.merges, most or arena.merges)


def _chosen(prepared: Prepared, board: Board) -> Policy:
    """The policy that was asked for, else the best; raises UsageError if it was not reached."""
    request = prepared.request
    for needed in (prepared.rival, request.policy or prepared.rival):
        if needed not in board.found:
            raise UsageError(f"The budget does not reach policy {needed}.", "Raise --budget.")
    if request.policy:
        return board.found[request.policy]
    return report.earliest(list(board.found.values()), prepared.pool, request.band)


def _lock(prepared: Prepared, board: Board, chosen: Policy, budget: Budget) -> Lock:
    request, pool, arena = prepared.request, prepared.pool, board.search.arena
    policies, rival = list(board.found.values()), prepared.rival
    picks = [report.pick(one, board.found[rival].found, pool, request.seed) for one in policies]
    gain = next(pick.gain for pick in picks if pick.policy == chosen.name)
    keys = sorted({expert.key for pick in picks for expert in pick.experts})
    pins = {key: _pin(prepared.gathered.open(key), pool) for key in keys}
    return Lock(
        base=_pin(prepared.gathered.base, pool),
        experts=tuple(pins.values()),
        tasks=tuple(_locked_task(stage) for stage in prepared.stages),
        method=prepared.method.name,
        chosen=chosen.name,
        picks=tuple(report.opened(pick, pins) for pick in picks),
        swaps=report.swaps(board, chosen.found, request.band),
        uniform=report.commons(board.uniform, pool),
        seed=request.seed,
        spent=Spent(arena.merges, sum(arena.asked.values()), round(budget.spent_s / 60, 2)),
        conclusive=bool(gain and gain[1] > 0),
        rival=rival,
        split=SPLIT,
        budget=_budget(request),
        command=_command(request),
        versions=versions(),
    )


def _check_headers(gathered: Gathered, method: Method) -> None:
    """Whether the last steps can be merged at all, told from their headers."""
    pool = gathered.pool
    last = [its[-1] for its in pool.candidates]
    experts = (Expert(pool.open(one), one.source.key, label=one.source.label) for one in last)
    check(MergePlan(pool.base_checkpoint, tuple(experts), method, parse_params(method, {})))


def choice_of(pool: Pool, lock: Lock, policy: str | None = None) -> Choice:
    """What a lock chose, found again among the candidates.

    Raises IntegrityError where an expert of it is not there any more, UsageError for other tasks.
    """
    pick = lock.pick(policy)
    ids = [task.id for task in lock.tasks]
    if sorted(ids) != sorted(task.id for task in pool.tasks):
        raise UsageError(
            f"The lock is for other tasks: {', '.join(ids)}.", "Name the repositories it names."
        )
    experts = [pick.experts[ids.index(task.id)] for task in pool.tasks]
    places, problems = [], []
    for candidates, expert in zip(pool.candidates, experts, strict=True):
        found = [n for n, one in enumerate(candidates) if one.source.key == expert.key]
        places += found[:1]
        if not found:
            problems.append(
                f"{expert.label} of the lock ({expert.sha[:12]}) is not there any more."
            )
    raise_together(IntegrityError, problems, "Select without --against.")
    return Choice(
        places=tuple(places),
        weights=tuple(expert.weight for expert in experts),
        keep=tuple(expert.keep for expert in experts),
        intruders=tuple(expert.intruders for expert in experts),
        params=as_params(pick.params),
    )


def _stages(gathered: Gathered, device: str | None) -> tuple[Stage, ...]:
    """Every task with its validation rows; tasks of one kind share one opened base."""
    place, dressed = pick_device(device), dict[Kind, Dressed]()
    stages = []
    for task in gathered.pool.tasks:
        split, kind = load_split(task, SPLIT), task.spec.kind
        if kind not in dressed:
            dressed[kind] = Dressed(open_model(gathered.base.folder, kind), place)
        stages.append(Stage(dressed[kind], split))
    return tuple(stages)


def _pin(opened: Opened, pool: Pool) -> Pin:
    known = {one.source.key: one.source for its in pool.candidates for one in its}
    found = source_of(opened)
    source = known.get(found.key, found)
    said = dataclasses.replace(source, digest=found.digest, licence=found.licence)
    return Pin(str(opened.revision.ref), said, opened.files)


def _locked_task(stage: Stage) -> LockedTask:
    data = stage.task.spec.data
    where = f"{data.id}@{data.revision}" if data.id else None
    return LockedTask(stage.task.id, where, len(stage.order))


def _budget(request: Request) -> str | None:
    if request.seconds is not None:
        return f"{request.seconds / 60:g}m"
    return str(request.merges) if request.merges is not None else None


def _command(request: Request) -> str:
    """The command that repeats the selection."""
    words: list[Any] = ["hubmerge", "select", *request.repos, "--target", request.method]
    if request.policy:
        words += ["--policy", request.policy]
    if request.tasks:
        words += ["--tasks", ",".join(task.name for task in request.tasks)]
    if request.base:
        words += ["--base", request.base]
    if budget := _budget(request):
        words += ["--budget", budget]
    if request.seed:
        words += ["--seed", request.seed]
    if request.band != report.BAND:
        words += ["--band", f"{request.band:g}"]
    if request.exhaustive:
        words.append("--exhaustive")
    return shlex.join(str(word) for word in words)
