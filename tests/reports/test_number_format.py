"""Number formats of reports, checked against results computed by hand."""

from __future__ import annotations

import math

import pytest

from hubmerge.reports.number_format import (
    axis_label,
    format_cell,
    format_claim,
    format_duration,
    format_mean,
    format_p,
    format_threshold,
    format_value,
    format_x,
)
from hubmerge.results import Cell, Claim


@pytest.mark.parametrize(
    ("value", "unit", "text"),
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
def test_a_value_has_the_digits_of_the_unit(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text  # type: ignore[arg-type]


def test_the_mean_with_a_standard_error() -> None:
    # Of 0.69, 0.70, 0.72: mean 0.70333, variance 0.000233, error 0.00882.
    assert format_mean((0.69, 0.70, 0.72), "percent") == "70.3 ± 0.9"
    assert format_mean((0.01, 0.03), "points") == "+2.0 ± 1.0"


def test_one_seed_has_no_error() -> None:
    assert format_mean((0.7,), "percent") == "70.0"
    assert format_mean((), "percent") == "-"
    assert format_mean((math.nan, 0.7), "percent") == "70.0"


def test_a_claim_has_a_unit() -> None:
    claim = Claim("a", "A.", (0.01, 0.03), "partly", threshold=0.005)
    assert (format_claim(claim), format_threshold(claim)) == (
        "+2.0 points (-10.7 to +14.7)",
        "0.5 points",
    )
    share = Claim("b", "B.", (0.6,), "reproduced", unit="share", threshold=0.5)
    assert (format_claim(share), format_threshold(share)) == ("60.0 %", "50.0 %")
    assert format_threshold(Claim("c", "C.", (0.6,), "reproduced")) == "0"


def test_a_p_value_has_three_digits() -> None:
    claims = [Claim("d", "D.", (0.1,), p_value=p) for p in (0.0314, 0.0004, 1.0, None)]
    assert [format_p(claim) for claim in claims] == ["0.031", "< 0.001", "1.000", "-"]


def test_cells_axis_labels_and_x_values() -> None:
    assert [format_cell(cell) for cell in ("256", Cell((0.7, 0.72)))] == ["256", "71.0 ± 1.0"]
    assert axis_label("accuracy", "percent") == "accuracy (%)"
    assert axis_label("accuracy, %", "percent") == "accuracy, %"
    assert axis_label("bin", "number") == "bin"
    values = [(2048.0, "steps"), (0.05, "percent"), (0.025, "percent"), ("last", "number")]
    assert [format_x(x, unit) for x, unit in values] == ["2048", "5", "2.5", "last"]  # type: ignore[arg-type]


def test_durations() -> None:
    assert [format_duration(s) for s in (42, 720, 4521.5)] == ["42 s", "12 min", "1 h 15 min"]
