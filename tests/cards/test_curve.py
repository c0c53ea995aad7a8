"""The validation curve of a card: thinning, CSV and a reproducible picture."""

from __future__ import annotations

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import pytest

from hubmerge.cards.curve import curve_csv, describe_curve, standard_error, thin_curve
from hubmerge.cards.figures import draw_curves, training_curve_png
from hubmerge.training_curve import ValidationPoint

CURVE = (
    ValidationPoint(0, None, 0.5, 400, 0.0),
    ValidationPoint(8, 1.25, 0.8, 400, 1e-5),
    ValidationPoint(16, 0.123456789, 0.75, 300, 5e-6),
)


def points_at(steps: list[int]) -> list[ValidationPoint]:
    return [ValidationPoint(step, 1.0 if step else None, 0.5, 400, 1e-5) for step in steps]


def kept_steps(steps: list[int]) -> list[int]:
    return [point.step for point in thin_curve(points_at(steps))]


def test_the_csv_has_every_point_with_a_standard_error() -> None:
    # sqrt(0.5 * 0.5 / 400), sqrt(0.8 * 0.2 / 400), sqrt(0.75 * 0.25 / 300).
    assert curve_csv(CURVE) == (
        "step,loss,validation_accuracy,standard_error,lr\n"
        "0,,0.5,0.025,0\n"
        "8,1.25,0.8,0.02,1e-05\n"
        "16,0.123457,0.75,0.025,5e-06\n"
    )


@pytest.mark.parametrize(("accuracy", "count"), [(0.5, 0), (1.0, 10), (7.0, 10), (math.nan, 10)])
def test_a_standard_error_of_bad_numbers_is_zero(accuracy: float, count: int) -> None:
    assert standard_error(ValidationPoint(1, None, accuracy, count, 0.0)) == 0.0


def test_a_short_curve_is_not_thinned() -> None:
    steps = [0, 3, 5, 6, 7, 100]
    assert kept_steps(steps) == steps


def test_a_long_curve_keeps_the_pushed_powers_of_two() -> None:
    pushed = [0, *(2**k for k in range(12))]
    assert kept_steps(sorted({*pushed, *range(5, 2049, 5)})) == pushed


def test_a_long_curve_keeps_the_first_of_each_doubling_and_the_last() -> None:
    steps = [0, *range(100, 2001, 100)]
    assert kept_steps(steps) == [0, 100, 200, 300, 600, 1100, 2000]


def test_the_description_matches_the_picture() -> None:
    assert describe_curve(CURVE).endswith(
        "accuracy goes from 50.00 % at step 0 to 75.00 % at step 16, and is highest at step 8 "
        "with 80.00 %."
    )


@pytest.mark.parametrize("steps", [[0], [1], [0, 8], [0, 5, 10**12], list(range(0, 2050, 5))])
def test_a_picture_is_reproducible(steps: list[int]) -> None:
    picture = training_curve_png(points_at(steps))
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (640, 400)
    assert training_curve_png(points_at(steps)) == picture


def test_a_picture_does_not_depend_on_settings_or_on_other_threads() -> None:
    picture = training_curve_png(CURVE)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        assert training_curve_png(CURVE) == picture
        assert matplotlib.rcParams["font.size"] == 20
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(training_curve_png, [CURVE] * 3)) == {picture}


def test_impossible_numbers_are_drawn() -> None:
    odd = [
        ValidationPoint(0, math.nan, math.nan, 0, math.inf),
        ValidationPoint(4, math.inf, -3.0, 1, 0.0),
    ]
    assert training_curve_png(odd).startswith(b"\x89PNG")


def test_dollar_signs_in_a_name_are_not_a_formula(tmp_path: Path) -> None:
    draw_curves({r"$\frac$": {1: (0.5, 0.01)}}, r"$\oops{$", tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
