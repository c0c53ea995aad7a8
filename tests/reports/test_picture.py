"""What is drawn: points, panels, positions and ticks, worked out by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.reports.chart_data import Picture, picture, to_json
from hubmerge.reports.page import _asset
from hubmerge.reports.palette import COLOURS, RAMP, classes, colour, dashes, styles
from hubmerge.reports.scales import (
    positions,
    round_numbers,
    thinned,
    x_range,
    x_ticks,
    y_range,
)
from hubmerge.reports.svg import MARKERS, still
from hubmerge.results import Axis, Chart, Point, Series
from tests.reports.worlds import by_bin, by_policy, by_rank, by_steps


def chart(*points: Point, kind: str = "line", scale: str = "log2") -> Chart:
    x, y = Axis("steps", "steps", scale), Axis("accuracy", "percent")  # type: ignore[arg-type]
    return Chart("a", "A", x, y, (Series("TA", points),), kind)  # type: ignore[arg-type]


def test_a_point_is_shown_in_percent() -> None:
    shown = picture(chart(Point(64.0, {"0": 0.69, "1": 0.71}, "scale 0.3")))
    mark = shown.lines[0].marks[0]
    assert (mark.x, mark.label, mark.mean, mark.error) == (64.0, "64", 70.0, 1.0)
    assert (mark.words, mark.values, mark.said) == ("70.0 ± 1.0", (69.0, 71.0), ("69.0", "71.0"))
    assert (mark.note, shown.seeds, shown.y_label) == ("scale 0.3", ("0", "1"), "accuracy (%)")


def test_points_stand_in_order_and_unknown_ones_are_left_out() -> None:
    unknown = Point(2.0, {"0": math.nan}), Point(3.0, {})
    shown = picture(chart(Point(8.0, {"0": 0.5, "1": math.inf}), *unknown, Point(1.0, {"1": 0.4})))
    assert [mark.x for mark in shown.lines[0].marks] == [1.0, 8.0]
    assert [mark.values for mark in shown.lines[0].marks] == [(None, 40.0), (50.0, None)]


def test_step_0_stands_one_octave_before_the_first() -> None:
    shown = picture(chart(*(Point(x, {"0": 0.5}) for x in (0.0, 4.0, 8.0, 32.0))))
    assert positions(shown) == {0.0: 1.0, 4.0: 2.0, 8.0: 3.0, 32.0: 5.0}
    assert x_ticks(shown) == [(1.0, "0"), (2.0, "4"), (3.0, "8"), (5.0, "32")]


def test_bars_and_words_have_a_place_each() -> None:
    assert list(positions(picture(by_bin())).values()) == list(range(10))
    assert x_range(picture(by_bin())) == (-0.5, 9.5)
    assert [words for _, words in x_ticks(picture(by_policy()))][:2] == ["last step", "early stop"]


def test_groups_that_repeat_names_have_a_panel_each() -> None:
    shown = picture(by_rank())
    assert list(shown.panels) == ["rank 2", "rank 4", "rank 8", "rank 16", "rank 32"]
    assert {line.name: line.style for line in shown.lines} == {"Average": 0, "TA": 1, "TIES": 2}
    assert list(picture(by_steps()).panels) == [""]


def test_what_is_seen_has_all_bands_and_seeds() -> None:
    shown = picture(chart(Point(1.0, {"0": 0.4, "1": 0.6})))
    low, high = y_range(shown)
    assert (low, high) == pytest.approx((40 - 1.2, 60 + 1.2))
    bars = picture(chart(Point(1.0, {"0": 0.5}), kind="bar"))
    assert y_range(bars) == pytest.approx((0, 53))
    below = picture(chart(Point(1.0, {"0": -0.5}), kind="bar"))
    assert y_range(below) == pytest.approx((-53, 0))


def test_a_chart_of_nothing_is_drawn_empty() -> None:
    for kind in ("line", "bar"):
        shown = picture(chart(kind=kind))
        assert "<path" in still(shown)
        assert json.loads(to_json(shown))["lines"][0]["marks"] == []


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_round_numbers_are_few_and_inside(low: float, size: float) -> None:
    found = round_numbers(low, low + size)
    assert 1 <= len(found) <= 8
    assert all(low - size / 1e3 <= number <= low + size * 1.001 for number in found)


def test_ticks_are_left_out_evenly() -> None:
    ticks = [(float(n), str(n)) for n in range(8)]
    assert thinned(ticks, [1.0] * 8) == ticks
    assert thinned(ticks, [2.5] * 8) == [ticks[0], ticks[3], ticks[6]]
    assert thinned(ticks, [99.0] * 8) == ticks[:1]
    assert thinned([], []) == []


def test_a_method_looks_the_same_everywhere() -> None:
    assert styles(["TIES", "Task arithmetic"]) == {"TIES": 2, "Task arithmetic": 1}
    assert styles(["mine", "task_arithmetic", "experts, each on its own task"]) == {
        "mine": 0,
        "task_arithmetic": 1,
        "experts, each on its own task": 5,
    }
    many = styles([f"method {n}" for n in range(30)])
    assert len({(n % 8, n % 4, n % 6) for n in list(many.values())[:24]}) == 24


def test_what_differs_in_a_number_alone_goes_along_the_ramp() -> None:
    assert styles(["rank 32", "rank 4", "rank 8"]) == {"rank 32": 73, "rank 4": 64, "rank 8": 68}
    assert list(styles([str(bin_) for bin_ in range(1, 11)]).values()) == list(range(64, 74))
    assert styles(["rank 2", "rank 4"]) == {"rank 2": 0, "rank 4": 1}
    assert set(styles(["r8", "rank 16", "r32"]).values()) == {0, 1, 2}
    assert (classes(64), classes(73), classes(9)) == ("c8 d0", "c17 d0", "c1 d1")
    assert (colour(73), dashes(73), dashes(1)) == (RAMP[9], (), (5, 2))


def test_the_page_has_the_colours_and_markers_of_the_figures() -> None:
    css, script = _asset("page.css"), _asset("draw.js")
    assert tuple(re.findall(r"--s\d+: light-dark\((#\w{6}),", css)) == COLOURS + RAMP
    assert all(f'"{marker}"' in script for marker in MARKERS)


@pytest.mark.parametrize("pair", [("#ffffff", 0), ("#14171c", 1)], ids=["light", "dark"])
def test_every_colour_stands_out_by_3_to_1(pair: tuple[str, int]) -> None:
    paper, place = pair
    found = re.findall(r"--s\d+: light-dark\((#\w{6}), (#\w{6})\)", _asset("page.css"))
    assert [pair[place] for pair in found if contrast(pair[place], paper) < 3] == []
    words = re.findall(
        r"--(?:ink|soft|link|good|some|bad): light-dark\((#\w{6}), (#\w{6})\)", _asset("page.css")
    )
    assert len(words) == 6
    assert [pair[place] for pair in words if contrast(pair[place], paper) < 4.5] == []


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_script_is_told_what_is_drawn() -> None:
    shown: Picture = picture(by_steps())
    told = json.loads(to_json(shown))
    assert told["places"][0] == [1.0, "1"]
    assert told["lines"][2]["name"] == "TA"
    first = shown.lines[2].marks[0]
    assert told["lines"][2]["marks"][0] == [
        1.0, "1", first.mean, first.error, first.words, list(first.values), list(first.said),
        first.note,
    ]  # fmt: skip


def test_a_log_axis_is_none_where_there_is_a_negative() -> None:
    shown = picture(replace(by_steps(), series=(Series("a", (Point(-1.0, {"0": 0.5}),)),)))
    assert shown.scale == "category"
