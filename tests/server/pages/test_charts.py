"""Curves as shapes: numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from hubmerge.server.pages.charts import draw_chart, draw_sparkline


def test_steps_are_on_a_logarithmic_axis() -> None:
    chart = draw_chart("loss", [(1, 1.0), (4, 3.0)], [(1, 1.0), (2, 2.0), (4, 3.0)])
    assert chart
    # 60 to 618 is the axis; step 2 is in its middle, and so is the value 2.
    assert [dot.x for dot in chart.dots] == [60, 339, 618]
    assert chart.dots[1].y == (chart.dots[0].y + chart.dots[2].y) / 2
    assert [label for _, label in chart.x_ticks] == ["1", "2", "4"]
    assert [label for _, label in chart.y_ticks] == ["1", "1.5", "2", "2.5", "3"]
    assert chart.line == f"M60 {chart.dots[0].y:g}L618 {chart.dots[2].y:g}"


def test_step_0_is_an_octave_before_the_first_step() -> None:
    chart = draw_chart("validation accuracy", [(0, 0.5), (16, 0.5), (32, 0.5)], [])
    assert chart
    assert [label for _, label in chart.x_ticks] == ["0", "16", "32"]
    assert chart.line.startswith("M60 ")
    assert "L339 " in chart.line


def test_no_tick_is_beyond_all_of_the_rows() -> None:
    chart = draw_chart("validation accuracy", [(1, 1.0), (2, 1.0)], [])
    assert chart
    assert [label for _, label in chart.y_ticks] == ["95 %", "100 %"]


@pytest.mark.parametrize("points", [[], [(4, 1.0)], [(4, 1.0), (4, 2.0)], [(1, math.nan)] * 3])
def test_there_is_no_curve_without_two_steps(points: list[tuple[int, float]]) -> None:
    assert draw_chart("loss", points, []) is None


def test_a_long_run_is_thinned_with_both_ends() -> None:
    chart = draw_chart("loss", [(step, 1 / step) for step in range(1, 100_001)], [])
    assert chart
    assert len(chart.line.split("L")) <= 402
    assert chart.line.split("L")[-1].startswith("618 ")


def test_a_sparkline_says_where_it_starts_and_ends() -> None:
    line = draw_sparkline("validation accuracy", [(0, 0.25), (8, 0.75)])
    assert line
    assert (line.line, line.x, line.y) == ("M3 19L87 3", 87, 3)
    assert line.title == "validation accuracy: 25.0 % at step 0, 75.0 % at step 8"
    assert draw_sparkline("loss", [(1, 2.0)]) is None
