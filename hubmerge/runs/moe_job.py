"""The training job of a mixture of experts."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubmerge.kinds import MOE, JobKind
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.runs.expert_job import format_options
from hubmerge.runs.job import ReadyJob
from hubmerge.runs.machine import Machine
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.runs.training_setup import build_training
from hubmerge.specs import TrainSpec
from hubmerge.training.schedule import push_steps

if TYPE_CHECKING:
    from hubmerge.training.events import CheckpointEvent


@dataclass(frozen=True)
class MoeJob:
    """The training of the mixture of experts that a plan describes."""

    plan: MoePlan
    kind: JobKind = MOE

    @property
    def base(self) -> OpenedModel:
        return self.plan.base

    @property
    def spec(self) -> TrainSpec:
        return self.plan.moe_spec.train_spec

    @property
    def planned_steps(self) -> tuple[int, ...]:
        """The steps to save; without training this is the start, step 0."""
        if not self.plan.moe_spec.train_steps:
            return (0,)
        return push_steps(self.spec.push_every, self.spec.steps)

    @property
    def identity(self) -> list[Any]:
        parts = [source.key for source in self.plan.experts.sources]
        optional = [value for value in (self.plan.licence, self.plan.lock_digest) if value]
        evaluate_every = self.plan.moe_spec.evaluate_every
        settings = [self.plan.params, evaluate_every, self.planned_steps]
        return [*settings, self.plan.base.digest, parts, *optional]

    def build(self) -> ReadyJob:
        return build_training(self.plan)

    def command(self, machine: Machine) -> str:
        words = ["hubmerge", "moerge"]
        if machine.world_size > 1:
            words = ["torchrun", "--nproc_per_node", str(machine.world_size), "-m", *words]
        include = {"push_every"} if self.plan.lock is not None else None  # others are in the lock
        options = self.plan.moe_spec.model_dump(include=include, exclude_defaults=True)
        licence = ["--license", self.plan.licence] if self.plan.licence else []
        return shlex.join([*words, *self.plan.command_words, *format_options(options), *licence])

    def manifest(self, event: CheckpointEvent, ready: ReadyJob) -> Manifest:
        kinds = {task.spec.kind for task in self.plan.tasks}
        revisions = {task.name: task.spec.data.revision for task in self.plan.tasks}
        notes = {"notes": self.plan.experts.notes} if self.plan.experts.notes else {}
        return Manifest(
            kind=MOE,
            base=self.plan.experts.base_source,
            experts=self.plan.experts.sources,
            method=MOE,
            params=self.plan.params,
            task_kind=kinds.pop() if len(kinds) == 1 else "several",
            last_step=self.plan.moe_spec.train_steps,
            training={**ready.manifest_fields, **notes, "data_revisions": revisions},
            licence=self.plan.licence,
            lock=self.plan.lock_digest,
            layout="hubmerge-moe",
        )
