"""Tasks by name, by YAML, by folder; and the digest that tells one from another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hubmerge.errors import DataError, UnknownName, UsageError
from hubmerge.tasks.data import SPLITS, load_split
from hubmerge.tasks.lookup import all_tasks, catalog, find_task
from tests.tasks.worlds import parquet_task, picture, rows_of, write_images, write_parquet


def test_every_shipped_task_can_be_read() -> None:
    assert [task.name for task in all_tasks()] == sorted(catalog())


def test_near_names_are_offered() -> None:
    with pytest.raises(UnknownName) as refused:
        find_task("mini-mnits")
    assert "mini-mnist" in refused.value.near


def test_a_yaml_with_a_path_beside_it(tmp_path: Path) -> None:
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


def test_what_cannot_be_found_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml cannot be read"):
        find_task(str(tmp_path / "none.yaml"))
    with pytest.raises(DataError, match=r"no folder of images by class at .*/nowhere"):
        find_task(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no folder of images by class"):
        find_task(str(tmp_path))


@pytest.mark.parametrize("called", ["validation", "valid", "dev", "val"])
def test_validation_images_by_any_of_its_names(tmp_path: Path, called: str) -> None:
    write_images(tmp_path, "train", ["a", "b"], 20, start=0)
    write_images(tmp_path, called, ["a", "b"], 3, start=100)
    split = load_split(find_task(str(tmp_path)), "validation")
    assert (rows_of(split), split.classes) == (list(range(100, 106)), ("a", "b"))


def test_two_folders_of_validation_images(tmp_path: Path) -> None:
    for name in ("train", "val", "dev"):
        write_images(tmp_path, name, ["a", "b"], 2, start=0)
    with pytest.raises(DataError, match="two folders of validation images: dev and val"):
        find_task(str(tmp_path))


@pytest.mark.parametrize("native", [(), ("test",), ("validation",), ("validation", "test")])
def test_a_folder_of_images(tmp_path: Path, native: tuple[str, ...]) -> None:
    names = ["dog", "dev kit", "test_tube"]  # two of these are split names to the library's reader
    write_images(tmp_path, "train", names, 20, start=0)
    for place, split in enumerate(native, start=1):
        write_images(tmp_path, split, names[:2], 4, start=100 * place)
    task = find_task(str(tmp_path))
    splits = {split: load_split(task, split) for split in SPLITS}
    rows = [row for split in splits.values() for row in rows_of(split)]
    assert len(rows) == len(set(rows)) == 60 + 8 * len(native)
    assert {split.classes for split in splits.values()} == {("dev kit", "dog", "test tube")}
    for split in native:
        labels = [splits[split].example(row)[1] for row in range(8)]
        assert labels == [0, 0, 0, 0, 1, 1, 1, 1]
    expected = {"test": 8 if "test" in native else 12}
    left = 60 - (0 if "test" in native else 12)
    expected["validation"] = 8 if "validation" in native else left // 10
    assert {name: len(splits[name]) for name in expected} == expected


def test_a_folder_of_classes_alone_is_all_for_training(tmp_path: Path) -> None:
    write_images(tmp_path, ".", ["test", "validation", "dog"], 20, start=0)
    splits = {split: load_split(find_task(str(tmp_path)), split) for split in SPLITS}
    assert {name: len(split) for name, split in splits.items()} == {
        "test": 12, "validation": 4, "train": 44,
    }  # fmt: skip
    assert splits["train"].classes == ("dog", "test", "validation")
    rows = [row for split in splits.values() for row in rows_of(split)]
    assert len(set(rows)) == 60


def test_a_folder_is_read_the_same_each_time(tmp_path: Path) -> None:
    write_images(tmp_path / "one", "train", ["a", "b"], 20, start=0)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (find_task(str(tmp_path / name)) for name in ("one", "two"))
    for split in SPLITS:
        assert rows_of(load_split(one, split)) == rows_of(load_split(two, split))


def test_a_class_that_only_the_test_has(tmp_path: Path) -> None:
    write_images(tmp_path, "train", ["a", "b"], 10, start=0)
    write_images(tmp_path, "test", ["c"], 2, start=100)
    with pytest.raises(DataError, match="test/c is a class that train does not have"):
        load_split(find_task(str(tmp_path)), "test")


def test_images_that_would_be_lost_are_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, "train", ["a", "b"], 10, start=0)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="train/empty is a class without an image"):
        load_split(find_task(str(tmp_path)), "train")
    write_images(tmp_path, "train/empty", ["deeper"], 2, start=50)
    with pytest.raises(DataError, match="train/empty holds folders"):
        load_split(find_task(str(tmp_path)), "train")


def test_a_broken_image_of_a_folder_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, "train", ["a", "b"], 10, start=0)
    write_images(tmp_path, "test", ["a", "b"], 1, start=100)
    (tmp_path / "test" / "b" / "0101.png").write_text("no png")
    with pytest.raises(DataError, match=r"test row 1 cannot be read: .*0101\.png"):
        load_split(find_task(str(tmp_path)), "test").example(1)


def test_the_digest_follows_everything_but_the_place(tmp_path: Path) -> None:
    one = parquet_task(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert parquet_task(tmp_path / "two").digest == one.digest
    assert parquet_task(tmp_path / "one", title="Other words").digest == one.digest
    assert parquet_task(tmp_path / "one", templates=("{}",)).digest != one.digest
    write_parquet(tmp_path / "two" / "test.parquet", 21, "ab")
    assert parquet_task(tmp_path / "two").digest != one.digest


def test_two_image_folders_of_one_name_are_two_tasks(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_images(tmp_path / place / "pets", "train", ["a", "b"], 5, start=0)
    one, two = (find_task(str(tmp_path / place / "pets")) for place in ("one", "two"))
    assert (one.name, one.digest) == (two.name, two.digest)
    picture(77).save(tmp_path / "two" / "pets" / "train" / "a" / "0000.png")
    assert find_task(str(tmp_path / "two" / "pets")).digest != one.digest


def test_no_digest_without_the_data(tmp_path: Path) -> None:
    task = parquet_task(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(DataError, match="there is no folder"):
        _ = task.digest
