"""The log of trials: after a crash, with other writers, and with two lines for one merge."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from hubmerge.trials import Part, RowResults, Trial, TrialLog

TRIAL = Trial(
    recipe="r1",
    base="b",
    parts=(Part("e1"), Part("e2", weight=0.5, keep=0.3)),
    method="ties",
    params={"scale": 0.5, "density": 0.2, "trim": "model"},
    split="validation",
    rows={"a": RowResults("1101", 4), "b": RowResults("10", 4)},
)


def test_the_log_reads_what_was_appended(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "home" / "trials.jsonl")
    assert log.read() == []
    log.append([TRIAL, replace(TRIAL, split="test")])
    assert log.read() == [TRIAL, replace(TRIAL, split="test")]


def test_the_line_with_the_most_rows_counts(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    more = replace(TRIAL, rows={"a": RowResults("1101", 4), "b": RowResults("1011", 4)})
    log.append([TRIAL, more])
    log.append([TRIAL])  # from a concurrent selection, which stopped early
    assert log.read() == [more]


@pytest.mark.parametrize(
    "broken",
    [
        '{"recipe": "r',
        "[]",
        '{"parts": 3}',
        "nonsense",
        "null",
        "[" * 100_000,
        '{"recipe": [1], "base": "b", "parts": [], "method": "m", "params": {}, "split": "s",'
        ' "rows": {}}',
        '{"recipe": "r", "base": "b", "parts": [], "method": "m", "params": {}, "split": "s",'
        ' "rows": {"a": {"bits": "10x", "of": 9}}}',
        '{"recipe": "r", "base": "b", "parts": [], "method": "m", "params": {}, "split": "s",'
        ' "rows": {"a": {"bits": 5, "of": 9}}}',
    ],
)
def test_a_broken_line_is_skipped(tmp_path: Path, broken: str) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.path.write_text(broken)
    log.append([TRIAL])
    assert log.read() == [TRIAL]


_VALUES: tuple[Any, ...] = (None, True, 1, 0, -1, 0.5, "", "1", "x", [], [1], {}, {"a": 1}, 10**30)


def test_lines_are_read_as_pydantic_reads_them(tmp_path: Path) -> None:
    """Every field of a line is replaced by values of all kinds, removed, or joined by another."""
    fields = json.loads(json.dumps(asdict(TRIAL)))
    places = [fields, fields["parts"][0], fields["rows"]["a"], fields["rows"]]
    lines = []
    for place in places:
        for name in [*place, "new"]:
            absent = object()
            before = place.get(name, absent)
            for value in _VALUES:
                place[name] = value
                lines.append(json.dumps(fields))
            del place[name]
            lines.append(json.dumps(fields))
            if before is not absent:
                place[name] = before
    adapter, log, accepted = TypeAdapter(Trial), TrialLog(tmp_path / "trials.jsonl"), 0
    for line in lines:
        try:
            expected = [adapter.validate_json(line, strict=True)]
        except ValidationError:
            expected = []
        log.path.write_text(line + "\n")
        rows = [row for trial in expected for row in trial.rows.values()]
        if not all(set(row.bits) <= {"0", "1"} and row.count <= row.of for row in rows):
            expected = []
        graded = [row for row in rows if row.values is not None]
        if not all(not row.bits and all(0 <= v <= 1 for v in row.values or ()) for row in graded):
            expected = []
        assert log.read() == expected, line
        accepted += len(expected)
    assert 30 < accepted < len(lines) - 100


def test_accuracies_are_over_the_rows_measured() -> None:
    assert TRIAL.accuracies == {"a": 0.75, "b": 0.5}
    assert TRIAL.accuracy == pytest.approx(0.625)
    assert TRIAL.stderr == pytest.approx((0.75 * 0.25 / 4 + 0.5 * 0.5 / 2) ** 0.5 / 2)
    assert not TRIAL.is_complete
    assert TRIAL.truncate({"a": 2, "b": 1}).accuracies == {"a": 1.0, "b": 1.0}


GRADED = replace(TRIAL, rows={"a": RowResults("", 4, (0.25, 1.0, 0.5)), "b": RowResults("11", 4)})


def test_numbers_between_right_and_wrong_have_their_own_mean_and_error(tmp_path: Path) -> None:
    assert GRADED.accuracies == {"a": pytest.approx(7 / 12), "b": 1.0}
    variance = sum((value - 7 / 12) ** 2 for value in (0.25, 1.0, 0.5)) / 3
    assert GRADED.stderr == pytest.approx((variance / 3) ** 0.5 / 2)
    assert GRADED.truncate({"a": 2, "b": 1}).rows["a"].measured == (0.25, 1.0)
    assert GRADED.rows_measured == 5
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append([GRADED])
    assert log.read() == [GRADED]


def test_rows_are_extended_by_what_they_are_made_of() -> None:
    assert RowResults("", 4).extended((0.5,)).extended((1.0,)) == RowResults("", 4, (0.5, 1.0))
    assert RowResults("", 4).extended("01").extended("1") == RowResults("011", 4)


def test_logs_of_bits_are_written_as_before(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append([TRIAL])
    assert json.loads(log.path.read_text())["rows"]["a"] == {"bits": "1101", "of": 4}
