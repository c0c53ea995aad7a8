"""hubmerge select: choose the best step of each expert for a merge, and pin it in a lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hubmerge.choosing.candidates import OpenedPool, open_pool
from hubmerge.choosing.loaded_splits import load_task_splits
from hubmerge.choosing.merge_selection import PreparedSelection, SelectRequest, make_merge_lock
from hubmerge.errors import (
    CheckpointError,
    IntegrityError,
    UnknownName,
    UsageError,
    raise_together,
)
from hubmerge.hub.client import Hub
from hubmerge.kinds import MOE
from hubmerge.lock import Lock
from hubmerge.merging.device import named_device
from hubmerge.merging.engine import check_copies
from hubmerge.merging.plan import Expert, MergePlan, check_plan
from hubmerge.merging.registry import METHODS, Method, check_count, parse_params
from hubmerge.merging.settings import record_params, restore_settings
from hubmerge.progress import Progress
from hubmerge.runs.machine import pick_device
from hubmerge.selection.budget_shares import BudgetShares
from hubmerge.selection.choice import Choice, as_params
from hubmerge.selection.controls import ControlRuns, Controls
from hubmerge.selection.cross_fit import cross_fit
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.policy_results import POLICIES
from hubmerge.selection.pool import Pool
from hubmerge.selection.row_jobs import RowEvaluator
from hubmerge.selection.search import MeasuredChoice
from hubmerge.selection.seed_spread import find_seed_spread
from hubmerge.selection.task_split import TaskSplit
from hubmerge.source import Source
from hubmerge.trials import SELECTION_SPLIT, TrialLog
from hubmerge.weights.header import safe_name
from hubmerge.weights.match_options import TIED_HINT, VOCABULARY_HINT
from hubmerge.weights.ties import separate_head

# A merge of another shape than the base cannot be measured in memory.
_HINTS = {
    TIED_HINT: "Give --tied base, which leaves this head out, or compare merges of the steps that "
    "`hubmerge merge --tied untie` makes with `hubmerge eval`.",
    VOCABULARY_HINT: "Give --vocabulary base, which matches rows by token, as the tokenizers say, "
    "or compare merges of the steps that `hubmerge merge --vocabulary union` makes with `hubmerge "
    "eval`.",
}
FEW_ROWS = 50  # with fewer, one more correct row is as much as any step gains


@dataclass(frozen=True)
class SelectResult:
    """The lock, and how many seconds the selection took."""

    lock: Lock
    seconds: float


def prepare_selection(hub: Hub, request: SelectRequest, progress: Progress) -> PreparedSelection:
    """Check names, bases, tasks, data and headers; only the last step of each expert is fetched.

    Raises UsageError, NotOnHub, IntegrityError, DataError or CheckpointError.
    """
    if request.policy is not None and request.policy not in POLICIES:
        raise UnknownName("policy", request.policy, POLICIES)
    if request.method not in METHODS:
        raise UnknownName("target", request.method, (*METHODS, MOE))
    method = METHODS[request.method]
    opened_pool = open_pool(
        hub,
        request.repos,
        request.tasks,
        request.base,
        progress,
        request.options,
        request.metric,
        request.assigned,
    )
    pool = opened_pool.pool
    if len(pool.tasks) < 2:
        raise UsageError(
            "There is only one task, so there is nothing to merge.",
            "Name experts of several tasks.",
        )
    check_count(method, len(pool.tasks))
    _check_headers(opened_pool, method)
    locked = choice_from_lock(pool, method, request.against) if request.against else None
    prepared = PreparedSelection(
        request,
        opened_pool,
        method,
        load_task_splits(opened_pool, SELECTION_SPLIT, pick_device(request.device)),
        locked,
    )
    if request.policy is not None and request.policy not in prepared.policies:
        raise UsageError(
            f"Policy {request.policy} has nothing to choose from here.",
            f"Use one of {', '.join(prepared.policies)}.",
        )
    return prepared


def few_rows_notes(rows: Mapping[str, int]) -> Iterator[str]:
    """Yield a note for each task with so few validation rows that chance decides."""
    for task, count in rows.items():
        if count < FEW_ROWS:
            yield (
                f"Task {task} has only {count} validation rows: chance matters as much as the step."
            )


def unfinished_notes(splits: Iterable[TaskSplit]) -> Iterator[str]:
    """Yield a note for each task with generated texts that reached the limit, if any did here.

    Texts of which the log had the results are not counted.
    """
    for split in splits:
        if split.unfinished:
            yield (
                f"{split.unfinished} of the {split.generated} texts that were generated for "
                f"{split.task.name} reached the limit without an end: `max_new_tokens` is "
                f"{split.task.spec.max_new_tokens}. Raise it in the task's YAML, or give `stop:`."
            )


def select(
    prepared: PreparedSelection,
    log: TrialLog,
    progress: Progress,
    rows: RowEvaluator | None = None,
) -> SelectResult:
    """Run every policy within the budget, choose the best, and build the lock.

    The choice is made on all rows. Its gain is measured on rows that did not choose: the policies
    run again on each half of the rows, and are compared on the other half. Trials in the log are
    not measured again; new ones are logged at once. `rows` are workers that evaluate them, by
    default it is this process. Raises UsageError if the budget ends before the
    requested policy has run.
    """
    request, pool, method = prepared.request, prepared.pool, prepared.method
    merger = MemoryMerger(pool, method, request.memory, named_device(request.device))
    evaluator = Evaluator(pool, merger, method, prepared.splits, log, SELECTION_SPLIT, rows)
    shares = BudgetShares(request.merges, request.seconds)
    procedure = prepared.procedure

    def report_progress(name: str, measured: MeasuredChoice) -> None:
        label = f"{name}: {100 * measured.accuracy:.1f} %, merges"
        progress(label, evaluator.merges, request.merges or 0)

    results = procedure.run(evaluator, shares.search(), report_progress)
    if missing := procedure.missing(results):
        raise UsageError(f"The budget does not reach policy {missing}.", "Raise --budget.")
    chosen = procedure.choose(results)
    fit = cross_fit(procedure, evaluator, shares.fold, report_progress)
    results.search.budget = shares.controls()
    controls, spread = Controls(), None
    if fit is not None:
        spread = find_seed_spread(fit, evaluator, prepared.rival, results.search.budget)
        runs = ControlRuns(
            fit,
            evaluator,
            chosen.result.choice,
            procedure.grid,
            results.search.budget,
            request.seed,
        )
        controls = runs.run()
    results.measure_neighbours(chosen.result)
    if request.objective == "pareto":
        results.add_front()
    lock = make_merge_lock(prepared, results, chosen, fit, controls, spread)
    return SelectResult(lock, shares.spent_s)


def _check_headers(opened_pool: OpenedPool, method: Method) -> None:
    """Check from their headers that the last steps can be merged."""
    pool = opened_pool.pool
    last_steps = [steps[-1] for steps in pool.candidates]
    experts = tuple(
        Expert(pool.open(candidate), candidate.source.key, label=candidate.source.label)
        for candidate in last_steps
    )
    if separated := separate_head(pool.base_checkpoint, [e.checkpoint for e in experts]):
        labels = ", ".join(experts[number].label for number in separated.adapters)
        raise UsageError(
            f"{labels} changes only one of {safe_name(separated.tie.embedding)} and "
            f"{safe_name(separated.tie.head)}, which are tied in the base: such a merge cannot be "
            "measured in memory.",
            "Merge the steps with `hubmerge merge`, and compare the results with `hubmerge eval`.",
        )
    params = parse_params(method, {})
    plan = MergePlan(pool.base_checkpoint, experts, method, params, options=pool.options)
    try:
        check_plan(plan)
        check_copies(plan)
    except CheckpointError as error:
        hint = error.hint or ""
        for old, new in _HINTS.items():
            hint = hint.replace(old, new)
        raise CheckpointError(error.message, hint) from error


def choice_from_lock(pool: Pool, method: Method, lock: Lock, policy: str | None = None) -> Choice:
    """Find the choice of a lock among the candidates.

    Raises IntegrityError if one of its experts is missing, UsageError for other tasks.
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
            f"The lock is for other tasks: {', '.join(ids)}.", "Name the repositories of the lock."
        )
    experts = [pick.experts[ids.index(task.id)] for task in pool.tasks]
    indices, problems = [], []
    for candidates, expert in zip(pool.candidates, experts, strict=True):
        matching = [n for n, c in enumerate(candidates) if c.source.key == expert.key]
        indices += matching[:1]
        if not matching:
            problems.append(f"{expert.label} of the lock ({expert.sha[:12]}) no longer exists.")
    raise_together(IntegrityError, problems, "Select without --against.")
    params, settings = restore_settings(method, pick.params, ())
    spans = tuple(len(expert.members) for expert in experts)
    choice = Choice(
        indices=tuple(indices),
        weights=tuple(expert.weight for expert in experts),
        keep=tuple(expert.keep for expert in experts),
        intruders=tuple(expert.intruders for expert in experts),
        params=as_params(record_params(params, settings)),
        spans=spans if max(spans) > 1 else (),
        by_loss=any(set(expert.shares) != {1.0} for expert in experts),
    )
    if _members(pool.all_sources(choice)) != _members(experts):
        raise IntegrityError(
            "The lock averages other steps than those that are there now, or by other shares.",
            "Select without --against.",
        )
    named = tuple(
        Expert(pool.task_vector(candidate).expert, e.key, e.weight, e.label, e.keep, e.intruders)
        for candidate, e in zip(pool.experts(choice), experts, strict=True)
        if e.weight != 0
    )
    check_plan(MergePlan(pool.base_checkpoint, named, method, params, options=pool.options))
    return choice


def _members(sources: Iterable[Source]) -> list[tuple[list[str], tuple[float, ...]]]:
    return [([member.key for member in source.members], source.shares) for source in sources]
