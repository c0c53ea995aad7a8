"""Write a folder atomically: fill a folder next to the target, then rename it.

POSIX only: the lock is flock(2), and a folder is made durable by fsync(2) on its descriptor.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubmerge.durable import flush_to_disk, fsync_folder, try_lock
from hubmerge.errors import Busy, CheckpointError


@contextmanager
def atomic_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder next to `out`; when the block ends without an error, it becomes `out`.

    Until then `out` does not change: an error removes what was written, and the next process
    removes what a killed one left. Raises what `check_target` raises, Busy if another process is
    writing `out`, and CheckpointError if the disk fails here. Errors of the block pass unchanged.
    """
    out = Path(os.path.abspath(out))
    check_target(out, replace)
    with _locked_partial(out) as partial:
        try:
            with disk_errors_name(out):
                _clear(partial)
            yield partial
            with disk_errors_name(out):
                _flush_folder_to_disk(partial)
                check_target(out, replace)
                _move_into_place(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def check_target(out: Path, replace: bool = False) -> None:
    """Raise CheckpointError unless a checkpoint can be written to `out`.

    A folder that is not empty is replaced only if `replace`, and only if it holds safetensors.
    """
    with disk_errors_name(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()) or not out.name:
            raise CheckpointError(f"{out} is not a folder that can be written.")
        parent = nearest_existing(out.absolute().parent)
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise CheckpointError(f"{parent} is not a folder that can be written.")
        names = os.listdir(out) if out.exists() else []
    if names and not replace:
        raise CheckpointError(
            f"{out} exists and is not empty.",
            "Choose another folder, or add --replace.",
        )
    # A folder of something else (a home, a repository) was certainly not intended.
    if names and not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{out} holds no checkpoint, so it is not replaced.")


def nearest_existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


@contextmanager
def disk_errors_name(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a CheckpointError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path} could not be written: {reason}.") from error


@contextmanager
def _locked_partial(out: Path) -> Iterator[Path]:
    """The partial folder, locked: whoever holds its lock may write it and owns its contents."""
    partial = out.parent / f".{out.name}.partial"
    with disk_errors_name(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with disk_errors_name(out):
            _lock(descriptor, partial, out)
        yield partial
    finally:
        os.close(descriptor)


def _lock(descriptor: int, partial: Path, out: Path) -> None:
    """Lock the folder, or raise; it may have been renamed between opening and locking."""
    status = os.fstat(descriptor)
    # In a shared folder such as /tmp another user could have made it, and could change our files.
    if status.st_uid != os.geteuid():
        raise CheckpointError(f"{partial} belongs to another user.", "Choose another folder.")
    try:
        locked = try_lock(descriptor) and os.path.samestat(status, os.lstat(partial))
    except FileNotFoundError:
        locked = False
    if not locked:
        raise Busy(
            f"{out} is being written by another process.", "Wait for it, or choose another folder."
        )


def _clear(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _move_into_place(partial: Path, out: Path) -> None:
    """Rename the complete folder to `out`, and then delete the folder that it replaces.

    POSIX cannot exchange two folders: if the process is killed between the two renames, `out` is
    missing, the old folder is complete in .NAME.replaced and the new one in .NAME.partial.
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
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush_folder_to_disk(folder: Path) -> None:
    """Flush a folder and all its files, so that no name is on disk without its bytes."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with (Path(parent) / name).open("rb") as file:
                flush_to_disk(file)
        fsync_folder(Path(parent))
