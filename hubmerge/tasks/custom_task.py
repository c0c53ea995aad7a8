"""A task made of data alone: a folder of images, a file or a folder of rows, a Hub data set."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import datasets

from hubmerge.errors import DataError, UnknownName, UsageError
from hubmerge.refs import check_repo_id, check_revision, printable
from hubmerge.specs import TaskSpec, validated
from hubmerge.specs.prompt_language import BUILT_IN, names_of_template
from hubmerge.tasks.files import CALLED, split_files
from hubmerge.tasks.source import line, stream_rows
from hubmerge.tasks.task import Task

_LABEL = ("label", "labels", "class", "category", "intent")
# Kind -> what its examples are made of -> the columns taken for it, the first that is there. The
# first kind that finds all it needs is the task's.
_GUESSES = {
    "image": {"image": ("image",), "label": _LABEL},
    "text": {"text": ("text", "sentence", "content", "review"), "label": _LABEL},
    "target": {
        "prompt": ("prompt", "instruction", "question", "input"),
        "target": ("target", "response", "answer", "completion", "output"),
    },
}
_KEYS = ("image", "text", "label", "prompt", "target")
_FIFTH = {"of": "train", "fraction": 0.2, "most": None, "seed": 1}


def read_columns(text: str) -> dict[str, str]:
    """What `--columns text=review,label=stars` says; raises UsageError."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    for key, equals, column in pairs:
        if not equals or not column.strip():
            raise UsageError(
                f"--columns {printable(text)!r} is no list of key=column.",
                "Write it like text=review,label=stars.",
            )
        if key.strip() not in _KEYS:
            raise UnknownName("key of --columns", printable(key.strip()), _KEYS)
    if again := _again(key.strip() for key, _, _ in pairs):
        raise UsageError(
            f"--columns {printable(text)!r} says {again} more than once.", "Say each key once."
        )
    columns = {key.strip(): column.strip() for key, _, column in pairs}
    _check_apart(columns)
    return columns


def _check_apart(columns: Mapping[str, str]) -> None:
    """Raise UsageError for a column that is said to be two things."""
    if again := _again(columns.values()):
        keys = " and ".join(key for key, column in columns.items() if column == again)
        raise UsageError(
            f"Column {printable(again)!r} cannot be {keys} at once.", "Name a column for each key."
        )


def _again(words: Iterable[str]) -> str | None:
    """The first word that is there more than once."""
    return next((word for word, count in Counter(words).items() if count > 1), None)


def file_task(path: Path, columns: Mapping[str, str]) -> Task:
    """A task over the rows of one file, from which validation and test are carved."""
    if not path.is_file():
        raise DataError(f"There is no file {printable(str(path))}.")
    rows = {
        "name": _named(path.stem),
        "title": f"rows of {path.name}",
        "data": {"path": path.name},
        "splits": _splits(()),
    }
    return _of_rows(rows, path.parent, columns, str(path))


def folder_task(folder: Path, columns: Mapping[str, str]) -> Task:
    """A task over a folder: images in train/CLASS/ or just CLASS/, or rows in train.csv and such.

    Without test data a fifth of train becomes test; without validation data, a tenth of the rest.
    """
    files = split_files(folder) if folder.is_dir() else {}
    name = _named(folder.resolve().name)
    if "train" in files:
        rows = {
            "name": name,
            "title": f"rows of {folder.name}",
            "data": {"path": ".", "files": files},
            "splits": _splits(files),
        }
        return _of_rows(rows, folder, columns, str(folder))
    if not folder.is_dir() or not any(path.is_dir() for path in folder.iterdir()):
        raise DataError(
            f"There is no folder of images by class at {folder}, nor one with a train.csv.",
            "Give images as CLASS/*.png or train/CLASS/*.png; rows as a .csv, .tsv, .jsonl, .json "
            "or .parquet file, or a folder with train.csv and such; or a task's YAML.",
        )
    if columns:
        raise UsageError(f"{folder} holds images by class, which have no columns to name.")
    by_split = (folder / "train").is_dir()  # else every folder is a class, whatever its name
    images = {
        "name": name,
        "title": f"images of {folder.name}",
        "data": {"path": "."},
        "splits": {**_splits(()), **(_image_splits(folder) if by_split else {})},
    }
    return Task(validated(TaskSpec, images, str(folder)), folder)


