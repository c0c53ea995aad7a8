"""hubmerge select: repositories of experts -> the best step of each for a merge, as a lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from hubmerge.choosing.candidates import Gathered, gather
from hubmerge.choosing.merge_selection import Prepared, Request, lock_of
from hubmerge.errors import IntegrityError, UnknownName, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.kinds import MOE
from hubmerge.lock import Lock
from hubmerge.merging.plan import Expert, MergePlan, check
from hubmerge.merging.registry import METHODS, Method, parse_params
from hubmerge.models.loading import open_model
from hubmerge.progress import Progress
from hubmerge.runs.machine import pick_device
from hubmerge.selection import report
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.memory_merge import Blender
from hubmerge.selection.policy_results import POLICIES, Board, Policy
from hubmerge.selection.pool import Choice, Pool, as_params
from hubmerge.selection.search import Budget, Found, Search
from hubmerge.selection.task_split import Dressed, Stage
from hubmerge.specs import Kind
from hubmerge.tasks.data import load_split
from hubmerge.trials import CHOSEN_ON, TrialLog

FEW = 50  # rows: with fewer, one more right answer is as much as any step gains


@dataclass(frozen=True)
class Selected:
    """What came out, and how many seconds it took."""

    lock: Lock
    seconds: float


def prepare(hub: Hub, request: Request, progress: Progress) -> Prepared:
    """Check names, bases, tasks, data and headers; of experts, only the last steps are fetched.

    Raises UsageError, NotOnHub, IntegrityError, DataError or CheckpointError.
    """
    if request.policy is not None and request.policy not in POLICIES:
        raise UnknownName("policy", request.policy, POLICIES)
    if request.method not in METHODS:
        raise UnknownName("target", request.method, (*METHODS, MOE))
    method = METHODS[request.method]
    gathered = gather(hub, request.repos, request.tasks, request.base, progress)
    pool = gathered.pool
    if len(pool.tasks) < 2:
        raise UsageError(
            "There is only one task, and so nothing to merge.", "Name experts of several tasks."
        )
    _check_headers(gathered, method)
    locked = choice_of(pool, method, request.against) if request.against else None
    prepared = Prepared(request, gathered, method, _stages(gathered, request.device), locked)
    if request.policy is not None and request.policy not in prepared.order:
        raise UsageError(
            f"Policy {request.policy} has nothing to choose from here.",
            f"These do: {', '.join(prepared.order)}.",
        )
    return prepared


def few_rows(rows: Mapping[str, int]) -> Iterator[str]:
    """What one should know of validation splits so small that luck decides, a sentence each."""
    for task, count in rows.items():
        if count < FEW:
            yield f"Task {task} has {count} validation rows: luck decides as much as the step does."


def select(prepared: Prepared, log: TrialLog, progress: Progress) -> Selected:
    """Run every policy within the budget, choose, and say all that is known as a lock.

    What the log knows is not measured again, and what is measured is in the log at once. Raises
    UsageError for a budget that does not reach the policy that was asked for.
    """
    request, pool, method = prepared.request, prepared.pool, prepared.method
    blender = Blender(pool, method)
    arena = Evaluator(pool, blender, method, prepared.stages, log, CHOSEN_ON)
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
    return Selected(lock_of(prepared, board, chosen), budget.spent_s)


def _tell(progress: Progress, name: str, arena: Evaluator, most: int | None, found: Found) -> None:
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


def _check_headers(gathered: Gathered, method: Method) -> None:
    """Whether the last steps can be merged at all, told from their headers."""
    pool = gathered.pool
    last = [its[-1] for its in pool.candidates]
    experts = (Expert(pool.open(one), one.source.key, label=one.source.label) for one in last)
    check(MergePlan(pool.base_checkpoint, tuple(experts), method, parse_params(method, {})))


def choice_of(pool: Pool, method: Method, lock: Lock, policy: str | None = None) -> Choice:
    """What a lock chose, found again among the candidates.

    Raises IntegrityError where an expert of it is not there any more, UsageError for other tasks.
    """
    if lock.method != method.name:
        raise UsageError(
            f"The lock is for {lock.method}, and --target says {method.name}.",
            f"Select with --target {lock.method}.",
        )
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
    params = parse_params(method, pick.params)
    named = tuple(
        Expert(
            pool.open(candidates[place]), one.key, one.weight, one.label, one.keep, one.intruders
        )
        for candidates, place, one in zip(pool.candidates, places, experts, strict=True)
    )
    check(MergePlan(pool.base_checkpoint, named, method, params))
    return Choice(
        places=tuple(places),
        weights=tuple(expert.weight for expert in experts),
        keep=tuple(expert.keep for expert in experts),
        intruders=tuple(expert.intruders for expert in experts),
        params=as_params(params.model_dump()),
    )


def _stages(gathered: Gathered, device: str | None) -> tuple[Stage, ...]:
    """Every task with its validation rows; tasks of one kind share one opened base."""
    place, dressed = pick_device(device), dict[Kind, Dressed]()
    stages = []
    for task in gathered.pool.tasks:
        split, kind = load_split(task, CHOSEN_ON), task.spec.kind
        if kind not in dressed:
            dressed[kind] = Dressed(open_model(gathered.base.folder, kind), place)
        stages.append(Stage(dressed[kind], split))
    return tuple(stages)
