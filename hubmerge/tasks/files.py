"""Files of rows on disk: how each kind is read, and which splits a folder of them has."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from hubmerge.errors import DataError
from hubmerge.refs import printable

# In a CSV only an empty field is missing: pandas would take the class "None" for missing too.
_CSV: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
# Ending -> the reader of `datasets`, and its options.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}
# What a split is called on disk and on the Hub, the first that is there.
CALLED = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}


def is_rows(path: Path) -> bool:
    """Whether a name is that of a file of rows."""
    return path.suffix.lower() in READERS


def split_files(folder: Path) -> dict[str, str]:
    """Split -> pattern of its files in a folder: train.csv, or train-*.csv where it is in parts.

    Empty for a folder without such files. Raises DataError where a split is there twice.
    """
    found = {}
    for split, names in CALLED.items():
        if patterns := [pattern for name in names for pattern in _patterns(folder, name)]:
            found[split] = patterns[0]
        if len(patterns) > 1:
            raise DataError(
                f"{printable(str(folder))} has two kinds of {split} files: {patterns[0]} and "
                f"{patterns[1]}.",
                "Keep one, or name the files of each split under `data:` in a task's YAML.",
            )
    return found


def _patterns(folder: Path, name: str) -> list[str]:
    there = [path.name for path in folder.iterdir() if is_rows(path) and path.is_file()]
    whole = [file for file in there if Path(file).stem == name]
    parts = {f"{name}-*{Path(file).suffix}" for file in there if file.startswith(f"{name}-")}
    return sorted([*map(glob.escape, whole), *parts])
