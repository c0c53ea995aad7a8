"""hubmerge verify: check a model against its manifest and lock, and rebuild it on request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hubmerge.durable import hash_file
from hubmerge.errors import CheckpointError, IntegrityError, UsageError
from hubmerge.flows.check import Check
from hubmerge.flows.rebuild import check_rebuild
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.lock import LOCK_FILE, Lock, Pick
from hubmerge.lock_file import parse_lock, read_lock_bytes
from hubmerge.manifest import MANIFEST_JSON, Manifest
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.settings import record_params, restore_settings
from hubmerge.opening.drift import check_pin
from hubmerge.opening.integrity import weight_files_in
from hubmerge.opening.locked_experts import source_ref
from hubmerge.opening.opened_model import PinnedModel
from hubmerge.opening.references import pin
from hubmerge.progress import Progress
from hubmerge.recipe_ids import recipe_id
from hubmerge.refs import ModelRef, check_inner_path
from hubmerge.source import Source
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import MOE_CONFIG, read_moe_config


def verify(
    hub: Hub, ref: ModelRef, lock_file: Path | None, scratch: Path | None, progress: Progress
) -> list[Check]:
    """Run all checks, even if some find problems.

    The checks are: the SHA-256 of each file; the lock next to a merge, or `lock_file`, and whether
    one of its picks is this merge; whether the names of base and experts still point to the pinned
    commits. With `scratch`, an empty folder, the merge is made again there and compared byte by
    byte; a trained model is not trained again. Raises UsageError for a model without a manifest.
    """
    pinned = pin(hub, ref)
    manifest = pinned.manifest
    if manifest is None:
        raise UsageError(
            f"{pinned.revision.label} has no {MANIFEST_JSON} to check it against.",
            "Name a model that hubmerge trained or merged.",
        )
    needs_lock = manifest.is_moe and manifest.lock is not None and not scratch
    if not manifest.is_merge and (lock_file or scratch) and not needs_lock:
        article = "an" if manifest.is_expert else "a"
        raise UsageError(
            f"{pinned.revision.label} is {article} {manifest.noun}: it has no lock and is not "
            "merged.",
            _way_to_compare(manifest) if scratch else "",
        )
    checks = list(_check_files(hub, pinned, manifest))
    lock_of_merge, lock_checks = _check_lock(hub, pinned, manifest, lock_file)
    checks += lock_checks
    checks += _check_pins(hub, (manifest.base, *manifest.experts), lock_of_merge)
    if scratch is not None:
        checks += check_rebuild(hub, manifest, scratch, progress)
    return checks


def verify_lock(hub: Hub, path: Path) -> list[Check]:
    """Check a lock by itself: its numbers, and the names of its base and of all its experts.

    Raises UsageError without such a file, and IntegrityError for a lock that is not valid.
    """
    data = read_lock_bytes(path)
    lock = parse_lock(data, str(path))
    found = f"{len(lock.picks)} picks, whose numbers follow from their accuracies"
    sources = [lock.base.source, *(pinned.source for pinned in lock.experts)]
    return [Check(path.name, found), *_check_pins(hub, sources, lock)]


def read_lock_of(hub: Hub, ref: ModelRef | None, lock_file: Path | None) -> Lock:
    """Return the lock in `lock_file`, or else the one next to a model.

    Raises UsageError if there is none, IntegrityError for an invalid one.
    """
    if lock_file is not None:
        return parse_lock(read_lock_bytes(lock_file), str(lock_file))
    data = _read_published_lock(hub, pin(hub, ref)) if ref else None
    if data is None:
        raise UsageError(f"{ref} has no {LOCK_FILE}.", "Name the lock it was made from: --lock.")
    return parse_lock(data, f"{LOCK_FILE} of {ref}")


def _way_to_compare(manifest: Manifest) -> str:
    verb = "Extract" if manifest.extracted_from else "Train"
    return f"{verb} it again with `{manifest.command}` to compare."


def _check_files(hub: Hub, pinned: PinnedModel, manifest: Manifest) -> Iterator[Check]:
    """Check the files that the manifest lists, and find weights that it does not list."""
    try:
        folder = pinned.revision.ref.path or fetch(hub, pinned.revision)
    except IntegrityError as error:
        yield Check("files", "other bytes than the Hub lists", error.message)
        return
    if not manifest.files:
        yield Check("files", "none", f"{MANIFEST_JSON} lists no files.")
    for name, digest in manifest.files.items():
        yield _check_file(folder, name, digest)
    for name in sorted(weight_files_in(folder, manifest) - manifest.files.keys()):
        yield Check(name, "not in the manifest", f"{MANIFEST_JSON} does not list {name}.")
    if manifest.is_moe:
        yield _check_moe(folder, manifest)


def _check_moe(folder: Path, manifest: Manifest) -> Check:
    """Check that configuration, manifest and experts' folders of a mixture of experts agree."""
    try:
        tensors = len(open_checkpoint(folder).index)
    except CheckpointError as error:
        return Check(MOE_CONFIG, "not a mixture", error.message)
    config = read_moe_config(folder)
    if config.base_digest != manifest.base.digest:
        return Check(
            MOE_CONFIG, "another base", f"{MOE_CONFIG} and {MANIFEST_JSON} name different bases."
        )
    experts = len(config.experts)
    return Check(MOE_CONFIG, f"{experts} experts, {tensors} tensors")


