"""hubmerge.lock: a selection, pinned: what was chosen, from what, by which evidence."""

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

from pydantic import Field, TypeAdapter, ValidationError

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

NAME = "hubmerge.lock"
FORMAT = 1
_BYTES = 16_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Pin:
    """A checkpoint as it was found: the name it was asked for by, its commit, its files.

    `requested` is what can be resolved again; `files` maps each file of the model to its SHA-256,
    and `source.digest` is over them.
    """

    requested: str
    source: Source
    files: Mapping[str, str]

    @property
    def ref(self) -> ModelRef:
        """What was asked for, on a Hub whatever folders lie here; raises UsageError."""
        if self.requested.startswith("hf://"):
            return parse_ref(self.requested)
        repo_id, at, revision = self.requested.partition("@")
        return ModelRef(check_repo_id(repo_id), revision=check_revision(revision) if at else None)


@dataclass(frozen=True)
class LockedTask:
    """A task that was measured: its id, its data set as owner/name@sha if it is on a Hub, its rows.

    Its id ends with the digest of its definition, local data included.
    """

    id: str
    data: str | None
    rows: Count


@dataclass(frozen=True)
class Pick:
    """What one policy chose: an expert for each task, in the order of `Lock.tasks`, and parameters.

    `accuracy` is the mean over tasks on validation, `tasks` each of them. `gain` is over
    `Lock.rival`: the difference, and the ends of its 95 % interval. `evaluations` is how many
    merges had been asked for when it was found, those of the policies before it included.
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
    """A candidate of one task beside the chosen one.

    `own` is the expert's own validation accuracy, `merged` that of the chosen merge with this
    expert in place of the chosen one, from the rows that it was asked before it was given up; None
    where it was not measured. `tied` says that the
    difference is within the noise.
    """

    sha: str
    label: str
    step: Count
    own: Share | None = None
    merged: Share | None = None
    tied: bool = False


@dataclass(frozen=True)
class Common:
    """The best merge of one common step: its mean validation accuracy, with standard error."""

    step: Count
    accuracy: Share
    stderr: float


@dataclass(frozen=True)
class Spent:
    """What a selection asked for: merges, and examples; how long that took hangs on the machine."""

    evaluations: Count
    examples: Count


@dataclass(frozen=True)
class Lock:
    """One selection: `chosen` names the pick that `hubmerge merge --lock` builds.

    `experts` pins every checkpoint that a pick names, `swaps` maps a task's id to its candidates,
    `uniform` is the curve over common steps. `rival` is the pick to beat: that of the last steps,
    or `locked`, the choice of an earlier lock; `conclusive` says whether the choice beats it beyond
    the noise. `cut` names the policies that the budget ended before they were done.
    """

    base: Pin
    experts: tuple[Pin, ...]
    tasks: tuple[LockedTask, ...]
    method: str
    chosen: str
    picks: tuple[Pick, ...]
    swaps: Mapping[str, tuple[Swap, ...]]
    uniform: tuple[Common, ...]
    seed: Count
    spent: Spent
    conclusive: bool
    rival: str = "last"
    cut: tuple[str, ...] = ()
    split: str = "validation"
    budget: str | None = None
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def is_mixture(self) -> bool:
        """Whether it says what a mixture starts from, and not what is merged."""
        return self.method == MOE

    def pick(self, policy: str | None = None) -> Pick:
        """The pick of that policy, by default the chosen one; raises UnknownName."""
        known = {pick.policy: pick for pick in self.picks}
        wanted = policy or self.chosen
        if wanted not in known:
            raise UnknownName("policy of the lock", wanted, known)
        return known[wanted]

    def pin(self, expert: Source) -> Pin:
        """The pin of an expert that a pick names."""
        return next(pin for pin in self.experts if _identity(pin.source) == _identity(expert))

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same selection is the same bytes."""
        said = dataclasses.asdict(self)
        return (json.dumps(said, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_lock(path: Path) -> bytes:
    """The bytes of a lock file, and no more than a lock may have; raises UsageError."""
    if not path.is_file():
        raise UsageError(f"There is no lock {path}.", "Make one with `hubmerge select`.")
    with path.open("rb") as file:
        return file.read(_BYTES + 1)


def parse_lock(data: bytes, where: str) -> Lock:
    """Read a lock that anybody may have written; raises IntegrityError naming `where`.

    Keys that this version does not know are passed over: a lock sets no endpoint and no token. A
    key that is there twice, or a number that is none, is refused: readers would not agree on it.
    """
    if len(data) > _BYTES:
        raise IntegrityError(f"{where} is larger than {_BYTES} bytes: it is no lock.")
    try:
        said = json.loads(
            data, object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite
        )
        if isinstance(said, dict) and said.get("format", FORMAT) != FORMAT:
            raise IntegrityError(
                f"{where} has format {printable(str(said['format']))[:20]}, and this hubmerge "
                f"knows {FORMAT}.",
                "Install a newer hubmerge.",
            )
        lock = TypeAdapter(Lock).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(f"{where} is no lock: {printable(reason)[:200]}.") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} is no lock: {printable(str(error))[:200]}.") from error
    problems = [f"{where}: {problem}" for problem in _problems(lock)]
    raise_together(IntegrityError, problems, "Make it anew with `hubmerge select`.")
    return lock


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {twice[0]!r} is there twice")
    return dict(pairs)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no number")
    return number


def _identity(source: Source) -> tuple[str, str]:
    return source.key, source.digest


def _problems(lock: Lock) -> Iterator[str]:
    """Whatever would make a lock point elsewhere than into repositories, or at nothing."""
    for pin in lock.experts:
        yield from _pin_problems(pin)
    if lock.base.source.is_local:
        yield from _file_problems(lock.base)
    else:
        yield from _pin_problems(lock.base)
    yield from _twice("task", [task.id for task in lock.tasks])
    yield from _twice("pick", [pick.policy for pick in lock.picks])
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
    found = [pinned.get(_identity(expert)) for expert in pick.experts]
    if any(pin is None for pin in found):
        yield f"pick {name!r} names an expert that is not pinned."
    pairs = zip(found, pick.experts, strict=True)
    if any(pin and pin.label != expert.label for pin, expert in pairs):
        yield f"pick {name!r} calls an expert by another name than its pin."
    if strange := pick.tasks.keys() - {task.id for task in lock.tasks}:
        yield f"pick {name!r} was measured on {min(strange)[:40]!r}, which is no task."


def _twice(what: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{what} {name[:40]!r} is there {count} times."


def _pin_problems(pin: Pin) -> Iterator[str]:
    said = pin.requested[:80]
    try:
        if pin.ref.repo_id != check_repo_id(pin.source.name):
            yield f"{said!r} is not the repository that it is pinned in."
        if pin.source.folder is not None:
            check_inner_path(pin.source.folder)
    except UsageError as error:
        yield error.message
    if not is_sha(pin.source.sha):
        yield f"{said!r} is not pinned to a commit."
    if pin.source.last_sha is not None and not is_sha(pin.source.last_sha):
        yield f"the last step of {said!r} is no commit."
    yield from _file_problems(pin)


def _file_problems(pin: Pin) -> Iterator[str]:
    said = pin.requested[:80]
    try:
        for name in pin.files:
            check_inner_path(name)
    except UsageError as error:
        yield error.message
    if not pin.files or not all(_SHA256.fullmatch(digest) for digest in pin.files.values()):
        yield f"{said!r} has files without a SHA-256."
    elif files_digest(pin.files) != pin.source.digest:
        yield f"the files of {said!r} are not those of its digest."
