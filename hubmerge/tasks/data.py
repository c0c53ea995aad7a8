"""The examples of a task's split, through `datasets`: images, labels, class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from PIL.Image import Image

from hubmerge.errors import DataError, UnknownName
from hubmerge.refs import printable
from hubmerge.specs import Carve, SplitsSpec
from hubmerge.tasks.image_folder import read_image_folder
from hubmerge.tasks.task import Task, local_folder

datasets.disable_progress_bars()

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Rows of one split, columns `image` and `label` (int), with the task's class names."""

    task: Task
    name: str
    rows: datasets.Dataset
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, row: int) -> tuple[Image, int]:
        """The image and label of one row; raises DataError, naming the row, if it is no image."""
        try:
            said = self.rows[row]
        except Exception as error:  # PIL and datasets raise many kinds for a broken image
            raise self._unreadable(row, str(error)) from error
        if not isinstance(said["image"], Image):
            raise self._unreadable(row, "there is none")
        return said["image"], int(said["label"])

    def _unreadable(self, row: int, reason: str) -> DataError:
        return DataError(
            f"Task {self.task.name}: the image of {self.name} row {row} cannot be read: "
            f"{_line(reason)}."
        )


def load_split(task: Task, name: str) -> Split:
    """The rows of `train`, `validation` or `test`; the same rows on every machine.

    Raises DataError when data, split or columns are missing, a split is empty, or the class names
    do not fit the labels.
    """
    if name not in SPLITS:
        raise UnknownName("split", name, SPLITS)
    splits = task.spec.splits
    whole = _columns(task, _load(task, splits.sources[name]))
    rows = whole.select(places(splits, name, len(whole)))
    if len(rows) == 0:
        raise DataError(f"Task {task.name} has no {name} examples.", _where(task))
    return Split(task, name, rows, _classes(task, rows))


def places(splits: SplitsSpec, name: str, count: int) -> list[int]:
    """Which of the `count` rows of its source belong to a split, such that no two splits share one.

    What test carves from that source goes first, then validation, and the rest stays.
    """
    left = list(range(count))
    for carver in ("test", "validation"):
        share = getattr(splits, carver)
        if not isinstance(share, Carve) or share.of != splits.sources[name]:
            continue
        kept, carved = carve(len(left), share)
        if carver == name:
            return [left[place] for place in carved]
        left = [left[place] for place in kept]
    return left


def carve(count: int, share: Carve) -> tuple[list[int], list[int]]:
    """Indices kept and carved, as torch's `random_split([count - n, n])` gives them."""
    carved = min(int(count * share.fraction), share.most or count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(share.seed)).tolist()
    return order[: count - carved], order[count - carved :]


def _load(task: Task, split: str) -> datasets.Dataset:
    """All rows of one split of the data; of its files only these are fetched and prepared."""
    data = task.spec.data
    place = data.id or str(local_folder(task))
    files = {split: data.files[split]} if data.files else None
    revision = data.revision if data.id else None
    try:
        if data.id is None and files is None:
            return read_image_folder(Path(place), split)
        return datasets.load_dataset(
            place, data.config, data_files=files, split=split, revision=revision
        )
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds; each means that the data cannot be had
        reason = _line(str(error)) or type(error).__name__
        raise DataError(
            f"Task {task.name}: its {split!r} data cannot be loaded: {reason}", _where(task)
        ) from error


def _columns(task: Task, rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with just the columns `image`, decoded when read, and `label`."""
    data = task.spec.data
    missing = [column for column in (data.image, data.label) if column not in rows.column_names]
    if missing:
        raise DataError(
            f"Task {task.name}: the data have no column {missing[0]!r}, "
            f"only {', '.join(map(printable, rows.column_names))}.",
            "Name the columns by `image:` and `label:` under `data:` in the task's YAML.",
        )
    rows = rows.select_columns([data.image, data.label])
    renames = {data.image: "image", data.label: "label"}
    rows = rows.rename_columns({old: new for old, new in renames.items() if old != new})
    if isinstance(rows.features["image"], datasets.Image):
        return rows
    try:  # a parquet file that `datasets` did not write does not say that its bytes are images
        return rows.cast_column("image", datasets.Image())
    except Exception as error:  # whatever arrow has against it, they are no images
        raise DataError(f"Task {task.name}: column {data.image!r} holds no images.") from error


def _classes(task: Task, rows: datasets.Dataset) -> tuple[str, ...]:
    """The class names in label order, the task's own or else the data's."""
    known = tuple(getattr(rows.features["label"], "names", None) or ())
    classes = task.spec.classes or tuple(name.replace("_", " ") for name in known)
    if not classes:
        raise DataError(
            f"Task {task.name}: column {task.spec.data.label!r} has no class names.",
            "List them in label order under `classes:` in the task's YAML.",
        )
    if len(classes) == 1:
        raise DataError(f"Task {task.name} has one class only, {classes[0]!r}.")
    if known:
        _check_names(task, classes, known)
    _check_labels(task, rows, len(classes))
    return classes


def _check_names(task: Task, classes: Sequence[str], known: Sequence[str]) -> None:
    """The task may word its classes as it likes, but not put a label's own name elsewhere."""
    if len(known) != len(classes):
        raise DataError(
            f"Task {task.name} lists {len(classes)} classes, but the data have {len(known)}.",
            _where(task),
        )
    label_of = {_plain(name): label for label, name in enumerate(known)}
    for label, name in enumerate(classes):
        if label_of.get(_plain(name), label) != label:
            raise DataError(
                f"Task {task.name} lists class {name!r} as label {label}, but in the data it is "
                f"label {label_of[_plain(name)]}.",
                "List `classes:` in the order of the data's labels.",
            )


def _check_labels(task: Task, rows: datasets.Dataset, classes: int) -> None:
    labels = rows.with_format("numpy")["label"][:]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"Task {task.name}: some labels are not whole numbers in 0..{classes - 1}.")


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _line(text: str) -> str:
    """What another library said, as one line that fits a terminal."""
    return printable(" ".join(text.split()))[:300].rstrip(".")


def _where(task: Task) -> str:
    place = task.data_path or f"data set {task.spec.data.id}@{task.spec.data.revision}"
    return f"Its data should be in {place}."
