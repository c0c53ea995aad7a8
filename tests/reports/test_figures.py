"""Figures of a recipe: every chart, the same bytes again, and only inside their folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest

from hubmerge.errors import DataError
from hubmerge.reports.figures import draw, figure_folder
from hubmerge.results import Results
from tests.reports.worlds import HOSTILE, by_bin, by_rank, by_steps, results


def test_every_chart_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    told = results(charts=lambda: (by_bin(), by_rank()))
    drawn = draw(told, tmp_path / "new")
    names = ["forgotten.png", "forgotten.svg", "rank.png", "rank.svg"]
    assert [path.name for path in drawn] == names
    assert drawn[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in drawn[1].read_bytes()


def test_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    told = results(charts=lambda: (by_steps(),))
    first = [path.read_bytes() for path in draw(told, tmp_path / "a")]
    with matplotlib.rc_context({"svg.hashsalt": "other", "font.size": 20}):
        second = [path.read_bytes() for path in draw(told, tmp_path / "b")]
    assert first == second
    assert b"dc:date" not in first[1]


def test_hostile_words_are_drawn_and_no_formula(tmp_path: Path) -> None:
    bad = replace(by_bin(), title=f"$\\frac{{1}}{{0}}$ {HOSTILE}")
    svg = draw(results(charts=lambda: (bad,)), tmp_path)[1].read_bytes()
    assert b"<img" not in svg
    assert b"</script" not in svg


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 200, "a\0b", "a\n"])
def test_a_chart_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    told = results(charts=lambda: (replace(by_bin(), name=name),))
    with pytest.raises(DataError, match="cannot name a file"):
        draw(told, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_has_a_folder_of_its_own(tmp_path: Path) -> None:
    told: Results = results()
    assert figure_folder(told, tmp_path) == tmp_path / "fft-vision-mini"
    with pytest.raises(DataError, match="cannot name a folder"):
        figure_folder(results("../up"), tmp_path)
