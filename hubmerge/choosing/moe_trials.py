"""Mixtures of experts that are trained only to be measured; the results are kept in the log."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hubmerge.choosing.candidates import OpenedPool
from hubmerge.kinds import MOE
from hubmerge.opening.moe_inputs import match_experts, moe_params, parse_moe_params
from hubmerge.progress import Progress
from hubmerge.row_values import measure_rows
from hubmerge.runs.machine import Machine, make_accelerator
from hubmerge.runs.moe_job import MoeJob
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.moe_starts import Indices
from hubmerge.selection.pool import Pool
from hubmerge.selection.search import OutOfBudget
from hubmerge.specs import MoeSpec
from hubmerge.training.fit import Fit, make_fit
from hubmerge.training.inputs import TrainingCallbacks, TrainingData, ValidationTask
from hubmerge.training.loop import train
from hubmerge.trials import SELECTION_SPLIT, RowResults, Trial, TrialLog


@dataclass(frozen=True)
class TrialSetup:
    """What all trials share: the pool, the training options, and the validation rows by task id.

    `extracted` is the folder for adapters that are extracted from fully fine-tuned experts.
    """

    opened_pool: OpenedPool
    moe_spec: MoeSpec
    rows: Mapping[str, int]
    machine: Machine
    extracted: Path

    @property
    def pool(self) -> Pool:
        return self.opened_pool.pool

    def steps(self, indices: Indices) -> tuple[int, ...]:
        """Return the step of each expert, given the index of each task's candidate."""
        pairs = zip(self.pool.candidates, indices, strict=True)
        return tuple(steps[index].step for steps, index in pairs)

    def make_choice(self, indices: Indices, horizon: int) -> Choice:
        """Return the choice of these candidates trained for `horizon` steps.

        Warm-up is shortened in proportion.
        """
        spec, pool = self.moe_spec, self.pool
        options = spec.model_dump(exclude_none=True) | {"train_steps": horizon}
        if spec.warmup_steps is not None and spec.train_steps:
            options["warmup_steps"] = round(spec.warmup_steps * horizon / spec.train_steps)
        return plain_choice(indices, moe_params(MoeSpec.model_validate(options), pool.tasks))

    def make_job(self, choice: Choice) -> MoeJob:
        """Return the training job of a choice; raises CheckpointError if an expert does not fit."""
        pool, spec = self.pool, parse_moe_params(dict(choice.params), MOE)
        sources = pool.sources(choice)
        opened = [self.opened_pool.open(source.key) for source in sources]
        base = self.opened_pool.base, pool.base
        experts = match_experts(base, opened, sources, spec.extract_rank, self.extracted)
        return MoeJob(MoePlan(spec, experts, pool.tasks, pool.tasks, ()))


class MoeTrials:
    """Trains mixtures and evaluates them on every validation row, within a budget.

    The budget is in training steps and seconds. A trial that is in the log is not trained again,
    but counts as if it had been: the cost and result of a selection do not depend on earlier runs.
    """

    def __init__(
        self,
        setup: TrialSetup,
        log: TrialLog,
        steps: int | None = None,
        seconds: float | None = None,
    ) -> None:
        self._setup, self._log, self._max_steps, self._seconds = setup, log, steps, seconds
        self._logged = {trial.key: trial for trial in log.read() if trial.is_complete}
        self._measured: dict[str, Trial] = {}
        self._started, self.steps = time.monotonic(), 0

    @property
    def moe_count(self) -> int:
        """How many mixtures were requested."""
        return len(self._measured)

    @property
    def example_count(self) -> int:
        """How many examples they were evaluated on."""
        return sum(trial.rows_measured for trial in self._measured.values())

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._started

    def find_trial(self, choice: Choice) -> Trial | None:
        """Return the trial of a choice, None if it was not requested here."""
        return self._measured.get(self._recipe(choice))

    def measure(self, choice: Choice, progress: Progress) -> Trial:
        """Return the trial of a choice over every validation row; raises OutOfBudget."""
        recipe = self._recipe(choice)
        if recipe in self._measured:
            return self._measured[recipe]
        horizon = dict(choice.params)["train_steps"]
        self._check_budget(horizon)
        trial = self._new_trial(choice, recipe)
        if trial.key not in self._logged:
            rows = _train_and_measure(self._setup.make_job(choice), self._setup.machine, progress)
            trial = dataclasses.replace(trial, rows=rows)
            self._log.append([trial])
            self._logged[trial.key] = trial
        self.steps += horizon
        self._measured[recipe] = self._logged[trial.key]
        return self._measured[recipe]

    def _recipe(self, choice: Choice) -> str:
        return self._setup.pool.recipe(choice, MOE)

    def _check_budget(self, horizon: int) -> None:
        if self._max_steps is not None and self.steps + horizon > self._max_steps:
            raise OutOfBudget
        if self._seconds is not None and self.spent_s >= self._seconds:
            raise OutOfBudget

    def _new_trial(self, choice: Choice, recipe: str) -> Trial:
        """Return a trial without any measured rows."""
        pool = self._setup.pool
        rows = {task: RowResults("", count) for task, count in self._setup.rows.items()}
        params = dict(choice.params)
        return Trial(recipe, pool.base.sha, pool.parts(choice), MOE, params, SELECTION_SPLIT, rows)


def _train_and_measure(job: MoeJob, machine: Machine, progress: Progress) -> dict[str, RowResults]:
    """Train a mixture; return by task id which validation rows it gets right afterwards."""
    accelerator = make_accelerator(machine, job.spec.precision, Path(), {})
    job_inputs = job.build()
    fit = make_fit(job_inputs.learner, job.spec, accelerator)
    # The training loop only needs one task to validate on; all rows are evaluated afterwards.
    data = TrainingData(job_inputs.training, job_inputs.validation_tasks[:1], machine.workers)
    for _ in train(fit, data, job.planned_steps, TrainingCallbacks(progress)):
        pass
    rows = {
        task.examples.split.task.id: _row_results(fit, task) for task in job_inputs.validation_tasks
    }
    accelerator.free_memory()
    return rows


def _row_results(fit: Fit, task: ValidationTask) -> RowResults:
    count, device = len(task.examples.split), fit.accelerator.device
    measured = measure_rows(task.learner, fit.network, task.examples, range(count), device)
    return RowResults("", count).with_rows(measured.as_row_values(task.examples.split.task))
