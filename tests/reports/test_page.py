"""The page: what it says, that it is one file, and that names stay text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hubmerge.reports.page import render_page
from hubmerge.results import (
    Axis,
    Cell,
    Chart,
    Claim,
    Paper,
    Point,
    Provenance,
    Results,
    Series,
    Table,
)
from tests.reports.worlds import HOSTILE, by_rank, results, thirteen

ROOT = Path(__file__).resolve().parents[2]


class Reading(HTMLParser):
    """Elements, words, and the text of scripts and styles of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "json": []}
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag in ("script", "style"):
            self._inside = "json" if found.get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside].append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def source(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def hostile() -> Results:
    """Results in which every text that can be anything tries to be something."""
    bad = HOSTILE
    point = Point(bad, {bad: 0.5, "1": 0.6}, bad)
    chart = Chart("c", bad, Axis(bad), Axis(bad, "percent"), (Series(bad, (point,), bad),))
    return Results(
        bad, bad, bad, Paper(bad, bad), {bad: {bad: [bad]}}, (bad,), (chart,),
        (Table(bad, bad, (bad, bad), ((bad, Cell((0.5,))),)),),
        (Claim(bad, bad, (0.1,), "not", paper=bad),), "not", bad,
        Provenance(bad, bad, {bad: bad}, {bad: 1}, 1.0, bad),
    )  # fmt: skip


def test_the_head_tells_every_verdict_in_words_and_symbols() -> None:
    page = render_page([results(), results("difficulty", verdict="not")])
    read = Reading(page).text
    assert "2 recipes for arXiv 2506.14126" in read
    assert "reproduced ta-falls partly ties-falls not reproduced average-rises" in read
    assert page.count('href="#partly"') > page.count('class="badge partly"') > 0


def test_a_section_tells_paper_ours_and_why() -> None:
    read = Reading(render_page([results()])).text
    assert "The paper says: Experts get better until 2048 steps" in read
    assert "TA falls as in the paper, TIES by less than the noise" in read
    # 2.1, 3.1 and 2.5 points: mean 2.57, error 0.29.
    assert "Task arithmetic peaks before the last step. +2.9 +2.6 ± 0.3 points 3 above 0" in read
    assert "TA 256 70.4 ± 0.2 67.0 ± 0.6" in read
    assert "optimiser.lr 0.0005" in read
    assert "312 (12 train, 144 merge, 156 evaluate)" in read
    assert "time of all units 1 h 15 min" in read


def test_every_chart_is_there_without_a_script_and_as_a_table() -> None:
    read = Reading(render_page([results(charts=lambda: (by_rank(),))]))
    plots = [found for _, found in read.elements if found.get("class") == "plot"]
    assert [plot["role"] for plot in plots] == ["img"]
    assert "rank 32: TIES: highest at" in str(plots[0]["aria-label"])
    panels = [found for _, found in read.elements if found.get("class") == "panel-title"]
    assert len(panels) == 5
    headings = [found for tag, found in read.elements if tag == "th" and "scope" in found]
    assert len(headings) > 15 + 12


def test_the_page_is_one_file_and_runs_only_its_own_script() -> None:
    page = render_page([results()])
    read = Reading(page)
    asks = {found.get("src") or found.get("href") for _, found in read.elements}
    outside = {place for place in asks if place and not place.startswith(("#", "data:,"))}
    assert outside == {"https://arxiv.org/abs/2506.14126"}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|innerHTML|eval\(", page)
    policy = next(
        found["content"] for _, found in read.elements
        if found.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{source(''.join(read.texts['script']))}'" in policy
    assert f"style-src 'sha256-{source(''.join(read.texts['style']))}'" in policy
    assert not any("style" in found or "onclick" in found for _, found in read.elements)


def test_hostile_names_stay_text() -> None:
    read = Reading(render_page([hostile()]))
    assert "img" not in {tag for tag, _ in read.elements}
    assert not any(name.startswith("on") for _, found in read.elements for name in found)
    assert "{{ 7 * 7 }}" in read.text
    assert "\x1b" not in "".join(read.words)
    assert "\u202e" not in "".join(read.words)
    assert len(read.texts["json"]) == 1
    told = json.loads(read.texts["json"][0])
    assert told["lines"][0]["name"].startswith('</script><img src=x onerror="alert(1)">')
    tags = [tag for tag, _ in read.elements]
    assert tags.count("script") == 2


def test_ids_are_never_shared() -> None:
    same = [results(), results(profile="paper"), results("FFT vision!"), results("fft--vision")]
    elements = Reading(render_page(same)).elements
    ids = [found["id"] for _, found in elements if "id" in found]
    assert len(ids) == len(set(ids))
    links = [found["href"] for _, found in elements if "href" in found]
    assert {str(link)[1:] for link in links if str(link).startswith("#")} <= set(ids)


def test_the_same_results_are_the_same_bytes_and_thirteen_recipes_fit() -> None:
    assert render_page([results()]) == render_page([results()])
    page = render_page(thirteen())
    assert len(page.encode()) < 3_000_000
    assert "rows are not embedded" not in page


def test_the_wheel_has_the_page() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    inside = {
        file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()
    }
    assets = {path.name for path in (ROOT / "hubmerge" / "reports" / "assets").iterdir()}
    assert {f"hubmerge/reports/assets/{name}" for name in assets} <= inside
    assert len(assets) == 10
