"""Chart data, axis positions, ticks and styles, checked against results computed by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.reports.chart_data import chart_data, to_json
from hubmerge.reports.page import _asset
from hubmerge.reports.palette import COLOURS, RAMP, assign_styles, colour, css_classes, dashes
from hubmerge.reports.scales import positions, x_range, x_ticks, y_range
from hubmerge.reports.svg import MARKERS, static_svg
from hubmerge.results import Axis, Chart, ChartPoint, Series
from hubmerge.ticks import round_numbers, thin_ticks
from tests.reports.builders import by_bin, by_policy, by_rank, by_steps


def chart(*points: ChartPoint, kind: str = "line", scale: str = "log2") -> Chart:
    x, y = Axis("steps", "steps", scale), Axis("accuracy", "percent")  # type: ignore[arg-type]
    return Chart("a", "A", x, y, (Series("TA", points),), kind)  # type: ignore[arg-type]


def test_a_point_is_in_percent() -> None:
    data = chart_data(chart(ChartPoint(64.0, {"0": 0.69, "1": 0.71}, "scale 0.3")))
    mark = data.lines[0].marks[0]
    assert (mark.x, mark.label, mark.mean, mark.error) == (64.0, "64", 70.0, 1.0)
    assert (mark.text, mark.values, mark.value_texts) == (
        "70.0 ± 1.0",
        (69.0, 71.0),
        ("69.0", "71.0"),
    )
    assert (mark.note, data.seeds, data.y_label) == ("scale 0.3", ("0", "1"), "accuracy (%)")


def test_points_are_sorted_and_unknown_ones_are_left_out() -> None:
    unknown = ChartPoint(2.0, {"0": math.nan}), ChartPoint(3.0, {})
    data = chart_data(
        chart(ChartPoint(8.0, {"0": 0.5, "1": math.inf}), *unknown, ChartPoint(1.0, {"1": 0.4}))
    )
    assert [mark.x for mark in data.lines[0].marks] == [1.0, 8.0]
    assert [mark.values for mark in data.lines[0].marks] == [(None, 40.0), (50.0, None)]


def test_step_0_is_one_octave_before_the_first() -> None:
    data = chart_data(chart(*(ChartPoint(x, {"0": 0.5}) for x in (0.0, 4.0, 8.0, 32.0))))
    assert positions(data) == {0.0: 1.0, 4.0: 2.0, 8.0: 3.0, 32.0: 5.0}
    assert x_ticks(data) == [(1.0, "0"), (2.0, "4"), (3.0, "8"), (5.0, "32")]


def test_bars_and_words_are_evenly_spaced() -> None:
    assert list(positions(chart_data(by_bin())).values()) == list(range(10))
    assert x_range(chart_data(by_bin())) == (-0.5, 9.5)
    assert [words for _, words in x_ticks(chart_data(by_policy()))][:2] == [
        "last step",
        "early stop",
    ]


def test_groups_that_repeat_names_have_one_panel_each() -> None:
    data = chart_data(by_rank())
    assert list(data.panels) == ["rank 2", "rank 4", "rank 8", "rank 16", "rank 32"]
    assert {line.name: line.style for line in data.lines} == {"Average": 0, "TA": 1, "TIES": 2}
    assert list(chart_data(by_steps()).panels) == [""]


def test_the_y_range_contains_all_bands_and_seeds() -> None:
    data = chart_data(chart(ChartPoint(1.0, {"0": 0.4, "1": 0.6})))
    low, high = y_range(data)
    assert (low, high) == pytest.approx((40 - 1.2, 60 + 1.2))
    bars = chart_data(chart(ChartPoint(1.0, {"0": 0.5}), kind="bar"))
    assert y_range(bars) == pytest.approx((0, 53))
    below = chart_data(chart(ChartPoint(1.0, {"0": -0.5}), kind="bar"))
    assert y_range(below) == pytest.approx((-53, 0))


def test_an_empty_chart_is_drawn() -> None:
    for kind in ("line", "bar"):
        data = chart_data(chart(kind=kind))
        assert "<path" in static_svg(data)
        assert json.loads(to_json(data))["lines"][0]["marks"] == []


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_round_numbers_are_few_and_inside(low: float, size: float) -> None:
    numbers = round_numbers(low, low + size)
    assert 1 <= len(numbers) <= 8
    assert all(low - size / 1e3 <= number <= low + size * 1.001 for number in numbers)


def test_ticks_are_thinned_evenly() -> None:
    ticks = [(float(n), str(n)) for n in range(8)]
    assert thin_ticks(ticks, [1.0] * 8) == ticks
    assert thin_ticks(ticks, [2.5] * 8) == [ticks[0], ticks[3], ticks[6]]
    assert thin_ticks(ticks, [99.0] * 8) == ticks[:1]
    assert thin_ticks([], []) == []


def test_a_method_has_the_same_style_everywhere() -> None:
    assert assign_styles(["TIES", "Task arithmetic"]) == {"TIES": 2, "Task arithmetic": 1}
    assert assign_styles(["mine", "task_arithmetic", "experts, each on its own task"]) == {
        "mine": 0,
        "task_arithmetic": 1,
        "experts, each on its own task": 5,
    }
    many = assign_styles([f"method {n}" for n in range(30)])
    assert len({(n % 8, n % 4, n % 6) for n in list(many.values())[:24]}) == 24


def test_names_that_differ_only_in_a_number_have_colours_of_the_ramp() -> None:
    assert assign_styles(["rank 32", "rank 4", "rank 8"]) == {
        "rank 32": 73,
        "rank 4": 64,
        "rank 8": 68,
    }
    assert list(assign_styles([str(bin_) for bin_ in range(1, 11)]).values()) == list(range(64, 74))
    assert assign_styles(["rank 2", "rank 4"]) == {"rank 2": 0, "rank 4": 1}
    assert set(assign_styles(["r8", "rank 16", "r32"]).values()) == {0, 1, 2}
    assert (css_classes(64), css_classes(73), css_classes(9)) == ("c8 d0", "c17 d0", "c1 d1")
    assert (colour(73), dashes(73), dashes(1)) == (RAMP[9], (), (5, 2))


def test_the_page_has_the_colours_and_markers_of_the_figures() -> None:
    css, script = _asset("page.css"), _asset("draw.js")
    assert tuple(re.findall(r"--s\d+: light-dark\((#\w{6}),", css)) == COLOURS + RAMP
    assert all(f'"{marker}"' in script for marker in MARKERS)


@pytest.mark.parametrize(
    ("background", "theme"), [("#ffffff", 0), ("#14171c", 1)], ids=["light", "dark"]
)
def test_every_colour_has_a_contrast_of_3_to_1(background: str, theme: int) -> None:
    series = re.findall(r"--s\d+: light-dark\((#\w{6}), (#\w{6})\)", _asset("page.css"))
    assert [pair[theme] for pair in series if contrast(pair[theme], background) < 3] == []
    texts = re.findall(
        r"--(?:ink|soft|link|good|some|bad): light-dark\((#\w{6}), (#\w{6})\)", _asset("page.css")
    )
    assert len(texts) == 6
    assert [pair[theme] for pair in texts if contrast(pair[theme], background) < 4.5] == []


def contrast(first: str, second: str) -> float:
    """The contrast ratio as defined by WCAG 2."""
    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_json_for_the_script() -> None:
    data = chart_data(by_steps())
    fields = json.loads(to_json(data))
    assert fields["x_labels"][0] == [1.0, "1"]
    assert fields["lines"][2]["name"] == "TA"
    first = data.lines[2].marks[0]
    assert fields["lines"][2]["marks"][0] == [
        1.0, "1", first.mean, first.error, first.text, list(first.values), list(first.value_texts),
        first.note,
    ]  # fmt: skip


def test_negative_numbers_have_no_log_axis() -> None:
    data = chart_data(replace(by_steps(), series=(Series("a", (ChartPoint(-1.0, {"0": 0.5}),)),)))
    assert data.scale == "category"
