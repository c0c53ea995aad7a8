"""The data of a task in its YAML: where its rows are, how they are divided, and its documents."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import Discriminator, Field, FiniteFloat, Tag, field_validator, model_validator

from hubmerge.specs.parsing import Spec, as_value_error

Fraction = Annotated[float, Field(gt=0, lt=1)]


class DataSpec(Spec):
    """The examples of a task: a Hub data set (`id`) or a local folder or file (`path`).

    `files` maps split -> file pattern, and only those files are read. `image` or `text`, and
    `label`, are the columns of a classification task; prompts name their columns themselves.
    `columns` maps the columns of a `format` to those of the data, where these differ. `range` is
    the values that become black and white, of grey images with more than 8 bits. `encoding` and
    `delimiter` of CSV files are found if they are not given. With `skip_broken`, rows that cannot
    be read, or have no valid label, are left out of every split.
    """

    id: str | None = None
    path: Path | None = None
    config: str | None = None
    revision: str = "main"
    files: dict[str, str] | None = None
    image: str = "image"
    text: str = "text"
    label: str = "label"
    columns: dict[str, str] | None = None
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    skip_broken: bool = False
    encoding: str | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None

    @model_validator(mode="after")
    def _check_source(self) -> DataSpec:
        if (self.id is None) == (self.path is None):
            raise ValueError("give either `id` (a Hub data set) or `path` (a folder)")
        outside = [p for p in (self.files or {}).values() if not p or p[0] in "/~" or ".." in p]
        if outside:
            raise ValueError(f"files: {outside[0]!r} is not a pattern inside the data")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("range: the value of black must be below that of white")
        if self.csv_options and not self._may_be_csv():
            raise ValueError(f"{' and '.join(self.csv_options)}: these data are no CSV files")
        return self

    @property
    def csv_options(self) -> dict[str, str]:
        """The given ones of `encoding` and `delimiter`."""
        options = {"encoding": self.encoding, "delimiter": self.delimiter}
        return {name: value for name, value in options.items() if value is not None}

    def _may_be_csv(self) -> bool:
        """Whether an extension is that of CSV, or none is known yet: of a folder, or on the Hub."""
        names = self.files.values() if self.files else [self.path.name] if self.path else []
        suffixes = {PurePath(name).suffix.lower() for name in names} - {""}
        return not suffixes or bool(suffixes & {".csv", ".tsv"})


class Carve(Spec):
    """A split carved from another split of the data.

    It has `count` rows, or else a `fraction` of the rows, at most `most`. `order: torch` takes the
    last rows of a seeded permutation, as the task-vectors code does (arXiv 2212.04089): 10 % of
    train, at most 5000, seed 0. `order: python` takes the first rows after
    random.Random(seed).shuffle, as the TIES code does (arXiv 2306.01708). With `stratify`, which is
    for classification, every class gives the same share of its rows.
    """

    of: str = "train"
    fraction: Fraction = 0.1
    count: Annotated[int, Field(gt=0)] | None = None
    most: Annotated[int, Field(gt=0)] | None = 5000
    seed: int = 0
    order: Literal["torch", "python"] = "torch"
    stratify: bool = False


def _source_tag(value: object) -> str:
    return "name" if isinstance(value, str) else "carve"


# The tags let pydantic report a mistake once, not once for each type of the union.
Source = Annotated[
    Annotated[str, Tag("name")] | Annotated[Carve, Tag("carve")], Discriminator(_source_tag)
]


class SplitsSpec(Spec):
    """The rows for training, for choosing (validation) and for reporting (test)."""

    train: str = "train"
    validation: Source = Carve()
    test: Source = "test"

    @property
    def sources(self) -> dict[str, str]:
        """Split -> the split of the data that it is or is carved from."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            name: source if isinstance(source, str) else source.of
            for name, source in splits.items()
        }

    @model_validator(mode="after")
    def _check_distinct(self) -> SplitsSpec:
        splits = (self.train, self.validation, self.test)
        names = [source for source in splits if isinstance(source, str)]
        if len(set(names)) < len(names):
            raise ValueError("two of train, validation and test are the same rows; carve one")
        return self


class CorpusSpec(Spec):
    """The documents of a task of kind pairs: a split of the data of their own, or a `config`.

    `id` is the column of their ids, `text` is jinja2 over the columns of a row.
    """

    split: str = "corpus"
    config: str | None = None
    id: str = "_id"
    text: str = "{{ text }}"

    @field_validator("text")
    @classmethod
    def _check_text(cls, text: str) -> str:
        from hubmerge.specs.prompt_language import check_template  # as in TaskSpec

        return as_value_error(check_template, text)
