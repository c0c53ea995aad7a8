"""The options of `hubmerge moerge`: the paper's by default, and every problem at once."""

from __future__ import annotations

from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.specs import MoeSpec, validated


def asked(**said: Any) -> MoeSpec:
    return validated(MoeSpec, said, "moerge")


def refusal(**said: Any) -> str:
    with pytest.raises(UsageError) as refused:
        asked(**said)
    return refused.value.message


def test_defaults_are_the_papers() -> None:
    """arXiv 2506.14126, sections 2.3 and 3.3."""
    spec = asked()
    assert (spec.top_k, spec.router, spec.is_signed, spec.temperature) == (2, "arrow", False, 1.0)
    assert (spec.train_steps, spec.lr, spec.schedule, spec.balance) == (4000, 1e-5, "cosine", 0)
    assert spec.power == 0  # uniform over tasks
    run = spec.training
    assert (run.steps, run.push_every, run.warmup_length(4000)) == (4000, "4000", 400)
    assert (run.batch, run.weight_decay, run.precision) == (128, 0.1, "fp32")


@pytest.mark.parametrize(
    ("said", "signed"),
    [
        ({}, False),
        ({"signed": True}, True),
        ({"router": "random"}, True),
        ({"router": "random", "signed": False}, False),
        ({"router": "zero"}, True),
        ({"router": "centroid"}, True),
    ],
)
def test_arrow_alone_has_no_sign_of_its_own(said: dict[str, Any], signed: bool) -> None:
    assert asked(**said).is_signed == signed


@pytest.mark.parametrize(
    ("said", "power"),
    [
        ({"sampling": "uniform"}, 0),
        ({"sampling": "proportional"}, 1),
        ({"sampling": "temperature"}, 0.5),
        ({"sampling": "temperature", "sampling_temperature": 4}, 0.25),
        ({"sampling": "temperature", "sampling_temperature": 1}, 1),
    ],
)
def test_shares_of_tasks(said: dict[str, Any], power: float) -> None:
    assert asked(**said).power == power


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"top_k": 0}, "top_k"),
        ({"train_steps": 0, "lr": 1}, "without training `lr` has no effect"),
        ({"train_steps": 0, "max_examples": 1}, "without training `max_examples` has no effect"),
        ({"top_k": 257}, "top_k"),
        ({"router": "arow"}, "arrow"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"lr": float("nan")}, "lr"),
        ({"balance": float("nan")}, "balance"),
        ({"balance": float("inf")}, "balance"),
        ({"balance": -1}, "balance"),
        ({"sampling_temperature": 2}, "belongs to `sampling: temperature`"),
        ({"sampling": "temperature", "sampling_temperature": 0.5}, "sampling_temperature"),
        ({"router": "zero", "signed": False}, "has no gradient through |R x|"),
        ({"router": "zero", "top_k": 1}, "stays zero at `top_k` 1"),
        ({"schedule": "plateau"}, "schedule"),
        ({"warmup": 0.1, "warmup_steps": 3}, "not both"),
        ({"batch": 10, "accumulate": 3}, "does not split"),
        ({"train_steps": -1}, "train_steps"),
        ({"extract_rank": 0}, "extract_rank"),
        ({"topk": 2}, "did you mean 'top_k'"),
    ],
)
def test_what_cannot_be_is_refused(said: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(**said)


def test_all_problems_at_once() -> None:
    said = refusal(top_k=0, lr=-1, router="none", tasks="a")
    for part in ("top_k", "lr", "router", "tasks"):
        assert part in said


def test_what_has_no_say_makes_no_other_mixture() -> None:
    """Spelled out or left to its default, an option says the same."""
    assert asked(warmup=0.1).settings == asked().settings == asked(warmup_steps=400).settings
    assert asked(signed=False).settings == asked().settings
    two, left = asked(sampling="temperature", sampling_temperature=2), asked(sampling="temperature")
    assert two.settings == left.settings
    assert asked(train_steps=0, top_k=1).settings != asked(train_steps=0).settings
    assert asked(lr=1).settings != asked().settings
    assert asked(balance=0.1).settings != asked().settings


def test_rows_have_a_say_in_a_start_from_them_alone() -> None:
    every, few = (asked(train_steps=0, router="centroid", max_examples=n) for n in (None, 1))
    assert every.settings != few.settings
