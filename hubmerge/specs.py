"""What users write, as pydantic models that report every problem at once: tasks, runs."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from hubmerge.errors import UsageError, raise_together
from hubmerge.refs import check_label, check_repo_id, printable

_YAML_BYTES = 1_000_000
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Spec(BaseModel):
    """A frozen, closed model: a misspelt key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SpecT = TypeVar("SpecT", bound=BaseModel)


class DataSpec(Spec):
    """Where a task's examples lie: a Hub data set (`id`) or a local folder (`path`).

    `files` maps split to file patterns, so that only these are read; `image` and `label` are the
    columns used.
    """

    id: str | None = None
    path: Path | None = None
    config: str | None = None
    revision: str = "main"
    files: dict[str, str] | None = None
    image: str = "image"
    label: str = "label"

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        if (self.id is None) == (self.path is None):
            raise ValueError("give either `id` (a Hub data set) or `path` (a folder)")
        outside = [p for p in (self.files or {}).values() if not p or p[0] in "/~" or ".." in p]
        if outside:
            raise ValueError(f"files: {outside[0]!r} is not a pattern inside the data")
        return self


class Carve(Spec):
    """A split carved from another: the last `fraction` of a seeded permutation, `most` at most.

    As the task-vectors code does it (arXiv 2212.04089): 10 % of train, at most 5000, seed 0.
    """

    of: str = "train"
    fraction: Fraction = 0.1
    most: Annotated[int, Field(gt=0)] | None = 5000
    seed: int = 0


def _way_of_naming(value: object) -> str:
    return "name" if isinstance(value, str) else "carve"


# Told apart beforehand, so that a mistake in one way is not reported as two mistakes.
Source = Annotated[
    Annotated[str, Tag("name")] | Annotated[Carve, Tag("carve")], Discriminator(_way_of_naming)
]


class SplitsSpec(Spec):
    """Which rows are for training, for choosing (validation) and for reporting (test)."""

    train: str = "train"
    validation: Source = Carve()
    test: Source = "test"

    @property
    def sources(self) -> dict[str, str]:
        """Split -> the split of the data that it is, or is carved from."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: said if isinstance(said, str) else said.of for name, said in named.items()}

    @model_validator(mode="after")
    def _apart(self) -> SplitsSpec:
        whole = [said for said in (self.train, self.validation, self.test) if isinstance(said, str)]
        if len(set(whole)) < len(whole):
            raise ValueError("two of train, validation and test are the same rows; carve one")
        return self


class TaskSpec(Spec):
    """An image classification task: data, splits, and the words of its frozen zero-shot head.

    Empty `classes` means the data set's own label names.
    """

    name: str
    version: Annotated[int, Field(ge=1)] = 1
    title: str = ""
    source: str = ""
    licence: str = ""
    metric: Literal["accuracy"] = "accuracy"
    data: DataSpec
    splits: SplitsSpec = SplitsSpec()
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of a {}.",)
    classes: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return _sound(check_label, name, "task")

    @field_validator("templates")
    @classmethod
    def _one_gap(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong:
            raise ValueError(f"{wrong[0]!r} needs exactly one {{}} for the class name")
        return templates

    @field_validator("classes")
    @classmethod
    def _tellable(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        again = [name for name, count in Counter(classes).items() if count > 1]
        if again:
            raise ValueError(f"{again[0]!r} is listed twice; the head could not tell them apart")
        if len(classes) == 1:
            raise ValueError("one class leaves nothing to tell apart")
        return classes

    @model_validator(mode="after")
    def _files_of_every_split(self) -> TaskSpec:
        missing = sorted(set(self.splits.sources.values()) - set(self.data.files or ()))
        if self.data.files is not None and missing:
            raise ValueError(f"`data.files` has no files for split {missing[0]!r}")
        return self


class TrainSpec(Spec):
    """One training run of one expert; the defaults are the paper's for full fine-tuning.

    `steps` optimizer steps of `batch` examples; `lr` is the peak; `warmup` is a share of the run,
    or else `warmup_steps` says how many; `push_every` is `2^k`, a number, or a list of steps.
    """

    base: str
    task: str
    to: str
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 2048
    push_every: str = "2^k"
    lr: Annotated[float, Field(gt=0)] = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Annotated[float, Field(gt=0)] = 1.0
    batch: Annotated[int, Field(ge=1)] = 128
    augment: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("to")
    @classmethod
    def _a_repository(cls, to: str) -> str:
        return _sound(check_repo_id, to)

    @field_validator("push_every", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return ",".join(str(step) for step in value)
        return str(value) if isinstance(value, int) else value

    @property
    def warmup_length(self) -> int:
        """Warm-up in steps, whichever way it was written."""
        return int(self.warmup * self.steps) if self.warmup_steps is None else self.warmup_steps


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


def _sound(check: Callable[..., str], *values: str) -> str:
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
