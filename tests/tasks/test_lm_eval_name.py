"""Names of tasks of lm_eval, and what is said of them without lm_eval."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from hubmerge.errors import UsageError
from hubmerge.tasks.lm_eval_docs import carve_docs
from hubmerge.tasks.lm_eval_name import LmEvalName, LmEvalTask, parse_lm_eval_name
from hubmerge.tasks.lookup import find_task
from hubmerge.typed_json import from_line, to_line
from tests.command_line import run_command

FOUND = LmEvalTask(
    label="lm-eval:sums",
    digest="0" * 16,
    metrics=("exact_match,strict", "exact_match,letter", "f1,strict", "f1,letter"),
    row_metrics=("exact_match,strict", "exact_match,letter"),
    only_split="test",
    include_path=Path("/tasks"),
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("lm-eval:arc_easy", LmEvalName("arc_easy")),
        ("lm-eval:arc_easy/5-shot", LmEvalName("arc_easy", 5)),
        ("lm-eval:arc_easy/0-shot/chat", LmEvalName("arc_easy", 0, True)),
        ("lm-eval:a-b.c/chat", LmEvalName("a-b.c", None, True)),
    ],
)
def test_a_name_is_read_and_written(text: str, name: LmEvalName) -> None:
    assert parse_lm_eval_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    ["lm-eval:", "lm-eval:a/b", "lm-eval:a/5", "lm-eval:a/1-shot/2-shot", "lm-eval:a/chat/chat"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="does not name a task of lm_eval") as refused:
        parse_lm_eval_name(text)
    assert "lm-eval:NAME/5-shot" in refused.value.hint


def test_a_metric_is_found_by_its_name_and_that_of_its_filter() -> None:
    assert FOUND.find_metric("exact_match") == "exact_match,strict"
    assert FOUND.find_metric("exact_match,letter") == "exact_match,letter"
    assert FOUND.find_metric("exact_match,other") is None


def test_a_task_that_was_found_reaches_other_processes() -> None:
    assert from_line(LmEvalTask, to_line(FOUND)) == FOUND


def test_validation_and_test_share_no_row_whatever_the_order() -> None:
    docs = [{"question": f"what is {number}?"} for number in range(9)]
    docs += docs[:3]
    low, high = carve_docs(docs, True), carve_docs(docs, False)
    assert sorted(low + high) == list(range(12))
    of_low, of_high = ({docs[row]["question"] for row in rows} for rows in (low, high))
    assert not of_low & of_high
    assert (len(of_low), len(of_high)) == (4, 5)
    again = list(reversed(docs))
    assert {again[row]["question"] for row in carve_docs(again, True)} == of_low


def test_training_on_a_task_of_lm_eval_is_refused() -> None:
    with pytest.raises(UsageError, match="only measures models") as refused:
        find_task("lm-eval:arc_easy")
    assert "`hubmerge eval`" in refused.value.hint


def test_a_folder_of_yaml_files_needs_a_task_of_lm_eval(running_hub: None, tmp_path: Path) -> None:
    words = ("eval", tmp_path, "--tasks", "mini-mnist", "--include-path", tmp_path)
    result = run_command(*words)
    assert result.exit_code == 2
    assert "--include-path is for tasks of lm_eval." in result.stderr


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_lm_eval_the_extra_is_named(running_hub: None, tmp_path: Path) -> None:
    result = run_command("eval", tmp_path, "--tasks", "lm-eval:arc_easy")
    assert result.exit_code == 2
    assert "Task lm-eval:arc_easy needs the package lm_eval." in result.stderr
    assert "pip install 'hubmerge[lm-eval]'" in result.stderr
