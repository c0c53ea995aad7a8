"""A digest of a folder that is part of a recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hubmerge.durable import hash_file
from hubmerge.errors import UsageError


def list_files(folder: Path) -> list[Path]:
    """The files in the folder of a base, sorted; raises UsageError if there is no such folder."""
    if not folder.is_dir():
        raise UsageError(
            f"There is no base at {folder}.", "The suite's notes describe how to make it."
        )
    return sorted(path for path in folder.rglob("*") if path.is_file())


def folder_digest(folder: Path) -> str:
    """64 hex digits over the names and bytes of the files."""
    lines = [
        f"{path.relative_to(folder).as_posix()} {hash_file(path)}" for path in list_files(folder)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