def _check_file(folder: Path, name: str, digest: str) -> Check:
    try:
        path = folder / check_inner_path(name)
    except UsageError as error:
        return Check(name, "", error.message)
    if not path.is_file():
        return Check(name, "missing", f"{name} is missing.")
    actual = hash_file(path)
    if actual == digest:
        return Check(name, f"SHA-256 {actual[:12]}")
    problem = f"{name} has SHA-256 {actual}, but {MANIFEST_JSON} lists {digest}."
    return Check(name, f"SHA-256 {actual[:12]}", problem)


def _check_lock(
    hub: Hub, pinned: PinnedModel, manifest: Manifest, given: Path | None
) -> tuple[Lock | None, list[Check]]:
    """Read the lock of a merge, if possible, and check that the merge was made from it."""
    published = _read_published_lock(hub, pinned)
    if published is None and given is None:
        if manifest.lock is None:
            return None, []
        problem = f"The merge was made from lock {manifest.lock}, which is not next to it."
        return None, [Check(LOCK_FILE, "missing", problem)]
    locks = {LOCK_FILE: published, str(given): read_lock_bytes(given) if given else None}
    available = {name: data for name, data in locks.items() if data is not None}
    checks = [_check_lock_digest(name, data, manifest) for name, data in available.items()]
    name, data = list(available.items())[-1]
    try:
        parsed = parse_lock(data, name)
        pick = _find_pick(parsed, manifest)
    except (IntegrityError, UsageError) as error:
        return None, [*checks, Check(name, "not a lock", error.message)]
    return parsed, [*checks, _check_recipe(parsed, pick, manifest)]


def _read_published_lock(hub: Hub, pinned: PinnedModel) -> bytes | None:
    path = pinned.revision.ref.path
    if path is None:
        return read_file(hub, pinned.revision, LOCK_FILE)
    return read_lock_bytes(path / LOCK_FILE) if (path / LOCK_FILE).is_file() else None


def _check_lock_digest(name: str, data: bytes, manifest: Manifest) -> Check:
    digest = hashlib.sha256(data).hexdigest()
    made_from = f"from lock {manifest.lock}" if manifest.lock else "without a lock"
    problem = f"{name} has SHA-256 {digest}, but the merge was made {made_from}."
    return Check(name, f"SHA-256 {digest[:12]}", None if digest == manifest.lock else problem)


def _find_pick(lock: Lock, manifest: Manifest) -> Pick | None:
    for pick in lock.picks:
        params = {**_full_params(lock, pick), **_form(manifest)}
        if recipe_id(lock.base.source, pick.merged, lock.method, params) == manifest.recipe:
            return pick
    return None


def _full_params(lock: Lock, pick: Pick) -> dict[str, Any]:
    """Return a pick's parameters with defaults filled in; those of a mixture are complete."""
    if lock.is_moe:
        return dict(pick.params)
    params = record_params(*restore_settings(find_method(lock.method), pick.params, ()))
    return {**params, **lock.options.chosen}


def _form(manifest: Manifest) -> dict[str, Any]:
    """Return the parameter of a merge that its lock does not decide: that it is an adapter."""
    return {name: value for name, value in manifest.params.items() if name == "as_lora"}


def _check_recipe(lock: Lock, pick: Pick | None, manifest: Manifest) -> Check:
    if pick is None:
        problem = "No pick of the lock has the experts, method and parameters of the merge."
        return Check("recipe", manifest.recipe[:12], problem)
    matches = (set(pick.merged), lock.base.source) == (set(manifest.experts), manifest.base)
    problem = (
        f"{MANIFEST_JSON} does not describe base and experts like pick {pick.policy!r} of its lock."
    )
    return Check("recipe", f"pick {pick.policy!r}", None if matches else problem)


def _check_pins(hub: Hub, sources: Sequence[Source], lock: Lock | None) -> Iterator[Check]:
    """Check that the names of base and experts still point to the pinned commits."""
    pins = {pinned.source.label: pinned for pinned in (lock.base, *lock.experts)} if lock else {}
    members = [member for source in sources for member in source.members]
    for source in dict.fromkeys(members):
        if source.is_local:
            yield Check(source.label, "a local folder, not checked")
            continue
        try:
            pinned = pins.get(source.label)
            ref = pinned.ref if pinned else source_ref(source)
        except UsageError as error:
            yield Check(source.label, "", error.message)
            continue
        status = check_pin(hub, source.label, ref, source.sha)
        current = status.current_sha[:12] if status.current_sha else "nothing"
        yield Check(source.label, f"means {current}", status.drift)
