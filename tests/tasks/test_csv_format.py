"""Files of delimited text as people have them: delimiters, encodings, rows that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import DataError
from hubmerge.tasks.check import check_task
from hubmerge.tasks.csv_format import CsvFormat, find_csv_format
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.source import source_notes

from .builders import rows_task

ROWS = [f"{word};{label}" for word in ("Öl", "naïve") for label in ("good", "bad")] * 6


def write(path: Path, lines: list[str], encoding: str = "utf-8", ending: str = "\n") -> Path:
    path.write_bytes((ending.join(lines) + ending).encode(encoding))
    return path


@pytest.mark.parametrize(("delimiter", "suffix"), [
    (";", ".csv"), ("\t", ".csv"), ("|", ".csv"), (",", ".csv"), ("\t", ".tsv"), (",", ".tsv"),
])  # fmt: skip
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str, suffix: str) -> None:
    lines = [line.replace(";", delimiter) for line in ("text;label", *ROWS)]
    task = find_task(str(write(tmp_path / f"own{suffix}", lines)))
    split = load_split(task, "train")
    assert split.classes == ("bad", "good")
    assert {split.example(row)[0] for row in range(len(split))} == {"Öl", "naïve"}


@pytest.mark.parametrize(("encoding", "found"), [
    ("utf-8", CsvFormat("utf-8", ";")),
    ("utf-8-sig", CsvFormat("utf-8-sig", ";")),
    ("utf-16", CsvFormat("utf-16", ";")),
    ("cp1252", CsvFormat("cp1252", ";", is_guessed=True)),
    ("latin-1", CsvFormat("cp1252", ";", is_guessed=True)),  # the same bytes for these words
])  # fmt: skip
def test_the_encoding_is_found(tmp_path: Path, encoding: str, found: CsvFormat) -> None:
    path = write(tmp_path / "own.csv", ["text;label", *ROWS], encoding)
    assert find_csv_format(path) == found
    task = find_task(str(path))
    assert {load_split(task, "train").example(row)[0] for row in range(5)} <= {"Öl", "naïve"}
    notes = list(source_notes(task))
    assert bool(notes) == found.is_guessed
    assert all("is not UTF-8 and is read as cp1252" in note for note in notes)


def test_what_is_given_counts(tmp_path: Path) -> None:
    lines = ["text;label", *ROWS]
    write(tmp_path / "train.csv", lines, "mac_roman")
    write(tmp_path / "test.csv", lines, "mac_roman")
    data = {"path": tmp_path, "files": {"train": "train.csv", "test": "test.csv"}}
    found = rows_task_of(tmp_path, {**data, "encoding": "mac_roman", "delimiter": ";"})
    assert load_split(found, "train").example(0)[0] == "Öl"
    assert list(source_notes(found)) == []
    with pytest.raises(DataError, match="cannot be read as ascii"):
        load_split(rows_task_of(tmp_path, {**data, "encoding": "ascii"}), "train")
    with pytest.raises(DataError, match="cannot be read as nonsense"):
        load_split(rows_task_of(tmp_path, {**data, "encoding": "nonsense"}), "train")


def rows_task_of(folder: Path, data: dict[str, Any]) -> Any:
    task = rows_task(folder / "other", [{"text": "a", "label": "b"}], kind="text")
    spec = task.spec.model_validate({"name": "own", "kind": "text", "data": data})
    return type(task)(spec, folder)


@pytest.mark.parametrize(("lines", "problem"), [
    (["text,label", *["a,good", "b,bad"] * 6, "1, 2,good"], "3 fields in line 14, and 2 in its"),
    (["text,label", *["a,good", "b,bad"] * 6, "alone"], "1 fields in line 14"),
    (["text,label", *["a,b,good"] * 3], "3 fields in line 2"),
    (["text,label", *["a,b,good"] * 9], "4 more lines of it"),
])  # fmt: skip
def test_rows_with_another_number_of_fields_are_refused(
    tmp_path: Path, lines: list[str], problem: str
) -> None:
    path = write(tmp_path / "own.csv", lines)
    with pytest.raises(DataError, match=problem) as raised:
        find_task(str(path))
    assert "double quotes" in raised.value.hint


def test_quotes_blank_lines_and_line_ends_are_no_faults(tmp_path: Path) -> None:
    lines = ["text,label", '"one, two\nthree",good', "", '"a ""b""",bad'] * 1
    path = write(tmp_path / "own.csv", [*lines, *["c,good", "d,bad"] * 5], ending="\r\n")
    assert find_csv_format(path) == CsvFormat("utf-8", ",")
    task = find_task(str(path))
    split = load_split(task, "train")
    texts = {split.example(row)[0] for row in range(len(split))}
    assert texts <= {"one, two\nthree", 'a "b"', "c", "d"}


def test_files_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.csv", ["text,label", "a,good", "b,bad"])
    write(tmp_path / "train-1.csv", ["text;label", "a;good", "b;bad"])
    write(tmp_path / "test.csv", ["text,label", "a,good", "b,bad"])
    with pytest.raises(DataError, match="between fields"):
        find_task(str(tmp_path))


def test_labels_that_may_be_missing_are_noted(tmp_path: Path) -> None:
    rows = [{"text": f"t{row}", "label": ("good", "None")[row % 2]} for row in range(20)]
    notes = check_task(rows_task(tmp_path, rows, kind="text")).notes
    assert "'None' is a class: if it stands for a missing label, remove these rows." in notes


def test_options_of_csv_are_refused_for_other_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "Öl", "label": 1}\n')
    files = {"train": "train.jsonl", "test": "train.jsonl"}
    with pytest.raises(ValueError, match="encoding and delimiter: these data are no CSV files"):
        rows_task_of(
            tmp_path, {"path": tmp_path, "files": files, "encoding": "ascii", "delimiter": ";"}
        )
    unnamed = {"train": "tr*", "test": "tr*"}
    found = rows_task_of(tmp_path, {"path": tmp_path, "files": unnamed, "encoding": "ascii"})
    with pytest.raises(DataError, match="tr\\* is no CSV file, which alone has encoding"):
        load_split(found, "train")
