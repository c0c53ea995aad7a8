"""The page in a browser: drawing, pointer, keys, switches, and small screens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubmerge.reports.page import render_page
from tests.reports.browser import CHROMIUM, Browser, open_browser
from tests.reports.builders import by_bin, by_policy, by_rank, by_steps, results
from tests.reports.test_page import hostile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]
LINES, BARS, RANKS = (f"#fft-vision-mini-chart-{number}" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with_charts = results(charts=lambda: (by_steps(), by_bin(), by_rank(), by_policy()))
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_page([with_charts, results("difficulty", verdict="not")]))
    return file


def texts(browser: Browser, selector: str) -> list[str]:
    values = browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)"
    )
    return [" ".join(str(text).split()) for text in values]


def count(browser: Browser, selector: str) -> int:
    return int(browser.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("script", [True, False], ids=["script", "static"])
def test_it_fits_and_loads_nothing(
    browser: Browser, page: Path, width: int, dark: bool, script: bool
) -> None:
    browser.open(page, width, dark=dark, script=script)
    layout = browser.send_command("Page.getLayoutMetrics")["cssContentSize"]
    assert layout["width"] == width
    assert browser.problems == []
    assert browser.requested_urls == [page.as_uri()]
    if script:
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
        assert count(browser, ".chart.static") == 0
        assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark


def test_pointing_shows_the_tooltip_of_a_point(browser: Browser, page: Path) -> None:
    browser.open(page)
    x, y = browser.middle(f"{LINES} .plot")
    browser.hover(x, y)
    (text,) = texts(browser, f"{LINES} .tip:not([hidden])")
    first = by_steps().series[0].points[5]
    assert text.startswith("expert training steps: 32 experts ")
    assert f"{100 * first.mean:.1f} ± {100 * first.stderr:.1f}" in text
    assert "seed 0: " in text
    assert "scale" in text
    browser.hover(5, 5)
    assert texts(browser, f"{LINES} .tip:not([hidden])") == []


def test_arrow_keys_move_along_and_between_series(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate(f"document.querySelector('{LINES} .plot').focus()")
    for key in ("ArrowRight", "ArrowRight", "End"):
        browser.press(key)
    (text,) = texts(browser, f"{LINES} [aria-live]")
    assert text.startswith("experts, expert training steps 2048, ")
    browser.press("ArrowDown")
    assert texts(browser, f"{LINES} [aria-live]")[0].startswith("early stop, ")
    browser.press("Escape")
    assert texts(browser, f"{LINES} .tip:not([hidden])") == []


def test_the_legend_and_the_switches(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert count(browser, f"{LINES} .plot .series") == 6
    browser.click(f"{LINES} .legend li:first-child button")
    assert count(browser, f"{LINES} .plot .series") == 5
    assert count(browser, f"{LINES} .plot .band") == 5
    browser.click(f"{LINES} .switch[aria-label=Values] button:last-child")
    assert count(browser, f"{LINES} .plot .band") == 0
    assert count(browser, f"{LINES} .plot .thin") == 15
    browser.click(f"{LINES} .switch[aria-label='Axis of x'] button:last-child")
    labels = browser.evaluate(
        f"[...document.querySelectorAll('{LINES} .plot .tick.middle')].map((e) => e.textContent)"
    )
    assert labels == ["0", "500", "1000", "1500", "2000"]
    browser.click(f"{BARS} .switch button:last-child")
    assert count(browser, f"{BARS} .plot .dot") == 90


def test_panels_by_rank_or_by_series(browser: Browser, page: Path) -> None:
    browser.open(page)
    titles = f"[...document.querySelectorAll('{RANKS} .plot .panel-title')].map(e => e.textContent)"
    assert browser.evaluate(titles) == ["rank 2", "rank 4", "rank 8", "rank 16", "rank 32"]
    browser.click(f"{RANKS} .switch[aria-label=Panels] button:last-child")
    assert browser.evaluate(titles) == ["Average", "TA", "TIES"]
    assert texts(browser, f"{RANKS} .legend button") == [f"rank {2**k}" for k in range(1, 6)]


def test_the_theme_button(browser: Browser, page: Path) -> None:
    browser.open(page)
    background = "getComputedStyle(document.body).backgroundColor"
    browser.click(".theme")
    browser.click(".theme")
    assert texts(browser, ".theme") == ["Theme: dark"]
    assert browser.evaluate(background) == "rgb(20, 23, 28)"
    browser.open(page)
    assert browser.evaluate(background) == "rgb(20, 23, 28)"  # it is stored
    browser.click(".theme")
    assert browser.evaluate(background) == "rgb(255, 255, 255)"


def test_names_in_a_tooltip_are_text(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(render_page([hostile()]))
    browser.open(file)
    browser.evaluate("document.querySelector('.plot').focus()")
    browser.press("ArrowRight")
    (text,) = texts(browser, ".tip:not([hidden])")
    assert '<img src=x onerror="alert(1)">' in text
    assert count(browser, "img") == 0
    assert browser.problems == []
