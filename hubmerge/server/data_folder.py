"""The data folder of a Hub: only its owner may read it, because private repositories are in it."""

from __future__ import annotations

import os
from pathlib import Path

from hubmerge.errors import HubmergeError

_OTHERS = 0o077
# One of these is in every data folder that a Hub has used.
_SIGNS = ("repos", "tokens.json", "lease", "lock")


def open_data_folder(data: Path) -> Path:
    """Return the folder, resolved; it is created, or closed to other users, where needed.

    Raises HubmergeError if it belongs to another user, or if others may read it and it holds files
    that are no Hub's.
    """
    data = data.resolve()
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise HubmergeError(
            f"Cannot create the data folder {data}: {error.strerror}.", "Choose another one."
        ) from error
    status = data.stat()
    if status.st_uid != os.geteuid():
        raise HubmergeError(
            f"The data folder {data} belongs to another user, who could read private repositories.",
            "Choose a folder of your own with --data, or change the owner of this one.",
        )
    if status.st_mode & _OTHERS:
        names = {entry.name for entry in os.scandir(data)}
        if names and not names & set(_SIGNS):
            raise HubmergeError(
                f"{data} holds other files, and other users may read it: "
                "private repositories would be in the open.",
                "Choose an empty folder with --data, or run chmod 700 on this one.",
            )
        data.chmod(0o700)
    return data
