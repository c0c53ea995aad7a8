"""Files that are uploaded in parts and not complete yet."""

from __future__ import annotations

import time
from pathlib import Path


def remove_old_parts(folder: Path, age_s: float, dry_run: bool = False) -> int:
    """Remove uploads that were given up, those without a part for so long; returns their bytes."""
    size = 0
    for file in folder.glob("*"):
        status = file.stat()
        if status.st_mtime < time.time() - age_s:
            size += status.st_size
            if not dry_run:
                file.unlink(missing_ok=True)
    return size
