"""Prompts: rows in the words of a task, and what a hostile template cannot do."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hubmerge.errors import DataError, UsageError
from hubmerge.specs import TaskSpec, validated
from hubmerge.tasks.prompts import expression, render

ROW = {"question": " Is it? ", "choices": {"text": ["yes", "no"]}, "key": "B", "gone": None}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ question | trim('? ') }}!\n", "Is it!"),
        ("{{ question[1] | lower }}{{ question[2:] | trim }}", "is it?"),
        ("{% if 'it' in question %}{{ choices.text | join(' or ') }}{% endif %}", "yes or no"),
        ("{% for c in choices.text %}{{ loop.index }} {{ c }}\n{% endfor %}", "1 yes\n2 no"),
        ("{{ question.lower() | replace('?', '.') }}", "is it."),
        ("{{ row['key'] }}{{ gone }}{{ key * 1 if false else '' }}", "B"),
        ("", ""),
    ],
)
def test_a_template_is_filled(template: str, said: str) -> None:
    assert render(template, ROW) == said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'ABC'.index(key)", 1),
        ("choices.text", ["yes", "no"]),
        ("[question | trim, key]", ["Is it?", "B"]),
        ("gone", None),
    ],
)
def test_an_expression_has_a_value(text: str, value: object) -> None:
    assert expression(text, ROW) == value


def test_fields_are_cut_before_they_are_used() -> None:
    row = {"text": "a" * 3000 + "b", "inner": {"list": ["c" * 3000]}}
    assert render("{{ text }}", row) == "a" * 2048
    assert expression("inner.list[0] | length", row) == 2048
    assert render("{{ text }}", row, None) == row["text"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ qestion }}", "'qestion' is undefined"),
        ("{{ choices.txt }}", "no attribute 'txt'"),
        ("{{ question + 1 }}", "str"),
        ("{{ ''.__class__ }}", "'__class__' of 'str' object is unsafe"),
        ("{{ question['__class__'].__mro__ }}", "unsafe"),
        ("{{ choices.text.append('x') }}", "unsafe"),
        ("{{ 'a' * 3000000000 }}", r"`\*` is not for prompts"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "not for prompts"),
        ("{{ '%3000000000d' % 1 }}", "not for prompts"),
        ("{{ range(3000000000) | list }}", "a range of more than 1000"),
        ("{{ big | replace('a', big) | length }}", "more than 1000000 characters"),
        ("{{ range(1000) | join(big) | length }}", "more than 1000000 characters"),
        ("{% for n in range(1000) %}{{ big }}{% endfor %}", "grows beyond 1000000"),
        ("{{ picture.save('there') }}", "unsafe"),
    ],
)
def test_what_a_template_cannot_do(template: str, reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=reason):
        render(template, {**ROW, "big": "a" * 9000, "picture": Picture()}, None)
    assert time.monotonic() - start < 1


class Picture:
    """What a row may hold that is more than plain data."""

    def save(self, path: str) -> None:
        raise AssertionError("written to")


def asked(**said: Any) -> None:
    validated(TaskSpec, {"name": "own", "kind": "rank", "data": {"path": "."}, **said}, "own.yaml")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("{{ question", "unexpected end of template"),
        ("{{ question | shout }}", "No filter named 'shout'"),
        ("{{ question | center(3000000000) }}", "No filter named 'center'"),
        ("{{ 'a'.center(3000000000) }}", "is not for prompts"),
        ("{% set a = 'a' %}", "'assign' are not for prompts"),
        ("{% macro f() %}{{ f() }}{% endmacro %}", "'macro' are not for prompts"),
        ("{% include '/etc/passwd' %}", "'include' are not for prompts"),
        ("{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}", "loop within a loop"),
        ("{% for a in x recursive %}{% endfor %}", "loop within a loop"),
        ("{{" + "(" * 9000 + "1" + ")" * 9000 + "}}", "nested too deeply"),
        ("{{ 1" + "+ 1" * 5000 + " }}", "nested too deeply"),
        ("{% if a %}" * 900 + "{% endif %}" * 900, "nested too deeply"),
        ("a" * 20_001, "more than 20000 characters"),
        ("{{ \x00\x1b[31m }}", r"unexpected char '\\x00'"),
    ],
)
def test_a_prompt_that_does_not_compile_is_refused_with_the_task(prompt: str, reason: str) -> None:
    with pytest.raises(UsageError, match=r"^own\.yaml: prompt: .*" + reason) as refused:
        asked(prompt=prompt, choices=["a", "b"], answer="0")
    assert refused.value.message.isprintable()


def test_every_field_that_does_not_compile_is_named_at_once() -> None:
    with pytest.raises(UsageError, match="3 problems") as refused:
        asked(prompt="{{", choices="[a", answer="a b")
    assert all(f"own.yaml: {key}: " in refused.value.message for key in ("prompt", "choices"))


@pytest.mark.parametrize("choices", [["a"], ["a", " "]])
def test_fewer_than_two_choices_are_none(choices: list[str]) -> None:
    with pytest.raises(UsageError, match="choices: give two choices or more"):
        asked(prompt="{{ a }}", choices=choices, answer="0")
