"""Small data sets on disk: pictures whose pixels say which row they are, labels in turn."""

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
    """A grey picture that says its row in the first two pixels."""
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
    """`count` rows with columns for the image and its ClassLabel, labels 0, 1, 2 ... in turn."""
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    said = {
        image: [picture(row) for row in range(count)],
        label: [row % len(names) for row in range(count)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(said, features=datasets.Features(features)).to_parquet(path)


def write_repo(folder: Path, task: Task, names: Sequence[str], counts: dict[str, int]) -> None:
    """A data set repository as the Hub has it: sharded parquet files, and a card that lists more.

    The corrupted split `contrast` is promised by the card and is no parquet file, so that reading
    any but the task's own files would fail.
    """
    files, config = task.spec.data.files or {}, task.spec.data.config or "default"
    for split, pattern in files.items():
        path = folder / pattern.replace("*", "00000-of-00001.parquet")
        write_parquet(path, counts[split], names, task.spec.data.image, task.spec.data.label)
    junk = (folder / files["train"]).with_name("contrast-00000-of-00001.parquet")
    junk.write_bytes(b"no parquet")
    listed = [*files.items(), ("contrast", junk.relative_to(folder).as_posix())]
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


def moved(task: Task, folder: Path) -> Task:
    """The same task over a folder with the files of its Hub data set."""
    data = task.spec.data.model_copy(update={"id": None, "path": folder})
    return Task(task.spec.model_copy(update={"data": data}), folder)


def parquet_task(folder: Path, count: int = 20, names: Sequence[str] = "ab", **said: Any) -> Task:
    """A task over train.parquet and test.parquet of `count` rows each; `said` changes its spec."""
    for split in ("train", "test"):
        if not (folder / f"{split}.parquet").exists():
            write_parquet(folder / f"{split}.parquet", count, names)
    files = {"train": "train.parquet", "test": "test.parquet"}
    values = {"name": "small", "data": DataSpec(path=folder, files=files), **said}
    return Task(TaskSpec(**values), folder)


def write_images(folder: Path, split: str, names: Sequence[str], count: int, start: int) -> None:
    """`count` pictures per class in folder/split/CLASS, numbered from `start` on."""
    for place, name in enumerate(names):
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            row = start + place * count + number
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
    **said: Any,
) -> Task:
    """A task over train and test files of rows, the same rows unless `test` says otherwise."""
    write_rows(folder / f"train.{suffix}", train)
    write_rows(folder / f"test.{suffix}", train if test is None else test)
    files = {"train": f"train.{suffix}", "test": f"test.{suffix}"}
    values = {"name": "small", "data": {"path": folder, "files": files}, **said}
    return Task(TaskSpec.model_validate(values), folder)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a file of the kind its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            between = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=between)
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row) for row in rows]
        whole = f"[{', '.join(lines)}]" if path.suffix == ".json" else "\n".join(lines)
        path.write_text(whole)
