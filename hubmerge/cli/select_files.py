"""The files that `hubmerge select` reads and writes: locks and figures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hubmerge.cards.figures import heat_map_png, selection_png
from hubmerge.cards.selection import CSV, CURVES, HEAT_MAP, selection_csv
from hubmerge.cli.options import Option
from hubmerge.durable import write_atomic
from hubmerge.errors import IntegrityError, UsageError
from hubmerge.lock import LOCK_FILE, Lock
from hubmerge.lock_file import parse_lock, read_lock_bytes


@dataclass(frozen=True)
class SelectFiles:
    """Where a selection is written to."""

    lock: Annotated[Path, Option(help="File to write the lock to.")] = Path(LOCK_FILE)
    out: Annotated[
        Path | None, Option(help="Folder for heatmap.png, curves.png and selection.csv. [none]")
    ] = None

    def check(self) -> None:
        """Raises UsageError if a path is unusable, or holds a file that is not a lock."""
        path, out = self.lock, self.out
        if out is not None and out.exists() and not out.is_dir():
            raise UsageError(f"--out {out} is not a folder.", "Choose another path.")
        if path.is_dir():
            raise UsageError(f"--lock {path} is a folder.", f"Write --lock {path / LOCK_FILE}.")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"There is no folder {path.absolute().parent}.", "Create it first.")
        if path.exists():
            _check_replaceable(path)

    def write(self, lock: Lock, locks: Path) -> None:
        """Write the lock, a copy in `locks` that `hubmerge retain` reads, and the figures."""
        data = lock.to_bytes()
        locks.mkdir(parents=True, exist_ok=True)
        write_atomic(locks / f"{hashlib.sha256(data).hexdigest()[:12]}.lock", data)
        write_atomic(self.lock, data, mode=0o644)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomic(self.out / HEAT_MAP, heat_map_png(lock), mode=0o644)
            write_atomic(self.out / CURVES, selection_png(lock), mode=0o644)
            write_atomic(self.out / CSV, selection_csv(lock).encode(), mode=0o644)


def read_lock_file(path: Path) -> Lock:
    """Read a lock; raises UsageError or IntegrityError."""
    return parse_lock(read_lock_bytes(path), str(path))


def _check_replaceable(path: Path) -> None:
    """Raises UsageError for a file that is no lock, which is probably not meant to be replaced."""
    try:
        read_lock_file(path)
    except IntegrityError as error:
        raise UsageError(
            f"Not replaced: {error.message}", "Choose another path with --lock."
        ) from error
