"""Figures of a recipe: every chart, reproducible, and inside its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest

from hubmerge.errors import DataError
from hubmerge.reports.figures import figure_folder, write_figures
from tests.reports.builders import HOSTILE, by_bin, by_rank, by_steps, results


def test_every_chart_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    charts = results(charts=lambda: (by_bin(), by_rank()))
    paths = write_figures(charts, tmp_path / "new")
    names = ["forgotten.png", "forgotten.svg", "rank.png", "rank.svg"]
    assert [path.name for path in paths] == names
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in paths[1].read_bytes()


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    charts = results(charts=lambda: (by_steps(),))
    first = [path.read_bytes() for path in write_figures(charts, tmp_path / "a")]
    with matplotlib.rc_context({"svg.hashsalt": "other", "font.size": 20}):
        second = [path.read_bytes() for path in write_figures(charts, tmp_path / "b")]
    assert first == second
    assert b"dc:date" not in first[1]


def test_hostile_text_is_not_a_formula(tmp_path: Path) -> None:
    bad = replace(by_bin(), title=f"$\\frac{{1}}{{0}}$ {HOSTILE}")
    svg = write_figures(results(charts=lambda: (bad,)), tmp_path)[1].read_bytes()
    assert b"<img" not in svg
    assert b"</script" not in svg


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 200, "a\0b", "a\n"])
def test_a_chart_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    charts = results(charts=lambda: (replace(by_bin(), name=name),))
    with pytest.raises(DataError, match="not a valid file name"):
        write_figures(charts, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_each_recipe_has_a_separate_folder(tmp_path: Path) -> None:
    assert figure_folder(results(), tmp_path) == tmp_path / "fft-vision-mini"
    with pytest.raises(DataError, match="not a valid folder name"):
        figure_folder(results("../up"), tmp_path)
