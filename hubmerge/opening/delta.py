"""A revision that is stored as a delta to its base, made whole again wherever it is opened."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.hub.environment import home
from hubmerge.manifest import Manifest, Source, files_digest
from hubmerge.opening.opened_model import Opened
from hubmerge.refs import ModelRef, check_repo_id, is_sha, printable
from hubmerge.weights import delta_file
from hubmerge.weights.atomic_folder import whole_folder
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.delta_file import Piece, Rounding, open_delta, restore
from hubmerge.weights.layout import plain_file

TOLD = "delta.json"
FORMAT = 1
_BYTES = 100_000_000


@dataclass(frozen=True)
class Told:
    """delta.json: how a delta becomes a checkpoint again, and how far that is from the original.

    `files` maps each file of the restored checkpoint to its SHA-256; those that are no weights lie
    beside the delta. `index` names the index of shards, if there is one.
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
        """Where the base is; raises UsageError for what is no repository."""
        return ModelRef(repo_id=check_repo_id(self.base.name), revision=self.base.sha)

    @property
    def beside(self) -> tuple[str, ...]:
        """The files that are restored by copying them."""
        made = {piece.file for piece in self.pieces} | {self.index}
        return tuple(name for name in self.files if name not in made)

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same delta is the same bytes."""
        said = dataclasses.asdict(self)
        return (json.dumps(said, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    def vouching(self, manifest: Manifest) -> Manifest:
        """The delta's manifest, vouching for the restored files instead."""
        return manifest.with_files(self.files)


def is_delta(folder: Path) -> bool:
    """Whether a folder holds a delta instead of the weights themselves."""
    return (folder / TOLD).is_file() and (folder / delta_file.NAME).is_file()


def read_delta(folder: Path, manifest: Manifest | None, label: str) -> tuple[Told, Manifest]:
    """What a folder's delta.json tells, and its manifest; raises IntegrityError.

    A delta without a manifest that vouches for it is refused: its numbers would pass for weights.
    """
    if manifest is None or not {TOLD, delta_file.NAME} <= manifest.files.keys():
        raise IntegrityError(f"{label} holds a delta that no manifest vouches for.")
    path = plain_file(folder, TOLD)
    if path.stat().st_size > _BYTES:
        raise IntegrityError(f"{TOLD} of {label} is larger than {_BYTES} bytes.")
    told = parse_told(path.read_bytes(), label)
    problems = [f"{TOLD} of {label}: {problem}" for problem in _problems(told, manifest)]
    raise_together(IntegrityError, problems)
    return told, manifest


def parse_told(data: bytes, label: str) -> Told:
    """Read a delta.json that anybody may have written; raises IntegrityError."""
    try:
        return TypeAdapter(Told).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(
            f"{TOLD} of {label} cannot be read: {printable(reason)[:200]}."
        ) from error


def restored(folder: Path, told: Told, label: str, open_base: Callable[[], Opened]) -> Path:
    """The whole checkpoint that a delta stands for, restored once and kept in the home.

    Raises IntegrityError where base or delta are not what they were when it was made.
    """
    place = home() / "restored" / files_digest(told.files)[:32]
    if not _is_whole(place, told.files):
        base = open_base()
        with whole_folder(place, replace=True) as out:
            restore_into(out, folder, told, label, base)
    return place


def restore_into(out: Path, folder: Path, told: Told, label: str, base: Opened) -> None:
    """Write the whole checkpoint into an empty folder; raises IntegrityError unless it is as told.

    The base must be the very one: by its digest, whatever it is called.
    """
    if base.digest != told.base.digest:
        raise IntegrityError(
            f"{label} is a delta to {told.base.label} with digest {told.base.digest}, and "
            f"{base.revision.label} has {base.digest}.",
            "Put the base back that it was made from.",
        )
    write_whole_checkpoint(out, folder, told, base.checkpoint)
    if not _is_whole(out, told.files):
        wrong = [n for n, digest in told.files.items() if not _is_whole(out, {n: digest})]
        raise IntegrityError(
            f"{label} does not restore to what its {TOLD} says: {', '.join(wrong)} differs.",
            "Fetch it anew; if it differs again, do not trust it.",
        )


def write_whole_checkpoint(out: Path, folder: Path, told: Told, base: Checkpoint) -> None:
    """Write base + delta, and the files beside it, into an empty folder; nothing is compared."""
    restore(base, open_delta(folder), told.pieces, out, told.index)
    for name in told.beside:
        shutil.copyfile(plain_file(folder, name), out / name)


def _is_whole(folder: Path, files: Mapping[str, str]) -> bool:
    return all(
        (folder / name).is_file() and hash_file(folder / name) == digest
        for name, digest in files.items()
    )


def _problems(told: Told, manifest: Manifest) -> Iterator[str]:
    """Whatever would make a delta write outside its folder, or upon another base than it says."""
    if told.format != FORMAT:
        yield f"it has format {told.format}, and this hubmerge knows {FORMAT}."
    if told.base.digest != manifest.base.digest:
        yield "it names another base than its manifest."
    try:
        if not is_sha(str(told.base_ref.revision)):
            yield "its base is not pinned to a commit."
    except UsageError as error:
        yield error.message
    made = {piece.file for piece in told.pieces} | ({told.index} if told.index else set())
    if any(not name.endswith((".safetensors", ".safetensors.index.json")) for name in made):
        yield "it restores weights into a file that is not for weights."
    if strange := [n for n in (*told.files, *made) if not _is_plain(n)]:
        yield f"{printable(strange[0])[:40]!r} is not the name of a file."
    if not made <= told.files.keys() or not set(told.beside) <= manifest.files.keys():
        yield "it names files that nobody vouches for."


def _is_plain(name: str) -> bool:
    return name.isprintable() and not name.startswith(("-", ".")) and not set(name) & set("/\\:")
