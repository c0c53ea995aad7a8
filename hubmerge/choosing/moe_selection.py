"""A choice of starts before and after: what was asked for, how far starts got, and the lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hubmerge.choosing.merge_selection import Request, budget_of, command_of, pin_of
from hubmerge.choosing.moe_trials import Bench, Tryouts
from hubmerge.kinds import MOE
from hubmerge.lock import Common, Lock, LockedTask, Spent, Swap
from hubmerge.opening.references import versions
from hubmerge.progress import Progress
from hubmerge.selection import noise, report
from hubmerge.selection.halving import cost, horizons
from hubmerge.selection.moe_starts import Arms, Places
from hubmerge.selection.policy_results import Policy
from hubmerge.selection.search import Found
from hubmerge.specs import MoeSpec
from hubmerge.trials import CHOSEN_ON, Trial


@dataclass(frozen=True, kw_only=True)
class MixtureRequest(Request):
    """What was asked for: `asked` is how the mixture will be trained.

    `merges` is the budget in training steps; `extracted` is where full experts become adapters.
    """

    asked: MoeSpec
    extracted: Path


@dataclass(frozen=True)
class Prepared:
    """A selection that is known to be possible: nothing has been trained yet."""

    request: MixtureRequest
    bench: Bench
    arms: Arms

    @property
    def full(self) -> int:
        """The training steps of the mixture that the choice is for."""
        return self.request.asked.train_steps

    @property
    def policy(self) -> str | None:
        """The start that was asked for, None for the best."""
        return self.arms.names[self.request.policy] if self.request.policy else None

    @property
    def sure(self) -> tuple[str, ...]:
        """The starts that are trained to the end whatever the race says."""
        asked = [self.policy] if self.policy else []
        return tuple(dict.fromkeys([self.arms.null, self.arms.last, *asked]))

    @property
    def challengers(self) -> tuple[str, ...]:
        """The others, earliest first."""
        return tuple(name for name in self.arms.places if name not in self.sure)

    @property
    def horizons(self) -> tuple[int, ...]:
        """The training steps of each rung."""
        return (
            (self.full,) if self.request.exhaustive else horizons(self.full, len(self.challengers))
        )

    @property
    def race_steps(self) -> int:
        """The training steps that the race takes."""
        return cost(len(self.challengers), len(self.sure), self.horizons)

    @property
    def sweep_steps(self) -> int:
        """The most that the neighbours of a choice take after it."""
        if self.policy:
            return 0
        return self.full * sum(min(2, len(its) - 1) for its in self.bench.pool.candidates)

    def steps(self, name: str) -> tuple[int, ...]:
        """The step of each expert at a start."""
        return self.bench.steps(self.arms.places[name])


class Reached:
    """What starts have reached; `found` are those that were trained to the end, by name."""

    def __init__(self, prepared: Prepared, tryouts: Tryouts, progress: Progress) -> None:
        self.prepared, self.tryouts, self._progress = prepared, tryouts, progress
        self.found: dict[str, Policy] = {}

    def accuracy(self, name: str, horizon: int) -> float:
        """The accuracy of a start after so many training steps; raises OutOfBudget."""
        found = self.measured(name, self.prepared.arms.places[name], horizon)
        if horizon == self.prepared.full:
            self.found[name] = Policy(name, found, self.tryouts.mixtures)
        return found.trial.accuracy

    def measured(self, name: str, places: Places, horizon: int) -> Found:
        """Any choice of steps after so many training steps; raises OutOfBudget."""
        choice = self.prepared.bench.choice(places, horizon)
        return Found(choice, self.tryouts.measure(choice, partial(self._told, name, horizon)))

    def known(self, places: Places) -> Trial | None:
        """What a choice of steps got right that was trained to the end."""
        return self.tryouts.known(self.prepared.bench.choice(places, self.prepared.full))

    def _told(self, name: str, horizon: int, what: str, done: int, total: int) -> None:
        self._progress(f"{name}, {horizon} steps: {what}", done, total)


def beats(one: Found, other: Found, seed: int) -> bool:
    """Whether the 95 % interval of the gain is above zero."""
    return noise.difference(one.trial, other.trial, seed).low > 0


def lock_of(reached: Reached, chosen: Policy, cut: tuple[str, ...]) -> Lock:
    """All that a finished selection knows of starts that were trained to the end.

    What was trained for less is compared nowhere: it would pass for worse. `cut` is what the
    budget ended.
    """
    prepared, tryouts = reached.prepared, reached.tryouts
    request, gathered, pool = prepared.request, prepared.bench.gathered, prepared.bench.pool
    null = reached.found[prepared.arms.null].found
    policies = {**reached.found, chosen.name: chosen}
    picks = [report.pick(one, null, pool, request.seed) for one in policies.values()]
    keys = sorted({expert.key for pick in picks for expert in pick.experts})
    pins = {key: pin_of(gathered.open(key), pool) for key in keys}
    return Lock(
        base=pin_of(gathered.base, pool),
        experts=tuple(pins.values()),
        tasks=tuple(_locked_tasks(prepared)),
        method=MOE,
        chosen=chosen.name,
        picks=tuple(report.opened(pick, pins) for pick in picks),
        swaps={task.id: _swaps(reached, chosen.found, n) for n, task in enumerate(pool.tasks)},
        uniform=tuple(_commons(reached)),
        seed=request.seed,
        spent=Spent(tryouts.mixtures, tryouts.examples),
        conclusive=beats(chosen.found, null, request.seed),
        rival=prepared.arms.null,
        cut=cut,
        split=CHOSEN_ON,
        budget=budget_of(request),
        command=command_of(request),
        versions=versions(),
    )


def _locked_tasks(prepared: Prepared) -> Iterator[LockedTask]:
    for task in prepared.bench.pool.tasks:
        data = task.spec.data
        where = f"{data.id}@{data.revision}" if data.id else None
        yield LockedTask(task.id, where, prepared.bench.rows[task.id])


def _commons(reached: Reached) -> Iterator[Common]:
    """The curve over common steps."""
    for name in reached.prepared.arms.places:
        steps = set(reached.prepared.steps(name))
        if name in reached.found and len(steps) == 1:
            trial = reached.found[name].found.trial
            yield Common(steps.pop(), trial.accuracy, trial.stderr)


def _swaps(reached: Reached, chosen: Found, task: int) -> tuple[Swap, ...]:
    """What is known of the choice with each other candidate of one task in place of the chosen."""
    return tuple(
        _swap(reached, chosen, task, place)
        for place in range(len(reached.prepared.bench.pool.candidates[task]))
    )


def _swap(reached: Reached, chosen: Found, task: int, place: int) -> Swap:
    candidate = reached.prepared.bench.pool.candidates[task][place]
    choice = chosen.choice.at(task, place)
    trial = reached.known(choice.places)
    merged = trial.accuracy if trial else None
    band = reached.prepared.request.band
    tied = trial is not None and report.tied(Found(choice, trial), chosen, band)
    source = candidate.source
    return Swap(source.sha, source.label, candidate.step, candidate.own, merged, tied)
