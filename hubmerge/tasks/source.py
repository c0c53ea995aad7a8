"""Where a task's rows come from: a Hub data set, files of rows, or folders of images."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import datasets

from hubmerge.errors import DataError
from hubmerge.refs import printable
from hubmerge.tasks.files import READERS, split_files
from hubmerge.tasks.image_folder import read_image_folder
from hubmerge.tasks.task import Task, local_data

datasets.disable_progress_bars()
# Else reading a local file tells huggingface.co that somebody does, and waits for its answer.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False


def read_rows(task: Task, split: str) -> datasets.Dataset:
    """All rows of one split of the data; of its files only these are fetched and prepared.

    Raises DataError if they cannot be had.
    """
    return _rows(task, split, streaming=False)


def stream_rows(task: Task, split: str) -> datasets.IterableDataset:
    """The same rows, read while they are used; raises DataError if they cannot be had."""
    return _rows(task, split, streaming=True)


def _rows(task: Task, split: str, streaming: bool) -> Any:
    try:
        rows = _opened(task, split, streaming)
        # What columns a CSV has shows in its first rows; `datasets` has no public word for it.
        return rows if rows.features is not None else rows._resolve_features()
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds; each means that the data cannot be had
        raise DataError(
            f"Task {task.name}: its {split!r} data cannot be loaded: {_reason(error)}.", where(task)
        ) from error


def _reason(error: Exception) -> str:
    # What `datasets` says of a file without a row, as a stream and prepared.
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
        return "there are no rows in them"
    return line(str(error)) or type(error).__name__


def _opened(task: Task, split: str, streaming: bool) -> Any:
    data = task.spec.data
    if data.id is not None:
        files = {split: data.files[split]} if data.files else None
        return datasets.load_dataset(
            data.id, data.config, data_files=files, split=split, revision=data.revision,
            streaming=streaming,
        )  # fmt: skip
    if data.files is None and task.spec.kind == "image" and local_data(task).is_dir():
        images = read_image_folder(local_data(task), split)
        return images.to_iterable_dataset() if streaming else images
    reader, options = _local(task, split)
    if not streaming:
        options["cache_dir"] = _prepared(task)
    return datasets.load_dataset(reader, data.config, split=split, streaming=streaming, **options)


def _prepared(task: Task) -> str:
    """Where `datasets` keeps what it made of local files: it knows them by path and time alone.

    A file that was rewritten within the clock's tick, or copied with its old time, is another one.
    """
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "hubmerge-local" / task.digest)


def _local(task: Task, split: str) -> tuple[str, dict[str, Any]]:
    """What reads the local files of a split, and what it is told."""
    place, pattern = local_data(task), _pattern(task, split)
    folder = place if place.is_dir() else place.parent
    reader, options = READERS.get(Path(pattern).suffix.lower(), (str(folder), {}))
    # The folder's own name is no pattern.
    return reader, {**options, "data_files": {split: f"{glob.escape(str(folder))}/{pattern}"}}


def _pattern(task: Task, split: str) -> str:
    place, files = local_data(task), task.spec.data.files
    if place.is_file() and split == "train":
        return glob.escape(place.name)
    if place.is_file():
        raise DataError(
            f"Task {task.name}: {printable(str(place))} is one file, all of it train, and has no "
            f"split {split!r}.",
            "Carve it, such as `test: {of: train, fraction: 0.2}`, or name `files:`.",
        )
    found = split_files(place) if files is None else files
    if split not in found:
        raise DataError(
            f"Task {task.name}: {printable(str(place))} has no {split} file.",
            "Name the files of each split under `data:`, as `files: {train: some.csv}`.",
        )
    return found[split]


def line(text: str) -> str:
    """What another library said, as one line that fits a terminal."""
    return printable(" ".join(text.split()))[:300].rstrip(".")


def where(task: Task) -> str:
    """The way out where data are missing or do not fit."""
    place = task.data_path or f"data set {task.spec.data.id}@{task.spec.data.revision}"
    return f"Its data should be in {place}."
