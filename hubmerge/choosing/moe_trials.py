"""Mixtures that are trained to be measured and are not kept: what they got right is in the log."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hubmerge.choosing.candidates import Gathered
from hubmerge.evaluation import outcomes
from hubmerge.kinds import MOE
from hubmerge.opening.moe_inputs import asked_of, experts_of, params_of
from hubmerge.progress import Progress
from hubmerge.runs.machine import Machine, make_accelerator
from hubmerge.runs.moe_job import MixtureJob
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.selection.moe_starts import Places
from hubmerge.selection.pool import Choice, Pool, plain_choice
from hubmerge.selection.search import OutOfBudget
from hubmerge.specs import MoeSpec
from hubmerge.training.fit import Fit, make_fit
from hubmerge.training.inputs import Data, Watch, Watched
from hubmerge.training.loop import train
from hubmerge.trials import CHOSEN_ON, Rows, Trial, TrialLog


@dataclass(frozen=True)
class Bench:
    """Where starts are tried: a pool, what is asked of each, on how many rows of each task.

    `extracted` is where full experts become adapters, if that was asked for.
    """

    gathered: Gathered
    asked: MoeSpec
    rows: Mapping[str, int]
    machine: Machine
    extracted: Path

    @property
    def pool(self) -> Pool:
        return self.gathered.pool

    def steps(self, places: Places) -> tuple[int, ...]:
        """The step of each expert at these places."""
        pairs = zip(self.pool.candidates, places, strict=True)
        return tuple(its[place].step for its, place in pairs)

    def choice(self, places: Places, horizon: int) -> Choice:
        """A start and all that is done with it within so many training steps."""
        asked, pool = self.asked, self.pool
        said = asked.model_dump(exclude_none=True) | {"train_steps": horizon}
        if asked.warmup_steps is not None and asked.train_steps:
            said["warmup_steps"] = round(asked.warmup_steps * horizon / asked.train_steps)
        return plain_choice(places, params_of(MoeSpec.model_validate(said), pool.tasks))

    def job(self, choice: Choice) -> MixtureJob:
        """The mixture of a choice; raises CheckpointError for experts that do not fit."""
        pool, asked = self.pool, asked_of(dict(choice.params), MOE)
        sources = pool.sources(choice)
        opened = [self.gathered.open(source.key) for source in sources]
        base = self.gathered.base, pool.base
        experts = experts_of(base, opened, sources, asked.extract_rank, self.extracted)
        return MixtureJob(MoePlan(asked, experts, pool.tasks, pool.tasks, ()))


class Tryouts:
    """Trains starts and asks them every validation row, within a budget of training steps and time.

    What the log knows is not trained again, and counts all the same: what a selection costs and
    tells does not hang on what was done before.
    """

    def __init__(
        self, bench: Bench, log: TrialLog, steps: int | None = None, seconds: float | None = None
    ) -> None:
        self._bench, self._log, self._most, self._seconds = bench, log, steps, seconds
        self._known = {trial.key: trial for trial in log.read() if trial.is_whole}
        self._told: dict[str, Trial] = {}
        self._started, self.steps = time.monotonic(), 0

    @property
    def mixtures(self) -> int:
        """How many mixtures were asked for."""
        return len(self._told)

    @property
    def examples(self) -> int:
        """How many examples they were asked."""
        return sum(trial.measured for trial in self._told.values())

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._started

    def known(self, choice: Choice) -> Trial | None:
        """What a choice got right, None where it was not asked for here."""
        return self._told.get(self._recipe(choice))

    def measure(self, choice: Choice, progress: Progress) -> Trial:
        """What a choice gets right of every row; raises OutOfBudget."""
        recipe = self._recipe(choice)
        if recipe in self._told:
            return self._told[recipe]
        horizon = dict(choice.params)["train_steps"]
        self._check(horizon)
        trial = self._begun(choice, recipe)
        if trial.key not in self._known:
            rows = _answers(self._bench.job(choice), self._bench.machine, progress)
            trial = dataclasses.replace(trial, rows=rows)
            self._log.append([trial])
            self._known[trial.key] = trial
        self.steps += horizon
        self._told[recipe] = self._known[trial.key]
        return self._told[recipe]

    def _recipe(self, choice: Choice) -> str:
        return self._bench.pool.recipe(choice, MOE)

    def _check(self, horizon: int) -> None:
        if self._most is not None and self.steps + horizon > self._most:
            raise OutOfBudget
        if self._seconds is not None and self.spent_s >= self._seconds:
            raise OutOfBudget

    def _begun(self, choice: Choice, recipe: str) -> Trial:
        """The trial before any row of it is known."""
        pool = self._bench.pool
        rows = {task: Rows("", count) for task, count in self._bench.rows.items()}
        params = dict(choice.params)
        return Trial(recipe, pool.base.sha, pool.parts(choice), MOE, params, CHOSEN_ON, rows)


def _answers(job: MixtureJob, machine: Machine, progress: Progress) -> dict[str, Rows]:
    """Train a mixture; task -> which of its validation rows it then gets right."""
    accelerator = make_accelerator(machine, job.spec.precision, Path(), {})
    begun = job.begin()
    fit = make_fit(begun.learner, job.spec, accelerator)
    # The loop looks at the rows before and after; here they are asked one by one afterwards.
    data = Data(begun.training, begun.watched[:1], machine.workers)
    for _ in train(fit, data, job.planned, Watch(progress)):
        pass
    found = {one.examples.split.task.id: _rows(fit, one) for one in begun.watched}
    accelerator.free_memory()
    return found


def _rows(fit: Fit, watched: Watched) -> Rows:
    learner, count = watched.learner, len(watched.examples.split)
    batches = watched.examples.batches_of(range(count), learner.collate)
    right = outcomes(learner, fit.network, batches, fit.accelerator.device)
    return Rows("".join("1" if one else "0" for one in right), count)
