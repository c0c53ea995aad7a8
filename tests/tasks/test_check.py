"""All that is wrong with a task, told at once, and what is worth knowing besides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hubmerge.cli.app import app
from hubmerge.tasks.check import check_task
from hubmerge.tasks.lookup import find_task
from tests.tasks.worlds import parquet_task, png, rows_task, write_images, write_rows

RANK = {"kind": "rank", "prompt": "{{ q }}", "choices": "[a, b]", "answer": "key"}


def texts(count: int = 30) -> list[dict[str, Any]]:
    return [{"text": f"text {row}", "label": "ab"[row % 2]} for row in range(count)]


def test_a_sound_task(tmp_path: Path) -> None:
    report = check_task(
        rows_task(tmp_path, texts(), test=[{"text": "x", "label": "a"}], kind="text")
    )
    assert report.problems == ()
    assert report.counts == {"train": 27, "validation": 3, "test": 1}
    assert report.classes["test"] == {"a": 1, "b": 0}
    assert report.head == ("This text is about a.", "This text is about b.")
    assert len(report.examples) == 3
    assert all(example.endswith(("\n-> a", "\n-> b")) for example in report.examples)
    assert report.notes == ("test has no example of 1 of its classes: b.",)


def test_all_problems_at_once(tmp_path: Path) -> None:
    wrong = [*texts(4), {"text": " ", "label": "a"}, {"text": None, "label": "c"}]
    task = rows_task(
        tmp_path, texts(), test=wrong, kind="text",
        data={"path": tmp_path, "files": {
            "train": "train.jsonl", "test": "test.jsonl", "validation": "nowhere.jsonl"}},
        splits={"validation": "validation"},
    )  # fmt: skip
    problems = check_task(task).problems
    assert [problem.split(": ", 1)[1][:40] for problem in problems] == [
        "its 'validation' data cannot be loaded: ",
        "the label of test row 5, 'c', is not 'a'",
        "the text of test row 4 is empty.",
        "the text of test row 5 is empty.",
    ]


def test_many_broken_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"q": "q", "a": "a", "b": "b", "key": 7} for _ in range(12)]
    problems = check_task(rows_task(tmp_path, rows, **RANK)).problems
    assert len(problems) == 5 + 1 + 1 + 5 + 1
    assert "6 more rows of train are broken as well" in problems[5]


def test_what_is_wrong_with_all_splits_is_said_once(tmp_path: Path) -> None:
    task = rows_task(tmp_path, texts(), **{**RANK, "prompt": "{{ question }}"})
    problems = check_task(task).problems
    assert len(problems) == 1
    assert "no column 'a', 'b', 'key' or 'question', only text, label" in problems[0]


def test_the_right_choice_is_marked(tmp_path: Path) -> None:
    rows = [{"q": f"q{row}", "a": "yes", "b": "no", "key": 1} for row in range(30)]
    report = check_task(rows_task(tmp_path, rows, **RANK))
    assert report.examples[0].endswith("\n   yes\n-> no")
    assert report.notes[-1] == "30 of 30 test examples are in train as well." or report.notes


def test_rows_that_train_has_too(tmp_path: Path) -> None:
    report = check_task(rows_task(tmp_path, texts(), test=texts(2), kind="text"))
    seen = sum(note.endswith("test examples are in train as well.") for note in report.notes)
    assert seen == 1
    write_images(tmp_path / "images", "train", ["a", "b"], 20, start=0)
    shutil.copytree(tmp_path / "images" / "train" / "a", tmp_path / "images" / "test" / "a")
    notes = check_task(find_task(str(tmp_path / "images"))).notes
    assert any("test examples are in train as well" in note for note in notes)


def test_numbers_that_label_texts_are_noted(tmp_path: Path) -> None:
    rows = [{"text": f"text {row}", "label": row % 2} for row in range(30)]
    assert "The classes are numbers" in check_task(rows_task(tmp_path, rows, kind="text")).notes[0]


def test_images_are_opened(tmp_path: Path) -> None:
    images = [{"bytes": png(row) if row else b"no png", "path": None} for row in range(4)]
    table = pa.table({"image": images, "label": [0, 1, 0, 7]})
    pq.write_table(table, tmp_path / "test.parquet")
    problems = check_task(parquet_task(tmp_path, classes=("a", "b"))).problems
    assert "the label of test row 3, 7, is not a whole number in 0..1" in problems[0]
    assert "the image of test row 0 cannot be read" in problems[1]
    assert len(problems) == 2


def hubmerge(*words: str) -> Any:
    return CliRunner().invoke(app, ["tasks", *words])


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    write_rows(tmp_path / "own.csv", [{"review": f"r{row}", "stars": row % 2} for row in range(30)])
    return str(tmp_path / "own.csv")


def test_the_command_shows_what_the_model_will_see(reviews: str) -> None:
    done = hubmerge("--check", reviews, "--columns", "text=review,label=stars")
    assert done.exit_code == 0, done.output
    assert "This text is about 0." in done.output
    assert "Example 3 of train:" in done.output
    assert "Note: The classes are numbers" in done.output


def test_the_command_tells_all_problems_and_fails(tmp_path: Path) -> None:
    rows = [
        {"text": "" if row in (4, 5) else "x\x1b[31m", "label": "ab"[row % 2]} for row in range(30)
    ]
    write_rows(tmp_path / "own.jsonl", rows)
    done = hubmerge("--check", str(tmp_path / "own.jsonl"), "--json")
    assert done.exit_code == 1
    assert "2 problems:" in done.stderr
    assert len(json.loads(done.stdout)["problems"]) == 2
    plain = hubmerge("--check", str(tmp_path / "own.jsonl"))
    assert "\x1b" not in plain.output
    assert "\\x1b[31m" in plain.output


def test_what_cannot_be_a_check(reviews: str) -> None:
    assert hubmerge("--check", reviews).exit_code == 2
    assert hubmerge("--columns", "text=a").exit_code == 2
    assert "kind" in hubmerge().stdout
