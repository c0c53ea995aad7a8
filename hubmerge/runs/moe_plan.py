"""A mixture of experts before it is trained: its experts, options, tasks and configuration."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.opening.moe_experts import Experts
from hubmerge.opening.opened_model import Opened
from hubmerge.specs import MoeSpec
from hubmerge.tasks.task import Task
from hubmerge.weights.moe_config import MoeConfig, MoeExpert, RouterConfig, expert_names


@dataclass(frozen=True)
class MoePlan:
    """One mixture: the options, its experts, and the tasks it is trained on.

    `own` is the task of each expert, in their order, None where it is not known; `words` are the
    command's, from the experts on. `lock` is the lock that named all of this, if there is one;
    `licence` is set where it shall not follow from the experts'.
    """

    asked: MoeSpec
    experts: Experts
    tasks: tuple[Task, ...]
    own: tuple[Task | None, ...]
    words: tuple[str, ...]
    lock: bytes | None = None
    licence: str | None = None

    @property
    def lock_digest(self) -> str | None:
        """The SHA-256 of the lock."""
        return None if self.lock is None else hashlib.sha256(self.lock).hexdigest()

    @property
    def base(self) -> Opened:
        return self.experts.base

    @property
    def params(self) -> dict[str, Any]:
        """All that decides the mixture beside base and experts."""
        return {**self.asked.settings, "tasks": [task.id for task in self.tasks]}

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


def _is_open_clip(folder: Path) -> bool:
    return (folder / "open_clip_config.json").is_file()
