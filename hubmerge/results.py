"""What a recipe found: charts, tables and claims, with the rows they were made from, as one JSON.

Light, so that a report can be told of it on any machine. Accuracies and shares are fractions of 1;
what they are shown as is said by their unit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from hubmerge.durable import write_whole
from hubmerge.errors import DataError
from hubmerge.specs.recipe import Quantity

FORMAT: Literal[1] = 1
NAME = "results.json"
Verdict = Literal["reproduced", "partly", "not"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seeds = Mapping[str, Number]  # seed -> value


@dataclass(frozen=True)
class Point:
    """One place of a series: its value for each seed; `note` says with what it was reached."""

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
    points: tuple[Point, ...]
    group: str = ""


@dataclass(frozen=True)
class Axis:
    """What an axis says, and how it is spaced."""

    label: str
    unit: Quantity = "number"
    scale: Literal["log2", "linear", "category"] = "linear"


@dataclass(frozen=True)
class Chart:
    """One picture."""

    name: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    kind: Literal["line", "bar"] = "line"


@dataclass(frozen=True)
class Cell:
    """A measured number of a table: one value a seed."""

    values: tuple[Number, ...]
    unit: Quantity = "percent"


@dataclass(frozen=True)
class Table:
    """Rows as people read them; a cell is words or a measured number."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper held to what was measured.

    `values` are one a seed. The verdict is `reproduced` where their mean is on the claimed side of
    `threshold` by two standard errors or more, `partly` where it is on that side by less, else
    `not`. A single seed is judged by `noise`, a standard error over examples, and is never more
    than `partly` where that is not known.
    """

    name: str
    says: str
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
    """Where in the paper it is, and what the paper says there."""

    where: str
    says: str


@dataclass(frozen=True)
class Provenance:
    """What made the results: `code` is the digest of the measuring code; seconds are of all units.

    `units` counts them by kind.
    """

    hubmerge: str
    code: str
    versions: Mapping[str, str]
    units: Mapping[str, int]
    seconds: Number
    machine: str = ""


@dataclass(frozen=True)
class Results:
    """Everything that is known of one recipe at one profile."""

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
    because: str
    provenance: Provenance
    rows: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    format: Literal[1] = FORMAT


def write_results(folder: Path, results: Results) -> Path:
    """Write results.json whole; its keys are sorted, so the same results are the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    said = json.dumps(
        asdict(results), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
    )
    write_whole(folder / NAME, f"{said}\n".encode(), mode=0o644)
    return folder / NAME


def read_results(path: Path) -> Results:
    """Read results.json, or the one in a folder; raises DataError for what is none."""
    file = path / NAME if path.is_dir() else path
    try:
        return TypeAdapter(Results).validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}.", "Run the recipe first.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{file} holds no results of a recipe: {place}: {first['msg']}.",
            "Give the results.json that `hubmerge run` wrote.",
        ) from error


def verdict_of(values: Sequence[float], threshold: float = 0.0, noise: float = 0.0) -> Verdict:
    """What a claim that the values are above a threshold comes to; see Claim."""
    beyond, error = mean(values) - threshold, stderr(values) or noise
    if not beyond > 0:  # nor is what is no number
        return "not"
    if len(values) < 2 and not error:
        return "partly"
    return "reproduced" if beyond >= 2 * error else "partly"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """`reproduced` if all claims are, `not` if none is in any part, else `partly`."""
    if all(verdict == "reproduced" for verdict in verdicts):
        return "reproduced"
    return "not" if all(verdict == "not" for verdict in verdicts) else "partly"


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def stderr(values: Sequence[float]) -> float:
    """The standard error of the mean over seeds; 0 for a single one, of which nothing is known."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    variance = math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
