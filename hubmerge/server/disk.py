"""The disk of the Hub: whether something fits, and a reserve with which a Hub can start anyway."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

from hubmerge.server.http_errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MIN_FREE_BYTES = 1 << 20
_RESERVE, _RESERVE_BYTES = "reserve", 64 << 10


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk, or the user's part of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def check_space(folder: Path, size: int = 0) -> None:
    """Raise DiskFull if so many bytes do not fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if size + _MIN_FREE_BYTES > free:
        what = f"A file of {size} bytes does not fit" if size else "Nothing more fits"
        raise DiskFull(
            f"{what} on the disk of this Hub, which has {free} bytes free: delete repositories, "
            "then run `hubmerge hub gc`."
        )


def keep_reserve(data: Path) -> None:
    """Keep some space, so that a Hub can write what it needs to start on a full disk."""
    file = data / _RESERVE
    if not file.exists():
        try:
            file.write_bytes(bytes(_RESERVE_BYTES))
        except OSError:
            file.unlink(missing_ok=True)


def release_reserve(data: Path) -> None:
    """Free the reserved space."""
    with suppress(OSError):
        (data / _RESERVE).unlink()
