"""Plain values -> a frozen spec, with all problems reported at once; YAML from untrusted files."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hubmerge.errors import UsageError, raise_together
from hubmerge.refs import printable
from hubmerge.validation_errors import describe_value_problem

_MAX_YAML = 1_000_000
# Both make plain values only; libyaml's, which is in the wheels of PyYAML, is ten times as fast.
_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Spec(BaseModel):
    """A frozen model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SpecT = TypeVar("SpecT", bound=BaseModel)


def validate_spec(model: type[SpecT], values: Mapping[str, Any], source: str) -> SpecT:
    """Build a spec from plain values, or raise UsageError with all problems and similar keys."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [describe_problem(model, dict(problem)) for problem in error.errors()]
        raise_together(UsageError, [f"{source}: {problem}" for problem in problems])
        raise


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping without running code or expanding aliases; raises UsageError."""
    return parse_yaml(read_yaml_text(path), path)


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file; raises UsageError if it is no text or too large."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    if len(text) > _MAX_YAML:
        raise UsageError(f"{path} is larger than {_MAX_YAML} characters.")
    return text


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """The mapping in the text of a YAML file, as `read_yaml`."""
    values = _parse_yaml(text, path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a mapping of `key: value` lines.")
    return values


def _parse_yaml(text: str, path: Path) -> object:
    try:
        tokens = list(yaml.scan(text, Loader=_LOADER))
        # With aliases ten lines can expand to gigabytes, and no spec needs them.
        if any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise UsageError(f"{path} uses YAML aliases; write the values out.")
        repeated = list(_repeated_keys(yaml.compose(text, Loader=_LOADER)))
        raise_together(UsageError, [f"{path} has {key} twice." for key in repeated])
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML: {printable(reason)}.") from error


def _repeated_keys(node: yaml.Node | None) -> Iterator[str]:
    """The keys that a mapping has more than once, of which YAML keeps the last."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = [key for key, count in Counter(keys).items() if count > 1]
        yield from (repr(printable(key)) for key in repeated)
        for _, value in node.value:
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated_keys(value)


def as_value_error(check: Callable[..., str], *values: str) -> str:
    """Raise a check's UsageError as ValueError, which pydantic collects with other problems."""
    try:
        return check(*values)
    except UsageError as error:
        raise ValueError(f"{error.message} {error.hint}".strip()) from error


def describe_problem(model: type[BaseModel], problem: dict[str, Any]) -> str:
    """A sentence for one of pydantic's errors on a spec, with a similar key for an unknown one."""
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _field_names(model), n=1)
        return f"unknown key {printable(location)!r}" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    return describe_value_problem(problem, location)


def _field_names(kind: object) -> Iterator[str]:
    """The keys of a model and of every model inside it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield name
            yield from _field_names(field.annotation)
    for inner in get_args(kind):
        yield from _field_names(inner)
