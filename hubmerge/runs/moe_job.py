"""The training of a mixture of experts as a job: its command, its manifest."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubmerge.kinds import MOE, JobKind
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import Opened
from hubmerge.runs.expert_job import flags
from hubmerge.runs.job import Begun
from hubmerge.runs.machine import Machine
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.runs.training_setup import begun
from hubmerge.specs import TrainSpec
from hubmerge.training.schedule import push_steps

if TYPE_CHECKING:
    from hubmerge.training.events import Moment


@dataclass(frozen=True)
class MixtureJob:
    """The training of the mixture that a plan describes."""

    plan: MoePlan
    kind: JobKind = MOE

    @property
    def base(self) -> Opened:
        return self.plan.base

    @property
    def spec(self) -> TrainSpec:
        return self.plan.asked.training

    @property
    def planned(self) -> tuple[int, ...]:
        """Without training, the start itself is what is kept."""
        if not self.plan.asked.train_steps:
            return (0,)
        return push_steps(self.spec.push_every, self.spec.steps)

    @property
    def identity(self) -> list[Any]:
        parts = [source.key for source in self.plan.experts.sources]
        stated = [said for said in (self.plan.licence, self.plan.lock_digest) if said]
        asked = self.plan.asked.evaluate_every
        return [self.plan.params, asked, self.planned, self.plan.base.digest, parts, *stated]

    def begin(self) -> Begun:
        return begun(self.plan)

    def command(self, machine: Machine) -> str:
        words = ["hubmerge", "moerge"]
        if machine.world > 1:
            words = ["torchrun", "--nproc_per_node", str(machine.world), "-m", *words]
        free = {"push_every"} if self.plan.lock is not None else None  # the lock says the others
        said = self.plan.asked.model_dump(include=free, exclude_defaults=True)
        stated = ["--license", self.plan.licence] if self.plan.licence else []
        return shlex.join([*words, *self.plan.words, *flags(said), *stated])

    def manifest(self, moment: Moment, begun: Begun) -> Manifest:
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
            last_step=self.plan.asked.train_steps,
            training={**begun.about, **notes, "data_revisions": revisions},
            licence=self.plan.licence,
            lock=self.plan.lock_digest,
            layout="hubmerge-moe",
        )
