"""The page in a browser: it draws, answers to pointer, keys and switches, and fits a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubmerge.reports.page import render_page
from tests.reports.browser import CHROMIUM, Browser, browsing
from tests.reports.test_page import hostile
from tests.reports.worlds import by_bin, by_policy, by_rank, by_steps, results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]
LINES, BARS, RANKS = (f"#fft-vision-mini-chart-{number}" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    told = results(charts=lambda: (by_steps(), by_bin(), by_rank(), by_policy()))
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_page([told, results("difficulty", verdict="not")]))
    return file


def words(browser: Browser, selector: str) -> list[str]:
    said = browser.tell(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)"
    )
    return [" ".join(str(text).split()) for text in said]


def count(browser: Browser, selector: str) -> int:
    return int(browser.tell(f"document.querySelectorAll({json.dumps(selector)}).length"))


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("script", [True, False], ids=["script", "still"])
def test_it_fits_and_loads_nothing(
    browser: Browser, page: Path, width: int, dark: bool, script: bool
) -> None:
    browser.open(page, width, dark=dark, script=script)
    layout = browser.ask("Page.getLayoutMetrics")["cssContentSize"]
    assert layout["width"] == width
    assert browser.problems == []
    assert browser.fetched == [page.as_uri()]
    if script:
        paper = browser.tell("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
        assert count(browser, ".chart.still") == 0
        assert browser.tell("matchMedia('(prefers-color-scheme: dark)').matches") is dark


def test_pointing_tells_the_point(browser: Browser, page: Path) -> None:
    browser.open(page)
    x, y = browser.middle(f"{LINES} .plot")
    browser.hover(x, y)
    (said,) = words(browser, f"{LINES} .tip:not([hidden])")
    first = by_steps().series[0].points[5]
    assert said.startswith("expert training steps: 32 experts ")
    assert f"{100 * first.mean:.1f} ± {100 * first.stderr:.1f}" in said
    assert "seed 0: " in said
    assert "scale" in said
    browser.hover(5, 5)
    assert words(browser, f"{LINES} .tip:not([hidden])") == []


def test_keys_walk_along_and_across(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.tell(f"document.querySelector('{LINES} .plot').focus()")
    for key in ("ArrowRight", "ArrowRight", "End"):
        browser.press(key)
    (said,) = words(browser, f"{LINES} [aria-live]")
    assert said.startswith("experts, expert training steps 2048, ")
    browser.press("ArrowDown")
    assert words(browser, f"{LINES} [aria-live]")[0].startswith("early stop, ")
    browser.press("Escape")
    assert words(browser, f"{LINES} .tip:not([hidden])") == []


def test_the_legend_hides_and_the_switches_switch(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert count(browser, f"{LINES} .plot .series") == 6
    browser.click(f"{LINES} .legend li:first-child button")
    assert count(browser, f"{LINES} .plot .series") == 5
    assert count(browser, f"{LINES} .plot .band") == 5
    browser.click(f"{LINES} .choice[aria-label=Values] button:last-child")
    assert count(browser, f"{LINES} .plot .band") == 0
    assert count(browser, f"{LINES} .plot .thin") == 15
    browser.click(f"{LINES} .choice[aria-label='Axis of x'] button:last-child")
    places = browser.tell(
        f"[...document.querySelectorAll('{LINES} .plot .tick.middle')].map((e) => e.textContent)"
    )
    assert places == ["0", "500", "1000", "1500", "2000"]
    browser.click(f"{BARS} .choice button:last-child")
    assert count(browser, f"{BARS} .plot .dot") == 90


def test_panels_by_rank_or_by_series(browser: Browser, page: Path) -> None:
    browser.open(page)
    titles = f"[...document.querySelectorAll('{RANKS} .plot .panel-title')].map(e => e.textContent)"
    assert browser.tell(titles) == ["rank 2", "rank 4", "rank 8", "rank 16", "rank 32"]
    browser.click(f"{RANKS} .choice[aria-label=Panels] button:last-child")
    assert browser.tell(titles) == ["Average", "TA", "TIES"]
    assert words(browser, f"{RANKS} .legend button") == [f"rank {2**k}" for k in range(1, 6)]


def test_the_theme_button_goes_round(browser: Browser, page: Path) -> None:
    browser.open(page)
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.click(".theme")
    browser.click(".theme")
    assert words(browser, ".theme") == ["Theme: dark"]
    assert browser.tell(paper) == "rgb(20, 23, 28)"
    browser.open(page)
    assert browser.tell(paper) == "rgb(20, 23, 28)"  # it is remembered
    browser.click(".theme")
    assert browser.tell(paper) == "rgb(255, 255, 255)"


def test_names_become_no_markup_when_pointed_at(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(render_page([hostile()]))
    browser.open(file)
    browser.tell("document.querySelector('.plot').focus()")
    browser.press("ArrowRight")
    (said,) = words(browser, ".tip:not([hidden])")
    assert '<img src=x onerror="alert(1)">' in said
    assert count(browser, "img") == 0
    assert browser.problems == []
