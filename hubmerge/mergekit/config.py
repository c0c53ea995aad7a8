"""mergekit's configuration of a merge, read strictly: what mergekit ignores is an error here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, PlainValidator, ValidationError, model_validator

from hubmerge.errors import UsageError, raise_together
from hubmerge.mergekit.methods import PARAMETERS
from hubmerge.mergekit.model_ref import MergekitRef, parse_mergekit_ref
from hubmerge.mergekit.values import Conditions, parse_parameters
from hubmerge.specs.parsing import Spec, describe_problem, parse_yaml, read_yaml_text

Parameters = Annotated[Mapping[str, Conditions], PlainValidator(parse_parameters)]
Model = Annotated[MergekitRef, PlainValidator(parse_mergekit_ref)]


class NotTakenError(ValueError):
    """A key of mergekit that hubmerge does not take."""


def _refuse(reason: str) -> PlainValidator:
    """Refuse a key of mergekit that hubmerge does not take, unless it has no value."""

    def refuse(value: object) -> None:
        if value not in (None, "", [], {}):
            raise NotTakenError(reason)

    return PlainValidator(refuse)


_MULTI = (
    "merges of merges are not supported: write one file for each merge, and merge them in order"
)
_MIXTURE = "mixtures of experts are not made here: see `hubmerge moerge`"
_SEARCH = "mergekit-evolve's searches are not supported: see `hubmerge select`"
_TOKENS = "is not supported: leave it out, and change the embedding of the result if you need to"


class ModelEntry(Spec):
    """One of the `models`."""

    model: Model
    parameters: Parameters = Field(default_factory=dict)


class SourceEntry(ModelEntry):
    """One of the `sources` of a slice: layers `start` to `stop` - 1 of a model."""

    layer_range: tuple[int, int]

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        start, stop = self.layer_range
        if not 0 <= start < stop:
            raise ValueError(f"layer_range: [{start}, {stop}] has no layer in it")
        return self


class SliceEntry(Spec):
    """One of the `slices`: layers of the result that are merged from those of several models."""

    sources: Annotated[tuple[SourceEntry, ...], Field(min_length=1)]
    parameters: Parameters = Field(default_factory=dict)
    base_model: Annotated[None, _refuse("a slice has no base of its own here: leave it out")] = None
    residual_weight: Annotated[None, _refuse("mergekit ignores it: leave it out")] = None


class TokenizerEntry(Spec):
    """The `tokenizer`."""

    source: Any = "union"
    tokens: Annotated[None, _refuse(_TOKENS)] = None
    pad_to_multiple_of: Annotated[None, _refuse(_TOKENS)] = None


class MergekitConfig(Spec):
    """A configuration of mergekit-yaml."""

    merge_method: str
    base_model: Model | None = None
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[SliceEntry, ...] = ()
    parameters: Parameters = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: TokenizerEntry | None = None
    modules: Annotated[None, _refuse("is not supported: merge the parts of a model one by one")] = (
        None
    )
    chat_template: Annotated[
        None, _refuse("is not supported: leave it out, and copy a template to the result")
    ] = None
    name: Annotated[None, _refuse(_MULTI)] = None
    out_path: Annotated[None, _refuse(_MULTI)] = None
    experts: Annotated[None, _refuse(_MIXTURE)] = None
    gate_mode: Annotated[None, _refuse(_MIXTURE)] = None
    experts_per_token: Annotated[None, _refuse(_MIXTURE)] = None
    shared_experts: Annotated[None, _refuse(_MIXTURE)] = None
    genome: Annotated[None, _refuse(_SEARCH)] = None
    tasks: Annotated[None, _refuse(_SEARCH)] = None

    @model_validator(mode="after")
    def _check_one_of_two(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise ValueError("give either models or slices")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give either tokenizer or tokenizer_source")
        return self


@dataclass(frozen=True)
class MergekitFile:
    """A configuration, the bytes of its file, and what is wrong with keys that it leaves out."""

    config: MergekitConfig
    text: bytes = b""
    problems: tuple[str, ...] = ()


def read_mergekit_config(path: Path) -> MergekitFile:
    """Read a configuration of mergekit-yaml.

    Raises UsageError with every problem, if what is left without unknown keys is no configuration.
    """
    text = read_yaml_text(path)
    if _count_documents(text) > 1:
        raise UsageError(
            f"{path} has several documents: {_MULTI.partition(':')[0]}.",
            "Write one file for each merge, and name the result of one as a model of the next.",
        )
    values = parse_yaml(text, path)
    is_something_else = any(values.get(key) for key in ("gate_mode", "experts", "genome"))
    problems = list(_take_misplaced(values))
    config = _validate(values, problems)
    if config is None and not is_something_else:
        config = _validate(values, problems)
    problems = [f"{path}: {problem}" for problem in dict.fromkeys(problems)]
    if config is None:
        raise_together(UsageError, problems)
        raise AssertionError("no configuration, and no problem")
    return MergekitFile(config, text.encode(), tuple(problems))


def _validate(values: dict[str, Any], problems: list[str]) -> MergekitConfig | None:
    """The configuration, or None; then unknown keys, and those not taken, are gone from `values`.

    Problems are appended; without these keys the others can be found, too.
    """
    try:
        return MergekitConfig.model_validate(values)
    except ValidationError as error:
        found: list[dict[str, Any]] = [dict(problem) for problem in error.errors()]
    is_left_out = [
        problem["type"] == "extra_forbidden"
        or isinstance(problem.get("ctx", {}).get("error"), NotTakenError)
        for problem in found
    ]
    if not any(is_left_out):
        problems += [describe_problem(MergekitConfig, problem) for problem in found]
        return None
    for problem, leaves in zip(found, is_left_out, strict=True):
        if leaves:
            problems.append(describe_problem(MergekitConfig, problem))
            *place, key = problem["loc"]
            inner: Any = values
            for step in place:
                inner = inner[step]
            del inner[key]
    return None


def _count_documents(text: str) -> int:
    try:
        return sum(node is not None for node in yaml.compose_all(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        return 1  # parse_yaml says what is wrong


def _take_misplaced(values: dict[str, Any]) -> Iterator[str]:
    """Remove parameters that are not under `parameters`, where mergekit ignores them."""

    def take(place: object, where: str) -> Iterator[str]:
        if not isinstance(place, dict):
            return
        for name in [key for key in place if key in PARAMETERS]:
            del place[name]
            yield f"{where}{name} is a parameter: write it below `parameters`, or it is ignored"

    yield from take(values, "")
    yield from _each(values.get("models"), "models", take)
    for number, entry in enumerate(_as_list(values.get("slices"))):
        yield from take(entry, f"slices.{number}.")
        if isinstance(entry, dict):
            yield from _each(entry.get("sources"), f"slices.{number}.sources", take)


def _each(
    entries: object, where: str, take: Callable[[object, str], Iterator[str]]
) -> Iterator[str]:
    for number, entry in enumerate(_as_list(entries)):
        yield from take(entry, f"{where}.{number}.")


def _as_list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []
