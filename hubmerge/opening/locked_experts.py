"""A pick of a lock, opened: every checkpoint by its commit, every file by its SHA-256."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import IntegrityError, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.lock import Lock, Pick, Pin, parse_lock, read_lock
from hubmerge.manifest import Source
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.registry import parse_params
from hubmerge.opening.drift import check_drift
from hubmerge.opening.merge_inputs import Inputs, check_bases
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.references import open_pinned, open_ref, pin_revision
from hubmerge.refs import ModelRef, Revision


@dataclass(frozen=True)
class Picked:
    """One pick of a lock, and what it is made of, opened; `notes` say what has changed since."""

    pick: Pick
    base: Opened
    experts: tuple[Opened, ...]
    notes: tuple[str, ...]


def open_lock(
    hub: Hub, path: Path, policy: str | None, strict: bool, base: ModelRef | None
) -> Inputs:
    """What one pick of a lock file is made of; by default the pick that was chosen.

    `base` is where the base lies now, for a lock whose base was a local folder. Raises UsageError,
    and IntegrityError for a lock that is none, for names that mean other commits (where those that
    are pinned are gone, or if `strict`) and for files that are not those that are pinned.
    """
    data, lock = read(path)
    if lock.is_mixture:
        raise UsageError(f"{path} is for a mixture.", f"Write `hubmerge moerge --lock {path}`.")
    method = find_method(lock.method)
    params = parse_params(method, lock.pick(policy).params)
    found = open_pick(hub, lock, policy, strict, base)
    return Inputs(
        method=method,
        params=params,
        base=found.base,
        base_source=lock.base.source,
        experts=found.experts,
        sources=found.pick.experts,
        lock=data,
        notes=found.notes,
    )


def read(path: Path) -> tuple[bytes, Lock]:
    """The bytes of a lock file, and what they say; raises UsageError or IntegrityError."""
    data = read_lock(path)
    return data, parse_lock(data, str(path))


def open_pick(
    hub: Hub, lock: Lock, policy: str | None, strict: bool, base: ModelRef | None
) -> Picked:
    """Open base and experts of a pick, and hold all files against the lock, as `open_lock`."""
    pick = lock.pick(policy)
    _check_base(lock.base, base)
    pins = [lock.pin(expert) for expert in pick.experts]
    notes = check_drift(hub, pins if base else [lock.base, *pins], strict)
    found = open_ref(hub, base) if base else open_source(hub, lock.base.ref, lock.base.source)
    opened = [open_source(hub, pin.ref, pin.source) for pin in pins]
    pairs = zip((found, *opened), (lock.base, *pins), strict=True)
    raise_together(
        IntegrityError,
        [problem for one, pin in pairs for problem in _differences(one, pin)],
        "Find out who changed it, or choose anew with `hubmerge select`.",
    )
    check_bases(opened, found)
    return Picked(pick, found, tuple(opened), notes)


def open_source(hub: Hub, ref: ModelRef, source: Source) -> Opened:
    """Open a checkpoint by its commit, whatever `ref` means now; raises IntegrityError."""
    if source.is_local:
        raise UsageError(f"{source.label} was a local folder, which is not to be had by a commit.")
    inside = dataclasses.replace(ref, subfolder=source.folder)
    revision = Revision(inside, source.sha, source.step, "commit")
    try:
        return open_pinned(hub, pin_revision(hub, revision))
    except NotOnHub as error:
        raise IntegrityError(
            f"{source.label} ({source.sha}) is not to be had any more: {error.message}",
            "Put it back, or choose anew with `hubmerge select`.",
        ) from error


def _check_base(pin: Pin, base: ModelRef | None) -> None:
    """A lock may come from anybody: it does not choose which of our folders is read."""
    if pin.source.is_local and base is None:
        raise UsageError(
            f"The lock's base was the folder {pin.source.name}.", "Name it with --base FOLDER."
        )
    if base and not (pin.source.is_local and base.is_local):
        raise UsageError(f"The lock pins its base, {pin.source.label}.", "Leave out --base.")


def _differences(opened: Opened, pin: Pin) -> Iterator[str]:
    for name in sorted(opened.files.keys() | pin.files.keys()):
        here, pinned = opened.files.get(name), pin.files.get(name)
        if here != pinned:
            yield (
                f"{name} of {pin.source.label} has SHA-256 {here or 'none, it is not there'}, "
                f"and the lock pins {pinned or 'no such file'}."
            )
