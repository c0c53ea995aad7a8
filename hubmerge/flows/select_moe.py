"""hubmerge select --target moe: choose the step of each expert that a mixture starts from.

Starts are trained for a short time and measured on validation data, by successive halving. The
null hypothesis is the paper's finding that undertrained starts are best (arXiv 2506.14126, section
3.3). Another start is chosen only if it beats the null beyond the noise. The result is a lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hubmerge.choosing.candidates import open_pool
from hubmerge.choosing.moe_selection import (
    MoeSelectRequest,
    PreparedMoeSelection,
    StartResults,
    beats,
    make_moe_lock,
)
from hubmerge.choosing.moe_trials import MoeTrials, TrialSetup
from hubmerge.errors import UnknownName, UsageError
from hubmerge.hub.client import Hub
from hubmerge.lock import Lock
from hubmerge.opening.moe_experts import open_experts
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.runs.machine import Machine, check_machine
from hubmerge.runs.moe_checks import check_data, check_moe_spec, check_router_start
from hubmerge.selection.choice import Choice
from hubmerge.selection.cross_fit import FOLDS, CrossFit, FoldSearch
from hubmerge.selection.folds import MIN_ROWS, folds
from hubmerge.selection.halving import HalvingRound, race
from hubmerge.selection.moe_starts import MoeStarts, find_starts
from hubmerge.selection.policy_results import PolicyResult
from hubmerge.selection.pool import Pool
from hubmerge.selection.search import OutOfBudget
from hubmerge.tasks.data import load_split
from hubmerge.trials import SELECTION_SPLIT, Trial, TrialLog

COORDINATE = "coordinate"  # separate steps, found by moving one expert at a time


@dataclass(frozen=True)
class MoeSelectResult:
    """The lock, the rounds of the race that led to it, and their cost.

    `steps` are the steps of each start, by name.
    """

    lock: Lock
    rounds: tuple[HalvingRound, ...]
    steps: Mapping[str, tuple[int, ...]]
    train_steps: int
    seconds: float


def prepare_moe_selection(
    hub: Hub, request: MoeSelectRequest, progress: Progress
) -> PreparedMoeSelection:
    """Check names, bases, tasks, data and options; only the last step of each expert is fetched.

    Raises UsageError, NotOnHub, IntegrityError, DataError or CheckpointError.
    """
    machine, spec = Machine(request.device), request.moe_spec
    check_machine(machine)
    opened_pool = open_pool(
        hub, request.repos, request.tasks, request.base, progress, metric=request.metric
    )
    pool = opened_pool.pool
    if len(pool.tasks) < 2:
        raise UsageError(
            "There is only one task, so there is nothing to mix.", "Name experts of several tasks."
        )
    if measured := [task.name for task in pool.tasks if task.lm_eval is not None]:
        raise UsageError(
            f"A mixture is trained on its tasks, and {', '.join(measured)} only measures models.",
            "Leave --tasks out, and measure the mixture with `hubmerge eval`.",
        )
    check_moe_spec(spec, len(pool.tasks), machine)
    starts = find_starts(pool)
    _check_names(starts, request.policy)
    open_experts(hub, _last_refs(pool), request.base, spec.extract_rank, request.extracted)
    rows = {task.id: len(load_split(task, SELECTION_SPLIT)) for task in pool.tasks}
    setup = TrialSetup(opened_pool, spec, rows, machine, request.extracted)
    job = setup.make_job(setup.make_choice(starts.indices[starts.last], spec.train_steps))
    check_router_start(job.plan)
    check_data(job)
    prepared = PreparedMoeSelection(request, setup, starts)
    _check_budget(prepared)
    return prepared


def select_moe(
    prepared: PreparedMoeSelection, log: TrialLog, progress: Progress
) -> MoeSelectResult:
    """Race the starts, choose one, then move one expert at a time, and build the lock.

    The choice is made on all rows. Its gain is measured on rows that did not choose: the same runs
    on each half of the rows, and is compared on the other half. Trials in the log are not trained
    again; new ones are logged at once. Raises UsageError if the time ends before the starts that
    all others are compared with are measured.
    """
    request = prepared.request
    trials = MoeTrials(prepared.setup, log, request.merges, request.seconds)
    results = StartResults(prepared, trials, progress)
    rounds, chosen, cut = _search(prepared, results)
    fit = _cross_fit(prepared, trials, progress)
    return MoeSelectResult(
        lock=make_moe_lock(results, chosen, cut, fit),
        rounds=rounds,
        steps={name: prepared.steps(name) for name in prepared.starts.indices},
        train_steps=trials.steps,
        seconds=trials.spent_s,
    )


def _search(
    prepared: PreparedMoeSelection, results: StartResults
) -> tuple[tuple[HalvingRound, ...], PolicyResult, tuple[str, ...]]:
    """Return the rounds of the race, the choice, and the names of what the budget ended early."""
    rounds = _run_race(prepared, results)
    chosen = _choose_start(prepared, results)
    cut = _unfinished(prepared, rounds)
    if not cut and not prepared.policy:
        chosen, cut = _sweep(prepared, results, chosen)
    return rounds, chosen, cut


def _cross_fit(
    prepared: PreparedMoeSelection, trials: MoeTrials, progress: Progress
) -> CrossFit | None:
    """Search on each half of the rows; None if a task has too few of them.

    A mixture that was trained already is not trained again: its trial holds every row.
    """
    if min(prepared.setup.rows.values()) < MIN_ROWS:
        return None
    searches = []
    for fold in folds(FOLDS):
        results = StartResults(prepared, trials, progress, fold)
        _, chosen, _ = _search(prepared, results)
        searches.append(FoldSearch(fold, results.results, chosen))

    def measure(choice: Choice) -> Trial:
        trial = trials.find_trial(choice)
        assert trial is not None  # a search measured it
        return trial

    return CrossFit(prepared.setup.pool, measure, tuple(searches))


def _last_refs(pool: Pool) -> list[ModelRef]:
    """Return a reference to the last step of each expert, by its name unless it is a subfolder."""
    sources = [steps[-1].source for steps in pool.candidates]
    return [
        ModelRef(source.name, revision=source.sha, subfolder=source.folder)
        if source.folder
        else parse_ref(f"hf://{source.label}")
        for source in sources
    ]


def _check_names(starts: MoeStarts, policy: str | None) -> None:
    if len(starts.indices) < 2:
        raise UsageError(
            "There is only one step of each expert, so there is nothing to choose.",
            "Name repositories without a revision: owner/name.",
        )
    if policy is not None and policy not in starts.names:
        raise UnknownName("start", policy, starts.names)


def _check_budget(prepared: PreparedMoeSelection) -> None:
    budget, required = prepared.request.merges, len(prepared.protected) * prepared.train_steps
    if budget is not None and budget < required:
        raise UsageError(
            f"The budget of {budget} training steps does not reach "
            f"{' and '.join(prepared.protected)}, which take {required}.",
            f"Raise --budget; the whole race takes {prepared.race_steps}.",
        )


def _run_race(prepared: PreparedMoeSelection, results: StartResults) -> tuple[HalvingRound, ...]:
    """Run all rounds, as far as the budget allows."""
    challengers, horizons = prepared.challengers, prepared.horizons
    try:
        return tuple(race(challengers, prepared.protected, horizons, results.measure_accuracy))
    except OutOfBudget as error:
        raise UsageError(
            f"The budget does not reach {' and '.join(prepared.protected)}.", "Raise --budget."
        ) from error


def _unfinished(prepared: PreparedMoeSelection, rounds: Sequence[HalvingRound]) -> tuple[str, ...]:
    """Return the challengers that were still in the race when the budget ended it."""
    if rounds[-1].kept:
        return ()
    return rounds[-2].kept if len(rounds) > 2 else prepared.challengers


def _choose_start(prepared: PreparedMoeSelection, results: StartResults) -> PolicyResult:
    """Return the requested start, else the best that beats the null, else the null."""
    null, seed = results.results[prepared.starts.null], prepared.request.seed
    if prepared.policy:
        return results.results[prepared.policy]
    names = [name for name in prepared.starts.indices if name in results.results]
    finished = [results.results[name] for name in names]
    better = [result for result in finished if beats(result.result, null.result, seed)]
    return max(better, key=lambda result: result.result.accuracy, default=null)


def _sweep(
    prepared: PreparedMoeSelection, results: StartResults, start: PolicyResult
) -> tuple[PolicyResult, tuple[str, ...]]:
    """Move one expert after another to the next earlier or later step if that is clearly better.

    Also returns the name of the sweep if the budget ended it.
    """
    best, pool = start, prepared.setup.pool
    for task, candidates in enumerate(pool.candidates):
        index = best.result.choice.indices[task]
        for neighbour in (index - 1, index + 1):
            if not 0 <= neighbour < len(candidates):
                continue
            name = f"{pool.tasks[task].name} at step {candidates[neighbour].step}"
            indices = best.result.choice.with_candidate(task, neighbour).indices
            try:
                measured = results.measure(name, indices, prepared.train_steps)
            except OutOfBudget:
                return best, (COORDINATE,)
            if beats(measured, best.result, prepared.request.seed):
                best = PolicyResult(COORDINATE, measured, results.trials.moe_count)
    return best, ()
