"""A mixture of experts before training: its experts, options, tasks and configuration."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.opening.moe_experts import MoeExperts
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.specs import MoeSpec
from hubmerge.tasks.task import Task
from hubmerge.weights.moe_config import MoeConfig, MoeExpert, RouterConfig, unique_folder_names


@dataclass(frozen=True)
class MoePlan:
    """One mixture of experts: the options, its experts, and the tasks it is trained on.

    `expert_tasks` has the task of each expert, in their order, None if it is not known.
    `command_words` are the words of the command from the experts on. `lock` is the lock that the
    plan was made from, if any. `licence` is set if the user stated it; otherwise it follows from
    the licences of the experts.
    """

    moe_spec: MoeSpec
    experts: MoeExperts
    tasks: tuple[Task, ...]
    expert_tasks: tuple[Task | None, ...]
    command_words: tuple[str, ...]
    lock: bytes | None = None
    licence: str | None = None

    @property
    def lock_digest(self) -> str | None:
        """The SHA-256 of the lock, None without one."""
        return None if self.lock is None else hashlib.sha256(self.lock).hexdigest()

    @property
    def base(self) -> OpenedModel:
        return self.experts.base

    @property
    def params(self) -> dict[str, Any]:
        """All that decides the mixture besides base and experts."""
        return {**self.moe_spec.settings, "tasks": [task.id for task in self.tasks]}

    @property
    def config(self) -> MoeConfig:
        """The configuration of the mixture, without the paths of its layers."""
        spec, base = self.moe_spec, self.base
        task_names = [s.task_name or s.name.rpartition("/")[2] for s in self.experts.sources]
        names = unique_folder_names(task_names)
        return MoeConfig(
            base_model=base.revision.ref.repo_id or str(base.folder),
            base_revision=base.revision.sha or None,
            base_digest=base.digest,
            layout="open_clip" if _is_open_clip(base.folder) else "transformers",
            experts=tuple(
                MoeExpert(name, s.task, s.step, s.name, None if s.is_local else s.sha)
                for name, s in zip(names, self.experts.sources, strict=True)
            ),
            top_k=spec.top_k,
            modules=(),
            router=RouterConfig(spec.is_signed, spec.temperature, spec.router),
        )


def _is_open_clip(folder: Path) -> bool:
    return (folder / "open_clip_config.json").is_file()
