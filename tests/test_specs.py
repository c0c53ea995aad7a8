"""What users write: every problem at once, near names, and no surprise from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hubmerge.errors import UsageError
from hubmerge.specs import Carve, TaskSpec, TrainSpec, read_yaml, validated

TASK = {"name": "cats", "data": {"path": "pictures"}}
RUN = {"base": "me/base", "task": "mnist", "to": "me/expert"}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as refused:
        validated(TaskSpec, {**TASK, **values}, "cats.yaml")
    return refused.value.message


def test_a_task_needs_little() -> None:
    spec = validated(TaskSpec, TASK, "cats.yaml")
    assert (spec.splits.validation, spec.splits.test) == (Carve(), "test")
    assert (Carve().fraction, Carve().most, Carve().seed) == (0.1, 5000, 0)
    assert spec.splits.sources == {"train": "train", "validation": "train", "test": "test"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"templats": ["{}"]}, "unknown key 'templats'; did you mean 'templates'?"),
        ({"data": {"path": ".", "labels": "y"}}, "'data.labels'; did you mean 'label'?"),
        (
            {"splits": {"validation": {"fractoin": 0.2}}},
            "'splits.validation.carve.fractoin'; did you mean 'fraction'?",
        ),
        ({"data": {}}, "give either `id` (a Hub data set) or `path` (a folder)"),
        ({"data": {"id": "a/b", "path": "."}}, "give either `id`"),
        ({"templates": ["a cat"]}, "'a cat' needs exactly one {} for the class name"),
        ({"templates": ["{} {}"]}, "needs exactly one {}"),
        ({"templates": []}, "templates: "),
        ({"classes": ["a", "b", "a"]}, "'a' is listed twice"),
        ({"classes": ["a"]}, "one class leaves nothing to tell apart"),
        ({"classes": [0, "one"]}, "classes.0: Input should be a valid string"),
        ({"splits": {"validation": "test"}}, "two of train, validation and test are the same rows"),
        ({"splits": {"test": "train"}}, "the same rows"),
        ({"splits": {"validation": {"fraction": 1.0}}}, "fraction: Input should be less than 1"),
        ({"splits": {"validation": {"most": 0}}}, "most: Input should be greater than 0"),
        (
            {"data": {"path": ".", "files": {"train": "a.parquet"}}},
            "`data.files` has no files for split 'test'",
        ),
        ({"metric": "f1"}, "metric: "),
        ({"name": "no/such name"}, "name: "),
    ],
)
def test_what_a_task_cannot_be(values: dict[str, Any], sentence: str) -> None:
    message = refusal(values)
    assert message.startswith("cats.yaml: ")
    assert sentence in message
    assert "\n" not in message


KINDS: dict[str, dict[str, Any]] = {
    "image": {},
    "text": {},
    "rank": {"prompt": "{{ q }}", "choices": "[a, b]", "answer": "0"},
    "target": {"prompt": "{{ q }}", "target": "{{ a }}"},
}


def test_every_kind_needs_little() -> None:
    specs = {kind: validated(TaskSpec, {**TASK, "kind": kind, **said}, "t")
             for kind, said in KINDS.items()}  # fmt: skip
    assert [kind for kind, spec in specs.items() if spec.classifies] == ["image", "text"]
    assert specs["image"].templates == ("a photo of a {}.",)
    assert specs["text"].templates == ("This text is about {}.",)
    assert [spec.metric for spec in specs.values()] == ["accuracy"] * 3 + ["token_accuracy"]


@pytest.mark.parametrize(
    ("kind", "said", "sentence"),
    [
        ("rank", {"target": "{{ a }}"}, "`target` is for kind target, not rank"),
        ("image", {"max_tokens": 9}, "`max_tokens` is for kind text or rank or target, not image"),
        ("rank", {"prompt": ""}, "kind rank needs `prompt`"),
        ("target", {"metric": "accuracy"}, "kind target is measured by token_accuracy"),
        ("text", {"metric": "token_accuracy"}, "kind text is measured by accuracy"),
        ("poem", {}, "kind: "),
    ],
)
def test_what_belongs_to_another_kind(kind: str, said: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal({"kind": kind, **KINDS.get(kind, {}), **said})


def test_problems_arrive_together() -> None:
    message = refusal({"templates": ["x"], "version": 0, "colour": 1})
    assert message.startswith("3 problems:")
    assert all(word in message for word in ("templates", "version", "colour"))


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        validated(TaskSpec, TASK, "t").name = "dogs"  # type: ignore[misc]


def test_the_defaults_are_the_papers() -> None:
    spec = validated(TrainSpec, RUN, "run")
    said = (spec.steps, spec.peak, spec.shape, spec.weight_decay, spec.clip, spec.batch)
    assert said == (2048, 1e-5, "cosine", 0.1, 1.0, 128)
    assert (spec.push_every, spec.warmup_length(2048), spec.augment) == ("2^k", 204, True)


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, 6), ({"warmup": 0.5}, 32), ({"warmup_steps": 50}, 50), ({"warmup_steps": 0}, 0)],
)
def test_warmup_is_a_share_or_a_count(said: dict[str, float], expected: int) -> None:
    assert validated(TrainSpec, {**RUN, **said}, "run").warmup_length(64) == expected


@pytest.mark.parametrize(("said", "rule"), [([8, 64], "8,64"), (100, "100"), ("2^k", "2^k")])
def test_push_every_as_yaml_writes_it(said: object, rule: str) -> None:
    assert validated(TrainSpec, {**RUN, "push_every": said}, "run").push_every == rule


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"lr": 0}, {"lr": float("nan")}, {"batch": 0}, {"seed": -1},
        {"warmup": -1}, {"warmup": 50}, {"warmup_steps": 0.5},
        {"schedule": "circular"}, {"to": "no owner"}, {"clip": float("inf")},
    ],
)  # fmt: skip
def test_what_a_run_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"run: {next(iter(wrong))}: "):
        validated(TrainSpec, {**RUN, **wrong}, "run")


BOMB = "a: &a [x, x]\nb: [*a, *a]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1, 2", "is not YAML"),
        ("{", "is not YAML"),
        ("a: 2026-99-99", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("[" * 2000, "is not YAML"),
        (BOMB, "uses YAML aliases"),
        ("- a", "is not a list of `key: value` lines"),
        ("", "is not a list of `key: value` lines"),
        ("a: " + "x" * 1_000_001, "is larger than"),
    ],
)
def test_yaml_that_is_not_read(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"spec\.yaml") as refused:
        read_yaml(tmp_path / "spec.yaml")
    assert sentence in refused.value.message
    assert "\n" not in refused.value.message


def test_yaml_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path / "spec.yaml")


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=5)))
def test_any_mapping_is_a_spec_or_a_usage_error(values: dict[str, Any]) -> None:
    for model in (TaskSpec, TrainSpec):
        with pytest.raises(UsageError):
            validated(model, values, "any")


@pytest.mark.parametrize(
    ("said", "there", "silent"),
    [
        ({}, {"lr": 1e-5, "schedule": "cosine"}, {"alpha", "rank", "factor", "band", "cooldown"}),
        ({"tune": "lora"}, {"lr": 1e-4, "alpha": 32.0, "rank": 8}, {"band"}),
        ({"anneal": "branch"}, {"schedule": "constant", "cooldown": 0.2}, {"patience"}),
        ({"early_stop": "plateau"}, {"schedule": "plateau", "patience": 3, "factor": 0.5,
                                     "evaluate_every": 5}, {"band"}),
        ({"early_stop": "noise"}, {"patience": 20, "schedule": "constant", "band": 1.0},
         {"factor", "min_lr"}),
    ],
)  # fmt: skip
def test_a_run_tells_what_had_a_say(
    said: dict[str, object], there: dict[str, object], silent: set[str]
) -> None:
    settings = TrainSpec.model_validate({"base": "b", "task": "t", "to": "o/n", **said}).settings
    assert there.items() <= settings.items()
    assert not silent & settings.keys()


@pytest.mark.parametrize(
    ("said", "steps"),
    [({}, 204), ({"early_stop": "plateau"}, 50), ({"schedule": "plateau", "warmup": 0.5}, 1024)],
)
def test_a_plateau_is_warmed_up_as_the_paper_does(said: dict[str, object], steps: int) -> None:
    spec = TrainSpec.model_validate({"base": "b", "task": "t", "to": "o/n", **said})
    assert spec.warmup_length(2048) == steps
