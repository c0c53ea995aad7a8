"""Tasks without a YAML: from a folder of images, a file or folder of rows, or a Hub data set."""

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
from hubmerge.specs import TaskSpec, validate_spec
from hubmerge.specs.prompt_language import BUILT_IN, template_names
from hubmerge.tasks.files import SPLIT_NAMES, split_files
from hubmerge.tasks.row_formats import ROW_FORMATS
from hubmerge.tasks.source import one_line, stream_rows
from hubmerge.tasks.task import Task

_LABEL_COLUMNS = ("label", "labels", "class", "category", "intent")
# Kind -> key of its examples -> column names to look for; the first that exists is used. The task
# has the first kind whose keys are all found.
_COLUMN_GUESSES = {
    "image": {"image": ("image",), "label": _LABEL_COLUMNS},
    "text": {"text": ("text", "sentence", "content", "review"), "label": _LABEL_COLUMNS},
    "pairs": {
        "anchor": ("anchor", "query", "question"),
        "positive": ("positive", "positive_passage"),
    },
    "target": {
        "prompt": ("prompt", "instruction", "question", "input"),
        "target": ("target", "response", "answer", "completion", "output"),
    },
}
# Keys that a kind may have besides.
_OPTIONAL_GUESSES = {"pairs": {"negative": ("negative", "hard_negative", "negative_passage")}}
# Formats of rows, by the columns that they are recognised by; the first that fits is used. Prompts
# and completions that are texts become templates, as in tasks of earlier versions.
_FORMAT_COLUMNS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "preference": ("chosen", "rejected"),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output"),
}
_COLUMN_KEYS = (
    *("image", "text", "label", "prompt", "target", "anchor", "positive", "negative"),
    *("messages", "conversations", "chosen", "rejected", "completion", "instruction", "input"),
    *("output", "system", "tools"),
)
_TEST_CARVE = {"of": "train", "fraction": 0.2, "most": None, "seed": 1}


