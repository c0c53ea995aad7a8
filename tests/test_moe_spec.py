"""The options of `hubmerge moerge`: the paper's defaults, and all problems at once."""

from __future__ import annotations

from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.specs import MoeSpec, validate_spec


def moe_spec(**fields: Any) -> MoeSpec:
    return validate_spec(MoeSpec, fields, "moerge")


def refusal(**fields: Any) -> str:
    with pytest.raises(UsageError) as refused:
        moe_spec(**fields)
    return refused.value.message


def test_defaults_are_the_papers() -> None:
    """arXiv 2506.14126, sections 2.3 and 3.3."""
    spec = moe_spec()
    assert (spec.top_k, spec.router, spec.is_signed, spec.temperature) == (2, "arrow", False, 1.0)
    assert (spec.train_steps, spec.lr, spec.schedule, spec.balance) == (4000, 1e-5, "cosine", 0)
    assert spec.sampling_power == 0  # uniform over tasks
    run = spec.train_spec
    assert (run.steps, run.push_every, run.warmup_length(4000)) == (4000, "4000", 400)
    assert (run.batch, run.weight_decay, run.precision) == (128, 0.1, "fp32")


@pytest.mark.parametrize(
    ("fields", "signed"),
    [
        ({}, False),
        ({"signed": True}, True),
        ({"router": "random"}, True),
        ({"router": "random", "signed": False}, False),
        ({"router": "zero"}, True),
        ({"router": "centroid"}, True),
    ],
)
def test_only_arrow_is_unsigned_by_default(fields: dict[str, Any], signed: bool) -> None:
    assert moe_spec(**fields).is_signed == signed


@pytest.mark.parametrize(
    ("fields", "power"),
    [
        ({"sampling": "uniform"}, 0),
        ({"sampling": "proportional"}, 1),
        ({"sampling": "temperature"}, 0.5),
        ({"sampling": "temperature", "sampling_temperature": 4}, 0.25),
        ({"sampling": "temperature", "sampling_temperature": 1}, 1),
    ],
)
def test_shares_of_tasks(fields: dict[str, Any], power: float) -> None:
    assert moe_spec(**fields).sampling_power == power


@pytest.mark.parametrize(
    ("fields", "sentence"),
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
def test_invalid_options_are_refused(fields: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(**fields)


def test_all_problems_are_reported_together() -> None:
    fields = refusal(top_k=0, lr=-1, router="none", tasks="a")
    for part in ("top_k", "lr", "router", "tasks"):
        assert part in fields


def test_settings_do_not_depend_on_how_defaults_are_written() -> None:
    """An option that is left out and one that is set to its default are equal."""
    assert (
        moe_spec(warmup=0.1).settings == moe_spec().settings == moe_spec(warmup_steps=400).settings
    )
    assert moe_spec(signed=False).settings == moe_spec().settings
    two, left = (
        moe_spec(sampling="temperature", sampling_temperature=2),
        moe_spec(sampling="temperature"),
    )
    assert two.settings == left.settings
    assert moe_spec(train_steps=0, top_k=1).settings != moe_spec(train_steps=0).settings
    assert moe_spec(lr=1).settings != moe_spec().settings
    assert moe_spec(balance=0.1).settings != moe_spec().settings


def test_max_examples_matters_for_an_untrained_centroid_start() -> None:
    every, few = (moe_spec(train_steps=0, router="centroid", max_examples=n) for n in (None, 1))
    assert every.settings != few.settings
