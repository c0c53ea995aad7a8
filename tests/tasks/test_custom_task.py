"""Tasks without a YAML: columns are guessed from their names, or given by the user."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubmerge.errors import DataError, HubmergeError, UnknownName, UsageError
from hubmerge.specs import TaskSpec, validate_spec
from hubmerge.tasks.custom_task import parse_columns
from hubmerge.tasks.data import SPLITS, TargetExample, load_split
from hubmerge.tasks.lookup import find_task
from tests.command_line import run_command
from tests.tasks.builders import write_images, write_parquet, write_rows

README = Path(__file__).parents[2] / "README.md"


def rows(*columns: str, count: int = 60) -> list[dict[str, Any]]:
    return [{name: f"{name} {row % 3}" for name in columns} for row in range(count)]


def write_file(folder: Path, *columns: str, name: str = "My reviews.csv") -> str:
    write_rows(folder / name, rows(*columns))
    return str(folder / name)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_file_of_rows(tmp_path: Path, suffix: str) -> None:
    task = find_task(write_file(tmp_path, "id", "Sentence", "intent", name=f"My reviews.{suffix}"))
    assert (task.name, task.spec.kind) == ("my-reviews", "text")
    splits = [load_split(task, name) for name in SPLITS]
    assert [len(split) for split in splits] == [44, 4, 12]  # a fifth, then a tenth of 48
    assert splits[2].classes == ("intent 0", "intent 1", "intent 2")
    assert splits[2].example(0)[0].startswith("Sentence ")


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        (("text", "label"), "text", ("text", "label")),
        (("review", "Category", "id"), "text", ("review", "Category")),
        (("content", "class", "labels"), "text", ("content", "labels")),
        (("prompt", "response", "id"), "target", ("{{ prompt }}", "{{ response }}")),
        (("question", "answer"), "target", ("{{ question }}", "{{ answer }}")),
        (("input", "output"), "target", ("{{ input }}", "{{ output }}")),
    ],
)
def test_columns_are_guessed(
    tmp_path: Path, columns: tuple[str, ...], kind: str, expected: tuple[str, str]
) -> None:
    spec = find_task(write_file(tmp_path, *columns)).spec
    assert spec.kind == kind
    result = (spec.prompt, spec.target) if kind == "target" else (spec.data.text, spec.data.label)
    assert result == expected


def test_given_columns_come_first(tmp_path: Path) -> None:
    path = write_file(tmp_path, "text", "label", "stars", "a", "b")
    assert find_task(path, {"label": "stars"}).spec.data.label == "stars"
    assert find_task(path, {"prompt": "a", "target": "b"}).spec.prompt == "{{ a }}"


def test_columns_that_cannot_be_guessed_are_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a", "b")
    with pytest.raises(UsageError, match=r"Cannot guess .* input and answer: a, b\.") as refused:
        find_task(path)
    assert "--columns text=COLUMN,label=COLUMN" in refused.value.hint
    for columns in ({"text": "a"}, {"text": "a", "target": "b"}):
        with pytest.raises(UsageError, match="Cannot guess which columns"):
            find_task(path, columns)
    with pytest.raises(UnknownName, match="Unknown column 'c'"):
        find_task(path, {"text": "c"})


def test_unusual_column_names(tmp_path: Path) -> None:
    names = ('my "q" \x1b[31m\n\\', "row", "range", "true", "müde 😀")
    write_rows(tmp_path / "odd.jsonl", rows(*names))
    for name in names:
        target = "row" if name == "range" else "range"
        task = find_task(str(tmp_path / "odd.jsonl"), {"prompt": name, "target": target})
        example = load_split(task, "train").example(0)
        assert isinstance(example, TargetExample)
        assert example.prompt.startswith(name)
        assert example.target.startswith(target)


@pytest.mark.parametrize("text", ["text", "text=", "text=a,,", "=a"])
def test_invalid_lists_of_columns_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--columns"):
        parse_columns(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("text=a,text=b", "has the key text more than once"),
        ("text=a,label=a", "Column 'a' cannot be both text and label"),
    ],
)
def test_duplicate_keys_or_columns_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_columns(text)


def test_a_column_is_not_guessed_for_a_second_key(tmp_path: Path) -> None:
    path = write_file(tmp_path, "text", "label", "intent")
    assert find_task(path, {"text": "label"}).spec.data.label == "intent"
    with pytest.raises(UsageError, match="Column 'label' cannot be both text and label"):
        find_task(path, {"text": "label", "label": "label"})


def test_parsing_columns() -> None:
    assert parse_columns("text=my review, label=a=b") == {"text": "my review", "label": "a=b"}
    with pytest.raises(UnknownName) as refused:
        parse_columns("txt=a")
    assert refused.value.near == ["text"]


def test_columns_are_refused_for_images_and_shipped_tasks(tmp_path: Path) -> None:
    write_images(tmp_path, ".", ["a", "b"], 3, start=0)
    with pytest.raises(UsageError, match="images by class, which has no columns"):
        find_task(str(tmp_path), {"image": "a", "label": "b"})
    with pytest.raises(UsageError, match="defines its own columns"):
        find_task("mini-mnist", {"image": "a"})


def test_a_folder_of_rows(tmp_path: Path) -> None:
    for name in ("train-0.csv", "train-1.csv", "dev.csv", "other.csv"):
        write_file(tmp_path, "text", "label", name=name)
    task = find_task(str(tmp_path))
    assert task.spec.data.files == {"train": "train-*.csv", "validation": "dev.csv"}
    assert [len(load_split(task, name)) for name in SPLITS] == [96, 60, 24]
    write_file(tmp_path, "text", "label", name="valid.jsonl")
    with pytest.raises(
        DataError, match=r"two kinds of validation files: valid\.jsonl and dev\.csv"
    ):
        find_task(str(tmp_path))


def test_images_in_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 60, ["a", "b"])
    task = find_task(str(tmp_path / "train.parquet"))
    assert (task.spec.kind, load_split(task, "test").classes) == ("image", ("a", "b"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nowhere.csv", "There is no file nowhere.csv"),
        ("hf://me/reviews", "is not a data set"),
        ("hf://datasets/reviews", "is not a repository id"),
        ("hf://datasets/me/reviews@a..b", "is not a revision"),
    ],
)
def test_missing_data_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(HubmergeError, match=sentence):
        find_task(text)


def test_local_data_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lookups: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: lookups.append(words) or [])
    write_images(tmp_path, "train", ["a", "b"], 20, start=0)
    for text in (str(tmp_path), write_file(tmp_path, "text", "label")):
        load_split(find_task(text), "test")
    assert lookups == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("own.csv", "text,label\n"), ("own.jsonl", ""), ("own.jsonl", "\n\n"), ("own.json", "[]")],
)
def test_a_file_without_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="no rows"):
        find_task(str(tmp_path / name))


def test_names_without_latin_letters_are_distinct(tmp_path: Path) -> None:
    stems = ["фото отзывы", "отзывы 2", "фото 2", "レビュー", "2024", "café"]
    names = [find_task(write_file(tmp_path, "text", "label", name=f"{n}.csv")).name for n in stems]
    assert names[4:] == ["2024", "caf"]
    assert all(re.fullmatch("own-[0-9a-f]{8}", name) for name in names[:4])
    assert len(set(names)) == len(stems)


@pytest.mark.parametrize("content", [b"", b"\xff\x00\xfe", b'{"text": ', b"[[[[["])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_broken_files_raise_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"own.{suffix}").write_bytes(content)
    with pytest.raises((DataError, UsageError)) as refused:
        find_task(str(tmp_path / f"own.{suffix}"))
    assert "\n" not in refused.value.message


def test_the_digest_of_a_file_depends_on_its_bytes(tmp_path: Path) -> None:
    digest = find_task(write_file(tmp_path, "text", "label")).digest
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
    assert find_task(write_file(tmp_path / "same", "text", "label")).digest == digest
    other = Path(write_file(tmp_path / "other", "text", "label"))
    other.write_text(other.read_text().replace("text 0", "text 9", 1))
    assert find_task(str(other)).digest != digest
    assert find_task(str(other), {"text": "label", "label": "text"}).digest != digest


def test_the_tasks_of_the_readme_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    specs = [validate_spec(TaskSpec, yaml.safe_load(text), "README.md") for text in blocks]
    assert [spec.kind for spec in specs] == ["image", "text", "rank", "target"]


@pytest.mark.parametrize("tasks", [(), ("--tasks", "mini-mnist"), ("--tasks", "me/photos@step8")])
def test_columns_that_nothing_would_use_are_refused(
    running_hub: None, tmp_path: Path, tasks: tuple[str, ...]
) -> None:
    result = run_command("eval", tmp_path, *tasks, "--columns", "text=a,label=b")
    assert result.exit_code == 2
    assert "--columns is for data whose columns nothing else names." in result.stderr
