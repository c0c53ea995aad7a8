"""A step of an expert that a selection may choose, or the mean of several steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hubmerge.source import Source
from hubmerge.training_curve import Norms, ValidationPoint

_LEAST_LOSS = 0.01  # of a step that has learned its rows by heart


@dataclass(frozen=True)
class Candidate:
    """One step of an expert, with its validation accuracy on its own task if known.

    `stopped_early` is true if early stopping ended the run here; `curve` is the run up to here, and
    `seed` what it was trained with, if it is recorded.
    With `members`, it is the mean of several steps of one expert, of which this is the last.
    `norms` are those in its manifest, None if they are not known without fetching it. `loss` is its
    recorded training loss.
    """

    source: Source
    own_accuracy: float | None = None
    stopped_early: bool = False
    curve: tuple[ValidationPoint, ...] = field(default=(), repr=False)
    norms: Norms | None = field(default=None, repr=False)
    seed: int | None = None
    loss: float | None = None
    members: tuple[Candidate, ...] = field(default=(), repr=False)

    @property
    def key(self) -> str:
        """The key of its source, or those of all steps that are averaged."""
        if not self.members:
            return self.source.key
        sources = [member.source for member in self.members]
        return "+".join(
            source.key if source.weight == 1 else f"{source.weight!r}x{source.key}"
            for source in sources
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each of `members` in their mean, all 1 if it is plain."""
        return tuple(member.source.weight for member in self.members)

    @property
    def step(self) -> int:
        return self.source.step or 0


def weighted_by_loss(members: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return steps of one expert, each with a share in inverse proportion to its training loss.

    Shares have four digits, and only their ratios matter. Steps without recorded losses, or with
    equal ones, keep the share 1 of a plain mean. Source: metrics-weighted averaging, arXiv
    2504.18580.
    """
    losses = [member.loss for member in members]
    known = [max(loss, _LEAST_LOSS) for loss in losses if loss is not None and loss >= 0]
    if len(known) < len(losses):
        return tuple(members)
    total = math.fsum(1 / loss for loss in known)
    shares = [round(1 / loss / total, 4) for loss in known]
    if len(set(shares)) == 1 or not all(shares):
        return tuple(members)
    return tuple(
        replace(member, source=replace(member.source, weight=share))
        for member, share in zip(members, shares, strict=True)
    )
