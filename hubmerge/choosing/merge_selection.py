"""A selection before and after it runs: the request, what was prepared, and the resulting lock."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubmerge.choosing.candidates import OpenedPool
from hubmerge.lock import Lock, LockedTask, Pin, SelectionCost, Swap, UniformPoint
from hubmerge.merging.registry import Method
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import source_of, versions
from hubmerge.refs import ModelRef
from hubmerge.selection import report
from hubmerge.selection.choice import Choice
from hubmerge.selection.controls import Controls
from hubmerge.selection.cross_fit import CrossFit
from hubmerge.selection.evidence import find_outcome, with_evidence
from hubmerge.selection.grids import find_grid
from hubmerge.selection.noise import Interval
from hubmerge.selection.objective import Objective
from hubmerge.selection.policy_results import (
    BY_LOSS,
    LAST,
    LAYERS,
    LOCKED,
    PolicyResult,
    PolicyResults,
    can_average,
    can_scale_layers,
    has_losses,
    policy_order,
)
from hubmerge.selection.pool import Pool
from hubmerge.selection.procedure import Procedure
from hubmerge.selection.recorded_norms import PROXY, proxy_note, without_norms
from hubmerge.selection.seed_spread import SeedSpread
from hubmerge.selection.task_split import TaskSplit
from hubmerge.tasks.task import Task
from hubmerge.trials import SELECTION_SPLIT
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions


@dataclass(frozen=True)
class SelectRequest:
    """The repositories to select from, the merge method, and how to search.

    `policy` names the policy whose choice the lock builds, None for the best. `against` is an
    earlier lock whose choice is the one to beat, instead of the last steps. `merges` and `seconds`
    are the budget, and `memory` is what merges may take, in bytes. Two choices within `band`
    standard errors of each other count as equal. `objective` is what is maximised. `exhaustive`
    evaluates every point of the grid on every row. `options` decide where experts and base differ.
    `metric` is used instead of those of the tasks. `assigned` are tasks of repositories whose
    manifests name others.
    `options_as_typed` are the command line options that cannot be derived from the other fields.
    """

    repos: tuple[ModelRef, ...]
    method: str
    policy: str | None = None
    tasks: tuple[Task, ...] = ()
    base: ModelRef | None = None
    against: Lock | None = None
    merges: int | None = None
    seconds: float | None = None
    memory: int | None = None
    seed: int = 0
    band: float = report.BAND
    exhaustive: bool = False
    objective: Objective = "mean"
    device: str | None = None
    options: MatchOptions = DEFAULT_OPTIONS
    options_as_typed: tuple[str, ...] = ()
    metric: str | None = None
    assigned: Mapping[ModelRef, Task] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedSelection:
    """A selection that was checked and can run; nothing has been measured yet."""

    request: SelectRequest
    opened_pool: OpenedPool
    method: Method
    splits: tuple[TaskSplit, ...]
    locked_choice: Choice | None = None

    @property
    def pool(self) -> Pool:
        return self.opened_pool.pool

    @property
    def rival(self) -> str:
        """The name of the policy to beat."""
        return LOCKED if self.locked_choice else LAST

    @property
    def policies(self) -> list[str]:
        """The names of the policies to run, in order; `proxy_note` says why proxy may be left out.

        Whether a checkpoint is in the cache does not matter: the lock does not depend on it.
        """
        names = policy_order(self.pool, self.request.policy, self.locked_choice is not None)
        impossible = {
            LAYERS: not can_scale_layers(self.pool, self.method),
            BY_LOSS: not (can_average(self.pool) and has_losses(self.pool)),
            PROXY: self.request.policy != PROXY and bool(without_norms(self.pool)),
        }
        return [name for name in names if not impossible.get(name)]

    @property
    def proxy_note(self) -> str | None:
        """What policy proxy would fetch, if it is among the policies of this pool."""
        names = policy_order(self.pool, self.request.policy, self.locked_choice is not None)
        return proxy_note(self.pool, self.request.policy == PROXY) if PROXY in names else None

    @property
    def procedure(self) -> Procedure:
        """How the choice is made, on all rows or on some of them."""
        return Procedure(
            find_grid(self.method.name),
            tuple(self.policies),
            self.rival,
            self.request.policy,
            self.locked_choice,
            self.request.band,
            self.request.exhaustive,
            self.request.objective,
        )


def make_merge_lock(
    prepared: PreparedSelection,
    results: PolicyResults,
    chosen: PolicyResult,
    fit: CrossFit | None,
    controls: Controls,
    spread: SeedSpread | None = None,
) -> Lock:
    """Build the lock of a finished selection for a merge.

    Without a `fit` nothing is known about any gain. The `spread` between seeds widens the interval
    of the chosen policy.
    """
    request, evaluator = prepared.request, results.search.evaluator
    gains = fit.gains(prepared.rival, chosen.name, request.seed) if fit else {}
    if spread and chosen.name != prepared.rival:
        gains[chosen.name] = spread.widen(gains[chosen.name])
    lock = make_lock(
        request,
        prepared.opened_pool,
        rows={split.task.id: len(split.row_order) for split in prepared.splits},
        results=results.results,
        chosen=chosen,
        rival=prepared.rival,
        gains=gains,
        swaps=report.make_swaps(results, chosen.result, request.band),
        uniform=report.common_curve(results.uniform, prepared.pool),
        spent=SelectionCost(evaluator.merges, sum(evaluator.rows_by_recipe.values())),
        cut=results.cut,
    )
    return with_evidence(lock, fit, controls, spread) if fit else lock


def make_lock(
    request: SelectRequest,
    opened_pool: OpenedPool,
    *,
    rows: Mapping[str, int],
    results: Mapping[str, PolicyResult],
    chosen: PolicyResult,
    rival: str,
    gains: Mapping[str, Interval],
    swaps: Mapping[str, tuple[Swap, ...]],
    uniform: tuple[UniformPoint, ...],
    spent: SelectionCost,
    cut: Sequence[str],
) -> Lock:
    """Build a lock from the results of all policies by name, and their gains over the `rival`.

    `rows` is the number of validation rows by task id; `cut` names what the budget ended early.
    """
    pool, gain = opened_pool.pool, gains.get(chosen.name)
    picks = [report.make_pick(result, gains.get(n), pool) for n, result in results.items()]
    experts = [expert for pick in picks for expert in pick.experts]
    keys = sorted({member.key for expert in experts for member in (expert, *expert.averaged)})
    pins = {key: _make_pin(opened_pool.open(key), pool) for key in keys}
    return Lock(
        base=_make_pin(opened_pool.base, pool),
        experts=tuple(pins.values()),
        tasks=tuple(_lock_task(task, rows[task.id]) for task in pool.tasks),
        method=request.method,
        chosen=chosen.name,
        picks=tuple(report.with_opened_experts(pick, pins) for pick in picks),
        swaps=swaps,
        uniform=uniform,
        seed=request.seed,
        spent=spent,
        conclusive=find_outcome(gain) == "gain",
        outcome=find_outcome(gain),
        rival=rival,
        cut=tuple(cut),
        split=SELECTION_SPLIT,
        budget=_format_budget(request),
        command=_format_command(request),
        versions=versions(),
        options=request.options,
        objective=request.objective,
    )


def _make_pin(model: OpenedModel, pool: Pool) -> Pin:
    """Pin an opened model; a candidate of the pool keeps its label, step and task."""
    source_by_key = {c.source.key: c.source for steps in pool.candidates for c in steps}
    opened = source_of(model)
    source = source_by_key.get(opened.key, opened)
    source = dataclasses.replace(
        source, digest=opened.digest, licence=opened.licence, weights=opened.weights
    )
    return Pin(str(model.revision.ref), source, model.files)


def _lock_task(task: Task, rows: int) -> LockedTask:
    data = task.spec.data
    metric = None if task.metric == "accuracy" else task.metric
    return LockedTask(task.id, f"{data.id}@{data.revision}" if data.id else None, rows, metric)


def _format_budget(request: SelectRequest) -> str | None:
    """The budget as the user typed it."""
    if request.seconds is not None:
        return f"{request.seconds / 60:g}m"
    return str(request.merges) if request.merges is not None else None


def _format_command(request: SelectRequest) -> str:
    """The command that repeats the selection."""
    words: list[Any] = ["hubmerge", "select", *request.repos, "--target", request.method]
    if request.policy:
        words += ["--policy", request.policy]
    if request.base:
        words += ["--base", request.base]
    if budget := _format_budget(request):
        words += ["--budget", budget]
    if request.seed:
        words += ["--seed", request.seed]
    if request.band != report.BAND:
        words += ["--band", f"{request.band:g}"]
    if request.objective != "mean":
        words += ["--objective", request.objective]
    if request.exhaustive:
        words.append("--exhaustive")
    for name, value in request.options.chosen.items():
        words += [f"--{name}", value]
    words += request.options_as_typed
    return shlex.join(str(word) for word in words)
