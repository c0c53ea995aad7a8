"""Copy the files of a model besides its weights: configuration, tokenizer, processor, licence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hubmerge import model_files
from hubmerge.weights.atomic_folder import disk_errors_name
from hubmerge.weights.layout import regular_file


def side_files(folder: Path) -> tuple[str, ...]:
    """The paths, with "/", of the files besides the weights that a model needs, sorted.

    Raises CheckpointError if one of them is a link that leaves the folder, or not a regular file.
    """
    names = model_files.side_files(_paths_in(folder))
    for name in names:
        regular_file(folder, name)
    return names


def other_files(folder: Path) -> tuple[str, ...]:
    """The files that `copy_side_files` leaves out and that are no weights of this layout."""
    return model_files.other_files(_paths_in(folder))


def copy_side_files(
    source: Path, folder: Path, replaced: Mapping[str, bytes] | None = None
) -> None:
    """Copy them byte for byte, subfolders too, except for those in `replaced`, by path."""
    for name in side_files(source):
        with disk_errors_name(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if replaced and name in replaced:
                (folder / name).write_bytes(replaced[name])
            else:
                shutil.copyfile(source / name, folder / name)


def _paths_in(folder: Path) -> list[str]:
    """All files in a folder and its subfolders; links to folders are not followed."""
    return [
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
    ]
