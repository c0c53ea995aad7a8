"""What pydantic found wrong, in plain words."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hubmerge.validation_errors import first_problem


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    steps: int = Field(1, ge=1, le=9)
    lr: float = Field(0.1, gt=0, lt=1)
    tune: Literal["full", "lora"] = "full"
    name: str = Field("a", min_length=1)
    names: list[str] = Field(["a"], min_length=1)
    deep: dict[str, list[bool]] = {}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 10}, "steps must be at most 9"),
        ({"steps": "x"}, "steps must be a whole number"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": 1}, "lr must be below 1"),
        ({"lr": "x"}, "lr must be a number"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"tune": "ful"}, "tune must be 'full' or 'lora'"),
        ({"name": 3}, "name must be a text"),
        ({"name": ""}, "name must have at least 1 characters"),
        ({"names": []}, "names must have at least 1 entries"),
        ({"names": "a"}, "names must be a list"),
        ({"deep": []}, "deep must be a mapping of keys to values"),
        ({"deep": {"a": [True, "x"]}}, "deep.a.1 must be true or false"),
        ({"other": 1}, "other is not a known key"),
    ],
)
def test_problems_are_plain_sentences(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as error:
        Example.model_validate(values)
    assert first_problem(error.value) == problem
