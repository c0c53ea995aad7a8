"""A checkpoint that another one is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

Count = Annotated[int, Field(ge=0, le=10**12)]


@dataclass(frozen=True)
class Source:
    """A checkpoint that another one was made from, and how it was used.

    `sha` is its commit; for a local folder it is the digest again. `task` is the id of the task it
    was trained for. `last_step` is the last step that its repository had at the time and `last_sha`
    the commit of that step: gains are measured against the merge of the last steps. `weight`,
    `keep` (the fraction of its largest changes that is kept) and `intruders` (the factor on its
    intruder dimensions) are applied to its task vector. `licence` is the one on its card at that
    commit, as the Hub spells it, or None. `folder` is its folder in the repository, None for the
    root: one commit may hold many checkpoint-N folders. `settings` are parameters of the method for
    this expert alone, or for some of its tensors. `weights` is the digest of its weight files
    alone; see `Checkpoint.digest`. With `averaged`, rising steps of one expert of which this is the
    last, their mean by their own `weight` is merged, not this step alone, and `weights` identifies
    the mean.
    """

    label: str
    sha: str
    digest: str
    step: Count | None = None
    task: str | None = None
    weight: float = 1.0
    last_step: Count | None = None
    last_sha: str | None = None
    keep: float = 1.0
    intruders: float = 1.0
    licence: str | None = None
    folder: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: str | None = None
    averaged: tuple[Source, ...] = ()

    @property
    def members(self) -> tuple[Source, ...]:
        """The checkpoints that it stands for: itself, or those that are averaged."""
        return self.averaged or (self,)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each of `members` in their mean, relative to each other."""
        return tuple(member.weight for member in self.averaged) or (1.0,)

    @property
    def steps_text(self) -> str:
        """Its step, or those that are averaged: 64, 16+32+64, or 0.3x32+0.7x64 by their shares."""
        shares = [f"{share:g}x" if len(set(self.shares)) > 1 else "" for share in self.shares]
        members = zip(shares, self.members, strict=True)
        return "+".join(f"{share}{member.step}" for share, member in members)

    @property
    def content_key(self) -> str:
        """What seeds its masks and orders the sums: the same for the same weights, wherever.

        Results of versions that did not record it were seeded by commits.
        """
        return self.weights or self.key

    @property
    def key(self) -> str:
        """Its commit, followed by its folder if it is not at the root of the repository."""
        return f"{self.sha}/{self.folder}" if self.folder else self.sha

    @property
    def is_local(self) -> bool:
        return self.sha == self.digest

    @property
    def name(self) -> str:
        """The repository or the local folder, without revision."""
        return self.label if self.is_local else self.label.partition("@")[0]

    @property
    def task_name(self) -> str | None:
        """The name of its task, without the digest of the definition."""
        return self.task.partition("@")[0] if self.task else None
