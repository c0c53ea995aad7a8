"""Reading hubmerge.lock: an untrusted file, whose names and numbers are checked."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.lock import FORMAT, FORMATS, Lock, Pick, Pin, identity
from hubmerge.lock_numbers import find_number_problems
from hubmerge.manifest import files_digest
from hubmerge.recipe_ids import averaged_key
from hubmerge.refs import check_inner_path, check_repo_id, is_sha, printable
from hubmerge.source import Source
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem

_MAX_BYTES = 16_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Fields of an expert that do not depend on how a pick uses it.
_PINNED = ("label", "step", "task", "last_step", "last_sha", "licence", "weights")


def read_lock_bytes(path: Path) -> bytes:
    """The bytes of a lock file, up to one more than the allowed size; raises UsageError."""
    if not path.is_file():
        raise UsageError(f"There is no lock {path}.", "Make one with `hubmerge select`.")
    with path.open("rb") as file:
        return file.read(_MAX_BYTES + 1)


def parse_lock(data: bytes, where: str) -> Lock:
    """Parse an untrusted lock; raises IntegrityError naming `where`.

    Unknown keys are ignored, so a lock cannot set an endpoint or a token. A duplicate key or a
    number that is not finite is refused, because other JSON readers may read it differently, and
    so is a number that does not follow from the others.
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
        reason = first_problem(error)
        raise IntegrityError(f"{where} is not a valid lock: {printable(reason)[:200]}.") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{where} is not a valid lock: {printable(str(error))[:200]}."
        ) from error
    found = list(_problems(lock)) or list(find_number_problems(lock))
    problems = [f"{where}: {problem}" for problem in found]
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
    pinned = {identity(pin.source): pin.source for pin in lock.experts}
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
    sources = [pinned.get(identity(expert)) for expert in pick.experts]
    if any(source is None for source in sources):
        yield f"pick {name!r} names an expert that is not pinned."
    for expert in pick.experts:
        yield from _average_problems(name, expert, pinned)
    for expert in pick.experts:
        for checkpoint in (expert, *expert.averaged):
            yield from _differences(name, checkpoint, pinned.get(identity(checkpoint)))
    if unknown := pick.tasks.keys() - {task.id for task in lock.tasks}:
        yield f"pick {name!r} was measured on {min(unknown)[:40]!r}, which is not a task."


def _differences(name: str, checkpoint: Source, pinned: Source | None) -> Iterator[str]:
    """A sentence for each field of a pick's checkpoint that its pin has otherwise."""
    for field_name in _PINNED if pinned else ():
        if field_name == "weights" and checkpoint.averaged:  # those of the mean
            continue
        if getattr(pinned, field_name) != getattr(checkpoint, field_name):
            label = printable(checkpoint.label[:80])
            yield f"pick {name!r} gives {label} another {field_name} than its pin."


def _average_problems(
    name: str, expert: Source, pinned: Mapping[tuple[str, str], Source]
) -> Iterator[str]:
    """A sentence if the steps that an expert averages are not pinned, or it is not one of them."""
    members = expert.averaged
    if not members:
        return
    if not all(0 < share <= 1 for share in expert.shares):
        yield f"pick {name!r} averages steps by shares that are not above 0 and at most 1."
    if any(identity(m) not in pinned or m.averaged for m in members):
        yield f"pick {name!r} averages a step that is not pinned."
    steps = [member.step or 0 for member in members]
    is_rising = steps == sorted(steps) and len(set(map(identity, members))) == len(members) > 1
    is_last = identity(members[-1]) == identity(expert)
    if not is_rising or not is_last or len({member.name for member in members}) > 1:
        yield f"pick {name!r} averages other steps than those up to {expert.label[:80]!r}."
    if expert.weights != averaged_key([member.content_key for member in members], expert.shares):
        yield f"pick {name!r} has a digest of weights that is not that of the mean."


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
