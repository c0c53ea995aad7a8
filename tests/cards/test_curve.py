"""The curve beside a step's card: thinned, as CSV worked out by hand, as the same picture again."""

from __future__ import annotations

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import pytest

from hubmerge.cards.curve import curve_csv, curve_words, standard_error, thinned
from hubmerge.cards.figures import draw_curves, training_picture
from hubmerge.manifest import Point

CURVE = (
    Point(0, None, 0.5, 400, 0.0),
    Point(8, 1.25, 0.8, 400, 1e-5),
    Point(16, 0.123456789, 0.75, 300, 5e-6),
)


def at(steps: list[int]) -> list[Point]:
    return [Point(step, 1.0 if step else None, 0.5, 400, 1e-5) for step in steps]


def kept(steps: list[int]) -> list[int]:
    return [point.step for point in thinned(at(steps))]


def test_the_csv_is_every_point_with_its_standard_error() -> None:
    # sqrt(0.5 * 0.5 / 400), sqrt(0.8 * 0.2 / 400), sqrt(0.75 * 0.25 / 300).
    assert curve_csv(CURVE) == (
        "step,loss,validation_accuracy,standard_error,lr\n"
        "0,,0.5,0.025,0\n"
        "8,1.25,0.8,0.02,1e-05\n"
        "16,0.123457,0.75,0.025,5e-06\n"
    )


@pytest.mark.parametrize(("accuracy", "count"), [(0.5, 0), (1.0, 10), (7.0, 10), (math.nan, 10)])
def test_a_standard_error_is_never_an_error(accuracy: float, count: int) -> None:
    assert standard_error(Point(1, None, accuracy, count, 0.0)) == 0.0


def test_a_short_curve_is_shown_whole() -> None:
    steps = [0, 3, 5, 6, 7, 100]
    assert kept(steps) == steps


def test_of_a_long_curve_the_pushed_powers_of_two_stay() -> None:
    pushed = [0, *(2**k for k in range(12))]
    assert kept(sorted({*pushed, *range(5, 2049, 5)})) == pushed


def test_of_a_long_curve_the_first_of_each_doubling_and_the_last_stay() -> None:
    steps = [0, *range(100, 2001, 100)]
    assert kept(steps) == [0, 100, 200, 300, 600, 1100, 2000]


def test_the_words_say_what_the_picture_shows() -> None:
    assert curve_words(CURVE).endswith(
        "accuracy goes from 50.00 % at step 0 to 75.00 % at step 16, and is highest at step 8 "
        "with 80.00 %."
    )


@pytest.mark.parametrize("steps", [[0], [1], [0, 8], [0, 5, 10**12], list(range(0, 2050, 5))])
def test_a_picture_is_the_same_bytes_again(steps: list[int]) -> None:
    once = training_picture(at(steps))
    assert once.startswith(b"\x89PNG")
    assert struct.unpack(">II", once[16:24]) == (640, 400)
    assert training_picture(at(steps)) == once


def test_a_picture_does_not_depend_on_settings_or_on_other_threads() -> None:
    once = training_picture(CURVE)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        assert training_picture(CURVE) == once
        assert matplotlib.rcParams["font.size"] == 20
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(training_picture, [CURVE] * 3)) == {once}


def test_numbers_that_no_training_gives_are_drawn_all_the_same() -> None:
    odd = [Point(0, math.nan, math.nan, 0, math.inf), Point(4, math.inf, -3.0, 1, 0.0)]
    assert training_picture(odd).startswith(b"\x89PNG")


def test_a_name_with_dollars_is_no_formula(tmp_path: Path) -> None:
    draw_curves({r"$\frac$": {1: (0.5, 0.01)}}, r"$\oops{$", tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
