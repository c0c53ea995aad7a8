"""All policies side by side, the choice among them, and what the search knows of its neighbours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from hubmerge.lock import Common, Pick, Pin, Swap
from hubmerge.manifest import Source
from hubmerge.selection import noise
from hubmerge.selection.policy_results import Board, Policy
from hubmerge.selection.pool import Choice, Pool
from hubmerge.selection.search import Found

BAND = 1.0  # standard errors of a difference within which two choices count as equal


def tied(one: Found, best: Found, band: float) -> bool:
    """Whether the best is ahead by no more than the noise of the difference."""
    ahead = noise.gain(best.trial, one.trial)
    return ahead <= band * noise.stderr(best.trial, one.trial)


def earliest(policies: Sequence[Policy], pool: Pool, band: float) -> Policy:
    """The best policy; of those tied with it the one with the earliest steps, counted in octaves.

    Of the same steps, the better one.
    """
    best = max(policies, key=lambda one: one.found.accuracy)
    equals = [one for one in policies if tied(one.found, best.found, band)]
    return min(equals, key=lambda one: (_octaves(pool, one.found.choice), -one.found.accuracy))


def _octaves(pool: Pool, choice: Choice) -> float:
    return math.fsum(math.log2(max(step, 1)) for step in pool.steps(choice))


def pick(policy: Policy, rival: Found, pool: Pool, seed: int) -> Pick:
    """A policy's choice as the lock holds it."""
    found, trial = policy.found, policy.found.trial
    gain = noise.difference(trial, rival.trial, seed)
    return Pick(
        policy=policy.name,
        experts=pool.sources(found.choice),
        params=dict(found.choice.params),
        accuracy=trial.accuracy,
        stderr=trial.stderr,
        tasks=trial.accuracies,
        gain=(gain.value, gain.low, gain.high),
        evaluations=policy.evaluations,
    )


def commons(found: Sequence[Found], pool: Pool) -> tuple[Common, ...]:
    """The curve over common steps, rising."""
    points = {pool.steps(one.choice)[0]: one.trial for one in found}
    return tuple(
        Common(step, trial.accuracy, trial.stderr) for step, trial in sorted(points.items())
    )


def opened(made: Pick, pins: Mapping[str, Pin]) -> Pick:
    """The pick with what is known of its experts once they are opened: digest and licence."""
    experts = (_opened(one, pins[one.key].source) for one in made.experts)
    return dataclasses.replace(made, experts=tuple(experts))


def _opened(source: Source, known: Source) -> Source:
    return dataclasses.replace(source, digest=known.digest, licence=known.licence)


def swaps(board: Board, chosen: Found, band: float) -> Mapping[str, tuple[Swap, ...]]:
    """What is known of the choice with each other candidate in place of one of the chosen."""
    pool = board.search.pool
    return {
        task.id: tuple(
            _swap(board, chosen, number, place, band)
            for place in range(len(pool.candidates[number]))
        )
        for number, task in enumerate(pool.tasks)
    }


def _swap(board: Board, chosen: Found, task: int, place: int, band: float) -> Swap:
    """A candidate of which only some rows were asked is placed by the difference on those."""
    arena = board.search.arena
    candidate = arena.pool.candidates[task][place]
    choice = chosen.choice.at(task, place)
    trial = arena.known(choice)
    merged, equal = None, False
    if trial is not None:
        merged = min(max(chosen.accuracy + noise.gain(trial, chosen.trial), 0.0), 1.0)
        equal = trial.is_whole and tied(Found(choice, trial), chosen, band)
    source = candidate.source
    own = candidate.own if candidate.own is not None else arena.known_alone(task, place)
    return Swap(source.sha, source.label, candidate.step, own, merged, equal)
