"""hubmerge.lock: the result of a selection: what was chosen, from what, and the measurements."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from hubmerge.errors import UnknownName
from hubmerge.kinds import MOE
from hubmerge.manifest import LOCK_FILE as LOCK_FILE
from hubmerge.manifest import without_empty_averages
from hubmerge.metric_names import BINARY_METRICS
from hubmerge.refs import (
    ModelRef,
    check_repo_id,
    check_revision,
    parse_ref,
)
from hubmerge.source import Count, Source
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions

FORMAT = 1
FORMAT_WITH_PARTS = 2  # of a lock that averages steps or leaves experts out
FORMAT_WITH_SHARES = 3  # of a lock that averages steps by shares of their own
FORMATS = (FORMAT, FORMAT_WITH_PARTS, FORMAT_WITH_SHARES)


Share = Annotated[float, Field(ge=0, le=1)]


Outcome = Literal["gain", "loss", "inconclusive"]
_LATER_FIELDS: Mapping[str, Any] = {
    "options": DEFAULT_OPTIONS, "outcome": None, "cross_fit": None, "controls": (), "left_out": (),
    "predicted_gain": None, "objective": "mean",
}  # fmt: skip


@dataclass(frozen=True)
class Pin:
    """A checkpoint pinned to a commit.

    `requested` is the name that was given, which can be resolved again. `files` maps each file of
    the model to its SHA-256; `source.digest` is computed from them.
    """

    requested: str
    source: Source
    files: Mapping[str, str]

    @property
    def ref(self) -> ModelRef:
        """`requested` as a Hub reference, even if a folder has that name; raises UsageError."""
        if self.requested.startswith("hf://"):
            return parse_ref(self.requested)
        repo_id, at, revision = self.requested.partition("@")
        return ModelRef(check_repo_id(repo_id), revision=check_revision(revision) if at else None)


@dataclass(frozen=True)
class LockedTask:
    """A task of the selection: its id, its data set as owner/name@sha if it is on a Hub, its rows.

    The id ends with the digest of the task's definition, which includes local data, and with the
    metric if another one was chosen. `metric` is None for accuracy.
    """

    id: str
    data: str | None
    rows: Count
    metric: str | None = None

    @property
    def is_binary(self) -> bool:
        """Whether a row is right or wrong, without anything between."""
        return self.metric in (None, *BINARY_METRICS)


@dataclass(frozen=True)
class Pick:
    """The choice of one policy: an expert for each task, in the order of `Lock.tasks`, and params.

    `accuracy` is the mean over tasks on validation, `tasks` the accuracy of each; a pick was chosen
    by it, so it flatters. `gain` is the gain over `Lock.rival` and the ends of its 95 % interval:
    on rows that did not choose, if the lock has `Lock.cross_fit`. An expert of weight 0 is left out
    of the merge. `evaluations` is how many merges
    had been evaluated when this one was found, including those of the policies before.
    """

    policy: str
    experts: tuple[Source, ...]
    params: Mapping[str, Any]
    accuracy: Share
    stderr: float
    tasks: Mapping[str, Share]
    gain: tuple[float, float, float] | None = None
    evaluations: Count = 0

    @property
    def merged(self) -> tuple[Source, ...]:
        """The experts that are merged: all but those that are left out."""
        return tuple(expert for expert in self.experts if expert.weight != 0)


@dataclass(frozen=True)
class Swap:
    """An alternative to the chosen expert of one task.

    `own` is its own validation accuracy. `merged` is the accuracy of the chosen merge with this
    expert in place of the chosen one, over the rows evaluated before it was stopped early. Both are
    None if they were not measured. `tied` is whether the difference is within the noise.
    """

    sha: str
    label: str
    step: Count
    own: Share | None = None
    merged: Share | None = None
    tied: bool = False


@dataclass(frozen=True)
class UniformPoint:
    """The best merge with all experts at one step: its mean accuracy on validation."""

    step: Count
    accuracy: Share
    stderr: float


@dataclass(frozen=True)
class CrossFitted:
    """What was chosen on half of the rows and measured on the other half, both ways.

    `chosen` and `steps` are the policy and the steps that each of the searches chose. `accuracy` is
    the mean accuracy of these choices and `rival` that of their rivals, each on the rows that its
    search had not seen; the gain of the chosen pick is their difference. `seed_stderr` is the
    standard error of that gain between training seeds, which its interval includes; None if no task
    has repositories of several seeds. `counts` has by task on how many rows
    the choices were worse than their rivals, the same, and better.
    """

    chosen: tuple[str, ...]
    steps: tuple[tuple[Count, ...], ...]
    accuracy: Share
    rival: Share
    seed_stderr: Annotated[float, Field(ge=0)] | None = None
    counts: Mapping[str, tuple[Count, Count, Count]] = field(default_factory=dict)


@dataclass(frozen=True)
class Control:
    """Something the choice is compared with, and the gain of the choice over it.

    `kind` is base; expert, the best single one on all tasks; without, the choice without the expert
    of the task `name`, so that the gain is what this expert adds; or random, steps drawn at random.
    `accuracy` and `gain` are cross-fitted, `gain` with the ends of its 95 % interval.
    """

    kind: str
    name: str
    accuracy: Share
    gain: tuple[float, float, float]


@dataclass(frozen=True)
class SelectionCost:
    """The merges and examples that a selection evaluated; its duration depends on the machine."""

    evaluations: Count
    examples: Count


@dataclass(frozen=True)
class Lock:
    """One selection: `chosen` names the pick that `hubmerge merge --lock` builds.

    `experts` pins every checkpoint that a pick names, `swaps` maps a task's id to its alternatives,
    `uniform` is the curve over merges with all experts at the same step. `rival` is the pick to
    beat: the one of the last steps, or `locked`, the choice of an earlier lock. `conclusive` is
    whether the chosen pick beats it beyond the noise, and, if the rival is the last steps and the
    base was measured, also the base.
    `outcome` is gain if so, loss if the rival beats the pick beyond the noise, and inconclusive
    otherwise; None in locks of versions that did not record it. `cut` names the policies that the
    budget stopped before they were finished. `options` decide where experts and base differ.
    `objective` is what was maximised: the mean over tasks, or the worst task; gains are always of
    the mean. With `pareto`, the picks front-1 and so on are those that no other trial was as good
    as on every task.

    `cross_fit` is what the gains were measured by; None if they were measured on the rows that the
    picks were chosen by, and flatter. `controls` are the controls that were measured, `left_out`
    those that the budget did not reach, and `predicted_gain` what one more expert would add by the
    merging scaling law.
    """

    base: Pin
    experts: tuple[Pin, ...]
    tasks: tuple[LockedTask, ...]
    method: str
    chosen: str
    picks: tuple[Pick, ...]
    swaps: Mapping[str, tuple[Swap, ...]]
    uniform: tuple[UniformPoint, ...]
    seed: Count
    spent: SelectionCost
    conclusive: bool
    rival: str = "last"
    cut: tuple[str, ...] = ()
    split: str = "validation"
    budget: str | None = None
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    options: MatchOptions = DEFAULT_OPTIONS
    objective: str = "mean"
    outcome: Outcome | None = None
    cross_fit: CrossFitted | None = None
    controls: tuple[Control, ...] = ()
    left_out: tuple[str, ...] = ()
    predicted_gain: Share | None = None
    format: int = FORMAT

    @property
    def is_moe(self) -> bool:
        """Whether it pins the start of a mixture of experts, not a merge."""
        return self.method == MOE

    @property
    def metric_name(self) -> str:
        """What picks are measured by, in words; score if tasks have different metrics."""
        metrics = {task.metric or "accuracy" for task in self.tasks}
        return metrics.pop().replace("_", " ") if len(metrics) == 1 else "score"

    def build_command(self, path: str) -> str:
        """The command that builds the choice of this lock in a file.

        A base in a folder is named, because a lock does not decide which folders are read.
        """
        words = ["hubmerge", "moerge" if self.is_moe else "merge", "--lock", path]
        base = ["--base", self.base.source.name] if self.base.source.is_local else []
        return shlex.join([*words, *base])

    def pick(self, policy: str | None = None) -> Pick:
        """The pick of a policy, by default the chosen one; raises UnknownName."""
        picks = {pick.policy: pick for pick in self.picks}
        name = policy or self.chosen
        if name not in picks:
            raise UnknownName("policy of the lock", name, picks)
        return picks[name]

    def pin(self, expert: Source) -> Pin:
        """The pin of an expert that a pick names."""
        return next(pin for pin in self.experts if identity(pin.source) == identity(expert))

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal values give equal bytes."""
        fields = without_empty_averages(dataclasses.asdict(self))
        experts = [expert for pick in self.picks for expert in pick.experts]
        if any(expert.averaged or expert.weight == 0 for expert in experts) and not self.is_moe:
            fields["format"] = FORMAT_WITH_PARTS  # earlier versions would merge something else
        if any(set(expert.shares) != {1.0} for expert in experts):
            fields["format"] = FORMAT_WITH_SHARES
        for task in fields["tasks"]:
            if task["metric"] is None:
                del task["metric"]  # as below
        for name, default in _LATER_FIELDS.items():
            if getattr(self, name) == default:
                del fields[name]  # as in locks of the versions before
        return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def identity(source: Source) -> tuple[str, str]:
    """What two sources of the same checkpoint have in common: commit, folder and digest."""
    return source.key, source.digest
