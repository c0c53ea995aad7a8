"""Plain values -> a frozen spec, with every problem reported at once; YAML read as an enemy's."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hubmerge.errors import UsageError, raise_together
from hubmerge.refs import printable

_YAML_BYTES = 1_000_000


class Spec(BaseModel):
    """A frozen, closed model: a misspelt key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SpecT = TypeVar("SpecT", bound=BaseModel)


def validated(model: type[SpecT], values: Mapping[str, Any], what: str) -> SpecT:
    """Build a spec from plain values, or raise UsageError with all problems and near names."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_sentence(model, dict(problem)) for problem in error.errors()]
        raise_together(UsageError, [f"{what}: {problem}" for problem in problems])
        raise


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping without running or expanding anything; raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    if len(text) > _YAML_BYTES:
        raise UsageError(f"{path} is larger than {_YAML_BYTES} characters.")
    values = _parsed(text, path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a list of `key: value` lines.")
    return values


def _parsed(text: str, path: Path) -> object:
    try:
        tokens = list(yaml.scan(text, Loader=yaml.SafeLoader))
        # An alias lets ten lines grow to gigabytes, and no spec of ours needs one.
        if any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise UsageError(f"{path} uses YAML aliases; write the values out.")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML: {printable(reason)}.") from error


def sound(check: Callable[..., str], *values: str) -> str:
    """Let pydantic collect a refusal among the other problems, instead of ending at the first."""
    try:
        return check(*values)
    except UsageError as error:
        raise ValueError(f"{error.message} {error.hint}".strip()) from error


def _sentence(model: type[BaseModel], problem: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _keys(model), n=1)
        return f"unknown key {printable(place)!r}" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _keys(kind: object) -> Iterator[str]:
    """The keys of a model and of every model inside it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield name
            yield from _keys(field.annotation)
    for inner in get_args(kind):
        yield from _keys(inner)
