"""The page: its content, that it is one self-contained file, and that names stay text."""

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
    ChartPoint,
    Claim,
    Paper,
    Provenance,
    Results,
    Series,
    Table,
)
from tests.reports.builders import HOSTILE, by_rank, results, thirteen_recipes

ROOT = Path(__file__).resolve().parents[2]


class ParsedPage(HTMLParser):
    """The elements of a page, its visible text, and the text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "json": []}
        self.visible_text: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag in ("script", "style"):
            self._inside = "json" if attributes.get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside].append(data)
        else:
            self.visible_text.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.visible_text).split())


def csp_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def hostile() -> Results:
    """Results with hostile text in every field."""
    bad = HOSTILE
    point = ChartPoint(bad, {bad: 0.5, "1": 0.6}, bad)
    chart = Chart("c", bad, Axis(bad), Axis(bad, "percent"), (Series(bad, (point,), bad),))
    return Results(
        bad, bad, bad, Paper(bad, bad), {bad: {bad: [bad]}}, (bad,), (chart,),
        (Table(bad, bad, (bad, bad), ((bad, Cell((0.5,))),)),),
        (Claim(bad, bad, (0.1,), "not", paper=bad),), "not", bad,
        Provenance(bad, bad, {bad: bad}, {bad: 1}, 1.0, bad),
    )  # fmt: skip


def test_the_head_has_every_verdict_as_word_and_symbol() -> None:
    page = render_page([results(), results("difficulty", verdict="not")])
    text = ParsedPage(page).text
    assert "2 recipes for arXiv 2506.14126" in text
    assert "reproduced ta-falls partly ties-falls not reproduced average-rises" in text
    assert page.count('href="#partly"') > page.count('class="badge partly"') > 0


def test_a_section_has_the_paper_the_measurements_and_the_reason() -> None:
    text = ParsedPage(render_page([results()])).text
    assert "The paper says: Experts get better until 2048 steps" in text
    assert "TA falls as in the paper, TIES by less than the noise" in text
    # 2.1, 3.1 and 2.5 points: mean 2.57, standard error 0.29, 4.30 of them on each side.
    falls = "Task arithmetic peaks before the last step. +2.9 +2.6 points (+1.3 to +3.8) 3 0.019"
    assert f"{falls} above 0" in text
    assert "TA 256 70.4 ± 0.2 67.0 ± 0.6" in text
    assert "optimiser.lr 0.0005" in text
    assert "312 (12 train, 144 merge, 156 evaluate)" in text
    assert "time of all units 1 h 15 min" in text


def test_every_chart_is_a_static_svg_and_a_table() -> None:
    page = ParsedPage(render_page([results(charts=lambda: (by_rank(),))]))
    plots = [attributes for _, attributes in page.elements if attributes.get("class") == "plot"]
    assert [plot["role"] for plot in plots] == ["img"]
    assert "rank 32: TIES: highest at" in str(plots[0]["aria-label"])
    panels = [
        attributes for _, attributes in page.elements if attributes.get("class") == "panel-title"
    ]
    assert len(panels) == 5
    headings = [
        attributes for tag, attributes in page.elements if tag == "th" and "scope" in attributes
    ]
    assert len(headings) > 15 + 12


def test_the_page_is_self_contained_and_runs_no_other_script() -> None:
    page = render_page([results()])
    parsed = ParsedPage(page)
    urls = {attributes.get("src") or attributes.get("href") for _, attributes in parsed.elements}
    external = {url for url in urls if url and not url.startswith(("#", "data:,"))}
    assert external == {"https://arxiv.org/abs/2506.14126"}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|innerHTML|eval\(", page)
    policy = next(
        attributes["content"] for _, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{csp_hash(''.join(parsed.texts['script']))}'" in policy
    assert f"style-src 'sha256-{csp_hash(''.join(parsed.texts['style']))}'" in policy
    assert not any(
        "style" in attributes or "onclick" in attributes for _, attributes in parsed.elements
    )


def test_hostile_names_stay_text() -> None:
    page = ParsedPage(render_page([hostile()]))
    assert "img" not in {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "{{ 7 * 7 }}" in page.text
    assert "\x1b" not in "".join(page.visible_text)
    assert "\u202e" not in "".join(page.visible_text)
    assert len(page.texts["json"]) == 1
    chart = json.loads(page.texts["json"][0])
    assert chart["lines"][0]["name"].startswith('</script><img src=x onerror="alert(1)">')
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2


def test_ids_are_unique() -> None:
    same = [results(), results(profile="paper"), results("FFT vision!"), results("fft--vision")]
    elements = ParsedPage(render_page(same)).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for _, attributes in elements if "href" in attributes]
    assert {str(link)[1:] for link in links if str(link).startswith("#")} <= set(ids)


def test_equal_results_give_equal_bytes_and_thirteen_recipes_fit() -> None:
    assert render_page([results()]) == render_page([results()])
    page = render_page(thirteen_recipes())
    assert len(page.encode()) < 3_000_000
    assert "rows are not embedded" not in page


def test_the_wheel_contains_the_assets() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    packaged = {
        file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()
    }
    assets = {path.name for path in (ROOT / "hubmerge" / "reports" / "assets").iterdir()}
    assert {f"hubmerge/reports/assets/{name}" for name in assets} <= packaged
    assert len(assets) == 10
