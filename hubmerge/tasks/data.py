"""The examples of a task's split, through `datasets`: images, labels, class names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch

from hubmerge.errors import DataError
from hubmerge.refs import printable
from hubmerge.specs import Carve
from hubmerge.tasks.task import Task

datasets.disable_progress_bars()

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Rows of one split, columns `image` (PIL) and `label` (int), with the task's class names."""

    task: Task
    name: str
    rows: datasets.Dataset
    classes: tuple[str, ...]
    revision: str

    def __len__(self) -> int:
        return len(self.rows)


def load_split(task: Task, name: str) -> Split:
    """The rows of `train`, `validation` or `test`; the same rows on every machine.

    Raises DataError when data, split or columns are missing, a split is empty, or the class names
    do not fit the labels.
    """
    spec = task.spec
    source = getattr(spec.splits, name)
    rows = _carved(task, source, name) if isinstance(source, Carve) else _whole(task, source)
    rows = _columns(task, _without_other_carves(task, rows, name, source))
    if len(rows) == 0:
        raise DataError(f"Task {task.name} has no {name} examples.", _where(task))
    return Split(task, name, rows, _classes(task, rows), spec.data.revision)


def carve(count: int, share: Carve) -> tuple[list[int], list[int]]:
    """Indices kept and carved, as torch's `random_split([count - n, n])` gives them."""
    carved = min(int(count * share.fraction), share.most or count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(share.seed)).tolist()
    return order[: count - carved], order[count - carved :]


def _carved(task: Task, share: Carve, name: str) -> datasets.Dataset:
    whole = _whole(task, share.of)
    if name == "validation" and isinstance(task.spec.splits.test, Carve):
        whole = whole.select(carve(len(whole), task.spec.splits.test)[0])
    return whole.select(carve(len(whole), share)[1])


def _without_other_carves(
    task: Task, rows: datasets.Dataset, name: str, source: str | Carve
) -> datasets.Dataset:
    """Training rows without those carved from them: test first, then validation."""
    splits = task.spec.splits
    for share in (splits.test, splits.validation):
        if name == "train" and isinstance(share, Carve) and share.of == source:
            rows = rows.select(carve(len(rows), share)[0])
    return rows


def _whole(task: Task, split: str) -> datasets.Dataset:
    data = task.spec.data
    files = data.files
    if files is not None and split not in files:
        raise DataError(f"Task {task.name} names no files for split {split!r}.", _where(task))
    try:
        if task.data_path is None:
            loaded = datasets.load_dataset(
                data.id, data.config, split=split, revision=data.revision, data_files=files
            )
        else:
            loaded = _local(task.data_path, files, split)
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds; each means that the data cannot be had
        raise DataError(
            f"Task {task.name}: its {split!r} data cannot be loaded: "
            f"{printable(str(error)).splitlines()[0][:300]}",
            _where(task),
        ) from error
    return loaded


def _local(folder: Path, files: dict[str, str] | None, split: str) -> datasets.Dataset:
    if files is not None:
        kind = Path(files[split]).suffix.lstrip(".")
        builder = {"jsonl": "json"}.get(kind, kind)
        return datasets.load_dataset(builder, data_files=str(folder / files[split]), split="train")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split=split)


def _columns(task: Task, rows: datasets.Dataset) -> datasets.Dataset:
    data = task.spec.data
    missing = [column for column in (data.image, data.label) if column not in rows.column_names]
    if missing:
        raise DataError(
            f"Task {task.name}: the data have no column {missing[0]!r}, "
            f"only {', '.join(rows.column_names)}.",
            "Name the columns by `image:` and `label:` under `data:` in the task's YAML.",
        )
    rows = rows.select_columns([data.image, data.label])
    renames = {data.image: "image", data.label: "label"}
    return rows.rename_columns({old: new for old, new in renames.items() if old != new})


def _classes(task: Task, rows: datasets.Dataset) -> tuple[str, ...]:
    label = rows.features["label"]
    known = getattr(label, "names", None)
    classes = task.spec.classes or tuple(name.replace("_", " ") for name in known or ())
    if not classes:
        raise DataError(
            f"Task {task.name}: column `label` has no class names.",
            "List them in label order under `classes:` in the task's YAML.",
        )
    if known is not None and len(known) != len(classes):
        raise DataError(
            f"Task {task.name} lists {len(classes)} classes, but the data have {len(known)}."
        )
    labels = rows.with_format("numpy")["label"][:]
    if not _fits(labels, len(classes)):
        raise DataError(f"Task {task.name}: some labels are not in 0..{len(classes) - 1}.")
    return classes


def _fits(labels: Any, classes: int) -> bool:
    return bool(labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < classes)


def _where(task: Task) -> str:
    place = task.data_path or f"data set {task.spec.data.id}@{task.spec.data.revision}"
    return f"Its data should be in {place}."
