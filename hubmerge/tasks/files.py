"""Files of rows on disk: how each format is read, and which splits a folder of them has."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from hubmerge.errors import DataError
from hubmerge.refs import printable

# Only empty CSV fields are missing values; by default pandas would treat the class "None" as one.
_CSV: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
# File extension -> the loader of `datasets`, and its options.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}
# Split -> its possible names on disk and on the Hub; the first that exists is used.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}


def is_rows_file(path: Path) -> bool:
    """Whether the extension is that of a file of rows."""
    return path.suffix.lower() in READERS


def split_files(folder: Path) -> dict[str, str]:
    """Split -> pattern of its files in a folder: train.csv, or train-*.csv for a sharded one.

    Empty for a folder without such files. Raises DataError if a split exists twice.
    """
    pattern_of = {}
    for split, names in SPLIT_NAMES.items():
        if patterns := [pattern for name in names for pattern in _patterns(folder, name)]:
            pattern_of[split] = patterns[0]
        if len(patterns) > 1:
            raise DataError(
                f"{printable(str(folder))} has two kinds of {split} files: {patterns[0]} and "
                f"{patterns[1]}.",
                "Keep one, or give the files of each split under `data:` in a task's YAML.",
            )
    return pattern_of


def _patterns(folder: Path, name: str) -> list[str]:
    files = [path.name for path in folder.iterdir() if is_rows_file(path) and path.is_file()]
    single = [file for file in files if Path(file).stem == name]
    sharded = {f"{name}-*{Path(file).suffix}" for file in files if file.startswith(f"{name}-")}
    return sorted([*map(glob.escape, single), *sharded])
