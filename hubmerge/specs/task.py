"""A task as its YAML says it: which examples, asked in which words, measured how."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from hubmerge.refs import check_label
from hubmerge.specs.parsing import Spec, sound

Kind = Literal["image", "text", "rank", "target"]
Head = Literal["label", "trained"]
Fraction = Annotated[float, Field(gt=0, lt=1)]

# What belongs to some kinds of task only; anywhere else it would be ignored, so it is refused.
_KEYS_OF = {
    "image": {"head", "templates", "classes"},
    "text": {"head", "templates", "classes", "max_tokens"},
    "rank": {"prompt", "choices", "answer", "max_tokens"},
    "target": {"prompt", "target", "max_tokens"},
}
_NEEDED = {"rank": ("prompt", "choices", "answer"), "target": ("prompt", "target")}
_METRIC = {"target": "token_accuracy"}
_TEMPLATES = {"text": ("This text is about {}.",)}


class DataSpec(Spec):
    """Where a task's examples lie: a Hub data set (`id`) or a local folder or file (`path`).

    `files` maps split to file patterns, so that only these are read. `image` or `text`, and
    `label`, are the columns of a classification task; prompts name their columns themselves.
    """

    id: str | None = None
    path: Path | None = None
    config: str | None = None
    revision: str = "main"
    files: dict[str, str] | None = None
    image: str = "image"
    text: str = "text"
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
    """A split carved from another split of the data.

    `count` rows, or else a `fraction` of them but `most` at most. `order: torch` takes the last of
    a seeded permutation, as the task-vectors code does (arXiv 2212.04089): 10 % of train, at most
    5000, seed 0. `order: python` takes the first after random.Random(seed).shuffle, as the TIES
    code does (arXiv 2306.01708).
    """

    of: str = "train"
    fraction: Fraction = 0.1
    count: Annotated[int, Field(gt=0)] | None = None
    most: Annotated[int, Field(gt=0)] | None = 5000
    seed: int = 0
    order: Literal["torch", "python"] = "torch"


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
    """A task of one of four kinds, with its data and splits.

    `image` and `text`: classification under a frozen head of label embeddings made from `templates`
    and `classes` (empty: the data's own label names), or under a `trained` head. `rank`: `prompt`,
    `choices` and `answer`, the index of the right choice, are jinja2 over a row's columns; the
    model ranks the choices by their probability. `target`: `prompt` and `target` of supervised
    fine-tuning. `max_tokens` is the most that is read of a text.
    """

    name: str
    version: Annotated[int, Field(ge=1)] = 1
    kind: Kind = "image"
    title: str = ""
    source: str = ""
    licence: str = ""
    metric: Literal["accuracy", "token_accuracy"] = "accuracy"
    data: DataSpec
    splits: SplitsSpec = SplitsSpec()
    head: Head = "label"
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of a {}.",)
    classes: tuple[str, ...] = ()
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    prompt: str = ""
    choices: str | tuple[str, ...] = ()
    answer: str = ""
    target: str = ""

    @property
    def classifies(self) -> bool:
        """Whether an example is one of a fixed list of classes."""
        return self.kind in ("image", "text")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_kind(cls, said: Any) -> Any:
        if not isinstance(said, dict) or not isinstance(kind := said.get("kind"), str):
            return said
        defaults = {"metric": _METRIC.get(kind), "templates": _TEMPLATES.get(kind)}
        return {key: value for key, value in defaults.items() if value} | said

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return sound(check_label, name, "task")

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

    @field_validator("prompt", "target")
    @classmethod
    def _compiles(cls, template: str) -> str:
        from hubmerge.specs.prompt_language import (
            check_template,  # jinja2 only for tasks that use it
        )

        return sound(check_template, template) if template else template

    @field_validator("choices", "answer")
    @classmethod
    def _computes(cls, said: str | tuple[str, ...]) -> str | tuple[str, ...]:
        from hubmerge.specs.prompt_language import check_expression  # as above

        return sound(check_expression, said) if isinstance(said, str) and said else said

    @field_validator("choices")
    @classmethod
    def _a_choice(cls, said: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(said, tuple) and (len(said) == 1 or not all(map(str.strip, said))):
            raise ValueError("give two choices or more, none of them empty")
        return said

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> TaskSpec:
        of_some = set().union(*_KEYS_OF.values())
        strange = sorted((self.model_fields_set & of_some) - _KEYS_OF[self.kind])
        if strange:
            kinds = [kind for kind, keys in _KEYS_OF.items() if strange[0] in keys]
            raise ValueError(f"`{strange[0]}` is for kind {' or '.join(kinds)}, not {self.kind}")
        missing = [key for key in _NEEDED.get(self.kind, ()) if not getattr(self, key)]
        if missing:
            raise ValueError(f"kind {self.kind} needs {', '.join(f'`{key}`' for key in missing)}")
        if self.metric != _METRIC.get(self.kind, "accuracy"):
            raise ValueError(
                f"kind {self.kind} is measured by {_METRIC.get(self.kind, 'accuracy')}"
            )
        return self

    @model_validator(mode="after")
    def _files_of_every_split(self) -> TaskSpec:
        missing = sorted(set(self.splits.sources.values()) - set(self.data.files or ()))
        if self.data.files is not None and missing:
            raise ValueError(f"`data.files` has no files for split {missing[0]!r}")
        return self
