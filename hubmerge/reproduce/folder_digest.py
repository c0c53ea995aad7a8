"""The identity of a folder that a recipe brings along."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hubmerge.durable import hash_file
from hubmerge.errors import UsageError


def files_of(folder: Path) -> list[Path]:
    """The files of a base's folder; raises UsageError if there is none."""
    if not folder.is_dir():
        raise UsageError(f"There is no base at {folder}.", "The suite's notes say how it is made.")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest_of(folder: Path) -> str:
    """A digest of the names and bytes of its files."""
    said = [f"{path.relative_to(folder).as_posix()} {hash_file(path)}" for path in files_of(folder)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()
