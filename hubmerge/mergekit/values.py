"""Values of parameters in mergekit's configurations: numbers, gradients, filters for tensors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

Scalar = float | bool
ANY_TENSOR = "*"


@dataclass(frozen=True)
class Condition:
    """A value for the tensors with `filter` in their names, "" for all; a tuple is a gradient."""

    filter: str
    value: Scalar | tuple[Scalar, ...]

    def matches(self, tensor: str) -> bool:
        """Whether the value is for a tensor."""
        return self.filter in tensor

    def at(self, depth: float) -> Scalar:
        """The value at a depth from 0 to 1: flags change in steps, numbers are interpolated."""
        if not isinstance(self.value, tuple):
            return self.value
        place = depth * (len(self.value) - 1)
        first = int(place)
        if any(isinstance(value, bool) for value in self.value):
            return self.value[first]
        second = min(len(self.value) - 1, first + 1)
        share = place - first
        return (1 - share) * self.value[first] + share * self.value[second]


Conditions = tuple[Condition, ...]


def parse_parameters(value: object) -> dict[str, Conditions]:
    """Parse a `parameters` mapping; raises ValueError with every problem."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("is not a mapping of `name: value` lines")
    parsed, problems = {}, []
    for name, setting in value.items():
        try:
            parsed[str(name)] = parse_conditions(setting)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return parsed


def parse_conditions(setting: object) -> Conditions:
    """Parse the value of one parameter: the first of the conditions that matches counts."""
    if isinstance(setting, Mapping):
        return (_parse_condition(setting),)
    if isinstance(setting, list) and any(isinstance(item, Mapping) for item in setting):
        if not all(isinstance(item, Mapping) for item in setting):
            raise ValueError("mixes numbers and filters; write `- value: NUMBER` for all tensors")
        return tuple(map(_parse_condition, setting))
    return (Condition("", _parse_value(setting)),)


def _parse_condition(item: Mapping[object, object]) -> Condition:
    for key in item:
        if key not in ("filter", "value"):
            near = difflib.get_close_matches(str(key), ("filter", "value"), n=1)
            near = ["filter"] if key == "pattern" else near
            raise ValueError(
                f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    if "value" not in item:
        raise ValueError("a filter without a value")
    text = item.get("filter")
    if text is not None and (not isinstance(text, str) or not text or "@" in text or "[" in text):
        raise ValueError(f"filter: {text!r} is not a text in the names of tensors")
    return Condition("" if text in (None, ANY_TENSOR) else str(text), _parse_value(item["value"]))


def _parse_value(value: object) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list):
        if not value:
            raise ValueError("is an empty list")
        return tuple(map(_parse_scalar, value))
    return _parse_scalar(value)


def _parse_scalar(value: object) -> Scalar:
    if isinstance(value, bool):
        return value
    # YAML reads 1e-5 as text, and mergekit takes it as a number.
    if isinstance(value, (int, float, str)):
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if abs(number) < float("inf"):
            return number
    raise ValueError(f"{value!r} is not a number")
