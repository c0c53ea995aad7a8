"""What a lock reports of a search: the pick of each policy, the choice, and its neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hubmerge.lock import Pick, Pin, Swap, UniformPoint
from hubmerge.recipe_ids import averaged_key
from hubmerge.selection import noise
from hubmerge.selection import objective as objectives
from hubmerge.selection.noise import Interval
from hubmerge.selection.objective import Objective
from hubmerge.selection.policy_results import PolicyResult, PolicyResults
from hubmerge.selection.pool import Pool
from hubmerge.selection.search import MeasuredChoice
from hubmerge.source import Source

BAND = 1.0  # standard errors of a difference; two choices within it count as equal


def is_tied(
    measured: MeasuredChoice, best: MeasuredChoice, band: float, objective: Objective = "mean"
) -> bool:
    """Return whether the best leads by at most `band` standard errors of the difference."""
    lead, stderr = objectives.lead(best.trial, measured.trial, objective)
    return lead <= band * stderr


def earliest_of_tied(
    policies: Sequence[PolicyResult], pool: Pool, band: float, objective: Objective = "mean"
) -> PolicyResult:
    """Return the policy with the earliest steps, by the sum of log2, of those tied with the best.

    Of policies with the same steps, return the more accurate one.
    """

    def rank(policy: PolicyResult) -> tuple[float, float, float]:
        measured = policy.result
        value = objectives.value(measured.trial, objective)
        return value, measured.accuracy, -pool.lateness(measured.choice)

    best = max(policies, key=rank)
    tied = [p for p in policies if is_tied(p.result, best.result, band, objective)]
    return min(tied, key=lambda p: (pool.lateness(p.result.choice), *(-part for part in rank(p))))


def make_pick(policy: PolicyResult, gain: Interval | None, pool: Pool) -> Pick:
    """Describe a policy's choice, and its gain over the rival, for the lock."""
    measured, trial = policy.result, policy.result.trial
    return Pick(
        policy=policy.name,
        experts=pool.all_sources(measured.choice),
        params={n: [*v] if isinstance(v, tuple) else v for n, v in measured.choice.params},
        accuracy=trial.accuracy,
        stderr=trial.stderr,
        tasks=trial.accuracies,
        gain=gain,
        evaluations=policy.evaluations,
    )


def common_curve(measured: Sequence[MeasuredChoice], pool: Pool) -> tuple[UniformPoint, ...]:
    """Return the accuracy of each common step, rising."""
    points = {pool.steps(result.choice)[0]: result.trial for result in measured}
    return tuple(
        UniformPoint(step, trial.accuracy, trial.stderr) for step, trial in sorted(points.items())
    )


def with_opened_experts(pick: Pick, pins: Mapping[str, Pin]) -> Pick:
    """Return the pick with digest and licence of its experts, known once they are opened."""
    experts = (_with_digest(expert, pins) for expert in pick.experts)
    return dataclasses.replace(pick, experts=tuple(experts))


def _with_digest(source: Source, pins: Mapping[str, Pin]) -> Source:
    known = pins[source.key].source
    members = tuple(_with_digest(member, pins) for member in source.averaged)
    keys = [member.content_key for member in members]
    weights = averaged_key(keys, source.shares) if members else known.weights
    return dataclasses.replace(
        source, digest=known.digest, licence=known.licence, weights=weights, averaged=members
    )


def make_swaps(
    results: PolicyResults, chosen: MeasuredChoice, band: float
) -> Mapping[str, tuple[Swap, ...]]:
    """Describe, by task id, the choice with each candidate of a task instead of the chosen one."""
    pool = results.search.pool
    return {
        task.id: tuple(
            _make_swap(results, chosen, number, index, band)
            for index in range(len(pool.candidates[number]))
        )
        for number, task in enumerate(pool.tasks)
    }


def _make_swap(
    results: PolicyResults, chosen: MeasuredChoice, task: int, index: int, band: float
) -> Swap:
    """Estimate accuracy from the difference on the measured rows if only some were measured."""
    evaluator = results.search.evaluator
    candidate = evaluator.pool.candidates[task][index]
    choice = chosen.choice.with_candidate(task, index)
    is_merged = chosen.choice.weights[task] != 0  # else every candidate gives the same merge
    trial = evaluator.find_trial(choice) if is_merged else None
    accuracy, is_equal = None, False
    if trial is not None:
        accuracy = min(max(chosen.accuracy + noise.gain(trial, chosen.trial), 0.0), 1.0)
        is_equal = trial.is_complete and is_tied(MeasuredChoice(choice, trial), chosen, band)
    source = candidate.source
    own = candidate.own_accuracy
    own = evaluator.find_expert_accuracy(task, index) if own is None else own
    return Swap(source.sha, source.label, candidate.step, own, accuracy, is_equal)
