"""A mixture of experts as a job: its configuration, its command, its manifest."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hubmerge.flows.expert import flags
from hubmerge.flows.experts import Experts
from hubmerge.flows.job import Begun
from hubmerge.flows.machine import Machine
from hubmerge.flows.sources import Opened
from hubmerge.manifest import Manifest
from hubmerge.specs import MoeSpec, TrainSpec
from hubmerge.tasks.task import Task
from hubmerge.training.schedule import push_steps
from hubmerge.weights.moe_config import MoeConfig, MoeExpert, RouterConfig, expert_names

if TYPE_CHECKING:
    from hubmerge.training.loop import Moment


@dataclass(frozen=True)
class MixtureJob:
    """The making of one mixture: what was asked, its experts, and the tasks it is trained on.

    `own` is the task of each expert, in their order, None where nobody said; `words` are the
    command's, from the experts on. `lock` is the lock that said all of this, if one did; `licence`
    is stated where it shall not follow from the experts'.
    """

    asked: MoeSpec
    experts: Experts
    tasks: tuple[Task, ...]
    own: tuple[Task | None, ...]
    words: tuple[str, ...]
    lock: bytes | None = None
    licence: str | None = None
    kind: Literal["expert", "moe"] = "moe"

    @property
    def lock_digest(self) -> str | None:
        """The SHA-256 of the lock."""
        return None if self.lock is None else hashlib.sha256(self.lock).hexdigest()

    @property
    def base(self) -> Opened:
        return self.experts.base

    @property
    def spec(self) -> TrainSpec:
        return self.asked.training

    @property
    def planned(self) -> tuple[int, ...]:
        """Without training, the start itself is what is kept."""
        if not self.asked.train_steps:
            return (0,)
        return push_steps(self.spec.push_every, self.spec.steps)

    @property
    def params(self) -> dict[str, Any]:
        """All that decides the mixture beside base and experts."""
        return {**self.asked.settings, "tasks": [task.id for task in self.tasks]}

    @property
    def identity(self) -> list[Any]:
        parts = [source.key for source in self.experts.sources]
        stated = [said for said in (self.licence, self.lock_digest) if said]
        asked = self.asked.evaluate_every
        return [self.params, asked, self.planned, self.base.digest, parts, *stated]

    @property
    def config(self) -> MoeConfig:
        """The mixture's configuration, but for its layers."""
        asked, base = self.asked, self.base
        wanted = [s.task_name or s.name.rpartition("/")[2] for s in self.experts.sources]
        names = expert_names(wanted)
        return MoeConfig(
            base_model=base.revision.ref.repo_id or str(base.folder),
            base_revision=base.revision.sha or None,
            base_digest=base.digest,
            layout="open_clip" if _is_open_clip(base.folder) else "transformers",
            experts=tuple(
                MoeExpert(name, s.task, s.step, s.name, None if s.is_local else s.sha)
                for name, s in zip(names, self.experts.sources, strict=True)
            ),
            top_k=asked.top_k,
            modules=(),
            router=RouterConfig(asked.is_signed, asked.temperature, asked.router),
        )

    def begin(self) -> Begun:
        from hubmerge.flows.assembly import begun

        return begun(self)

    def command(self, machine: Machine) -> str:
        words = ["hubmerge", "moerge"]
        if machine.world > 1:
            words = ["torchrun", "--nproc_per_node", str(machine.world), "-m", *words]
        free = {"push_every"} if self.lock is not None else None  # the lock says the others
        said = self.asked.model_dump(include=free, exclude_defaults=True)
        stated = ["--license", self.licence] if self.licence else []
        return shlex.join([*words, *self.words, *flags(said), *stated])

    def manifest(self, moment: Moment, begun: Begun) -> Manifest:
        kinds = {task.spec.kind for task in self.tasks}
        revisions = {task.name: task.spec.data.revision for task in self.tasks}
        notes = {"notes": self.experts.notes} if self.experts.notes else {}
        return Manifest(
            kind="moe",
            base=self.experts.base_source,
            experts=self.experts.sources,
            method="moe",
            params=self.params,
            task_kind=kinds.pop() if len(kinds) == 1 else "several",
            last_step=self.asked.train_steps,
            training={**begun.about, **notes, "data_revisions": revisions},
            licence=self.licence,
            lock=self.lock_digest,
            layout="hubmerge-moe",
        )


def _is_open_clip(folder: Path) -> bool:
    return (folder / "open_clip_config.json").is_file()
