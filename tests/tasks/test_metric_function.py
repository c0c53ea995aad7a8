"""Functions of one's own: what they get, and what they may not return."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hubmerge.errors import UsageError
from hubmerge.tasks.chosen_metric import metric_of_id, with_metric
from hubmerge.tasks.metric_function import (
    call_metric_function,
    load_metric_function,
    metric_function_id,
)
from tests.learners.builders import task

ROWS = [
    {"prediction": "a b", "reference": "a", "row": {"n": 1}},
    {"prediction": "c", "reference": "c", "row": {"n": 2}},
]
SOURCE = """
import math

limit = 3


def length(rows):
    return [len(row["prediction"]) / 10 for row in rows]


def one(rows):
    return 0.5


def short(rows):
    return [1.0]


def broken(rows):
    return [0.5, math.nan]


def text(rows):
    return ["high", "low"]


def fails(rows):
    return rows[0]["answer"]
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the current folder, which is not among those of modules yet."""
    path = tmp_path / "own_metrics.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    load_metric_function.cache_clear()
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    return path


def test_a_function_gets_rows_and_gives_one_number_each() -> None:
    assert call_metric_function("own_metrics:length", ROWS) == (0.3, 0.1)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("one", "returned 0.5 for 2 rows"),
        ("short", "returned 1 numbers for 2 rows"),
        ("broken", "returned nan for the prediction 'c'"),
        ("text", "failed on 2 rows: ValueError: could not convert"),
        ("fails", "failed on 2 rows: KeyError: 'answer'"),
    ],
)
def test_other_results_are_refused_with_a_way_out(function: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as error:
        call_metric_function(f"own_metrics:{function}", ROWS)
    assert error.value.hint.startswith("Return a ")


def test_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="has no function 'lenght'") as error:
        metric_function_id("own_metrics:lenght")
    assert error.value.hint.startswith("It has length, one, ")
    with pytest.raises(UsageError, match="has no function 'limit'"):
        metric_function_id("own_metrics:limit")
    with pytest.raises(UsageError, match="module 'no_metrics' cannot be imported"):
        metric_function_id("no_metrics:length")


def test_an_edited_function_is_another_metric(own_module: Path) -> None:
    before = metric_function_id("own_metrics:length")
    own_module.write_text(SOURCE.replace("/ 10", "/ 20"))
    assert before.startswith("own_metrics:length#")
    assert metric_function_id("own_metrics:length") != before


def test_a_chosen_metric_is_a_part_of_the_id() -> None:
    small = task("target", data={"id": "a/b"})
    chosen = with_metric(small, "exact_match")
    assert (chosen.id, chosen.metric) == (f"{small.id}+exact_match", "exact_match")
    assert metric_of_id(chosen.id) == (small.id, "exact_match")
    assert metric_of_id(small.id) == (small.id, None)
    assert with_metric(chosen, "token_accuracy") == small == with_metric(small, None)
    function = with_metric(small, "own_metrics:length")
    assert function.metric == "own_metrics:length"
    assert function.id.startswith(f"{small.id}+own_metrics:length#")


def test_metrics_of_other_kinds_are_refused() -> None:
    for metric in ("exact_match", "own_metrics:length"):
        with pytest.raises(UsageError, match=f"cannot be measured by {metric}") as error:
            with_metric(task("image"), metric)
        assert error.value.hint == "Use one of accuracy, calibration_error."
    with pytest.raises(UsageError, match="cannot be measured by rogue") as error:
        with_metric(task("target"), "rogue")
    assert error.value.hint.startswith("Use one of token_accuracy, exact_match, contains, f1, ")
    with pytest.raises(UsageError, match="cannot be measured by loss"):
        with_metric(task("rank"), "loss")
