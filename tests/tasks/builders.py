"""Builders of small data sets on disk, with images that encode their row number in two pixels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from hubmerge.specs import DataSpec, TaskSpec
from hubmerge.tasks.data import Split
from hubmerge.tasks.task import Task


def picture(row: int, side: int = 8) -> Image.Image:
    """A grey image with its row number in the first two pixels."""
    pixels = np.full((side, side), 128, np.uint8)
    pixels[0, :2] = row // 256, row % 256
    return Image.fromarray(pixels)


def row_of(image: Image.Image) -> int:
    high, low = np.asarray(image.convert("L"))[0, :2].tolist()
    return int(high * 256 + low)


def rows_of(split: Split) -> list[int]:
    return [row_of(split.example(row)[0]) for row in range(len(split))]


def write_parquet(
    path: Path, count: int, names: Sequence[str], image: str = "image", label: str = "label"
) -> None:
    """Write `count` rows of images and ClassLabels; labels repeat 0, 1, 2 ... in turn."""
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    columns = {
        image: [picture(row) for row in range(count)],
        label: [row % len(names) for row in range(count)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


def write_repo(folder: Path, task: Task, names: Sequence[str], counts: dict[str, int]) -> None:
    """A data set repository like on the Hub: sharded parquet files and a card.

    The card also lists a split `contrast` whose file is corrupt, so that reading any files except
    those of the task fails.
    """
    files, config = task.spec.data.files or {}, task.spec.data.config or "default"
    for split, pattern in files.items():
        path = folder / pattern.replace("*", "00000-of-00001.parquet")
        write_parquet(path, counts[split], names, task.spec.data.image, task.spec.data.label)
    corrupt = (folder / files["train"]).with_name("contrast-00000-of-00001.parquet")
    corrupt.write_bytes(b"no parquet")
    listed = [*files.items(), ("contrast", corrupt.relative_to(folder).as_posix())]
    card = {
        "configs": [
            {
                "config_name": config,
                "data_files": [{"split": split, "path": path} for split, path in listed],
            }
        ],
        "dataset_info": {
            "config_name": config,
            "splits": [
                {"name": split, "num_examples": 1000, "num_bytes": 9} for split, _ in listed
            ],
        },
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


def local_copy_of(task: Task, folder: Path) -> Task:
    """The same task with `folder` as a local copy of its Hub data set."""
    data = task.spec.data.model_copy(update={"id": None, "path": folder})
    return Task(task.spec.model_copy(update={"data": data}), folder)


def parquet_task(folder: Path, count: int = 20, names: Sequence[str] = "ab", **fields: Any) -> Task:
    """A task with train.parquet and test.parquet of `count` rows each; `fields` are of its spec."""
    for split in ("train", "test"):
        if not (folder / f"{split}.parquet").exists():
            write_parquet(folder / f"{split}.parquet", count, names)
    files = {"train": "train.parquet", "test": "test.parquet"}
    values = {"name": "small", "data": DataSpec(path=folder, files=files), **fields}
    return Task(TaskSpec(**values), folder)


def write_images(folder: Path, split: str, names: Sequence[str], count: int, start: int) -> None:
    """`count` images per class in folder/split/CLASS, with row numbers from `start` on."""
    for index, name in enumerate(names):
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            row = start + index * count + number
            picture(row).save(folder / split / name / f"{row:04}.png")


def png(row: int) -> bytes:
    stream = io.BytesIO()
    picture(row).save(stream, "PNG")
    return stream.getvalue()


def rows_task(
    folder: Path,
    train: Sequence[dict[str, Any]],
    suffix: str = "jsonl",
    test: Sequence[dict[str, Any]] | None = None,
    **fields: Any,
) -> Task:
    """A task with train and test files of rows; `test` defaults to the rows of `train`."""
    write_rows(folder / f"train.{suffix}", train)
    write_rows(folder / f"test.{suffix}", train if test is None else test)
    files = {"train": f"train.{suffix}", "test": f"test.{suffix}"}
    values = {"name": "small", "data": {"path": folder, "files": files}, **fields}
    return Task(TaskSpec.model_validate(values), folder)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows in the format of the file extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row) for row in rows]
        content = f"[{', '.join(lines)}]" if path.suffix == ".json" else "\n".join(lines)
        path.write_text(content)
