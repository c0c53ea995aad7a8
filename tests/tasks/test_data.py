"""Splits: their rows and order, labels, and data that are refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hubmerge.errors import DataError, UnknownName
from hubmerge.specs import Carve, DataSpec, SplitsSpec, TaskSpec
from hubmerge.tasks.data import SPLITS, load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.splits import carve, split_indices
from hubmerge.tasks.task import Task
from tests.tasks.builders import (
    local_copy_of,
    parquet_task,
    picture,
    png,
    rows_of,
    rows_task,
    write_parquet,
    write_repo,
    write_rows,
)

PAPER = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")


def test_carving_matches_the_public_code() -> None:
    # The first row of MNIST's training split in the task-vectors code, computed with torch itself.
    kept, carved = carve(60_000, Carve())
    assert kept[0] == 36_044
    assert len(carved) == 5_000
    generator = torch.Generator().manual_seed(0)
    parts = torch.utils.data.random_split(range(60_000), [55_000, 5_000], generator)  # type: ignore[arg-type]
    assert [list(part.indices) for part in parts] == [kept, carved]


def test_a_tenth_is_carved_up_to_the_maximum() -> None:
    assert len(carve(3_760, Carve())[1]) == 376
    assert len(carve(100_000, Carve(most=None))[1]) == 10_000


@pytest.mark.parametrize(
    "splits",
    [
        SplitsSpec(),
        SplitsSpec(test=Carve(fraction=0.2, seed=1)),
        SplitsSpec(validation=Carve(of="test", fraction=0.5)),
        SplitsSpec(validation="validation", test=Carve(fraction=0.3)),
    ],
)
def test_splits_cover_all_rows_without_overlap(splits: SplitsSpec) -> None:
    sources = splits.sources
    rows = [(sources[name], row) for name in SPLITS for row in split_indices(splits, name, 50)]
    assert len(rows) == len(set(rows)) == 50 * len(set(sources.values()))


@pytest.mark.parametrize("name", [  # sun397 and cars have hundreds of classes
    pytest.param(name, marks=pytest.mark.slow if name in ("sun397", "cars") else ())
    for name in PAPER
])  # fmt: skip
def test_the_tasks_of_the_paper_load_from_similar_repositories(name: str, tmp_path: Path) -> None:
    task = find_task(name)
    classes = task.spec.classes
    count = max(60, 2 * len(classes))
    names = [text.replace(" ", "_") for text in classes]
    write_repo(tmp_path, task, names, {"train": count, "test": 30})
    local_task = local_copy_of(task, tmp_path)
    train, validation, test = (load_split(local_task, split) for split in SPLITS)
    assert (len(train), len(validation), len(test)) == (count - count // 10, count // 10, 30)
    assert train.classes == validation.classes == test.classes == classes
    assert (
        rows_of(train) + rows_of(validation)
        == torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    )
    assert rows_of(test) == list(range(30))
    for row in range(5):
        assert validation.example(row)[1] == rows_of(validation)[row] % len(classes)


@pytest.mark.parametrize("split", SPLITS)
def test_a_mini_task_has_its_own_splits(split: str) -> None:
    counts = {"train": 4000, "validation": 400, "test": 1000}
    assert len(load_split(find_task("mini-kana"), split)) == counts[split]


def test_columns_with_other_names(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", 20, ["a", "b"], "img", "fine_label")
    files = {"train": "train.parquet", "test": "test.parquet"}
    data = DataSpec(path=tmp_path, files=files, image="img", label="fine_label")
    split = load_split(Task(TaskSpec(name="other", data=data), tmp_path), "test")
    assert split.rows.column_names == ["image", "label"]
    assert [split.example(row)[1] for row in range(4)] == [0, 1, 0, 1]


def test_parquet_files_not_written_by_datasets(tmp_path: Path) -> None:
    columns = {
        "image": [{"bytes": png(row), "path": None} for row in range(20)],
        "label": [0, 1] * 10,
    }
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    split = load_split(parquet_task(tmp_path, classes=("a", "b")), "test")
    assert rows_of(split) == list(range(20))
    with pytest.raises(DataError, match="column 'label' has no class names"):
        load_split(parquet_task(tmp_path), "test")


def test_class_names_default_to_those_of_the_data(tmp_path: Path) -> None:
    task = parquet_task(tmp_path, names=["hot_dog", "no_hot_dog"])
    assert load_split(task, "test").classes == ("hot dog", "no hot dog")


def test_class_names_may_differ_from_those_of_the_data(tmp_path: Path) -> None:
    task = parquet_task(tmp_path, names=["cat", "dog"], classes=("a house cat", "Dog"))
    assert load_split(task, "test").classes == ("a house cat", "Dog")


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (("a", "b", "c"), "lists 3 classes, but the data have 2"),
        (("b", "a"), "lists class 'b' as label 0, but in the data it is label 1"),
        (("c", "A"), "lists class 'A' as label 1, but in the data it is label 0"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    tmp_path: Path, classes: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        load_split(parquet_task(tmp_path, classes=classes), "test")


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has only one class, 'a'"):
        load_split(parquet_task(tmp_path, names=["a"]), "test")


@pytest.mark.parametrize("labels", [[0, -1], [0, 2], [0, None], [1.0, 0.5]])
def test_invalid_labels_are_refused(tmp_path: Path, labels: list[object]) -> None:
    columns = {"image": [{"bytes": png(row), "path": None} for row in range(2)], "label": labels}
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    with pytest.raises(
        DataError, match=r"label of test row 1, .*, is not a whole number in 0\.\.1"
    ):
        load_split(parquet_task(tmp_path, classes=("a", "b")), "test")


@pytest.mark.parametrize(("image", "label"), [("picture", "label"), ("image", "class")])
def test_a_missing_column_is_named(tmp_path: Path, image: str, label: str) -> None:
    write_parquet(tmp_path / "test.parquet", 4, "ab", image, label)
    missing = "image" if image != "image" else "label"
    with pytest.raises(DataError, match=f"no column '{missing}', only {image}, {label}"):
        load_split(parquet_task(tmp_path), "test")


def test_a_column_without_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1.5, 2.5], "label": [0, 1]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="column 'image' does not hold images"):
        load_split(parquet_task(tmp_path, classes=("a", "b")), "test")


def test_an_empty_split(tmp_path: Path) -> None:
    task = parquet_task(tmp_path, count=9)  # a tenth of nine rounds down to 0
    message = "small has no validation examples: 0.1 of 9 train rows is less than one"
    with pytest.raises(DataError, match=message) as refused:
        load_split(task, "validation")
    assert "`splits: {validation: {of: train, count: N}}`" in str(refused.value.hint)


def test_an_empty_file(tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    empty = datasets.Dataset.from_dict({"image": [], "label": []}, features=features)
    empty.to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match="they have no rows"):
        load_split(parquet_task(tmp_path), "test")


def test_a_file_rewritten_with_the_same_time_is_reloaded(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    for word in ("old", "new"):
        file.write_text("text,label\n" + f"{word},a\n{word},b\n" * 20)
        os.utime(file, (1e9, 1e9))
        split = load_split(find_task(str(file)), "train")
        assert set(split.rows["text"][:]) == {word}


def test_unknown_splits_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Unknown split 'tset'"):
        load_split(parquet_task(tmp_path), "tset")


def test_errors_of_datasets_are_one_line(tmp_path: Path) -> None:
    task = parquet_task(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    (tmp_path / "test.parquet").unlink()
    for split in ("train", "test"):
        with pytest.raises(DataError, match=f"its '{split}' data cannot be loaded: ") as refused:
            load_split(task, split)
        assert "\n" not in refused.value.message
        assert len(refused.value.message) < 400
        assert str(tmp_path) in refused.value.hint


def test_a_missing_folder(tmp_path: Path) -> None:
    data = DataSpec(path=Path("nowhere"), files={"train": "a.parquet", "test": "b.parquet"})
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        load_split(Task(TaskSpec(name="lost", data=data), tmp_path), "test")


@pytest.mark.parametrize("broken", [b"no png", png(1)[:60], None])
def test_a_broken_image_is_named(tmp_path: Path, broken: bytes | None) -> None:
    images = [{"bytes": png(0), "path": None}, {"bytes": broken, "path": None}]
    columns = {"image": images if broken else [images[0], None], "label": [0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    split = load_split(parquet_task(tmp_path, classes=("a", "b")), "test")
    assert split.example(0)[0].tobytes() == picture(0).tobytes()
    problem = "is missing" if broken is None else "cannot be read: "
    with pytest.raises(DataError, match=f"small: the image of test row 1 {problem}") as error:
        split.example(1)
    assert "\n" not in error.value.message


def test_every_class_gives_the_same_share() -> None:
    labels = ["common"] * 80 + ["rare"] * 20
    for order in ("torch", "python"):
        share = Carve(fraction=0.1, order=order, stratify=True)
        kept, carved = carve(100, share, labels)
        assert Counter(labels[index] for index in carved) == {"common": 8, "rare": 2}
        assert sorted([*kept, *carved]) == list(range(100))


def test_largest_remainders_by_hand() -> None:
    """Of 3, 3 and 2 rows, 4 are carved: 1.5, 1.5 and 1; one of the first two gives another."""
    labels = ["a", "a", "a", "b", "b", "b", "c", "c"]
    _, carved = carve(8, Carve(count=4, stratify=True), labels)
    assert Counter(labels[index] for index in carved) == {"a": 2, "b": 1, "c": 1}


def test_own_classes_are_carved_alike_and_others_as_before(tmp_path: Path) -> None:
    rows = [{"text": f"t{row}", "label": "ab"[row % 10 == 0]} for row in range(100)]
    write_rows(tmp_path / "own.jsonl", rows)
    task = find_task(str(tmp_path / "own.jsonl"))
    counts = {name: load_split(task, name).class_counts() for name in SPLITS}
    assert counts == {
        "test": {"a": 18, "b": 2}, "validation": {"a": 7, "b": 1}, "train": {"a": 65, "b": 7},
    }  # fmt: skip
    plain = rows_task(tmp_path / "yaml", rows, kind="text")
    assert "stratify" not in str(plain.spec.model_dump(exclude_unset=True))
    by_class = rows_task(
        tmp_path / "yaml", rows, kind="text", splits={"validation": {"stratify": True}}
    )
    assert by_class.digest != plain.digest
    with pytest.raises(ValueError, match="`stratify` is for kind image or text"):
        rows_task(tmp_path / "target", rows, kind="target", prompt="{{ text }}",
                  target="{{ label }}", metric="token_accuracy",
                  splits={"validation": {"stratify": True}})  # fmt: skip
