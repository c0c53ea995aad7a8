"""Prompts of the paper's language tasks match golden prompts from the paper's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import StrictUndefined, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hubmerge.specs import Carve, TaskSpec, read_yaml, validate_spec

ROOT = Path(__file__).resolve().parents[2]
CATALOG = ROOT / "hubmerge" / "tasks" / "catalog"
GOLDENS = ROOT / "tests" / "goldens" / "nlp_prompts.jsonl"
LONGEST_FIELD = 2048

ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)

# Name in the golden file -> our task, and the row of the golden prompt.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "qasc": (
        "qasc",
        {
            "fact1": "beads of water are formed by water vapor condensing",
            "fact2": "Clouds are made of water vapor.",
            "question": "What type of water formation is formed by clouds?",
            "choices": {
                "text": [
                    *("pearls", "streams", "shells", "diamonds"),
                    *("rain", "beads", "cooled", "liquid"),
                ],
                "label": list("ABCDEFGH"),
            },
            "answerKey": "F",
        },
    ),
    "wiki_qa": (
        "wiki_qa",
        {
            "question": "how are glacier caves formed?",
            "answer": "A glacier cave is a cave formed within the ice of a glacier .",
            "label": 1,
        },
    ),
    "quartz": (
        "quartz",
        {
            "question": "If Mona is cutting back on sugar, her energy will likely _____ .",
            "para": "The more sugar, the more energy.",
            "choices": {"text": ["increase", "decrease"], "label": ["A", "B"]},
            "answerKey": "B",
        },
    ),
    "paws/labeled_final": ("paws", {"sentence1": "A b .", "sentence2": "B a .", "label": 0}),
    "story_cloze/2016": (
        "story_cloze",
        {
            **{f"InputSentence{number}": f"S{number}." for number in range(1, 5)},
            "RandomFifthSentenceQuiz1": "E1.",
            "RandomFifthSentenceQuiz2": "E2.",
            "AnswerRightEnding": 2,
        },
    ),
    "winogrande/winogrande_xl": (
        "winogrande",
        {
            "sentence": "Sarah was better than Maria so _ got the easier cases.",
            "option1": "Sarah",
            "option2": "Maria",
            "answer": "2",
        },
    ),
    "super_glue/wsc.fixed": (
        "wsc",
        {
            "text": "Mark told Pete many lies about himself.",
            "span1_text": "Mark",
            "span2_text": "He",
            "label": 0,
        },
    ),
}

CARVED = {"count": 32, "seed": 42, "order": "python"}
SPLITS = {
    "paws": ("train", "validation", "test"),
    "qasc": ("train", {"of": "validation", **CARVED}, "validation"),
    "quartz": ("train", "validation", "test"),
    "story_cloze": ("validation", {"of": "test", **CARVED}, "test"),
    "wiki_qa": ("train", "validation", "test"),
    "winogrande": ("train", {"of": "validation", **CARVED}, "validation"),
    "wsc": ("train", {"of": "validation", **CARVED}, "validation"),
}


def goldens() -> list[dict[str, Any]]:
    return [json.loads(line) for line in GOLDENS.read_text(encoding="utf-8").splitlines()]


def task(name: str) -> TaskSpec:
    return validate_spec(TaskSpec, read_yaml(CATALOG / f"{name}.yaml"), name)


def cut(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v[:LONGEST_FIELD] if isinstance(v, str) else v for k, v in row.items()}


def evaluate(expression: str, row: dict[str, Any]) -> Any:
    return ENVIRONMENT.compile_expression(expression, undefined_to_none=False)(**cut(row))


def render(spec: TaskSpec, row: dict[str, Any]) -> str:
    return ENVIRONMENT.from_string(spec.prompt).render(**cut(row)).strip()


def choices(spec: TaskSpec, row: dict[str, Any]) -> list[str]:
    if isinstance(spec.choices, str):
        return [str(choice) for choice in evaluate(spec.choices, row)]
    return list(spec.choices)


def example_of(name: str) -> dict[str, Any]:
    return next(dict(row) for ours, row in ROWS.values() if ours == name)


@pytest.mark.parametrize("golden", goldens(), ids=lambda golden: golden["task"])
def test_prompts_match_the_code_of_the_paper(golden: dict[str, Any]) -> None:
    name, row = ROWS[golden["task"]]
    spec = task(name)
    assert render(spec, row) == golden["input"]
    assert choices(spec, row) == golden["choices"]
    answer = evaluate(spec.answer, row)
    assert isinstance(answer, int)
    assert golden["choices"][answer] == golden["target"]


def test_every_task_of_the_paper_has_a_golden_prompt() -> None:
    assert {golden["task"] for golden in goldens()} == set(ROWS)
    assert {name for name, _ in ROWS.values()} == set(SPLITS)


@pytest.mark.parametrize("name", SPLITS)
def test_splits_and_lengths_match_the_paper(name: str) -> None:
    spec = task(name)
    splits = spec.splits
    validation = (
        splits.validation.model_dump(include={"of", *CARVED})
        if isinstance(splits.validation, Carve)
        else splits.validation
    )
    assert (splits.train, validation, splits.test) == SPLITS[name]
    assert (spec.kind, spec.max_tokens, spec.metric) == ("rank", 128, "accuracy")


def test_quartz_without_a_blank_has_the_choices_at_the_end() -> None:
    row = example_of("quartz") | {"question": "Would more sugar mean more energy or less?"}
    question = "\n\n\nWould more sugar mean more energy or less increase or decrease? \n\n\n"
    assert question in render(task("quartz"), row)


def test_options_and_endings_are_stripped() -> None:
    row = example_of("quartz") | {"choices": {"text": [" increase", "decrease "]}}
    assert "likely increase or decrease ? " in render(task("quartz"), row)
    assert choices(task("quartz"), row) == ["increase", "decrease"]
    row = example_of("story_cloze") | {"RandomFifthSentenceQuiz1": " E1. "}
    assert render(task("story_cloze"), row).endswith("- E1.\n- E2.")


@pytest.mark.parametrize("name", SPLITS)
def test_every_choice_can_be_the_answer(name: str) -> None:
    spec, row = task(name), example_of(name)
    key = next(key for key in ("answerKey", "answer", "AnswerRightEnding", "label") if key in row)
    if name == "wiki_qa":
        key = "label"
    values = {"answerKey": "ABCDEFGH", "answer": "12", "AnswerRightEnding": (1, 2), "label": (0, 1)}
    count = len(choices(spec, row))
    answers = [evaluate(spec.answer, row | {key: value}) for value in values[key][:count]]
    assert answers == list(range(count))


def test_fields_are_cut_before_rendering() -> None:
    row = example_of("paws") | {"sentence1": "a" * 3000}
    assert "a" * LONGEST_FIELD in render(task("paws"), row)
    assert "a" * (LONGEST_FIELD + 1) not in render(task("paws"), row)


def test_a_missing_column_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="sentence2"):
        render(task("paws"), {"sentence1": "A b ."})
