"""hubmerge.lock: the result of a selection: what was chosen, from what, and the measurements."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from hubmerge.errors import IntegrityError, UnknownName, UsageError, raise_together
from hubmerge.kinds import MOE
from hubmerge.manifest import Count, Source, files_digest
from hubmerge.refs import (
    ModelRef,
    check_inner_path,
    check_repo_id,
    check_revision,
    is_sha,
    parse_ref,
    printable,
)
from hubmerge.typed_json import validate_json
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions

LOCK_FILE = "hubmerge.lock"
FORMAT = 1
_MAX_BYTES = 16_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")

Share = Annotated[float, Field(ge=0, le=1)]


Outcome = Literal["gain", "loss", "inconclusive"]
_LATER_FIELDS: Mapping[str, Any] = {
    "options": DEFAULT_OPTIONS, "outcome": None, "cross_fit": None, "controls": (), "left_out": (),
    "predicted_gain": None,
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

    The id ends with the digest of the task's definition, which includes local data.
    """

    id: str
    data: str | None
    rows: Count


@dataclass(frozen=True)
class Pick:
    """The choice of one policy: an expert for each task, in the order of `Lock.tasks`, and params.

    `accuracy` is the mean over tasks on validation, `tasks` the accuracy of each; a pick was chosen
    by it, so it flatters. `gain` is the gain over `Lock.rival` and the ends of its 95 % interval:
    on rows that did not choose, if the lock has `Lock.cross_fit`. `evaluations` is how many merges
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
    has repositories of several seeds.
    """

    chosen: tuple[str, ...]
    steps: tuple[tuple[Count, ...], ...]
    accuracy: Share
    rival: Share
    seed_stderr: float | None = None


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
    outcome: Outcome | None = None
    cross_fit: CrossFitted | None = None
    controls: tuple[Control, ...] = ()
    left_out: tuple[str, ...] = ()
    predicted_gain: float | None = None
    format: int = FORMAT

    @property
    def is_moe(self) -> bool:
        """Whether it pins the start of a mixture of experts, not a merge."""
        return self.method == MOE

    def pick(self, policy: str | None = None) -> Pick:
        """The pick of a policy, by default the chosen one; raises UnknownName."""
        picks = {pick.policy: pick for pick in self.picks}
        name = policy or self.chosen
        if name not in picks:
            raise UnknownName("policy of the lock", name, picks)
        return picks[name]

    def pin(self, expert: Source) -> Pin:
        """The pin of an expert that a pick names."""
        return next(pin for pin in self.experts if _identity(pin.source) == _identity(expert))

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal values give equal bytes."""
        fields = dataclasses.asdict(self)
        for name, default in _LATER_FIELDS.items():
            if getattr(self, name) == default:
                del fields[name]  # as in locks of the versions before
        return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_lock_bytes(path: Path) -> bytes:
    """The bytes of a lock file, up to one more than the allowed size; raises UsageError."""
    if not path.is_file():
        raise UsageError(f"There is no lock {path}.", "Make one with `hubmerge select`.")
    with path.open("rb") as file:
        return file.read(_MAX_BYTES + 1)


def parse_lock(data: bytes, where: str) -> Lock:
    """Parse an untrusted lock; raises IntegrityError naming `where`.

    Unknown keys are ignored, so a lock cannot set an endpoint or a token. A duplicate key or a
    number that is not finite is refused, because other JSON readers may read it differently.
    """
    if len(data) > _MAX_BYTES:
        raise IntegrityError(f"{where} is larger than {_MAX_BYTES} bytes: it is not a lock.")
    try:
        fields = json.loads(
            data,
            object_pairs_hook=_unique_keys,
            parse_float=_finite_number,
            parse_constant=_finite_number,
        )
        if isinstance(fields, dict) and fields.get("format", FORMAT) != FORMAT:
            raise IntegrityError(
                f"{where} has format {printable(str(fields['format']))[:20]}, and this hubmerge "
                f"knows {FORMAT}.",
                "Install a newer hubmerge.",
            )
        lock = validate_json(Lock, data)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(f"{where} is not a valid lock: {printable(reason)[:200]}.") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{where} is not a valid lock: {printable(str(error))[:200]}."
        ) from error
    problems = [f"{where}: {problem}" for problem in _problems(lock)]
    raise_together(IntegrityError, problems, "Make a new one with `hubmerge select`.")
    return lock


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if repeated := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {repeated[0]!r} is there twice")
    return dict(pairs)


def _finite_number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _identity(source: Source) -> tuple[str, str]:
    return source.key, source.digest


def _problems(lock: Lock) -> Iterator[str]:
    """A sentence for everything that points outside the repositories, or to a missing entry."""
    for pin in lock.experts:
        yield from _pin_problems(pin)
    if lock.base.source.is_local:
        yield from _file_problems(lock.base)
    else:
        yield from _pin_problems(lock.base)
    yield from _duplicate_problems("task", [task.id for task in lock.tasks])
    yield from _duplicate_problems("pick", [pick.policy for pick in lock.picks])
    pinned = {_identity(pin.source): pin.source for pin in lock.experts}
    for pick in lock.picks:
        yield from _pick_problems(lock, pick, pinned)
    for name in sorted({lock.chosen, lock.rival} - {pick.policy for pick in lock.picks}):
        yield f"it has no pick {name[:40]!r}."


def _pick_problems(
    lock: Lock, pick: Pick, pinned: Mapping[tuple[str, str], Source]
) -> Iterator[str]:
    name = pick.policy[:40]
    if not pick.experts or len(pick.experts) != len(lock.tasks):
        yield f"pick {name!r} has {len(pick.experts)} experts for {len(lock.tasks)} tasks."
    sources = [pinned.get(_identity(expert)) for expert in pick.experts]
    if any(source is None for source in sources):
        yield f"pick {name!r} names an expert that is not pinned."
    pairs = zip(sources, pick.experts, strict=True)
    if any(source and source.label != expert.label for source, expert in pairs):
        yield f"pick {name!r} gives an expert another name than its pin."
    if unknown := pick.tasks.keys() - {task.id for task in lock.tasks}:
        yield f"pick {name!r} was measured on {min(unknown)[:40]!r}, which is not a task."


def _duplicate_problems(kind: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{kind} {name[:40]!r} is there {count} times."


def _pin_problems(pin: Pin) -> Iterator[str]:
    name = pin.requested[:80]
    try:
        if pin.ref.repo_id != check_repo_id(pin.source.name):
            yield f"{name!r} is not the repository of its pin."
        if pin.source.folder is not None:
            check_inner_path(pin.source.folder)
    except UsageError as error:
        yield error.message
    if not is_sha(pin.source.sha):
        yield f"{name!r} is not pinned to a commit."
    if pin.source.last_sha is not None and not is_sha(pin.source.last_sha):
        yield f"the last step of {name!r} is not a commit."
    yield from _file_problems(pin)


def _file_problems(pin: Pin) -> Iterator[str]:
    name = pin.requested[:80]
    try:
        for file in pin.files:
            check_inner_path(file)
    except UsageError as error:
        yield error.message
    if not pin.files or not all(_SHA256.fullmatch(digest) for digest in pin.files.values()):
        yield f"{name!r} has files without a SHA-256."
    elif files_digest(pin.files) != pin.source.digest:
        yield f"the files of {name!r} do not match its digest."
