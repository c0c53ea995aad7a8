"""results.json of a recipe: charts, tables and claims, with the rows they were made from.

Imports nothing heavy, so that a report can be rendered on any machine. Accuracies and shares are
fractions of 1; their unit decides how they are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError

from hubmerge.durable import write_atomic
from hubmerge.errors import DataError
from hubmerge.specs.recipe import Quantity
from hubmerge.typed_json import validate_json

FORMAT: Literal[1] = 1
RESULTS_JSON = "results.json"
Verdict = Literal["reproduced", "partly", "not"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seeds = Mapping[str, Number]  # seed -> value


@dataclass(frozen=True)
class ChartPoint:
    """One point of a series: its value for each seed; `note` names the settings behind it."""

    x: Number | str
    values: Seeds
    note: str = ""

    @property
    def mean(self) -> float:
        return mean(list(self.values.values()))

    @property
    def stderr(self) -> float:
        return stderr(list(self.values.values()))


@dataclass(frozen=True)
class Series:
    """A line or a row of bars; series of one `group` (such as "LoRA, rank 8") belong together."""

    name: str
    points: tuple[ChartPoint, ...]
    group: str = ""


@dataclass(frozen=True)
class Axis:
    """The label, unit and scale of an axis."""

    label: str
    unit: Quantity = "number"
    scale: Literal["log2", "linear", "category"] = "linear"


@dataclass(frozen=True)
class Chart:
    """One chart: its axes and series."""

    name: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    kind: Literal["line", "bar"] = "line"


@dataclass(frozen=True)
class Cell:
    """A measured number in a table: one value per seed."""

    values: tuple[Number, ...]
    unit: Quantity = "percent"


@dataclass(frozen=True)
class Table:
    """A table for readers; a cell is text or a measured number."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, compared with measurements.

    `values` are one per seed. The verdict is `reproduced` if their mean exceeds `threshold` by two
    standard errors or more, `partly` if it exceeds it by less, else `not`. With a single seed the
    standard error is `noise`, computed over examples; if that is not known the verdict is `partly`
    at best.
    """

    name: str
    statement: Annotated[str, Field(validation_alias=AliasChoices("statement", "says"))]
    values: tuple[Number, ...]
    verdict: Verdict
    unit: Quantity = "points"
    paper: str = ""
    threshold: Number = 0.0
    noise: Number = 0.0

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def stderr(self) -> float:
        return stderr(self.values) or self.noise


@dataclass(frozen=True)
class Paper:
    """Where in the paper the result is, and what the paper states there."""

    where: str
    statement: Annotated[str, Field(validation_alias=AliasChoices("statement", "says"))]


@dataclass(frozen=True)
class Provenance:
    """How the results were made: `code` is the digest of the measuring code.

    `units` counts the units of work by kind, `seconds` is the time of all of them.
    """

    hubmerge: str
    code: str
    versions: Mapping[str, str]
    units: Mapping[str, int]
    seconds: Number
    machine: str = ""


@dataclass(frozen=True)
class Results:
    """All results of one recipe at one profile."""

    recipe: str
    profile: str
    title: str
    paper: Paper
    setting: Mapping[str, Any]
    notes: tuple[str, ...]
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    verdict: Verdict
    explanation: Annotated[str, Field(validation_alias=AliasChoices("explanation", "because"))]
    provenance: Provenance
    rows: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    format: Literal[1] = FORMAT


def write_results(folder: Path, results: Results) -> Path:
    """Write results.json atomically; its keys are sorted, so equal results give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        asdict(results), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
    )
    write_atomic(folder / RESULTS_JSON, f"{text}\n".encode(), mode=0o644)
    return folder / RESULTS_JSON


def read_results(path: Path) -> Results:
    """Read a results.json, or the one in a folder; raises DataError if it is missing or invalid."""
    file = path / RESULTS_JSON if path.is_dir() else path
    try:
        return validate_json(Results, file.read_bytes(), strict=False)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}.", "Run the recipe first.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{file} does not hold the results of a recipe: {key}: {first['msg']}.",
            "Give the results.json that `hubmerge run` wrote.",
        ) from error


def verdict_of(values: Sequence[float], threshold: float = 0.0, noise: float = 0.0) -> Verdict:
    """The verdict on the claim that the values are above a threshold; see Claim."""
    excess, error = mean(values) - threshold, stderr(values) or noise
    if not excess > 0:  # also for NaN
        return "not"
    if len(values) < 2 and not error:
        return "partly"
    return "reproduced" if excess >= 2 * error else "partly"


def overall_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """`reproduced` if all claims are, `not` if all are `not`, else `partly`."""
    if all(verdict == "reproduced" for verdict in verdicts):
        return "reproduced"
    return "not" if all(verdict == "not" for verdict in verdicts) else "partly"


def mean(values: Sequence[float]) -> float:
    """The mean; NaN for no values."""
    return math.fsum(values) / len(values) if values else math.nan


def stderr(values: Sequence[float]) -> float:
    """The standard error of the mean over seeds; 0 for a single seed, where it is not known."""
    if len(values) < 2:
        return 0.0
    average = mean(values)
    variance = math.fsum((value - average) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