def parse_columns(text: str) -> dict[str, str]:
    """Key -> column of `--columns text=review,label=stars`; raises UsageError."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    for key, equals, column in pairs:
        if not equals or not column.strip():
            raise UsageError(
                f"--columns {printable(text)!r} is not a list of key=column.",
                "Write it like text=review,label=stars.",
            )
        if key.strip() not in _COLUMN_KEYS:
            raise UnknownName("key of --columns", printable(key.strip()), _COLUMN_KEYS)
    if duplicate := _first_duplicate(key.strip() for key, _, _ in pairs):
        raise UsageError(
            f"--columns {printable(text)!r} has the key {duplicate} more than once.",
            "Give each key once.",
        )
    columns = {key.strip(): column.strip() for key, _, column in pairs}
    _check_distinct(columns)
    return columns


def _check_distinct(columns: Mapping[str, str]) -> None:
    """Raise UsageError for a column that is given for two keys."""
    if duplicate := _first_duplicate(columns.values()):
        keys = " and ".join(key for key, column in columns.items() if column == duplicate)
        raise UsageError(
            f"Column {printable(duplicate)!r} cannot be both {keys}.",
            "Give each key a column of its own.",
        )


def _first_duplicate(words: Iterable[str]) -> str | None:
    """The first word that occurs more than once."""
    return next((word for word, count in Counter(words).items() if count > 1), None)


def task_from_file(path: Path, columns: Mapping[str, str]) -> Task:
    """A task from the rows of one file; validation and test are carved from them."""
    if not path.is_file():
        raise DataError(f"There is no file {printable(str(path))}.")
    rows = {
        "name": _task_name(path.stem),
        "title": f"rows of {path.name}",
        "data": {"path": path.name},
        "splits": _default_splits(()),
    }
    return _task_from_rows(rows, path.parent, columns, str(path))


def task_from_folder(folder: Path, columns: Mapping[str, str]) -> Task:
    """A task from a folder: images in train/CLASS/ or CLASS/, or rows in train.csv or similar.

    Without test data, a fifth of train becomes test; without validation data, a tenth of the rest
    becomes validation.
    """
    files = split_files(folder) if folder.is_dir() else {}
    name = _task_name(folder.resolve().name)
    if "train" in files:
        rows = {
            "name": name,
            "title": f"rows of {folder.name}",
            "data": {"path": ".", "files": files},
            "splits": _default_splits(files),
        }
        return _task_from_rows(rows, folder, columns, str(folder))
    if not folder.is_dir() or not any(path.is_dir() for path in folder.iterdir()):
        raise DataError(
            f"{folder} is neither a folder of images by class nor a folder with a train.csv.",
            "Give images as CLASS/*.png or train/CLASS/*.png; rows as a .csv, .tsv, .jsonl, .json "
            "or .parquet file, or as a folder with train.csv or similar; or give a task's YAML.",
        )
    if columns:
        raise UsageError(
            f"{folder} is a folder of images by class, which has no columns.",
            "Leave --columns out.",
        )
    by_split = (folder / "train").is_dir()  # else every folder is a class, whatever its name
    images = {
        "name": name,
        "title": f"images of {folder.name}",
        "data": {"path": "."},
        "splits": _by_class({**_default_splits(()), **(_image_splits(folder) if by_split else {})}),
    }
    return Task(validate_spec(TaskSpec, images, str(folder)), folder)


def _image_splits(folder: Path) -> dict[str, str]:
    """Split -> name of its folder; raises DataError if a split has two folders."""
    folders = {}
    for split, names in SPLIT_NAMES.items():
        existing = [name for name in names if (folder / name).is_dir()]
        if len(existing) > 1:
            raise DataError(
                f"{printable(str(folder))} has two folders of {split} images: {existing[0]} and "
                f"{existing[1]}.",
                "Keep one, or choose one under `splits:` in a task's YAML.",
            )
        if existing:
            folders[split] = existing[0]
    return folders


def task_from_hub(text: str, columns: Mapping[str, str]) -> Task:
    """A task from `hf://datasets/owner/name[@revision]`; reads its splits and columns."""
    if not text.startswith("hf://datasets/"):
        raise UsageError(
            f"{printable(text)!r} is not a data set.", "Write hf://datasets/owner/name[@revision]."
        )
    given_id, _, given_revision = text.removeprefix("hf://datasets/").strip("/").partition("@")
    repo_id = check_repo_id(given_id)
    revision = check_revision(unquote(given_revision)) if given_revision else "main"
    try:
        available = datasets.get_dataset_split_names(repo_id, revision=revision)
    except Exception as error:  # missing, no access, no network, several configurations
        raise DataError(
            f"{text} cannot be read: {one_line(str(error))}.",
            "For a data set with several configurations, write a task's YAML that names one.",
        ) from error
    rows = {
        "name": _task_name(repo_id.rpartition("/")[2]),
        "title": f"rows of {repo_id}",
        "data": {"id": repo_id, "revision": revision},
        "splits": _hub_splits(text, available),
    }
    return _task_from_rows(rows, Path(), columns, text)


def _task_from_rows(
    fields: dict[str, Any], folder: Path, columns: Mapping[str, str], text: str
) -> Task:
    # Read the columns with a placeholder task, whose kind and prompts are not used.
    placeholder = {**fields, "kind": "target", "prompt": "-", "target": "-"}
    spec = validate_spec(TaskSpec, placeholder, text)
    train = stream_rows(Task(spec, folder), spec.splits.train)
    available = train.column_names
    _check_columns_exist(available, columns, text)
    if format_fields := _guess_format(train.features, columns):
        data = {**fields["data"], **format_fields.pop("data", {})}
        values = {**fields, "kind": "target", **format_fields, "data": data}
        return Task(validate_spec(TaskSpec, values, text), folder)
    kind, column_of = _guess_columns(available, columns, text)
    kind_fields: dict[str, object] = {"data": {**fields["data"], **column_of}}
    if kind in ("target", "pairs"):
        kind_fields = {key: _column_template(column) for key, column in column_of.items()}
    if kind in ("image", "text"):
        kind_fields["splits"] = _by_class(fields["splits"])
    return Task(validate_spec(TaskSpec, {**fields, "kind": kind, **kind_fields}, text), folder)


def _check_columns_exist(available: Sequence[str], columns: Mapping[str, str], text: str) -> None:
    _check_distinct(columns)
    if not available:
        raise DataError(f"{printable(text)} has no rows.", "Give data with at least one row.")
    for column in columns.values():
        if column not in available:
            raise UnknownName("column", printable(column), map(printable, available))


def _guess_format(features: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a task for rows in a known format, empty if they are in none."""
    own_name = {key: columns.get(key, key) for key in _COLUMN_KEYS}
    formats = [
        name
        for name, keys in _FORMAT_COLUMNS.items()
        if all(own_name[key] in features for key in keys)
        and (name != "completion" or not isinstance(features[own_name["prompt"]], datasets.Value))
    ]
    others = {*_LABEL_COLUMNS, "image", *_COLUMN_GUESSES["target"]["prompt"]}
    if not columns and "text" in features and others.isdisjoint(map(str.lower, features)):
        formats.append("text")
    if not formats:
        return {}
    row_format = ROW_FORMATS[formats[0]]
    if not set(columns) <= {*row_format.required, *row_format.optional}:
        return {}
    return {"format": formats[0], **({"data": {"columns": dict(columns)}} if columns else {})}


