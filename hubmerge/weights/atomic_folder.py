"""A folder that is there whole or not at all: written beside its place and renamed into it.

POSIX only: the lock is flock(2), and a folder is made durable by fsync(2) on its descriptor.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubmerge.durable import fsync_folder, settle, try_lock
from hubmerge.errors import Busy, CheckpointError


@contextmanager
def whole_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `out`; when the block ends well, it becomes `out`.

    Until then `out` is as it was, whatever happens: an error removes what was written, and what a
    killed process left is removed by the next one. Raises what `check_place` raises, Busy if
    another process is writing `out`, and CheckpointError if the disk refuses what is done here; an
    error of the block is the block's own.
    """
    out = Path(os.path.abspath(out))
    check_place(out, replace)
    with _locked(out) as partial:
        try:
            with blamed(out):
                _empty(partial)
            yield partial
            with blamed(out):
                _sync(partial)
                check_place(out, replace)
                _put(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def check_place(out: Path, replace: bool = False) -> None:
    """Raise CheckpointError unless a checkpoint can be put at `out`.

    A folder that is not empty is replaced only if `replace`, and only if it holds safetensors.
    """
    with blamed(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()) or not out.name:
            raise CheckpointError(f"{out} is not a folder that can be written.")
        above = existing(out.absolute().parent)
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            raise CheckpointError(f"{above} is not a folder that can be written.")
        held = os.listdir(out) if out.exists() else []
    if held and not replace:
        raise CheckpointError(
            f"{out} exists and is not empty.",
            "Choose another place, or say --replace.",
        )
    # A folder of something else (a home, a repository) was surely not meant.
    if held and not any(name.endswith(".safetensors") for name in held):
        raise CheckpointError(f"{out} holds no checkpoint, so it is not replaced.")


def existing(path: Path) -> Path:
    """The path itself, or the nearest thing above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


@contextmanager
def blamed(place: Path) -> Iterator[None]:
    """Say which place could not be written, when the disk refuses what the block asks of it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{place} could not be written: {reason}.") from error


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """The partial folder is its own lock: whoever holds it writes, and its contents are his."""
    partial = out.parent / f".{out.name}.partial"
    with blamed(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with blamed(out):
            _lock(descriptor, partial, out)
        yield partial
    finally:
        os.close(descriptor)


def _lock(descriptor: int, partial: Path, out: Path) -> None:
    """Take the folder, or raise; it may have been renamed away between opening and locking."""
    mine = os.fstat(descriptor)
    # In a shared folder such as /tmp someone else could have made it, and read or change our bytes.
    if mine.st_uid != os.geteuid():
        raise CheckpointError(f"{partial} belongs to another user.", "Choose another place.")
    try:
        held = try_lock(descriptor) and os.path.samestat(mine, os.lstat(partial))
    except FileNotFoundError:
        held = False
    if not held:
        raise Busy(
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
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make a folder and all in it durable: a name must never outlive its bytes."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with (Path(parent) / name).open("rb") as file:
                settle(file)
        fsync_folder(Path(parent))
