"""Restore a revision that is stored as a delta to its base."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.file_digests import file_digests
from hubmerge.hub.environment import home
from hubmerge.manifest import Manifest, files_digest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.refs import ModelRef, check_repo_id, is_sha, printable
from hubmerge.source import Source
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem
from hubmerge.weights import delta_file
from hubmerge.weights.atomic_folder import atomic_folder
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.delta_file import Piece, Rounding, open_delta, restore
from hubmerge.weights.layout import regular_file

DELTA_JSON = "delta.json"
FORMAT = 1
_MAX_BYTES = 100_000_000


@dataclass(frozen=True)
class DeltaManifest:
    """delta.json: how to restore a checkpoint from a delta, and how far it is from the original.

    `files` maps each file of the restored checkpoint to its SHA-256; files without weights are
    stored next to the delta. `index` is the name of the index of shards, if there is one.
    """

    base: Source
    original: Source
    files: Mapping[str, str]
    pieces: tuple[Piece, ...]
    rounding: Rounding
    index: str | None = None
    format: int = FORMAT

    @property
    def base_ref(self) -> ModelRef:
        """The base at its commit; raises UsageError if it is not a repository."""
        return ModelRef(repo_id=check_repo_id(self.base.name), revision=self.base.sha)

    @property
    def copied_files(self) -> tuple[str, ...]:
        """The files that are restored by copying them."""
        written = {piece.file for piece in self.pieces} | {self.index}
        return tuple(name for name in self.files if name not in written)

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal values give equal bytes."""
        fields = dataclasses.asdict(self)
        return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    def restored_manifest(self, manifest: Manifest) -> Manifest:
        """The manifest of the delta, with the restored files as its `files`."""
        return manifest.with_files(self.files)


def is_delta(folder: Path) -> bool:
    """Whether a folder holds a delta instead of weights."""
    return (folder / DELTA_JSON).is_file() and (folder / delta_file.DELTA_WEIGHTS).is_file()


def read_delta(
    folder: Path, manifest: Manifest | None, label: str
) -> tuple[DeltaManifest, Manifest]:
    """Read the delta.json of a folder; returns it with the manifest; raises IntegrityError.

    A delta that is not listed in a manifest is refused, so that it is not taken for weights.
    """
    if manifest is None or not {DELTA_JSON, delta_file.DELTA_WEIGHTS} <= manifest.files.keys():
        raise IntegrityError(f"{label} holds a delta that is not listed in its manifest.")
    path = regular_file(folder, DELTA_JSON)
    if path.stat().st_size > _MAX_BYTES:
        raise IntegrityError(f"{DELTA_JSON} of {label} is larger than {_MAX_BYTES} bytes.")
    delta = parse_delta(path.read_bytes(), label)
    problems = [f"{DELTA_JSON} of {label}: {problem}" for problem in _problems(delta, manifest)]
    raise_together(IntegrityError, problems)
    return delta, manifest


def parse_delta(data: bytes, label: str) -> DeltaManifest:
    """Parse an untrusted delta.json; raises IntegrityError."""
    try:
        return validate_json(DeltaManifest, data)
    except ValidationError as error:
        reason = first_problem(error)
        raise IntegrityError(
            f"{DELTA_JSON} of {label} cannot be read: {printable(reason)[:200]}."
        ) from error


def restore_to_cache(
    folder: Path, delta: DeltaManifest, label: str, open_base: Callable[[], OpenedModel]
) -> Path:
    """Restore a delta once into a folder of the home directory; returns that folder.

    Raises IntegrityError if the base or the delta has changed since the delta was made.
    """
    cached = home() / "restored" / files_digest(delta.files)[:32]
    if not _files_match(cached, delta.files):
        base = open_base()
        with atomic_folder(cached, replace=True) as out:
            restore_into(out, folder, delta, label, base)
    return cached


def restore_into(
    out: Path, folder: Path, delta: DeltaManifest, label: str, base: OpenedModel
) -> None:
    """Write the restored checkpoint into an empty folder, and compare it with delta.json.

    Raises IntegrityError if a file differs, or if the base has another digest; its name may differ.
    """
    if base.digest != delta.base.digest:
        raise IntegrityError(
            f"{label} is a delta to {delta.base.label} with digest {delta.base.digest}, and "
            f"{base.revision.label} has {base.digest}.",
            "Restore the base that it was made from.",
        )
    write_checkpoint(out, folder, delta, base.checkpoint)
    if not _files_match(out, delta.files):
        wrong = [n for n, digest in delta.files.items() if not _files_match(out, {n: digest})]
        raise IntegrityError(
            f"{label} does not restore to the files of {DELTA_JSON}: {', '.join(wrong)} differs.",
            "Fetch it again; if it still differs, do not trust it.",
        )


def write_checkpoint(out: Path, folder: Path, delta: DeltaManifest, base: Checkpoint) -> None:
    """Write base + delta and the copied files into an empty folder, without comparing them."""
    restore(base, open_delta(folder), delta.pieces, out, delta.index)
    for name in delta.copied_files:
        shutil.copyfile(regular_file(folder, name), out / name)


def _files_match(folder: Path, files: Mapping[str, str]) -> bool:
    expected = {folder / name: digest for name, digest in files.items()}
    return all(map(Path.is_file, expected)) and file_digests(expected) == expected


def _problems(delta: DeltaManifest, manifest: Manifest) -> Iterator[str]:
    """A sentence for everything that would write outside the folder or use another base."""
    if delta.format != FORMAT:
        yield f"it has format {delta.format}, and this hubmerge knows {FORMAT}."
    if delta.base.digest != manifest.base.digest:
        yield "it names another base than its manifest."
    try:
        if not is_sha(str(delta.base_ref.revision)):
            yield "its base is not pinned to a commit."
    except UsageError as error:
        yield error.message
    written = {piece.file for piece in delta.pieces} | ({delta.index} if delta.index else set())
    if any(not name.endswith((".safetensors", ".safetensors.index.json")) for name in written):
        yield "it restores weights into a file that is not for weights."
    if invalid := [n for n in (*delta.files, *written) if not _is_plain_name(n)]:
        yield f"{printable(invalid[0])[:40]!r} is not the name of a file."
    if not written <= delta.files.keys() or not set(delta.copied_files) <= manifest.files.keys():
        yield "it names files without a SHA-256."


def _is_plain_name(name: str) -> bool:
    return name.isprintable() and not name.startswith(("-", ".")) and not set(name) & set("/\\:")
