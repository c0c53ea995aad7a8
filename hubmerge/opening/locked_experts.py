"""Open a pick of a lock: every checkpoint at its commit, every file checked by its SHA-256."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import IntegrityError, NotOnHub, UsageError, map_all, raise_together
from hubmerge.hub.client import Hub
from hubmerge.lock import Lock, Pick, Pin
from hubmerge.lock_file import parse_lock, read_lock_bytes
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.settings import restore_settings
from hubmerge.opening.drift import check_drift
from hubmerge.opening.merge_inputs import MergeInputs, check_bases
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_pinned, open_ref, pin_revision
from hubmerge.refs import (
    ModelRef,
    Revision,
    check_inner_path,
    check_repo_id,
    check_revision,
)
from hubmerge.source import Source
from hubmerge.weights.averaged import average_checkpoints
from hubmerge.weights.expert_stacks import restack
from hubmerge.weights.match_options import DEFAULT_OPTIONS


@dataclass(frozen=True)
class OpenedPick:
    """One pick of a lock with its base and the experts that are merged.

    `notes` state what has changed since.
    """

    pick: Pick
    base: OpenedModel
    experts: tuple[OpenedModel, ...]
    notes: tuple[str, ...]


def open_locked_merge(
    hub: Hub, path: Path, policy: str | None, strict: bool, base: ModelRef | None
) -> MergeInputs:
    """Open the inputs of a merge from a pick of a lock file, by default the chosen pick.

    `base` is the folder of the base, for a lock whose base was a local folder. Raises UsageError,
    and IntegrityError for an invalid lock, for files that differ from the pinned ones, and for
    names that resolve to other commits (if the pinned commits are gone, or if `strict`).
    """
    data, lock = read_lock(path)
    if lock.is_moe:
        raise UsageError(
            f"{path} is for a mixture of experts.", f"Write `{lock.build_command(str(path))}`."
        )
    method = find_method(lock.method)
    params, settings = restore_settings(method, lock.pick(policy).params, ())
    opened = open_pick(hub, lock, policy, strict, base)
    return MergeInputs(
        method=method,
        params=params,
        settings=settings,
        base=opened.base,
        base_source=lock.base.source,
        experts=opened.experts,
        sources=opened.pick.merged,
        lock=data,
        options=lock.options,
        notes=opened.notes,
    )


def read_lock(path: Path) -> tuple[bytes, Lock]:
    """The bytes of a lock file and the parsed lock; raises UsageError or IntegrityError."""
    data = read_lock_bytes(path)
    return data, parse_lock(data, str(path))


def open_pick(
    hub: Hub, lock: Lock, policy: str | None, strict: bool, base: ModelRef | None
) -> OpenedPick:
    """Open base and experts of a pick and compare all files with the lock, as open_locked_merge."""
    pick = lock.pick(policy)
    _check_base(lock.base, base)
    members = [member for expert in pick.merged for member in expert.members]
    pins = [lock.pin(member) for member in members]
    notes = check_drift(hub, pins if base else [lock.base, *pins], strict)
    opened_base, *opened = map_all(
        lambda pin: (
            open_ref(hub, base)
            if base and pin is lock.base
            else open_source(hub, pin.ref, pin.source)
        ),
        [lock.base, *pins],
    )
    pairs = zip((opened_base, *opened), (lock.base, *pins), strict=True)
    raise_together(
        IntegrityError,
        [problem for model, pin in pairs for problem in _differences(model, pin)],
        "Find out who changed it, or choose again with `hubmerge select`.",
    )
    check_bases(opened, opened_base)
    by_key = dict(zip((member.key for member in members), opened, strict=True))
    experts = (
        average_members(
            opened_base, [by_key[member.key] for member in expert.members], expert.shares
        )
        for expert in pick.merged
    )
    return OpenedPick(pick, opened_base, tuple(experts), notes)


def average_members(
    base: OpenedModel, members: Sequence[OpenedModel], shares: Sequence[float]
) -> OpenedModel:
    """The mean of several opened steps of one expert as the last of them; one step as it is.

    `shares` weight the steps. Raises CheckpointError if a step does not fit the base.
    """
    *_, last = members
    if len(members) == 1:
        return last
    checkpoints = [restack(base.checkpoint, member.checkpoint) for member in members]
    mean = average_checkpoints(base.checkpoint, checkpoints, DEFAULT_OPTIONS, shares)
    return dataclasses.replace(last, checkpoint=mean)


def open_merged_source(hub: Hub, base: OpenedModel, source: Source) -> OpenedModel:
    """Open an expert of a manifest at its commit, or the mean of those that it averages.

    Raises IntegrityError, and CheckpointError for a step that does not fit the base.
    """
    return average_members(
        base,
        [open_source(hub, source_ref(member), member) for member in source.members],
        source.shares,
    )


def source_ref(source: Source) -> ModelRef:
    """Parse the label of a source in a manifest, which has the form of a reference."""
    revision = source.label.partition("@")[2].removesuffix(f"/{source.folder or ''}")
    return ModelRef(
        check_repo_id(source.name),
        revision=check_revision(revision),
        subfolder=check_inner_path(source.folder) if source.folder else None,
    )


def open_source(hub: Hub, ref: ModelRef, source: Source) -> OpenedModel:
    """Open a checkpoint at its commit, whatever `ref` resolves to now; raises IntegrityError."""
    if source.is_local:
        raise UsageError(f"{source.label} was a local folder, which has no commit.")
    ref = dataclasses.replace(ref, subfolder=source.folder)
    revision = Revision(ref, source.sha, source.step, "commit")
    try:
        return open_pinned(hub, pin_revision(hub, revision))
    except NotOnHub as error:
        raise IntegrityError(
            f"{source.label} ({source.sha}) no longer exists: {error.message}",
            "Restore it, or choose again with `hubmerge select`.",
        ) from error


def _check_base(pin: Pin, base: ModelRef | None) -> None:
    """Raise UsageError unless the user names a local base: a lock must not choose local folders."""
    if pin.source.is_local and base is None:
        raise UsageError(
            f"The base of the lock was the folder {pin.source.name}, and a lock does not decide "
            "which folders are read.",
            shlex.join(["Add", "--base", pin.source.name]) + ".",
        )
    if base and not (pin.source.is_local and base.is_local):
        raise UsageError(f"The lock pins its base, {pin.source.label}.", "Leave out --base.")


def _differences(model: OpenedModel, pin: Pin) -> Iterator[str]:
    manifest = model.manifest
    if manifest and not manifest.is_merge and manifest.step != pin.source.step:
        yield (
            f"{pin.source.label} is step {manifest.step} by its manifest, and the lock says "
            f"{pin.source.step}."
        )
    if model.files == pin.files and pin.source.weights not in (None, model.weights_digest):
        yield (
            f"{pin.source.label} has weights with the digest {model.weights_digest[:12]}, and the "
            f"lock says {str(pin.source.weights)[:12]}."
        )
    for name in sorted(model.files.keys() | pin.files.keys()):
        actual, pinned = model.files.get(name), pin.files.get(name)
        if actual != pinned:
            yield (
                f"{name} of {pin.source.label} has SHA-256 {actual or 'none, as it is missing'}, "
                f"and the lock pins {pinned or 'no such file'}."
            )
