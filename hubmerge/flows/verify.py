"""hubmerge verify: whether a model is what manifest and lock say, and can be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge import lock
from hubmerge.durable import hash_file
from hubmerge.errors import CheckpointError, HubError, HubUnreachable, IntegrityError, UsageError
from hubmerge.flows.merge import MergeRequest, merge_and_publish, prepare_inputs
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.lock import Lock, Pick, parse_lock, read_lock
from hubmerge.manifest import NAME, Manifest, Source, recipe_id
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.registry import parse_params
from hubmerge.opening.drift import stand
from hubmerge.opening.integrity import weights_beside
from hubmerge.opening.locked_experts import open_source
from hubmerge.opening.merge_inputs import Inputs
from hubmerge.opening.opened_model import Pinned
from hubmerge.opening.references import pin, versions
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, check_inner_path, check_repo_id, check_revision
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import CONFIG, read_moe_config


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, what was found, and what is wrong with it, if anything."""

    what: str
    found: str
    problem: str | None = None


def verify(
    hub: Hub, ref: ModelRef, lock_file: Path | None, scratch: Path | None, progress: Progress
) -> list[Check]:
    """Look at everything there is to check, whatever is found on the way.

    Each file's SHA-256; the lock beside a merge, or `lock_file`, and whether one of its picks is
    what was merged; whether base and experts still are where they were pinned. With `scratch`, an
    empty folder, a merge is made again there and compared byte by byte; what was trained, an expert
    or a mixture, is not. Raises UsageError for what has no manifest.
    """
    pinned = pin(hub, ref)
    manifest = pinned.manifest
    if manifest is None:
        raise UsageError(
            f"{pinned.revision.label} has no {NAME} to check it against.",
            "Only what hubmerge trained or merged can be verified.",
        )
    locked = manifest.is_moe and manifest.lock is not None and not scratch
    if not manifest.is_merge and (lock_file or scratch) and not locked:
        article = "an" if manifest.is_expert else "a"
        raise UsageError(
            f"{pinned.revision.label} is {article} {manifest.noun}: it has no lock and is not "
            "merged.",
            f"Train it again with `{manifest.command}` to compare." if scratch else "",
        )
    checks = list(_files(hub, pinned, manifest))
    said, found = _lock(hub, pinned, manifest, lock_file)
    checks += found
    checks += _standings(hub, manifest, said)
    if scratch is not None:
        checks += _rebuilt(hub, manifest, scratch, progress)
    return checks


def _files(hub: Hub, pinned: Pinned, manifest: Manifest) -> Iterator[Check]:
    """The files that the manifest vouches for, and weights for which it does not."""
    try:
        folder = pinned.revision.ref.path or fetch(hub, pinned.revision)
    except IntegrityError as error:
        yield Check("files", "other bytes than the Hub lists", error.message)
        return
    if not manifest.files:
        yield Check("files", "none", f"{NAME} vouches for no file.")
    for name, digest in manifest.files.items():
        yield _file(folder, name, digest)
    for name in sorted(weights_beside(folder, manifest) - manifest.files.keys()):
        yield Check(name, "not in the manifest", f"{NAME} does not vouch for {name}.")
    if manifest.is_moe:
        yield _mixture(folder, manifest)


def _mixture(folder: Path, manifest: Manifest) -> Check:
    """Whether a mixture's configuration, its manifest and its experts' folders say the same."""
    try:
        tensors = len(open_checkpoint(folder).index)
    except CheckpointError as error:
        return Check(CONFIG, "no mixture", error.message)
    config = read_moe_config(folder)
    if config.base_digest != manifest.base.digest:
        return Check(CONFIG, "another base", f"{CONFIG} and {NAME} name different bases.")
    experts = len(config.experts)
    return Check(CONFIG, f"{experts} experts, {tensors} tensors")


def _file(folder: Path, name: str, digest: str) -> Check:
    try:
        path = folder / check_inner_path(name)
    except UsageError as error:
        return Check(name, "", error.message)
    if not path.is_file():
        return Check(name, "missing", f"{name} is missing.")
    here = hash_file(path)
    if here == digest:
        return Check(name, f"SHA-256 {here[:12]}")
    problem = f"{name} has SHA-256 {here}, and its {NAME} says {digest}."
    return Check(name, f"SHA-256 {here[:12]}", problem)


def _lock(
    hub: Hub, pinned: Pinned, manifest: Manifest, given: Path | None
) -> tuple[Lock | None, list[Check]]:
    """The lock of a merge, if it can be read, and whether it is the one it was made from."""
    beside = _beside(hub, pinned)
    if beside is None and given is None:
        if manifest.lock is None:
            return None, []
        problem = f"{NAME} says it was made from the lock {manifest.lock}, which is not beside it."
        return None, [Check(lock.NAME, "missing", problem)]
    locks = {lock.NAME: beside, str(given): read_lock(given) if given else None}
    held = {name: data for name, data in locks.items() if data is not None}
    checks = [_same_lock(name, data, manifest) for name, data in held.items()]
    name, data = list(held.items())[-1]
    try:
        said = parse_lock(data, name)
        pick = _pick_of(said, manifest)
    except (IntegrityError, UsageError) as error:
        return None, [*checks, Check(name, "no lock", error.message)]
    return said, [*checks, _as_picked(said, pick, manifest)]


