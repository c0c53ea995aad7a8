"""Settings of a merge, as typed or recorded: parameters of the whole model and of some tensors.

`density=0.3` is for all, `density=0.3,0.5` gives each expert its own (`density=,0.5` only the
second), `density[mlp]=0.3` is for the tensors with that text in their names, `density[mlp@0:8]=0.3`
for those of them in the first eight layers, and `density=[0.1,0.5]` is spread over the layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from hubmerge.errors import UnknownName, UsageError, raise_together
from hubmerge.merging.method import Method, require_positive_sum
from hubmerge.merging.registry import describe_problem, parse_params
from hubmerge.merging.tensor_filter import parse_filter
from hubmerge.merging.tensor_params import Setting, TensorSettings, Value
from hubmerge.weights.layer_names import count_layers

_KEY = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<filter>[^\[\]]+)\])?")
_PART = re.compile(r"\[[^\[\]]*\]|[^\[\]]*")
_COMMA = re.compile(r",(?![^\[]*\])")  # not within brackets
WEIGHT = "weight"


def parse_settings(
    method: Method, settings: Mapping[str, str], count: int
) -> tuple[BaseModel, TensorSettings]:
    """The parameters of a method for the whole model, and what differs between tensors or experts.

    `count` is the number of experts. Raises UsageError with every problem at once.
    """
    uniform: dict[str, Value] = {}
    shared: list[Setting] = []
    own: list[list[Setting]] = [[] for _ in range(count)]
    problems = []
    for key, text in settings.items():
        try:
            setting, values = _parse_key(key), _split_values(text)
        except UsageError as error:
            problems.append(error.message)
            continue
        if len(values) == 1 and not setting.filter and not isinstance(values[0], list):
            uniform[setting.name] = values[0]
        elif len(values) == 1:
            shared.append(replace(setting, value=values[0]))
        elif len(values) == count:
            for mine, value in zip(own, values, strict=True):
                if value is not None:
                    mine.append(replace(setting, value=value))
        else:
            problems.append(f"{key}={text} gives {len(values)} values for {count} experts.")
    hint = "Write name=value, name=a,b for each expert, name[text]=value or name=[first,last]."
    raise_together(UsageError, problems, hint)
    return check_settings(method, uniform, shared, own)


def restore_settings(
    method: Method, params: Mapping[str, Value], own: Sequence[Mapping[str, Value]]
) -> tuple[BaseModel, TensorSettings]:
    """The same from what a manifest records, of the merge and of each of its experts."""
    params = with_unrecorded(method, params)
    defaults = {name: field.default for name, field in method.params.model_fields.items()}
    uniform = {
        key: value
        for key, value in params.items()
        if "[" not in key and not (_is_list(value) and not _is_list(defaults.get(key)))
    }
    shared = [replace(_parse_key(k), value=v) for k, v in params.items() if k not in uniform]
    mine = [[replace(_parse_key(k), value=v) for k, v in settings.items()] for settings in own]
    return check_settings(method, uniform, shared, mine)


def record_params(params: BaseModel, settings: TensorSettings) -> dict[str, Value]:
    """What a manifest records of the parameters: those of the model and those of some tensors.

    A parameter that came later is left out where it has no effect, so that recipes stay the same.
    """
    unrecorded = _unrecorded(type(params))
    values = {
        name: value
        for name, value in params.model_dump().items()
        if name not in unrecorded or value != unrecorded[name]
    }
    return {**values, **record_own(settings.shared)}


def with_unrecorded(method: Method, params: Mapping[str, Value]) -> dict[str, Value]:
    """Recorded parameters with those that came later, which have the values of before."""
    return {**_unrecorded(method.params), **params}


def _unrecorded(params: type[BaseModel]) -> Mapping[str, Value]:
    found: Mapping[str, Value] = getattr(params, "unrecorded", {})
    return found


def record_own(settings: Iterable[Setting]) -> dict[str, Value]:
    """What a manifest records of one expert's settings."""
    return {setting.key: setting.value for setting in settings}


def format_settings(
    params: Mapping[str, Value], own: Sequence[Mapping[str, Value]]
) -> dict[str, str]:
    """What to type for recorded parameters; the opposite of `parse_settings`."""
    typed = {key: _format_value(value) for key, value in params.items()}
    for key in dict.fromkeys(key for settings in own for key in settings):
        typed[key] = ",".join(
            _format_value(settings[key]) if key in settings else "" for settings in own
        )
    return typed


def for_tensors(settings: TensorSettings, tensors: Iterable[str]) -> TensorSettings:
    """The settings of a model with these tensors."""
    return replace(settings, layers={} if settings.is_uniform else count_layers(tensors))


