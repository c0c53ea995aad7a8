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
from typing import Annotated, Any

from pydantic import Field, ValidationError

from hubmerge.errors import IntegrityError, UnknownName, UsageError, raise_together
from hubmerge.kinds import MOE
from hubmerge.manifest import Count, Source, files_digest, without_empty_averages
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
FORMAT_WITH_PARTS = 2  # of a lock that averages steps or leaves experts out
FORMATS = (FORMAT, FORMAT_WITH_PARTS)
_MAX_BYTES = 16_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")

Share = Annotated[float, Field(ge=0, le=1)]


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

    `accuracy` is the mean over tasks on validation, `tasks` the accuracy of each. `gain` is the
    difference to `Lock.rival` and the ends of its 95 % interval. An expert of weight 0 is left out
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
    whether the chosen pick beats it beyond the noise. `cut` names the policies that the budget
    stopped before they were finished. `options` decide where experts and base differ. `objective`
    is what was maximised: the mean over tasks, or the worst task; gains are always of the mean.
    With `pareto`, the picks front-1 and so on are those that no other trial was as good as on every
    task.
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
        fields = without_empty_averages(dataclasses.asdict(self))
        experts = [expert for pick in self.picks for expert in pick.experts]
        if any(expert.averaged or expert.weight == 0 for expert in experts) and not self.is_moe:
            fields["format"] = FORMAT_WITH_PARTS  # earlier versions would merge something else
        if self.options == DEFAULT_OPTIONS:
            del fields["options"]  # as in locks that were written before there were options
        if self.objective == "mean":
            del fields["objective"]  # likewise
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
        if isinstance(fields, dict) and fields.get("format", FORMAT) not in FORMATS:
            raise IntegrityError(
                f"{where} has format {printable(str(fields['format']))[:20]}, and this hubmerge "
                f"knows {FORMATS[-1]}.",
                "Install a newer hubmerge.",
            )
        # The format that is written follows from the picks.
        lock = dataclasses.replace(validate_json(Lock, data), format=FORMAT)
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
    for expert in pick.experts:
        yield from _average_problems(name, expert, pinned)
    pairs = zip(sources, pick.experts, strict=True)
    if any(source and source.label != expert.label for source, expert in pairs):
        yield f"pick {name!r} gives an expert another name than its pin."
    if unknown := pick.tasks.keys() - {task.id for task in lock.tasks}:
        yield f"pick {name!r} was measured on {min(unknown)[:40]!r}, which is not a task."


def _average_problems(
    name: str, expert: Source, pinned: Mapping[tuple[str, str], Source]
) -> Iterator[str]:
    """A sentence if the steps that an expert averages are not pinned, or it is not one of them."""
    members = expert.averaged
    if not members:
        return
    if any(_identity(m) not in pinned or m.averaged for m in members):
        yield f"pick {name!r} averages a step that is not pinned."
    is_last = _identity(members[-1]) == _identity(expert) and len(members) > 1
    if not is_last or len({member.name for member in members}) > 1:
        yield f"pick {name!r} averages other steps than those up to {expert.label[:80]!r}."


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
