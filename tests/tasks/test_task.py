"""Tasks by name, YAML file and folder, and their digests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hubmerge.errors import DataError, UnknownName, UsageError
from hubmerge.tasks.data import SPLITS, load_split
from hubmerge.tasks.lookup import CATALOG, all_tasks, catalog, find_task
from hubmerge.tasks.task import Task
from tests.tasks.builders import parquet_task, picture, rows_of, write_images, write_parquet


def test_all_shipped_tasks_can_be_read() -> None:
    assert [task.name for task in all_tasks()] == sorted(catalog())


def test_similar_names_are_suggested() -> None:
    with pytest.raises(UnknownName) as refused:
        find_task("mini-mnits")
    assert "mini-mnist" in refused.value.near


def test_a_yaml_with_a_relative_path(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "a.parquet", 30, "xy")
    write_parquet(tmp_path / "data" / "b.parquet", 10, "xy")
    (tmp_path / "own.yaml").write_text(
        "name: own\n"
        "data: {path: data, files: {train: a.parquet, test: b.parquet}}\n"
        "templates: ['the letter {}.']\n"
    )
    task = find_task(str(tmp_path / "own.yaml"))
    assert [len(load_split(task, split)) for split in SPLITS] == [27, 3, 10]
    assert task.spec.templates == ("the letter {}.",)


def test_missing_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml cannot be read"):
        find_task(str(tmp_path / "none.yaml"))
    with pytest.raises(DataError, match="nowhere is neither a folder of images by class"):
        find_task(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="is neither a folder of images by class"):
        find_task(str(tmp_path))


@pytest.mark.parametrize("name", ["validation", "valid", "dev", "val"])
def test_any_name_of_the_validation_folder(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, "train", ["a", "b"], 20, start=0)
    write_images(tmp_path, name, ["a", "b"], 3, start=100)
    split = load_split(find_task(str(tmp_path)), "validation")
    assert (rows_of(split), split.classes) == (list(range(100, 106)), ("a", "b"))


def test_two_folders_of_validation_images_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "dev"):
        write_images(tmp_path, name, ["a", "b"], 2, start=0)
    with pytest.raises(DataError, match="two folders of validation images: dev and val"):
        find_task(str(tmp_path))


@pytest.mark.parametrize("native", [(), ("test",), ("validation",), ("validation", "test")])
def test_a_folder_of_images(tmp_path: Path, native: tuple[str, ...]) -> None:
    names = ["dog", "dev kit", "test_tube"]  # `datasets` would detect two of these as splits
    write_images(tmp_path, "train", names, 20, start=0)
    for index, split in enumerate(native, start=1):
        write_images(tmp_path, split, names[:2], 4, start=100 * index)
    task = find_task(str(tmp_path))
    splits = {split: load_split(task, split) for split in SPLITS}
    rows = [row for split in splits.values() for row in rows_of(split)]
    assert len(rows) == len(set(rows)) == 60 + 8 * len(native)
    assert {split.classes for split in splits.values()} == {("dev kit", "dog", "test tube")}
    for split in native:
        labels = [splits[split].example(row)[1] for row in range(8)]
        assert labels == [0, 0, 0, 0, 1, 1, 1, 1]
    expected = {"test": 8 if "test" in native else 12}
    remaining = 60 - (0 if "test" in native else 12)
    expected["validation"] = 8 if "validation" in native else remaining // 10
    assert {name: len(splits[name]) for name in expected} == expected


def test_a_folder_of_classes_is_train(tmp_path: Path) -> None:
    write_images(tmp_path, ".", ["test", "validation", "dog"], 20, start=0)
    splits = {split: load_split(find_task(str(tmp_path)), split) for split in SPLITS}
    assert {name: len(split) for name, split in splits.items()} == {
        "test": 12, "validation": 4, "train": 44,
    }  # fmt: skip
    assert splits["train"].classes == ("dog", "test", "validation")
    rows = [row for split in splits.values() for row in rows_of(split)]
    assert len(set(rows)) == 60


def test_copies_of_a_folder_give_the_same_rows(tmp_path: Path) -> None:
    write_images(tmp_path / "first", "train", ["a", "b"], 20, start=0)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    first, second = (find_task(str(tmp_path / name)) for name in ("first", "second"))
    for split in SPLITS:
        assert rows_of(load_split(first, split)) == rows_of(load_split(second, split))


def test_a_class_that_is_only_in_test_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "train", ["a", "b"], 10, start=0)
    write_images(tmp_path, "test", ["c"], 2, start=100)
    with pytest.raises(DataError, match="test/c is a class that train does not have"):
        load_split(find_task(str(tmp_path)), "test")


def test_empty_and_nested_classes_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "train", ["a", "b"], 10, start=0)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="train/empty is a class without images"):
        load_split(find_task(str(tmp_path)), "train")
    write_images(tmp_path, "train/empty", ["deeper"], 2, start=50)
    with pytest.raises(DataError, match="train/empty contains folders"):
        load_split(find_task(str(tmp_path)), "train")


def test_a_broken_image_of_a_folder_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, "train", ["a", "b"], 10, start=0)
    write_images(tmp_path, "test", ["a", "b"], 1, start=100)
    (tmp_path / "test" / "b" / "0101.png").write_text("no png")
    with pytest.raises(DataError, match=r"test row 1 cannot be read: .*0101\.png"):
        load_split(find_task(str(tmp_path)), "test").example(1)


def test_the_digest_depends_on_everything_except_the_location(tmp_path: Path) -> None:
    task = parquet_task(tmp_path / "task")
    shutil.copytree(tmp_path / "task", tmp_path / "two")
    assert parquet_task(tmp_path / "two").digest == task.digest
    assert parquet_task(tmp_path / "task", title="Other words").digest == task.digest
    assert parquet_task(tmp_path / "task", templates=("{}",)).digest != task.digest
    write_parquet(tmp_path / "two" / "test.parquet", 21, "ab")
    assert parquet_task(tmp_path / "two").digest != task.digest


def test_image_folders_with_the_same_name_differ_by_digest(tmp_path: Path) -> None:
    for parent in ("first", "second"):
        write_images(tmp_path / parent / "pets", "train", ["a", "b"], 5, start=0)
    first, second = (find_task(str(tmp_path / parent / "pets")) for parent in ("first", "second"))
    assert (first.name, first.digest) == (second.name, second.digest)
    picture(77).save(tmp_path / "second" / "pets" / "train" / "a" / "0000.png")
    assert find_task(str(tmp_path / "second" / "pets")).digest != first.digest


def test_the_digest_needs_the_data(tmp_path: Path) -> None:
    task = parquet_task(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(DataError, match="there is no folder"):
        _ = task.digest


def test_tasks_of_earlier_versions_keep_their_ids() -> None:
    """Experts on the Hub name them; keys that were added later count only if they are used."""
    assert find_task("paws").id == "paws@75c9a2bbbaae3038"
    spec = find_task("paws").spec
    changed = Task(spec.model_copy(update={"eos": False}), CATALOG)
    assert changed.id != "paws@75c9a2bbbaae3038"
