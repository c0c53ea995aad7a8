"""Specs of tasks and runs: all problems at once, similar names, and safe YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hubmerge.errors import UsageError
from hubmerge.specs import Carve, TaskSpec, TrainSpec, read_yaml, validate_spec

TASK = {"name": "cats", "data": {"path": "pictures"}}
RUN = {"base": "me/base", "task": "mnist", "to": "me/expert"}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as refused:
        validate_spec(TaskSpec, {**TASK, **values}, "cats.yaml")
    return refused.value.message


def test_a_minimal_task() -> None:
    spec = validate_spec(TaskSpec, TASK, "cats.yaml")
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
        ({"templates": []}, "templates must "),
        ({"classes": ["a", "b", "a"]}, "'a' is listed twice"),
        ({"classes": ["a"]}, "needs two classes or more"),
        ({"classes": [0, "one"]}, "classes.0 must be a text"),
        ({"splits": {"validation": "test"}}, "two of train, validation and test are the same rows"),
        ({"splits": {"test": "train"}}, "the same rows"),
        ({"splits": {"validation": {"fraction": 1.0}}}, "fraction must be below 1"),
        ({"splits": {"validation": {"most": 0}}}, "most must be above 0"),
        (
            {"data": {"path": ".", "files": {"train": "a.parquet"}}},
            "`data.files` has no files for split 'test'",
        ),
        ({"metric": "f2"}, "metric must "),
        ({"name": "no/such name"}, "name: "),
    ],
)
def test_an_invalid_task_is_refused(values: dict[str, Any], sentence: str) -> None:
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


def test_a_minimal_task_of_every_kind() -> None:
    specs = {kind: validate_spec(TaskSpec, {**TASK, "kind": kind, **fields}, "t")
             for kind, fields in KINDS.items()}  # fmt: skip
    assert [kind for kind, spec in specs.items() if spec.is_classification] == ["image", "text"]
    assert specs["image"].templates == ("a photo of a {}.",)
    assert specs["text"].templates == ("This text is about {}.",)
    assert [spec.metric for spec in specs.values()] == ["accuracy"] * 3 + ["token_accuracy"]


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("rank", {"target": "{{ a }}"}, "`target` is for kind target, not rank"),
        ("image", {"max_tokens": 9}, "`max_tokens` is for kind text or rank or target or pairs"),
        ("rank", {"prompt": ""}, "kind rank needs `prompt`"),
        ("target", {"metric": "accuracy"}, "kind target is measured by token_accuracy"),
        ("text", {"metric": "token_accuracy"}, "kind text is measured by accuracy"),
        ("poem", {}, "kind must "),
    ],
)
def test_keys_of_another_kind_are_refused(kind: str, fields: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal({"kind": kind, **KINDS.get(kind, {}), **fields})


def test_all_problems_are_reported_together() -> None:
    message = refusal({"templates": ["x"], "version": 0, "colour": 1})
    assert message.startswith("3 problems:")
    assert all(word in message for word in ("templates", "version", "colour"))


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        validate_spec(TaskSpec, TASK, "t").name = "dogs"  # type: ignore[misc]


def test_the_defaults_are_the_papers() -> None:
    spec = validate_spec(TrainSpec, RUN, "run")
    fields = (spec.steps, spec.peak_lr, spec.lr_schedule, spec.weight_decay, spec.clip, spec.batch)
    assert fields == (2048, 1e-5, "cosine", 0.1, 1.0, 128)
    assert (spec.push_every, spec.warmup_length(2048), spec.augment) == ("2^k", 204, True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 6), ({"warmup": 0.5}, 32), ({"warmup_steps": 50}, 50), ({"warmup_steps": 0}, 0)],
)
def test_warmup_is_a_share_or_a_count(fields: dict[str, float], expected: int) -> None:
    assert validate_spec(TrainSpec, {**RUN, **fields}, "run").warmup_length(64) == expected


@pytest.mark.parametrize(("fields", "rule"), [([8, 64], "8,64"), (100, "100"), ("2^k", "2^k")])
def test_push_every_may_be_a_list_or_a_number_in_yaml(fields: object, rule: str) -> None:
    assert validate_spec(TrainSpec, {**RUN, "push_every": fields}, "run").push_every == rule


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"lr": 0}, {"lr": float("nan")}, {"batch": 0}, {"seed": -1},
        {"warmup": -1}, {"warmup": 50}, {"warmup_steps": 0.5},
        {"schedule": "circular"}, {"to": "no owner"}, {"clip": float("inf")},
    ],
)  # fmt: skip
def test_an_invalid_run_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"run: {next(iter(wrong))}( must|:) "):
        validate_spec(TrainSpec, {**RUN, **wrong}, "run")


@pytest.mark.parametrize("key", ["endpoint", "hub", "token", "out", "cache"])
def test_a_spec_sets_no_hub_token_or_folder(key: str) -> None:
    with pytest.raises(UsageError, match=key):
        validate_spec(TrainSpec, {**RUN, key: "http://elsewhere"}, "run")


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
        ("- a", "is not a mapping of `key: value` lines"),
        ("", "is not a mapping of `key: value` lines"),
        ("a: " + "x" * 1_000_001, "is larger than"),
    ],
)
def test_invalid_or_unsafe_yaml_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"spec\.yaml") as refused:
        read_yaml(tmp_path / "spec.yaml")
    assert sentence in refused.value.message
    assert "\n" not in refused.value.message


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path / "spec.yaml")


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=5)))
def test_any_mapping_is_a_spec_or_a_usage_error(values: dict[str, Any]) -> None:
    for model in (TaskSpec, TrainSpec):
        with pytest.raises(UsageError):
            validate_spec(model, values, "any")


@pytest.mark.parametrize(
    ("fields", "there", "silent"),
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
def test_settings_contain_the_options_that_influence_the_run(
    fields: dict[str, object], there: dict[str, object], silent: set[str]
) -> None:
    settings = TrainSpec.model_validate({"base": "b", "task": "t", "to": "o/n", **fields}).settings
    assert there.items() <= settings.items()
    assert not silent & settings.keys()


@pytest.mark.parametrize(
    ("fields", "steps"),
    [({}, 204), ({"early_stop": "plateau"}, 50), ({"schedule": "plateau", "warmup": 0.5}, 1024)],
)
def test_a_plateau_is_warmed_up_as_the_paper_does(fields: dict[str, object], steps: int) -> None:
    spec = TrainSpec.model_validate({"base": "b", "task": "t", "to": "o/n", **fields})
    assert spec.warmup_length(2048) == steps
