"""Numbers as people read them, worked out by hand."""

from __future__ import annotations

import math

import pytest

from hubmerge.reports.number_format import (
    axis_words,
    beyond,
    cell_words,
    duration,
    ours,
    place_words,
    said,
    spread,
)
from hubmerge.results import Cell, Claim


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.704, "percent", "70.4"),
        (0.5312, "share", "53.1"),
        (0.02, "points", "+2.0"),
        (-0.0004, "points", "+0.0"),
        (-0.012, "points", "-1.2"),
        (2048.0, "steps", "2048"),
        (1234.5, "number", "1234"),
        (0.0314159, "number", "0.031"),
        (math.nan, "percent", "-"),
        (math.inf, "number", "-"),
    ],
)
def test_a_value_in_its_unit(value: float, unit: str, words: str) -> None:
    assert said(value, unit) == words  # type: ignore[arg-type]


def test_the_mean_with_its_standard_error() -> None:
    # Of 0.69, 0.70, 0.72: mean 0.70333, variance 0.000233, error 0.00882.
    assert spread((0.69, 0.70, 0.72), "percent") == "70.3 ± 0.9"
    assert spread((0.01, 0.03), "points") == "+2.0 ± 1.0"


def test_of_one_seed_no_error_is_known_but_by_other_means() -> None:
    assert spread((0.7,), "percent") == "70.0"
    assert spread((0.7,), "percent", noise=0.02) == "70.0 ± 2.0"
    assert spread((), "percent") == "-"
    assert spread((math.nan, 0.7), "percent") == "70.0"


def test_a_claim_names_its_unit() -> None:
    claim = Claim("a", "A.", (0.01, 0.03), "partly", threshold=0.005)
    assert (ours(claim), beyond(claim)) == ("+2.0 ± 1.0 points", "0.5 points")
    share = Claim("b", "B.", (0.6,), "reproduced", unit="share", threshold=0.5)
    assert (ours(share), beyond(share)) == ("60.0 %", "50.0 %")
    assert beyond(Claim("c", "C.", (0.6,), "reproduced")) == "0"


def test_words_of_cells_axes_and_places() -> None:
    assert [cell_words(cell) for cell in ("256", Cell((0.7, 0.72)))] == ["256", "71.0 ± 1.0"]
    assert axis_words("accuracy", "percent") == "accuracy (%)"
    assert axis_words("accuracy, %", "percent") == "accuracy, %"
    assert axis_words("bin", "number") == "bin"
    places = [(2048.0, "steps"), (0.05, "percent"), (0.025, "percent"), ("last", "number")]
    assert [place_words(x, unit) for x, unit in places] == ["2048", "5", "2.5", "last"]  # type: ignore[arg-type]


def test_durations() -> None:
    assert [duration(s) for s in (42, 720, 4521.5)] == ["42 s", "12 min", "1 h 15 min"]
