"""Rows of conversations, instructions, preferences and plain texts, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import DataError, UsageError
from hubmerge.specs import TaskSpec, validate_spec
from hubmerge.tasks.check import check_task
from hubmerge.tasks.examples import (
    ChatExample,
    RankExample,
    TargetExample,
    TextExample,
    make_example,
)
from hubmerge.tasks.labels import ClassLabels
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.messages import Message, Role

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def answer(text: str) -> Row:
    return {"role": "assistant", "content": text}


def spec(row_format: str | None, **fields: Any) -> TaskSpec:
    values = {"name": "rows", "kind": "target", "data": {"path": "none"}, **fields}
    return validate_spec(TaskSpec, values | ({"format": row_format} if row_format else {}), "rows")


def example_of(row_format: str, row: Row, **fields: Any) -> Any:
    return make_example(spec(row_format, **fields), ClassLabels(), row, "train row 3")


def chat(*turns: tuple[Role, str], **fields: Any) -> ChatExample:
    messages = tuple(Message(role, text) for role, text in turns)
    return ChatExample(messages, **fields)


HELPFUL = ("system", "Be brief.")
ASKED, YES = ("user", "Is it?"), ("assistant", "Yes")
OTHER, NO = ("user", "Or?"), ("assistant", "No")


@pytest.mark.parametrize(
    ("row_format", "row", "expected"),
    [
        ("messages", {"messages": [user("Is it?"), answer("Yes"), user("Or?"), answer("No")]},
         chat(ASKED, YES, OTHER, NO, shape="role")),
        ("messages", {"messages": [{"role": "system", "content": "Be brief."}, user("Is it?"),
                                   answer("Yes")]}, chat(HELPFUL, ASKED, YES, shape="role")),
        ("messages", {"messages": [user("Is it?"), answer("Yes")], "system": "Be brief."},
         chat(HELPFUL, ASKED, YES, shape="role")),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Is "},
                                                                 {"type": "text", "text": "it?"}]},
                                   answer("Yes")]}, chat(ASKED, YES, shape="role")),
        ("conversations", {"conversations": [{"from": "human", "value": "Is it?"},
                                             {"from": "gpt", "value": "Yes"}]},
         chat(ASKED, YES, shape="from")),
        ("completion", {"prompt": "Is it?", "completion": "Yes"}, TargetExample("Is it?", "Yes")),
        ("completion", {"prompt": [user("Is it?"), answer("Yes"), user("Or?")],
                        "completion": [answer("No")]},
         chat(ASKED, YES, OTHER, NO, first=3, shape="role")),
        ("preference", {"prompt": "Is it?", "chosen": "Yes", "rejected": "No"},
         TargetExample("Is it?", "Yes")),
        ("preference", {"chosen": "Human: is it? Bot: Yes.", "rejected": "Human: is it? Bot: No."},
         TargetExample("Human: is it? Bot: ", "Yes.")),
        ("preference", {"prompt": "Is it?", "chosen": [user("Is it?"), answer("Yes")],
                        "rejected": [user("Is it?"), answer("No")]},
         chat(ASKED, YES, first=1, shape="role")),
        ("preference", {"prompt": [user("Is it?")], "chosen": [answer("Yes")],
                        "rejected": [answer("No")]}, chat(ASKED, YES, first=1, shape="role")),
        ("preference", {"prompt": "Is it?", "chosen": [answer("Yes")]},
         chat(ASKED, YES, first=1, shape="role")),
        ("text", {"text": " The cat.\n"}, TextExample(" The cat.\n")),
    ],
)  # fmt: skip
def test_rows_become_examples(row_format: str, row: Row, expected: object) -> None:
    assert example_of(row_format, row) == expected


def test_instructions_are_written_as_alpaca_does_or_as_a_conversation() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    plain = example_of("alpaca", row)
    assert plain.prompt.startswith("Below is an instruction that describes a task, paired with")
    assert plain.prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    assert plain.target == "3"
    assert "### Input" not in example_of("alpaca", {**row, "input": ""}).prompt
    assert example_of("alpaca", row, chat=True) == chat(("user", "Add.\n\n1 2"), ("assistant", "3"))


def test_prompts_may_be_put_into_a_chat_template() -> None:
    fields = {"prompt": "{{ q }}", "target": "{{ a }}", "chat": True}
    target = make_example(spec(None, **fields), ClassLabels(), {"q": "Is it?", "a": "Yes"}, "row")
    assert target == chat(ASKED, YES)
    ranked = {"kind": "rank", "prompt": "{{ q }}", "choices": ["Yes", "No"], "answer": "0"}
    ranking = spec(None, **ranked, chat=True)
    row = {"q": "Is it?"}
    expected = RankExample("Is it?", ("Yes", "No"), 0, chat=True)
    assert make_example(ranking, ClassLabels(), row, "row") == expected


def test_tools_are_left_out() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    result = {"role": "tool", "content": "3"}
    row = {"messages": [user("Is it?"), call, result, answer("Yes")]}
    expected = chat(ASKED, YES, has_tools=True, shape="role")
    assert example_of("messages", row) == expected
    row = {"messages": [user("Is it?"), answer("Yes")], "tools": [{"name": "add"}]}
    assert example_of("messages", row) == expected


@pytest.mark.parametrize(
    ("row_format", "row", "reason"),
    [
        ("messages", {"messages": [user("a"), user("b"), answer("c")]},
         "the roles of train row 3 are user, user, assistant"),
        ("messages", {"messages": [answer("c")]}, "the roles of train row 3 are assistant"),
        ("messages", {"messages": [user("a")]}, "the roles of train row 3 are user"),
        ("messages", {"messages": [user("a"), answer("b"), {"role": "system", "content": "c"}]},
         "are user, assistant, system"),
        ("messages", {"messages": [user("a"), answer(" ")]}, "an answer in train row 3 is empty"),
        ("messages", {"messages": [user("a"), {"role": "critic", "content": "b"}]},
         "have the role 'critic'"),
        ("messages", {"messages": "a"}, "are 'a', not a list of messages"),
        ("messages", {"messages": [{"text": "a"}]}, "have neither `role` and `from`"),
        ("messages", {"messages": [user("a") | {"from": None}]}, "have both `role` and `from`"),
        ("messages", {"messages": [{"role": "user", "content": None}]},
         "have a content that is nothing, not text"),
        ("messages", {"messages": None}, "train row 3 has no `messages`"),
        ("completion", {"prompt": "a", "completion": [answer("b")]},
         "the completion of train row 3 is a list, but the rest of the row is text"),
        ("completion", {"prompt": [user("a")], "completion": "b"},
         "the completion of train row 3 are 'b', not a list"),
        ("preference", {"prompt": "a", "chosen": "", "rejected": "b"},
         "the chosen of train row 3 is empty"),
        ("text", {"text": "\n"}, "the text of train row 3 is empty"),
    ],
)  # fmt: skip
def test_broken_rows_are_named(row_format: str, row: Row, reason: str) -> None:
    with pytest.raises(DataError) as refused:
        example_of(row_format, row)
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": "messages", "prompt": "a"}, "give either `format`, or `prompt` and `target`"),
        ({"format": "messages", "chat": True}, "`format: messages` does not have"),
        ({"format": "messages", "join": " "}, "`join` is for prompts"),
        ({"prompt": "a", "target": "b", "chat": True, "join": ""}, "`join` is for prompts"),
        ({"prompt": "a", "target": "b", "join": "\n"}, "join must be '' or ' '"),
        ({"kind": "image", "format": "messages"}, "`format` is for kind target, not image"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(fields: Row, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        spec(None, **fields)
    assert reason in refused.value.message


ROWS = {
    "messages": {"messages": [user("Is it?"), answer("Yes")], "label": 1},
    "conversations": {"conversations": [{"from": "human", "value": "Is it?"},
                                        {"from": "gpt", "value": "Yes"}]},
    "completion": {"prompt": [user("Is it?")], "completion": [answer("Yes")]},
    "preference": {"prompt": "Is it?", "chosen": "Yes", "rejected": "No"},
    "alpaca": {"instruction": "Is it?", "input": "", "output": "Yes", "text": "Is it? Yes"},
    "text": {"text": "The cat sat on the mat."},
}  # fmt: skip


def write_rows(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("row_format", ROWS)
def test_formats_are_recognised_by_their_columns(row_format: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *[ROWS[row_format]] * 20)
    task = find_task(str(path))
    assert (task.spec.kind, task.spec.format, task.spec.max_tokens) == ("target", row_format, 1024)
    report = check_task(task)
    assert (report.problems, report.counts["test"]) == ((), 4)


def test_prompts_and_completions_that_are_texts_stay_templates(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *[{"prompt": "a", "completion": "b"}] * 10)
    task = find_task(str(path))
    assert (task.spec.format, task.spec.prompt, task.spec.target) == (
        None,
        "{{ prompt }}",
        "{{ completion }}",
    )


def test_columns_of_other_names_are_given(tmp_path: Path) -> None:
    row = {"dialog": ROWS["messages"]["messages"], "extra": 1}
    path = write_rows(tmp_path / "rows.jsonl", *[row] * 10)
    with pytest.raises(UsageError, match="Cannot guess") as refused:
        find_task(str(path))
    assert "for conversations messages=" in refused.value.hint
    task = find_task(str(path), {"messages": "dialog"})
    assert task.spec.data.columns == {"messages": "dialog"}
    assert check_task(task).examples[0] == "user: Is it?\n-> assistant: Yes"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([ROWS["messages"], ROWS["conversations"]], "has no `messages`"),
        ([ROWS["messages"], {"messages": ROWS["conversations"]["conversations"]}], "`from`"),
        ([ROWS["completion"], {"prompt": "Is it?", "completion": "Yes"}], "its rows are mixed"),
    ],
)
def test_rows_of_mixed_shapes_are_problems(rows: list[Row], reason: str, tmp_path: Path) -> None:
    report = check_task(find_task(str(write_rows(tmp_path / "rows.jsonl", *rows * 10))))
    assert any(reason in problem for problem in report.problems)


def test_tools_are_noted(tmp_path: Path) -> None:
    row = {**ROWS["messages"], "tools": "[{}]"}
    report = check_task(find_task(str(write_rows(tmp_path / "rows.jsonl", *[row] * 10))))
    assert "Tools are ignored: calls and their results are left out." in report.notes
