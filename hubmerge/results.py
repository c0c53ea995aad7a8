"""results.json of a recipe: charts, tables and claims, with the rows they were made from.

Imports nothing heavy, so that a report can be rendered on any machine. Accuracies and shares are
fractions of 1; their unit decides how they are shown. Numbers over seeds have the standard error of
their mean everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError

from hubmerge.durable import write_atomic
from hubmerge.errors import DataError
from hubmerge.seed_statistics import holm, interval, mean, p_above, stderr
from hubmerge.specs.recipe import Quantity
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem

FORMAT: Literal[1] = 1
RESULTS_JSON = "results.json"
Verdict = Literal["reproduced", "partly", "not", "untested"]
SMOKE = "smoke"  # the profile that only checks that everything runs: it gives no verdicts
SIGNIFICANT = 0.05  # of the one-sided p value, after Holm's correction
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
    """A claim of the paper, compared with measurements; `judge_claims` gives the verdict.

    `values` are one per seed. The claim is that their mean is above `threshold`. `p_value` is that
    of Student's one-sided t test, corrected by Holm for all claims of the recipe that were tested;
    None for an untested claim or a single seed.
    """

    name: str
    statement: Annotated[str, Field(validation_alias=AliasChoices("statement", "says"))]
    values: tuple[Number, ...]
    verdict: Verdict = "untested"
    unit: Quantity = "points"
    paper: str = ""
    threshold: Number = 0.0
    p_value: Number | None = None

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def stderr(self) -> float:
        return stderr(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean over seeds; None for a single seed."""
        return interval(self.values)


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
    """Read a results.json, or the one in a folder; raises DataError if it is missing or invalid.

    Verdicts and p values are computed from the values of the claims, whatever the file has; a claim
    that it calls untested stays so.
    """
    file = path / RESULTS_JSON if path.is_dir() else path
    try:
        return judge_again(validate_json(Results, file.read_bytes(), strict=False))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}.", "Run the recipe first.") from error
    except ValidationError as error:
        raise DataError(
            f"{file} does not hold the results of a recipe: {first_problem(error)}.",
            "Give the results.json that `hubmerge run` wrote.",
        ) from error


def judge_claims(claims: Sequence[Claim], tested: Sequence[bool]) -> tuple[Claim, ...]:
    """The claims of one recipe with their verdicts and p values.

    `reproduced`: the mean is above the threshold with a corrected p value of at most 0.05;
    `partly`: it is above, and the p value is larger or unknown; `not`: it is not above;
    `untested`: the runs do not reach what the claim is about.
    """
    judged = {
        index: p
        for index, claim in enumerate(claims)
        if tested[index] and (p := p_above(claim.values, claim.threshold)) is not None
    }
    corrected = dict(zip(judged, holm(list(judged.values())), strict=True))
    return tuple(
        replace(
            claim,
            verdict=verdict_of(claim, corrected.get(index)) if tested[index] else "untested",
            p_value=corrected.get(index),
        )
        for index, claim in enumerate(claims)
    )


def judge_again(results: Results) -> Results:
    """The results with the verdicts of today's rule."""
    is_smoke = results.profile == SMOKE
    tested = [not is_smoke and claim.verdict != "untested" for claim in results.claims]
    claims = judge_claims(results.claims, tested)
    return replace(
        results, claims=claims, verdict=overall_verdict([claim.verdict for claim in claims])
    )


def verdict_of(claim: Claim, p_value: float | None) -> Verdict:
    """The verdict on a claim that was tested, by its mean and its corrected p value."""
    if not claim.mean > claim.threshold:  # also for NaN
        return "not"
    return "reproduced" if p_value is not None and p_value <= SIGNIFICANT else "partly"


def overall_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Of the tested claims: `reproduced` or `not` if all are, else `partly`; `untested` without."""
    tested = set(verdicts) - {"untested"}
    if not tested:
        return "untested"
    return tested.pop() if len(tested) == 1 else "partly"