def filter_problems(settings: TensorSettings, tensors: Iterable[str]) -> Iterator[str]:
    """A sentence for each setting that is for no tensor of the model."""
    names = list(tensors)
    for setting in dict.fromkeys(_all(settings.shared, settings.own)):
        if not any(setting.tensors.matches(name) for name in names):
            yield f"{setting.key}: no {setting.tensors.describe()}."


def check_settings(
    method: Method,
    uniform: Mapping[str, Value],
    shared: Sequence[Setting],
    own: Sequence[Sequence[Setting]],
) -> tuple[BaseModel, TensorSettings]:
    """Validate every value; settings for some layers are first, then the longest filters.

    Raises UsageError with every problem at once.
    """
    params = parse_params(method, uniform)
    problems: list[str] = []

    def checked(settings: Iterable[Setting]) -> tuple[Setting, ...]:
        ordered = sorted(settings, key=_order)
        return tuple(_validate(method, params, setting, problems) for setting in ordered)

    result = TensorSettings(checked(shared), tuple(map(checked, own)) if any(own) else ())
    wide = set(method.model_wide(params))
    for setting in dict.fromkeys(_all(result.shared, result.own)):
        if setting.name in wide:
            problems.append(f"{setting.key}: {setting.name} must be the same for all tensors.")
    for setting in dict.fromkeys(_all((), result.own)):
        if setting.name not in {WEIGHT, *wide, *method.expert_wise, *_unknown(method, setting)}:
            problems.append(f"{setting.key}: {setting.name} must be the same for all experts.")
    hint = f"`hubmerge methods {method.name}` lists its parameters."
    raise_together(UsageError, list(dict.fromkeys(problems)), hint)
    return params, result


def _unknown(method: Method, setting: Setting) -> tuple[str, ...]:
    """The name of a setting if the method has no such parameter, which is reported as that."""
    return () if setting.name in method.params.model_fields else (setting.name,)


def _order(setting: Setting) -> tuple[bool, int, str]:
    return not setting.tensors.part, -len(setting.tensors.text), setting.filter


def _validate(method: Method, params: BaseModel, setting: Setting, problems: list[str]) -> Setting:
    """The setting with values of the right type; appends what is wrong with it."""
    known = method.params.model_fields
    values = setting.value if _is_list(setting.value) else [setting.value]
    if setting.name == WEIGHT:
        try:
            found = [float(value) for value in values]
        except ValueError:
            problems.append(f"{setting.key}={setting.value}: weights are numbers.")
            return setting
        # A sum is over all experts: `check_plan` looks at it.
        check = None if method.weight_problem is require_positive_sum else method.weight_problem
        if check and (wrong := check(found)):
            problems.append(f"{setting.key}={setting.value}: {wrong}.")
    elif setting.name not in known:
        unknown = UnknownName(f"parameter of {method.name}", setting.name, [WEIGHT, *known])
        problems.append(f"{unknown.message} {unknown.hint}")
        return setting
    else:
        found = []
        for value in values:
            try:
                given = {**params.model_dump(), setting.name: value}
                found.append(getattr(method.params.model_validate(given), setting.name))
            except ValidationError as error:
                problems += [describe_problem(method, problem) for problem in error.errors()]
    if not _is_list(setting.value):
        return replace(setting, value=found[0]) if found else setting
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found):
        problems.append(f"{setting.key}: only numbers can be spread over the layers.")
    return replace(setting, value=[float(value) for value in found])


def _parse_key(key: str) -> Setting:
    match = _KEY.fullmatch(key)
    if match is None:
        raise UsageError(f"{key!r} is not name or name[text].")
    text = match["filter"] or ""
    parse_filter(text)
    return Setting(match["name"].strip(), text, None)


def _split_values(text: str) -> list[Value]:
    """The values between commas: text, a list of numbers in brackets, or None for nothing."""
    parts = [part.strip() for part in _COMMA.split(text)]
    if not all(_PART.fullmatch(part) for part in parts) or not any(parts):
        raise UsageError(f"{text!r} is not a value, or values with commas between them.")
    return [_parse_list(part) if part.startswith("[") else part or None for part in parts]


def _parse_list(text: str) -> list[float]:
    try:
        values = [float(value) for value in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{text} is not a list of numbers.") from error
    if not values:
        raise UsageError("[] has no numbers.")
    return values


def _format_value(value: Value) -> str:
    return "[" + ",".join(map(str, value)) + "]" if _is_list(value) else str(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _all(shared: Iterable[Setting], own: Iterable[Iterable[Setting]]) -> Iterator[Setting]:
    for setting in (*shared, *(s for settings in own for s in settings)):
        value = tuple(setting.value) if _is_list(setting.value) else setting.value
        yield replace(setting, value=value)
