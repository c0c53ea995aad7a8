"""A folder that is there whole or not at all: written beside its place and renamed into it.

POSIX only: the lock is flock(2), and a folder is made durable by fsync(2) on its descriptor.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubmerge.errors import CheckpointError


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits; CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


@contextmanager
def whole_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `out`; when the block ends well, it becomes `out`.

    Until then `out` is as it was, whatever happens: an error removes what was written, and what a
    killed process left is removed by the next one. A folder that is not empty is replaced only if
    `replace`, and only if it holds safetensors files. Raises CheckpointError if `out` is taken,
    if another process is writing it, or if the disk refuses.
    """
    out = Path(os.path.abspath(out))
    try:
        _check_place(out, replace)
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out) as partial:
            yield partial
            _sync(partial)
            _check_place(out, replace)
            _put(partial, out)
    except OSError as error:
        raise CheckpointError(
            f"{out} could not be written: {error.strerror or error}.", "Nothing was left behind."
        ) from error


def _check_place(out: Path, replace: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()) or not out.name:
        raise CheckpointError(f"{out} is not a folder that can be written.")
    held = os.listdir(out) if out.exists() else []
    if held and not replace:
        raise CheckpointError(
            f"{out} exists and is not empty.",
            "Choose another place, or say --replace.",
        )
    # A folder of something else (a home, a repository) was surely not meant.
    if held and not any(name.endswith(".safetensors") for name in held):
        raise CheckpointError(f"{out} holds no checkpoint, so it is not replaced.")


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """The partial folder is its own lock: whoever holds it writes, and its contents are his."""
    partial = out.parent / f".{out.name}.partial"
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(descriptor, partial, out)
        _empty(partial)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int, partial: Path, out: Path) -> None:
    """Take the folder, or raise; it may have been renamed away between opening and locking."""
    mine = os.fstat(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(mine, os.lstat(partial))
    except (BlockingIOError, FileNotFoundError):
        same = False
    # In a shared folder such as /tmp someone else could have made it, and read or change our bytes.
    if not same or mine.st_uid != os.geteuid():
        raise CheckpointError(
            f"{out} is being written by another process.", "Wait for it, or choose another place."
        )


def _empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _put(partial: Path, out: Path) -> None:
    """Move the whole folder into its place, and only then let go of the one it replaces.

    POSIX cannot exchange two folders, so killed between the two renames we leave `out` absent, the
    old one whole in .NAME.replaced and the new one whole in .NAME.partial: never a mixture.
    """
    old = out.parent / f".{out.name}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    try:
        os.rename(partial, out)
    except BaseException:
        if old.exists():
            os.rename(old, out)
        raise
    _sync_one(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make a folder and all in it durable: a name must never outlive its bytes."""
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(parent) / name)
        _sync_one(Path(parent))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
