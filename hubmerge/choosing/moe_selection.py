"""A selection for a mixture of experts: the request, the accuracy of its starts, and the lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hubmerge.choosing.merge_selection import SelectRequest, make_lock
from hubmerge.choosing.moe_trials import MoeTrials, TrialSetup
from hubmerge.lock import Lock, SelectionCost, Swap, UniformPoint
from hubmerge.progress import Progress
from hubmerge.selection import noise, report
from hubmerge.selection.controls import Controls
from hubmerge.selection.cross_fit import CrossFit
from hubmerge.selection.evidence import with_evidence
from hubmerge.selection.folds import Fold
from hubmerge.selection.halving import horizons, race_cost
from hubmerge.selection.moe_starts import Indices, MoeStarts
from hubmerge.selection.policy_results import PolicyResult
from hubmerge.selection.search import MeasuredChoice
from hubmerge.specs import MoeSpec
from hubmerge.trials import Trial


@dataclass(frozen=True, kw_only=True)
class MoeSelectRequest(SelectRequest):
    """A selection request with `moe_spec`, the options the mixture of experts is trained with.

    `merges` is the budget in training steps; `extracted` is the folder for the adapters that are
    extracted from fully fine-tuned experts.
    """

    moe_spec: MoeSpec
    extracted: Path


@dataclass(frozen=True)
class PreparedMoeSelection:
    """A selection that was checked and can run; nothing has been trained yet."""

    request: MoeSelectRequest
    setup: TrialSetup
    starts: MoeStarts

    @property
    def train_steps(self) -> int:
        """The training steps of the mixture that the selection is for."""
        return self.request.moe_spec.train_steps

    @property
    def policy(self) -> str | None:
        """The requested start, None for the best."""
        return self.starts.names[self.request.policy] if self.request.policy else None

    @property
    def protected(self) -> tuple[str, ...]:
        """The starts that are trained to the end whatever their rank in the race."""
        requested = [self.policy] if self.policy else []
        return tuple(dict.fromkeys([self.starts.null, self.starts.last, *requested]))

    @property
    def challengers(self) -> tuple[str, ...]:
        """The other starts, earliest first."""
        return tuple(name for name in self.starts.indices if name not in self.protected)

    @property
    def horizons(self) -> tuple[int, ...]:
        """The training steps of each halving round."""
        if self.request.exhaustive:
            return (self.train_steps,)
        return horizons(self.train_steps, len(self.challengers))

    @property
    def race_steps(self) -> int:
        """The training steps that the whole race takes."""
        return race_cost(len(self.challengers), len(self.protected), self.horizons)

    @property
    def sweep_steps(self) -> int:
        """The most training steps that the sweep over neighbouring steps takes after the race."""
        if self.policy:
            return 0
        candidates = self.setup.pool.candidates
        return self.train_steps * sum(min(2, len(steps) - 1) for steps in candidates)

    def steps(self, name: str) -> tuple[int, ...]:
        """The step of each expert at a start."""
        return self.setup.steps(self.starts.indices[name])


class StartResults:
    """Measures starts; `results` holds those that were trained to the end, by name.

    With a `fold` accuracies and results are those on the rows outside it.
    """

    def __init__(
        self,
        prepared: PreparedMoeSelection,
        trials: MoeTrials,
        progress: Progress,
        fold: Fold | None = None,
    ) -> None:
        self.prepared, self.trials = prepared, trials
        self._progress, self._fold = progress, fold
        self.results: dict[str, PolicyResult] = {}

    def measure_accuracy(self, name: str, horizon: int) -> float:
        """Return the accuracy of a start after `horizon` training steps; raises OutOfBudget."""
        measured = self.measure(name, self.prepared.starts.indices[name], horizon)
        if horizon == self.prepared.train_steps:
            self.results[name] = PolicyResult(name, measured, self.trials.moe_count)
        return measured.accuracy

    def measure(self, name: str, indices: Indices, horizon: int) -> MeasuredChoice:
        """Measure any choice of steps after `horizon` training steps; raises OutOfBudget."""
        choice = self.prepared.setup.make_choice(indices, horizon)
        trial = self.trials.measure(choice, partial(self._report_progress, name, horizon))
        return MeasuredChoice(choice, self._fold.search_rows(trial) if self._fold else trial)

    def find_trial(self, indices: Indices) -> Trial | None:
        """Return the trial of a choice that was trained to the end, None if there is none."""
        choice = self.prepared.setup.make_choice(indices, self.prepared.train_steps)
        return self.trials.find_trial(choice)

    def _report_progress(self, name: str, horizon: int, what: str, done: int, total: int) -> None:
        self._progress(f"{name}, {horizon} steps: {what}", done, total)


def beats(challenger: MeasuredChoice, best: MeasuredChoice, seed: int) -> bool:
    """Return whether the 95 % confidence interval of the gain is above zero."""
    return noise.difference(challenger.trial, best.trial, seed).low > 0


def make_moe_lock(
    results: StartResults, chosen: PolicyResult, cut: tuple[str, ...], fit: CrossFit | None
) -> Lock:
    """Build the lock of a finished selection from the starts that were trained to the end.

    Starts that were trained for fewer steps are left out: they would look worse than they are.
    `cut` names what the budget ended early. Without a `fit` nothing is known about any gain.
    """
    setup, trials = results.prepared.setup, results.trials
    tasks, rival = enumerate(setup.pool.tasks), results.prepared.starts.null
    lock = make_lock(
        results.prepared.request,
        setup.opened_pool,
        rows=setup.rows,
        results={**results.results, chosen.name: chosen},
        chosen=chosen,
        rival=rival,
        gains=fit.gains(rival, chosen.name, results.prepared.request.seed) if fit else {},
        swaps={task.id: _make_swaps(results, chosen.result, n) for n, task in tasks},
        uniform=tuple(_common_curve(results)),
        spent=SelectionCost(trials.moe_count, trials.example_count),
        cut=cut,
    )
    return with_evidence(lock, fit, Controls()) if fit else lock


def _common_curve(results: StartResults) -> Iterator[UniformPoint]:
    """The accuracy of each start with one step for all experts."""
    for name in results.prepared.starts.indices:
        steps = set(results.prepared.steps(name))
        if name in results.results and len(steps) == 1:
            trial = results.results[name].result.trial
            yield UniformPoint(steps.pop(), trial.accuracy, trial.stderr)


def _make_swaps(results: StartResults, chosen: MeasuredChoice, task: int) -> tuple[Swap, ...]:
    """Describe the choice with each candidate of one task in place of the chosen candidate."""
    return tuple(
        _make_swap(results, chosen, task, index)
        for index in range(len(results.prepared.setup.pool.candidates[task]))
    )


def _make_swap(results: StartResults, chosen: MeasuredChoice, task: int, index: int) -> Swap:
    candidate = results.prepared.setup.pool.candidates[task][index]
    choice = chosen.choice.with_candidate(task, index)
    trial = results.find_trial(choice.indices)
    accuracy = trial.accuracy if trial else None
    band = results.prepared.request.band
    is_tied = trial is not None and report.is_tied(MeasuredChoice(choice, trial), chosen, band)
    source = candidate.source
    return Swap(source.sha, source.label, candidate.step, candidate.own_accuracy, accuracy, is_tied)
