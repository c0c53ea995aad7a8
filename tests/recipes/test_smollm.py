"""The rows of the chat tasks for the small language model: reproducible, right and apart."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import combinations
from pathlib import Path

import pytest

from hubmerge.tasks.lookup import find_task
from recipes.assets.smollm.rows import HERE, SIZES, TASKS, make_rows


def question_and_answer(row: dict[str, list[dict[str, str]]]) -> tuple[str, str]:
    _, user, assistant = row["messages"]
    return user["content"], assistant["content"]


def right_answer(task: str, question: str) -> str:
    """The answer to a question, in another way than the generator's."""
    rest = question.partition(": ")[2]
    words = rest.split()
    if task == "reverse":
        return " ".join(reversed(words))
    if task == "sort":
        return min(words) + " " + " ".join(sorted(set(words) - {min(words)}))
    if task == "add":
        return str(int(words[0]) + int(words[2]))
    return datetime.strptime(rest, "%B %d, %Y").date().isoformat()


@pytest.mark.parametrize("task", TASKS)
def test_the_files_are_those_that_the_program_writes(task: str) -> None:
    for split, rows in make_rows(task).items():
        text = (HERE / task / f"{split}.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in text.splitlines()] == rows
        assert len(rows) == SIZES[split]
        for row in rows:
            question, answer = question_and_answer(row)
            assert answer == right_answer(task, question)


@pytest.mark.parametrize("task", TASKS)
def test_no_question_is_in_two_splits_in_any_order(task: str) -> None:
    keys = {
        split: {" ".join(sorted(question_and_answer(row)[0].split())) for row in rows}
        for split, rows in make_rows(task).items()
    }
    assert all(not one & other for one, other in combinations(keys.values(), 2))
    assert {split: len(found) for split, found in keys.items()} == SIZES


def test_the_tasks_are_measured_by_what_is_generated() -> None:
    for name in TASKS:
        task = find_task(str(Path(HERE) / f"{name}.yaml"))
        assert (task.name, task.spec.format, task.spec.metric) == (name, "messages", "exact_match")