def _beside(hub: Hub, pinned: Pinned) -> bytes | None:
    path = pinned.revision.ref.path
    if path is None:
        return read_file(hub, pinned.revision, lock.NAME)
    return read_lock(path / lock.NAME) if (path / lock.NAME).is_file() else None


def _same_lock(name: str, data: bytes, manifest: Manifest) -> Check:
    digest = hashlib.sha256(data).hexdigest()
    made_from = f"was made from {manifest.lock}" if manifest.lock else "was made from no lock"
    problem = f"{name} has SHA-256 {digest}, and {NAME} says the merge {made_from}."
    return Check(name, f"SHA-256 {digest[:12]}", None if digest == manifest.lock else problem)


def _pick_of(said: Lock, manifest: Manifest) -> Pick | None:
    for pick in said.picks:
        params = _whole(said, pick)
        if recipe_id(said.base.source, pick.experts, said.method, params) == manifest.recipe:
            return pick
    return None


def _whole(said: Lock, pick: Pick) -> dict[str, Any]:
    """A pick's parameters with what it leaves to its defaults; a mixture's leave out nothing."""
    if said.is_mixture:
        return dict(pick.params)
    return parse_params(find_method(said.method), pick.params).model_dump()


def _as_picked(said: Lock, pick: Pick | None, manifest: Manifest) -> Check:
    if pick is None:
        problem = "Experts, method and parameters of the merge are those of no pick of its lock."
        return Check("recipe", manifest.recipe[:12], problem)
    same = (set(pick.experts), said.base.source) == (set(manifest.experts), manifest.base)
    problem = f"{NAME} tells other things of base and experts than its lock, pick {pick.policy!r}."
    return Check("recipe", f"pick {pick.policy!r}", None if same else problem)


def _standings(hub: Hub, manifest: Manifest, said: Lock | None) -> Iterator[Check]:
    """Whether base and experts are where they were."""
    asked = {pin.source.label: pin for pin in (said.base, *said.experts)} if said else {}
    for source in dict.fromkeys((manifest.base, *manifest.experts)):
        if source.is_local:
            yield Check(source.label, "a local folder, not looked at")
            continue
        try:
            pinned = asked.get(source.label)
            ref = pinned.ref if pinned else _ref_of(source)
        except UsageError as error:
            yield Check(source.label, "", error.message)
            continue
        standing = stand(hub, source.label, ref, source.sha)
        now = standing.now[:12] if standing.now else "nothing"
        yield Check(source.label, f"means {now}", standing.drift)


def _ref_of(source: Source) -> ModelRef:
    """Where a manifest says that a source was: its label, as it has the shape of a reference."""
    revision = source.label.partition("@")[2].removesuffix(f"/{source.folder or ''}")
    return ModelRef(
        check_repo_id(source.name),
        revision=check_revision(revision),
        subfolder=check_inner_path(source.folder) if source.folder else None,
    )


def _rebuilt(hub: Hub, manifest: Manifest, scratch: Path, progress: Progress) -> Iterator[Check]:
    """The same merge made anew, file by file."""
    try:
        again = _merged_again(hub, manifest, scratch, progress).files
    except HubUnreachable:
        raise
    except (HubError, IntegrityError, CheckpointError, UsageError) as error:
        yield Check("rebuilt", "", f"It cannot be made again: {error.message}")
        return
    for name in sorted(manifest.files.keys() | again.keys()):
        then, now = manifest.files.get(name, "none"), again.get(name, "none")
        problem = f"{name} has SHA-256 {now} when made again, and had {then}."
        yield Check(f"rebuilt {name}", f"SHA-256 {now[:12]}", None if now == then else problem)
    here = versions()
    for name, version in sorted(manifest.versions.items()):
        if here.get(name) != version:
            yield Check(f"version of {name}", f"{version} then, {here.get(name, 'none')} now")


def _merged_again(hub: Hub, manifest: Manifest, scratch: Path, progress: Progress) -> Manifest:
    params = dict(manifest.params)
    dtype = params.pop("dtype", None)
    method = find_method(manifest.method or "")
    inputs = Inputs(
        method=method,
        params=parse_params(method, params),
        base=open_source(hub, _ref_of(manifest.base), manifest.base),
        base_source=manifest.base,
        experts=tuple(open_source(hub, _ref_of(one), one) for one in manifest.experts),
        sources=manifest.experts,
    )
    # What was merged all the same may be merged again.
    request = MergeRequest(out=scratch / "again", dtype=dtype, allow_nonfinite=True)
    return merge_and_publish(hub, prepare_inputs(hub, request, inputs, scratch), progress).manifest
