"""Load the rows of a task from a Hub data set, files of rows, or folders of images."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from hubmerge.errors import DataError
from hubmerge.refs import printable
from hubmerge.tasks.csv_format import CsvFormat, find_csv_format, format_note
from hubmerge.tasks.files import READERS, split_files
from hubmerge.tasks.image_folder import read_image_folder
from hubmerge.tasks.task import Task, local_data_path

datasets.disable_progress_bars()
# Otherwise reading a local file sends a request to huggingface.co and waits for the response.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False


def read_rows(task: Task, split: str) -> datasets.Dataset:
    """All rows of one split; only the files of this split are fetched and prepared.

    Raises DataError if they cannot be loaded.
    """
    return _load_rows(task, split, streaming=False)


def stream_rows(task: Task, split: str) -> datasets.IterableDataset:
    """The same rows, read while they are used; raises DataError if they cannot be loaded."""
    return _load_rows(task, split, streaming=True)


def _load_rows(task: Task, split: str, streaming: bool) -> Any:
    try:
        rows = _load_dataset(task, split, streaming)
        # The columns of a CSV are known after its first rows; `datasets` has no public call for it.
        return rows if rows.features is not None else rows._resolve_features()
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds of errors
        raise DataError(
            f"Task {task.name}: its {split!r} data cannot be loaded: {_reason(error)}.",
            data_location_hint(task),
        ) from error


def _reason(error: Exception) -> str:
    # The two errors of `datasets` for a file without rows: streamed, and prepared.
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
        return "they have no rows"
    return one_line(str(error)) or type(error).__name__


def _load_dataset(task: Task, split: str, streaming: bool) -> Any:
    data = task.spec.data
    if data.id is not None:
        files = {split: data.files[split]} if data.files else None
        names = {"encoding": "encoding", "delimiter": "sep"}
        return datasets.load_dataset(
            data.id, data.config, data_files=files, split=split, revision=data.revision,
            streaming=streaming, **{names[key]: text for key, text in data.csv_options.items()},
        )  # fmt: skip
    if data.files is None and task.spec.kind == "image" and local_data_path(task).is_dir():
        images = read_image_folder(local_data_path(task), split)
        return images.to_iterable_dataset() if streaming else images
    reader, options = _local_reader(task, split)
    if not streaming:
        options["cache_dir"] = _cache_folder(task)
    return datasets.load_dataset(reader, data.config, split=split, streaming=streaming, **options)


def _cache_folder(task: Task) -> str:
    """The cache of `datasets` for local files, separate for each digest of their content.

    `datasets` identifies files by path and modification time, so it would miss a file that was
    rewritten within one clock tick, or copied with its old time.
    """
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "hubmerge-local" / task.digest)


def _local_reader(task: Task, split: str) -> tuple[str, dict[str, Any]]:
    """The loader of `datasets` for the local files of a split, and its options."""
    path, pattern, data = local_data_path(task), _pattern(task, split), task.spec.data
    folder = path if path.is_dir() else path.parent
    reader, options = READERS.get(Path(pattern).suffix.lower(), (str(folder), {}))
    if reader == "csv":
        options = {**options, **_csv_options(task, sorted(folder.glob(pattern)))}
    elif data.csv_options:
        raise DataError(
            f"Task {task.name}: {printable(pattern)} is no CSV file, which alone has "
            f"{' and '.join(data.csv_options)}.",
            f"Remove {' and '.join(f'`{name}:`' for name in data.csv_options)} from its YAML.",
        )
    # The folder's name is escaped, because it is not a pattern.
    return reader, {**options, "data_files": {split: f"{glob.escape(str(folder))}/{pattern}"}}


def _csv_options(task: Task, files: Sequence[Path]) -> dict[str, Any]:
    """How the files of a split are read; raises DataError if they are not all read alike."""
    data, formats = task.spec.data, dict[CsvFormat, Path]()
    for file in files:
        formats.setdefault(find_csv_format(file, data.encoding, data.delimiter), file)
    found = next(iter(formats), None)
    if len(formats) > 1:
        (one, first), (other, second), *_ = formats.items()
        raise DataError(
            f"Task {task.name}: {printable(first.name)} is {one.encoding} with {one.delimiter!r} "
            f"between fields, and {printable(second.name)} {other.encoding} with "
            f"{other.delimiter!r}.",
            "Save them alike.",
        )
    return {"sep": found.delimiter, "encoding": found.encoding} if found else {}


def source_notes(task: Task) -> Iterator[str]:
    """Yield a note for each local file whose encoding was guessed."""
    data, splits = task.spec.data, set(task.spec.splits.sources.values())
    path = task.data_path
    if path is None or (task.spec.kind == "image" and data.files is None and path.is_dir()):
        return
    folder = path if path.is_dir() else path.parent
    files = {file for split in splits for file in folder.glob(_pattern(task, split))}
    for file in sorted(
        file for file in files if READERS.get(file.suffix.lower(), ("",))[0] == "csv"
    ):
        if note := format_note(file, find_csv_format(file, data.encoding, data.delimiter)):
            yield note


def _pattern(task: Task, split: str) -> str:
    path, files = local_data_path(task), task.spec.data.files
    if path.is_file() and split == "train":
        return glob.escape(path.name)
    if path.is_file():
        raise DataError(
            f"Task {task.name}: {printable(str(path))} is a single file, used as train; it has no "
            f"split {split!r}.",
            "Carve the split, such as `test: {of: train, fraction: 0.2}`, or give `files:`.",
        )
    pattern_of = split_files(path) if files is None else files
    if split not in pattern_of:
        raise DataError(
            f"Task {task.name}: {printable(str(path))} has no {split} file.",
            "Give the files of each split under `data:`, as `files: {train: some.csv}`.",
        )
    return pattern_of[split]


def one_line(text: str) -> str:
    """The message of another library as one line of at most 300 characters."""
    return printable(" ".join(text.split()))[:300].rstrip(".")


def data_location_hint(task: Task) -> str:
    """The hint for data that are missing or do not fit."""
    location = task.data_path or f"data set {task.spec.data.id}@{task.spec.data.revision}"
    return f"Its data should be in {location}."
