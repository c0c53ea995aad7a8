"""hubmerge select --target moe: the step of each expert that a mixture shall start from, as a lock.

Starts are trained for a while and measured on validation, by successive halving. The paper's
finding is the null hypothesis: undertrained starts are best (arXiv 2506.14126, section 3.3).
Another start is chosen only if it beats the null beyond the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hubmerge.choosing.candidates import gather
from hubmerge.choosing.moe_selection import MixtureRequest, Prepared, Reached, beats, lock_of
from hubmerge.choosing.moe_trials import Bench, Tryouts
from hubmerge.errors import UnknownName, UsageError
from hubmerge.hub.client import Hub
from hubmerge.lock import Lock
from hubmerge.opening.moe_experts import open_experts
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.runs.machine import Machine, check_machine
from hubmerge.runs.moe_checks import check_asked, check_start, checked
from hubmerge.selection.halving import Rung, race
from hubmerge.selection.moe_starts import Arms, arms_of
from hubmerge.selection.policy_results import Policy
from hubmerge.selection.pool import Pool
from hubmerge.selection.search import OutOfBudget
from hubmerge.tasks.data import load_split
from hubmerge.trials import CHOSEN_ON, TrialLog

COORDINATE = "coordinate"  # steps of their own, found by moving one expert at a time


@dataclass(frozen=True)
class Selected:
    """What came out: the lock, the race that led to it, and what it cost.

    `steps` are those of each start by name.
    """

    lock: Lock
    rungs: tuple[Rung, ...]
    steps: Mapping[str, tuple[int, ...]]
    train_steps: int
    seconds: float


def prepare(hub: Hub, request: MixtureRequest, progress: Progress) -> Prepared:
    """Check names, bases, tasks, data and options; of experts, only the last steps are fetched.

    Raises UsageError, NotOnHub, IntegrityError, DataError or CheckpointError.
    """
    machine, asked = Machine(request.device), request.asked
    check_machine(machine)
    gathered = gather(hub, request.repos, request.tasks, request.base, progress)
    pool = gathered.pool
    if len(pool.tasks) < 2:
        raise UsageError(
            "There is only one task, and so nothing to mix.", "Name experts of several tasks."
        )
    check_asked(asked, len(pool.tasks), machine)
    arms = arms_of(pool)
    _check_names(arms, request.policy)
    open_experts(hub, _last(pool), request.base, asked.extract_rank, request.extracted)
    rows = {task.id: len(load_split(task, CHOSEN_ON)) for task in pool.tasks}
    bench = Bench(gathered, asked, rows, machine, request.extracted)
    job = bench.job(bench.choice(arms.places[arms.last], asked.train_steps))
    check_start(job.plan)
    checked(job)
    prepared = Prepared(request, bench, arms)
    _check_budget(prepared)
    return prepared


def select(prepared: Prepared, log: TrialLog, progress: Progress) -> Selected:
    """Race the starts, choose, move one expert at a time, and say all that is known as a lock.

    What the log knows is not trained again, and what is measured is in the log at once. Raises
    UsageError for a time that does not reach to what all others are compared with.
    """
    request = prepared.request
    tryouts = Tryouts(prepared.bench, log, request.merges, request.seconds)
    reached = Reached(prepared, tryouts, progress)
    rungs = _raced(prepared, reached)
    chosen = _chosen(prepared, reached)
    cut = _unfinished(prepared, rungs)
    if not cut and not prepared.policy:
        chosen, cut = _swept(prepared, reached, chosen)
    return Selected(
        lock=lock_of(reached, chosen, cut),
        rungs=rungs,
        steps={name: prepared.steps(name) for name in prepared.arms.places},
        train_steps=tryouts.steps,
        seconds=tryouts.spent_s,
    )


def _last(pool: Pool) -> list[ModelRef]:
    """The last step of each task's experts, by its name where it has one of its own."""
    sources = [its[-1].source for its in pool.candidates]
    return [
        ModelRef(one.name, revision=one.sha, subfolder=one.folder)
        if one.folder
        else parse_ref(f"hf://{one.label}")
        for one in sources
    ]


def _check_names(arms: Arms, policy: str | None) -> None:
    if len(arms.places) < 2:
        raise UsageError(
            "There is only one step of each expert, and so nothing to choose.",
            "Name repositories without a revision: owner/name.",
        )
    if policy is not None and policy not in arms.names:
        raise UnknownName("start", policy, arms.names)


def _check_budget(prepared: Prepared) -> None:
    most, needed = prepared.request.merges, len(prepared.sure) * prepared.full
    if most is not None and most < needed:
        raise UsageError(
            f"The budget of {most} training steps does not reach {' and '.join(prepared.sure)}, "
            f"which take {needed}.",
            f"Raise --budget; the whole race takes {prepared.race_steps}.",
        )


def _raced(prepared: Prepared, reached: Reached) -> tuple[Rung, ...]:
    """All rungs, as far as the budget reaches."""
    challengers, horizons = prepared.challengers, prepared.horizons
    try:
        return tuple(race(challengers, prepared.sure, horizons, reached.accuracy))
    except OutOfBudget as error:
        raise UsageError(
            f"The budget does not reach {' and '.join(prepared.sure)}.", "Raise --budget."
        ) from error


def _unfinished(prepared: Prepared, rungs: Sequence[Rung]) -> tuple[str, ...]:
    """The challengers that were still in the race when the budget ended it."""
    if rungs[-1].kept:
        return ()
    return rungs[-2].kept if len(rungs) > 2 else prepared.challengers


def _chosen(prepared: Prepared, reached: Reached) -> Policy:
    """The start that was asked for, else the best of those that beat the null, else the null."""
    null, seed = reached.found[prepared.arms.null], prepared.request.seed
    if prepared.policy:
        return reached.found[prepared.policy]
    known = [reached.found[name] for name in prepared.arms.places if name in reached.found]
    better = [one for one in known if beats(one.found, null.found, seed)]
    return max(better, key=lambda one: one.found.accuracy, default=null)


def _swept(prepared: Prepared, reached: Reached, start: Policy) -> tuple[Policy, tuple[str, ...]]:
    """One sweep over tasks: the next earlier and later step of one expert, if that beats the noise.

    Also the sweep's own name, if the budget ended it.
    """
    best, pool = start, prepared.bench.pool
    for task, candidates in enumerate(pool.candidates):
        here = best.found.choice.places[task]
        for place in (here - 1, here + 1):
            if not 0 <= place < len(candidates):
                continue
            moved = f"{pool.tasks[task].name} at step {candidates[place].step}"
            places = best.found.choice.at(task, place).places
            try:
                found = reached.measured(moved, places, prepared.full)
            except OutOfBudget:
                return best, (COORDINATE,)
            if beats(found, best.found, prepared.request.seed):
                best = Policy(COORDINATE, found, reached.tryouts.mixtures)
    return best, ()
