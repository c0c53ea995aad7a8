"""Rendering templates and expressions, and what hostile templates cannot do."""

from __future__ import annotations

from typing import Any

import pytest

from hubmerge.errors import DataError, UsageError
from hubmerge.specs import TaskSpec, validate_spec
from hubmerge.tasks.prompts import evaluate_expression, render_template

ROW = {"question": " Is it? ", "choices": {"text": ["yes", "no"]}, "key": "B", "gone": None}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ question | trim('? ') }}!\n", "Is it!\n"),
        ("{{ question[1] | lower }}{{ question[2:] | trim }}", "is it?"),
        ("{% if 'it' in question %}{{ choices.text | join(' or ') }}{% endif %}", "yes or no"),
        ("{% for c in choices.text %}{{ loop.index }} {{ c }}\n{% endfor %}", "1 yes\n2 no\n"),
        ("{{ question.lower() | replace('?', '.') }}", " is it. "),
        ("{{ row['key'] }}{{ gone }}{{ key * 1 if false else '' }}", "B"),
        ("", ""),
    ],
)
def test_rendering_templates(template: str, expected: str) -> None:
    assert render_template(template, ROW) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'ABC'.index(key)", 1),
        ("choices.text", ["yes", "no"]),
        ("[question | trim, key]", ["Is it?", "B"]),
        ("gone", None),
    ],
)
def test_evaluating_expressions(text: str, value: object) -> None:
    assert evaluate_expression(text, ROW) == value


def test_fields_are_cut_before_they_are_used() -> None:
    row = {"text": "a" * 3000 + "b", "inner": {"list": ["c" * 3000]}}
    assert render_template("{{ text }}", row) == "a" * 2048
    assert evaluate_expression("inner.list[0] | length", row) == 2048
    assert render_template("{{ text }}", row, None) == row["text"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ qestion }}", "'qestion' is undefined"),
        ("{{ choices.txt }}", "no attribute 'txt'"),
        ("{{ question + 1 }}", "str"),
        ("{{ ''.__class__ }}", "'__class__' of 'str' object is unsafe"),
        ("{{ question['__class__'].__mro__ }}", "unsafe"),
        ("{{ choices.text.append('x') }}", "unsafe"),
        ("{{ 'a' * 3000000000 }}", r"`\*` is not allowed in prompts"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "not allowed in prompts"),
        ("{{ '%3000000000d' % 1 }}", "not allowed in prompts"),
        ("{{ range(3000000000) | list }}", "a range of more than 1000"),
        ("{{ big | replace('a', big) | length }}", "more than 1000000 characters"),
        ("{{ range(1000) | join(big) | length }}", "more than 1000000 characters"),
        ("{% for n in range(1000) %}{{ big }}{% endfor %}", "more than 1000000"),
        ("{{ image.save('there') }}", "unsafe"),
    ],
)
def test_templates_are_sandboxed(template: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        render_template(template, {**ROW, "big": "a" * 9000, "image": Image()}, None)


class Image:
    """A value of a row that is not plain data."""

    def save(self, path: str) -> None:
        raise AssertionError("written to")


def validate(**fields: Any) -> None:
    validate_spec(
        TaskSpec, {"name": "own", "kind": "rank", "data": {"path": "."}, **fields}, "own.yaml"
    )


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("{{ question", "unexpected end of template"),
        ("{{ question | shout }}", "No filter named 'shout'"),
        ("{{ question | center(3000000000) }}", "No filter named 'center'"),
        ("{{ 'a'.center(3000000000) }}", "is not allowed in prompts"),
        ("{% set a = 'a' %}", "'assign' are not allowed in prompts"),
        ("{% macro f() %}{{ f() }}{% endmacro %}", "'macro' are not allowed in prompts"),
        ("{% include '/etc/passwd' %}", "'include' are not allowed in prompts"),
        ("{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}", "nested loops"),
        ("{% for a in x recursive %}{% endfor %}", "nested loops"),
        ("{{" + "(" * 9000 + "1" + ")" * 9000 + "}}", "nested too deeply"),
        ("{{ 1" + "+ 1" * 5000 + " }}", "nested too deeply"),
        ("{% if a %}" * 900 + "{% endif %}" * 900, "nested too deeply"),
        ("a" * 20_001, "more than 20000 characters"),
        ("{{ \x00\x1b[31m }}", r"unexpected char '\\x00'"),
    ],
)
def test_the_error_of_an_invalid_prompt_names_the_task(prompt: str, reason: str) -> None:
    with pytest.raises(UsageError, match=r"^own\.yaml: prompt: .*" + reason) as refused:
        validate(prompt=prompt, choices=["a", "b"], answer="0")
    assert refused.value.message.isprintable()


def test_all_invalid_fields_are_reported_at_once() -> None:
    with pytest.raises(UsageError, match="3 problems") as refused:
        validate(prompt="{{", choices="[a", answer="a b")
    assert all(f"own.yaml: {key}: " in refused.value.message for key in ("prompt", "choices"))


@pytest.mark.parametrize("choices", [["a"], ["a", " "]])
def test_fewer_than_two_choices_are_refused(choices: list[str]) -> None:
    with pytest.raises(UsageError, match="choices: give two choices or more"):
        validate(prompt="{{ a }}", choices=choices, answer="0")
