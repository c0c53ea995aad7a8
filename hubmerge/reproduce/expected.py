"""expected.json: what a recipe is held to when it is run again, each number within its band.

Other machines compute other bits, and training makes other experts of them: the band of a number is
three standard errors over seeds, and no less than a point and a half. A verdict may be any that a
mean within the band would give.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubmerge.durable import write_whole
from hubmerge.errors import DataError
from hubmerge.results import Cell, Claim, Results, mean, stderr, verdict_of

NAME = "expected.json"
_LEAST = 0.015
_ERRORS = 3.0


def write_expected(folder: Path, results: Results) -> Path:
    """Hold later runs of the profile to these results."""
    said = {
        "format": 1,
        "profile": results.profile,
        "claims": {claim.name: _expected_claim(claim) for claim in results.claims},
        "numbers": {name: _expected(cell.values) for name, cell in numbers(results)},
    }
    text = json.dumps(said, sort_keys=True, indent=1, ensure_ascii=False)
    write_whole(folder / NAME, f"{text}\n".encode(), mode=0o644)
    return folder / NAME


def check(results: Results, path: Path) -> list[str]:
    """What of the results has left its band, a sentence each; raises DataError for no such file."""
    said = _read(path)
    if said["profile"] != results.profile:
        return []
    found = {claim.name: claim for claim in results.claims}
    problems = [
        problem
        for name, expected in said["claims"].items()
        for problem in _claim_problems(name, found.get(name), expected)
    ]
    measured = dict(numbers(results))
    for name, expected in said["numbers"].items():
        cell = measured.get(name)
        problems += _strayed(name, None if cell is None else mean(cell.values), expected)
    return problems


def numbers(results: Results) -> Iterator[tuple[str, Cell]]:
    """Every measured number of the tables, by table, line and column."""
    for table in results.tables:
        for line, *cells in table.rows:
            for column, cell in zip(table.columns[1:], cells, strict=True):
                if isinstance(cell, Cell):
                    yield f"{table.name} / {line} / {column}", cell


def _expected(values: tuple[float, ...]) -> dict[str, float]:
    band = max(_LEAST, _ERRORS * stderr(values))
    return {"mean": round(mean(values), 4), "band": round(band, 4)}


def _expected_claim(claim: Claim) -> dict[str, Any]:
    said = _expected(claim.values)
    moved = (
        tuple(value + shift for value in claim.values)
        for shift in (-said["band"], 0.0, said["band"])
    )
    verdicts = {verdict_of(values, claim.threshold, claim.noise) for values in moved}
    if {"not", "reproduced"} <= verdicts:
        verdicts.add("partly")  # which lies between
    return {**said, "verdicts": sorted(verdicts)}


def _claim_problems(name: str, claim: Claim | None, expected: Mapping[str, Any]) -> Iterator[str]:
    yield from _strayed(f"claim {name!r}", claim.mean if claim else None, expected)
    if claim and claim.verdict not in expected["verdicts"]:
        yield (
            f"claim {name!r} is now {claim.verdict!r}, and was expected to be "
            f"{' or '.join(expected['verdicts'])}."
        )


def _strayed(name: str, value: float | None, expected: Mapping[str, Any]) -> Iterator[str]:
    if value is None:
        yield f"{name} was not measured."
    elif not abs(value - expected["mean"]) <= expected["band"]:  # nor is what is no number
        yield (
            f"{name} is {100 * value:.1f}, and was expected to be "
            f"{100 * expected['mean']:.1f} ± {100 * expected['band']:.1f}."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
        if said["format"] == 1 and {"profile", "claims", "numbers"} <= said.keys():
            return dict(said)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path} does not say what is expected.", "scripts/reproduction.py writes it.")
