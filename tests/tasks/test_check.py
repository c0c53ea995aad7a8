"""Checking a task: all problems are reported at once, and notes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubmerge.tasks.check import check_task
from hubmerge.tasks.lookup import find_task
from tests.command_line import run_command
from tests.tasks.builders import parquet_task, png, rows_task, write_images, write_rows

RANK = {"kind": "rank", "prompt": "{{ q }}", "choices": "[a, b]", "answer": "key"}


def texts(count: int = 30) -> list[dict[str, Any]]:
    return [{"text": f"text {row}", "label": "ab"[row % 2]} for row in range(count)]


def test_a_valid_task(tmp_path: Path) -> None:
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


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
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
    assert len(problems) == 11 + 1 + 12  # of train, of validation and of test


def test_a_broken_image_is_found_wherever_it_is_and_named_by_its_path(tmp_path: Path) -> None:
    for label in ("fox", "wolf"):
        for row in range(90):
            path = tmp_path / "photos" / label / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no png" if row in (3, 71) else png(row))
    result = hubmerge("--check", str(tmp_path / "photos"), "--json")
    problems = json.loads(result.stdout)["problems"]
    assert len(problems) == 4
    for label in ("fox", "wolf"):
        for row in (3, 71):
            assert sum(f"photos/{label}/{row}.png" in problem for problem in problems) == 1


def test_of_many_problems_the_first_are_printed(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}]}] * 40
    write_rows(tmp_path / "chats.jsonl", rows)
    result = hubmerge("--check", str(tmp_path / "chats.jsonl"))
    assert "And 20 more, which --json lists." in result.stderr
    assert result.stderr.count("the roles of") == 20


def test_the_same_problem_in_all_splits_is_reported_once(tmp_path: Path) -> None:
    task = rows_task(tmp_path, texts(), **{**RANK, "prompt": "{{ question }}"})
    problems = check_task(task).problems
    assert len(problems) == 1
    assert "no column 'a', 'b', 'key' or 'question', only text, label" in problems[0]


def test_the_way_to_mend_rows_is_named_once(tmp_path: Path) -> None:
    question, answer = ({"role": role, "content": "x"} for role in ("user", "assistant"))
    rows = [{"messages": turns} for turns in ([question, answer], [answer], [question, question])]
    task = rows_task(tmp_path, rows * 4, kind="target", format="messages")
    report = check_task(task)
    assert len(report.problems) > 2
    [hint] = report.hints
    assert "must take turns" in hint


def test_the_correct_choice_is_marked(tmp_path: Path) -> None:
    rows = [{"q": f"q{row}", "a": "yes", "b": "no", "key": 1} for row in range(30)]
    report = check_task(rows_task(tmp_path, rows, **RANK))
    assert report.examples[0].endswith("\n   yes\n-> no")
    assert report.notes[-1] == "30 of 30 test examples are also in train." or report.notes


def test_examples_that_are_also_in_train_are_noted(tmp_path: Path) -> None:
    report = check_task(rows_task(tmp_path, texts(), test=texts(2), kind="text"))
    count = sum(note.endswith("test examples are also in train.") for note in report.notes)
    assert count == 1
    write_images(tmp_path / "images", "train", ["a", "b"], 20, start=0)
    shutil.copytree(tmp_path / "images" / "train" / "a", tmp_path / "images" / "test" / "a")
    notes = check_task(find_task(str(tmp_path / "images"))).notes
    assert any("test examples are also in train" in note for note in notes)


def test_class_names_that_are_numbers_are_noted(tmp_path: Path) -> None:
    rows = [{"text": f"text {row}", "label": row % 2} for row in range(30)]
    assert (
        "The class names are numbers" in check_task(rows_task(tmp_path, rows, kind="text")).notes[0]
    )


def test_images_are_decoded(tmp_path: Path) -> None:
    images = [{"bytes": png(row) if row else b"no png", "path": None} for row in range(4)]
    table = pa.table({"image": images, "label": [0, 1, 0, 7]})
    pq.write_table(table, tmp_path / "test.parquet")
    problems = check_task(parquet_task(tmp_path, classes=("a", "b"))).problems
    assert "the label of test row 3, 7, is not a whole number in 0..1" in problems[0]
    assert "the image of test row 0 cannot be read" in problems[1]
    assert len(problems) == 2


def hubmerge(*words: str) -> Any:
    return run_command("tasks", *words, hub=None)


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    write_rows(tmp_path / "own.csv", [{"review": f"r{row}", "stars": row % 2} for row in range(30)])
    return str(tmp_path / "own.csv")


def test_the_command_prints_examples(reviews: str) -> None:
    result = hubmerge("--check", reviews, "--columns", "text=review,label=stars")
    assert result.exit_code == 0, result.output
    assert "This text is about 0." in result.output
    assert "Example 3 of train:" in result.output
    assert "Note: The class names are numbers" in result.output


def test_the_command_prints_all_problems_and_fails(tmp_path: Path) -> None:
    rows = [
        {"text": "" if row in (4, 5) else "x\x1b[31m", "label": "ab"[row % 2]} for row in range(30)
    ]
    write_rows(tmp_path / "own.jsonl", rows)
    result = hubmerge("--check", str(tmp_path / "own.jsonl"), "--json")
    assert result.exit_code == 1
    assert "2 problems:" in result.stderr
    assert len(json.loads(result.stdout)["problems"]) == 2
    plain = hubmerge("--check", str(tmp_path / "own.jsonl"))
    assert "\x1b" not in plain.output
    assert "\\x1b[31m" in plain.output


def test_usage_errors(reviews: str) -> None:
    assert hubmerge("--check", reviews).exit_code == 2
    assert hubmerge("--columns", "text=a").exit_code == 2
    assert "kind" in hubmerge().stdout
