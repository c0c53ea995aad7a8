"""expected.json: the numbers that a rerun of a recipe is compared with, each with its band.

Other machines compute other bits, and training turns them into other experts. So the band of a
number is three standard errors over seeds, and at least 1.5 points. The verdict of a claim may be
any that a mean within the band can have: on the claimed side both `reproduced` and `partly`, as the
spread of few seeds, which decides between them, is itself uncertain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubmerge.durable import write_atomic
from hubmerge.errors import DataError
from hubmerge.results import Cell, Claim, Results, Verdict
from hubmerge.seed_statistics import mean, stderr

NAME = "expected.json"
_MIN_BAND = 0.015
_BAND_IN_STDERRS = 3.0


def write_expected(folder: Path, results: Results) -> Path:
    """Write the numbers that later runs of the profile are compared with; returns the file."""
    content = {
        "format": 1,
        "profile": results.profile,
        "claims": {claim.name: _band_of_claim(claim) for claim in results.claims},
        "numbers": {name: _band_of(cell.values) for name, cell in table_numbers(results)},
    }
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False)
    write_atomic(folder / NAME, f"{text}\n".encode(), mode=0o644)
    return folder / NAME


def check_results(results: Results, path: Path) -> list[str]:
    """A sentence for each number outside its band; raises DataError for another kind of file.

    The results of another profile are not compared.
    """
    content = _read_expected(path)
    if content["profile"] != results.profile:
        return []
    claims = {claim.name: claim for claim in results.claims}
    problems = [
        problem
        for name, expected in content["claims"].items()
        for problem in _claim_problems(name, claims.get(name), expected)
    ]
    measured = dict(table_numbers(results))
    for name, expected in content["numbers"].items():
        cell = measured.get(name)
        problems += _out_of_band(name, None if cell is None else mean(cell.values), expected)
    return problems


def table_numbers(results: Results) -> Iterator[tuple[str, Cell]]:
    """Every measured number of the tables, by table, line and column."""
    for table in results.tables:
        for line, *cells in table.rows:
            for column, cell in zip(table.columns[1:], cells, strict=True):
                if isinstance(cell, Cell):
                    yield f"{table.name} / {line} / {column}", cell


def _band_of(values: tuple[float, ...]) -> dict[str, float]:
    band = max(_MIN_BAND, _BAND_IN_STDERRS * stderr(values))
    return {"mean": round(mean(values), 4), "band": round(band, 4)}


def _band_of_claim(claim: Claim) -> dict[str, Any]:
    expected = _band_of(claim.values)
    return {**expected, "verdicts": sorted(_possible_verdicts(claim, expected["band"]))}


def _possible_verdicts(claim: Claim, band: float) -> set[Verdict]:
    if claim.verdict == "untested":
        return {"untested"}
    verdicts: set[Verdict] = set()
    if claim.mean + band > claim.threshold:
        verdicts |= {"partly", "reproduced"}
    if claim.mean - band <= claim.threshold:
        verdicts.add("not")
    return verdicts


def _claim_problems(name: str, claim: Claim | None, expected: Mapping[str, Any]) -> Iterator[str]:
    yield from _out_of_band(f"claim {name!r}", claim.mean if claim else None, expected)
    if claim and claim.verdict not in expected["verdicts"]:
        yield (
            f"claim {name!r} is now {claim.verdict!r}, expected "
            f"{' or '.join(expected['verdicts'])}."
        )


def _out_of_band(name: str, value: float | None, expected: Mapping[str, Any]) -> Iterator[str]:
    if value is None:
        yield f"{name} was not measured."
    elif not abs(value - expected["mean"]) <= expected["band"]:  # true for NaN, too
        yield (
            f"{name} is {100 * value:.1f}, expected "
            f"{100 * expected['mean']:.1f} ± {100 * expected['band']:.1f}."
        )


def _read_expected(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if content["format"] == 1 and {"profile", "claims", "numbers"} <= content.keys():
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(
        f"{path} is not a file of expected results.", "scripts/reproduction.py writes it."
    )