def _image_splits(folder: Path) -> dict[str, str]:
    """Split -> the folder beside train/ that holds it; raises DataError for two of one split."""
    found = {}
    for split, names in CALLED.items():
        there = [name for name in names if (folder / name).is_dir()]
        if len(there) > 1:
            raise DataError(
                f"{printable(str(folder))} has two folders of {split} images: {there[0]} and "
                f"{there[1]}.",
                "Keep one, or name it under `splits:` in a task's YAML.",
            )
        if there:
            found[split] = there[0]
    return found


def hub_task(text: str, columns: Mapping[str, str]) -> Task:
    """A task over `hf://datasets/owner/name[@revision]`; its columns and splits are asked for."""
    if not text.startswith("hf://datasets/"):
        raise UsageError(
            f"{printable(text)!r} is no data set.", "Write hf://datasets/owner/name[@revision]."
        )
    said_id, _, said_revision = text.removeprefix("hf://datasets/").strip("/").partition("@")
    repo_id = check_repo_id(said_id)
    revision = check_revision(unquote(said_revision)) if said_revision else "main"
    try:
        there = datasets.get_dataset_split_names(repo_id, revision=revision)
    except Exception as error:  # not there, no access, no network, several configurations
        raise DataError(
            f"{text} cannot be read: {line(str(error))}.",
            "A data set with several configurations needs a task's YAML, which names one.",
        ) from error
    rows = {
        "name": _named(repo_id.rpartition("/")[2]),
        "title": f"rows of {repo_id}",
        "data": {"id": repo_id, "revision": revision},
        "splits": _hub_splits(text, there),
    }
    return _of_rows(rows, Path(), columns, text)


def _of_rows(said: dict[str, Any], folder: Path, columns: Mapping[str, str], text: str) -> Task:
    # Rows can be read before it is known what is asked about them.
    unasked = validated(TaskSpec, {**said, "kind": "target", "prompt": "-", "target": "-"}, text)
    train = stream_rows(Task(unasked, folder), unasked.splits.train)
    kind, found = _guessed(train.column_names, columns, text)
    asked: dict[str, object] = {"data": {**said["data"], **found}}
    if kind == "target":
        asked = {key: _gap(column) for key, column in found.items()}
    return Task(validated(TaskSpec, {**said, "kind": kind, **asked}, text), folder)


def _guessed(
    there: Sequence[str], columns: Mapping[str, str], text: str
) -> tuple[str, dict[str, str]]:
    """The kind of a task, and which column is what; what the user says comes first."""
    _check_apart(columns)
    if not there:
        raise DataError(f"{printable(text)} has no rows.", "Name data with a row or more.")
    for column in columns.values():
        if column not in there:
            raise UnknownName("column", printable(column), map(printable, there))
    left = [name for name in there if name not in columns.values()]
    lower = {name.lower(): name for name in reversed(left)}
    for kind, needed in _GUESSES.items():
        found = {
            key: columns.get(key) or next((lower[name] for name in names if name in lower), None)
            for key, names in needed.items()
        }
        if set(columns) <= set(needed) and all(found.values()):
            return kind, {key: str(column) for key, column in found.items()}
    raise UsageError(
        f"{printable(text)} has the columns {', '.join(map(printable, there))}: which of them are "
        "asked about, and which are the answer?",
        "Say so: --columns text=COLUMN,label=COLUMN, or image= and label=, or prompt= and target=.",
    )


def _gap(column: str) -> str:
    """A template that is the column."""
    plain = "{{ " + column + " }}"
    if column.isidentifier() and column not in BUILT_IN and names_of_template(plain) == {column}:
        return plain
    quoted = column.encode("unicode_escape").decode().replace('"', '\\"')
    return '{{ row["' + quoted + '"] }}'


def _splits(there: Iterable[str]) -> dict[str, object]:
    """Validation and test where they are there; else what is missing is carved from train."""
    carved: dict[str, object] = {"test": _FIFTH}
    return carved | {split: split for split in ("validation", "test") if split in there}


def _hub_splits(text: str, there: Sequence[str]) -> dict[str, object]:
    called = {
        split: name for split, names in CALLED.items() for name in reversed(names) if name in there
    }
    if "train" not in called:
        raise UsageError(
            f"{text} has no split `train`, only {', '.join(map(printable, there))}.",
            "Write a task's YAML that says under `splits:` which is which.",
        )
    return {**_splits(()), **called}


def _named(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-").lower()[:90]
    if plain and (text.isascii() or re.search("[a-z]", plain)):
        return plain
    # Nothing of such a name can be kept; macOS writes its accents apart, and it is one name still.
    whole = unicodedata.normalize("NFC", text).encode(errors="surrogateescape")
    return f"own-{hashlib.sha256(whole).hexdigest()[:8]}"