def _guess_columns(
    available: Sequence[str], columns: Mapping[str, str], text: str
) -> tuple[str, dict[str, str]]:
    """The kind of a task, and key -> column; columns that the user gives come first."""
    remaining = [name for name in available if name not in columns.values()]
    by_lower_name = {name.lower(): name for name in reversed(remaining)}
    for kind, guesses in _COLUMN_GUESSES.items():
        optional: Mapping[str, Sequence[str]] = _OPTIONAL_GUESSES.get(kind, {})
        column_of = {
            key: columns.get(key)
            or next((by_lower_name[name] for name in names if name in by_lower_name), None)
            for key, names in {**guesses, **optional}.items()
        }
        is_complete = all(column_of[key] for key in guesses)
        if set(columns) <= {*guesses, *optional} and is_complete:
            return kind, {key: column for key, column in column_of.items() if column}
    raise UsageError(
        f"Cannot guess which columns of {printable(text)} are input and answer: "
        f"{', '.join(map(printable, available))}.",
        "Write --columns text=COLUMN,label=COLUMN, or image= and label=, or prompt= and target=; "
        "for conversations messages=, for embeddings anchor= and positive=.",
    )


def _column_template(column: str) -> str:
    """A template that renders just this column."""
    template = "{{ " + column + " }}"
    if column.isidentifier() and column not in BUILT_IN and template_names(template) == {column}:
        return template
    quoted = column.encode("unicode_escape").decode().replace('"', '\\"')
    return '{{ row["' + quoted + '"] }}'


def _default_splits(available: Iterable[str]) -> dict[str, object]:
    """The validation and test splits that exist; missing ones are carved from train."""
    carved: dict[str, object] = {"test": _TEST_CARVE}
    return carved | {split: split for split in ("validation", "test") if split in available}


def _by_class(splits: Mapping[str, object]) -> dict[str, object]:
    """The splits, where those that are carved take the same share of every class."""
    named = {"validation": {}, **splits}
    return {
        name: {**split, "stratify": True} if isinstance(split, dict) else split
        for name, split in named.items()
    }


def _hub_splits(text: str, available: Sequence[str]) -> dict[str, object]:
    hub_names = {
        split: name
        for split, names in SPLIT_NAMES.items()
        for name in reversed(names)
        if name in available
    }
    if "train" not in hub_names:
        raise UsageError(
            f"{text} has no split `train`, only {', '.join(map(printable, available))}.",
            "Write a task's YAML that names the splits under `splits:`.",
        )
    return {**_default_splits(()), **hub_names}


def _task_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-").lower()[:90]
    if name and (text.isascii() or re.search("[a-z]", name)):
        return name
    # The name has no usable characters, so use its digest. NFC, because macOS decomposes accents.
    normalized = unicodedata.normalize("NFC", text).encode(errors="surrogateescape")
    return f"own-{hashlib.sha256(normalized).hexdigest()[:8]}"
