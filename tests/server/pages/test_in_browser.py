"""The pages in Chromium: hostile cards run nothing, and people can use the pages.

`make test-page` runs these; they need playwright, and Chromium or Chrome on the PATH.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi

from hubmerge.server import ServerState
from hubmerge.server.sessions import request_link
from tests.server.pages.card_vectors import VECTORS
from tests.server.pages.conftest import Put

sync_api = pytest.importorskip("playwright.sync_api", reason="make test-page installs playwright")
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="Chromium or Chrome is not installed"),
]

PAGES = (
    "/", "/pages/browsed", "/pages/browsed?compare=step1..step2", "/pages/browsed/tree/main",
    "/pages/browsed/blob/main/README.md", "/pages/browsed/commits/main",
    "/pages/browsed/commit/main", "/pages/browsed/discussions", "/hubmerge/tiny-clip",
    "/hubmerge/tiny-clip/blob/main/open_clip_model.safetensors", "/settings/tokens",
)  # fmt: skip
# What a script could have been started by, in the tree that the browser has made.
FIND_ACTIVE = """() => [...document.querySelectorAll('*')].flatMap((element) => [
  ...(/^(script|iframe|object|embed|base|style|video|audio|math)$/i.test(element.localName) ? [element.localName] : []),
  ...[...element.attributes].map((a) => a.name).filter((name) => /^(on|style$|srcdoc$|ping$)/.test(name)),
  ...(/^(javascript|data|vbscript):/i.test(element.href || '') ? [element.href] : []),
])"""  # noqa: E501
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Without the sandbox, because CI and containers run as root.
        program = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        yield program
        program.close()


@contextmanager
def watched_page(
    chromium: Any, hub: ServerState, **options: Any
) -> Iterator[tuple[Any, list[str]]]:
    """A page, and everything that should not happen in it, as it happens."""
    context = chromium.new_context(base_url=hub.url, **options)
    page, events = context.new_page(), list[str]()
    host = urlsplit(hub.url).netloc

    def check_request(request: Any) -> None:
        if urlsplit(request.url).netloc != host:
            events.append(f"request to {request.url}")

    def note_dialog(dialog: Any) -> None:
        events.append(f"dialog {dialog.message}")
        dialog.dismiss()

    page.on("request", check_request)
    page.on("dialog", note_dialog)
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("popup", lambda popup: events.append(f"popup {popup.url}"))
    yield page, events
    context.close()


@pytest.fixture(scope="module")
def hostile(put: Put) -> str:
    """A repository with each vector in a file, all in its card, and the pictures they name."""
    files = {f"v{n:02}.md": text.encode() for n, text in enumerate(VECTORS.values())}
    files["README.md"] = "\n\n".join(VECTORS.values()).encode()
    files |= {"x": b"\x89PNG", "x.png": b"\x89PNG", "1": b"\x89PNG"}
    put("pages/hostile-browser", files, "<script>alert(1)</script>")
    return "pages/hostile-browser"


@pytest.fixture(scope="module")
def browsed(api: HfApi, put: Put, expert: str) -> str:
    """An expert with a real picture, code and a wide table in its card."""
    wide = "|".join(f"column {n}" for n in range(30))
    card = f"# Card\n\n|{wide}|\n|{'|'.join(['-'] * 30)}|\n|{wide}|\n\n```\n{'x' * 500}\n```\n\n"
    for step in (1, 2):
        manifest = api.hf_hub_download(expert, "hubmerge.json", revision=f"step{step}")
        with open(manifest, "rb") as file:
            files = {"README.md": f"{card}{'y' * 300}".encode(), "hubmerge.json": file.read()}
        sha = put("pages/browsed", files)
        api.create_tag("pages/browsed", tag=f"step{step}", revision=sha)
    return "pages/browsed"


def test_hostile_cards_run_nothing_even_without_the_policy(
    chromium: Any, hub: ServerState, hostile: str
) -> None:
    # The policy would stop scripts, too: this holds the removal to it alone.
    with watched_page(chromium, hub, bypass_csp=True) as (page, events):
        paths = ["", *(f"/blob/main/v{number:02}.md" for number in range(len(VECTORS)))]
        for path in paths:
            page.goto(f"/{hostile}{path}")
            for link in page.locator(".card [autofocus], .card details").all():
                link.focus()
            events += [f"{path}: {found}" for found in page.evaluate(FIND_ACTIVE)]
    assert events == []


def test_the_policy_has_nothing_to_refuse(
    chromium: Any, hub: ServerState, hostile: str, browsed: str
) -> None:
    with watched_page(chromium, hub) as (page, events):
        for path in (*PAGES, f"/{hostile}", f"/{hostile}/commits/main"):
            page.goto(path)
    assert events == []


@pytest.mark.parametrize(("scheme", "background"), [
    ("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 28)"),
])  # fmt: skip
def test_pages_fit_a_phone_in_light_and_dark(
    chromium: Any, hub: ServerState, browsed: str, scheme: str, background: str
) -> None:
    size = {"width": 360, "height": 740}
    with watched_page(chromium, hub, viewport=size, color_scheme=scheme) as (page, events):
        for path in PAGES:
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert colour == background
    assert events == []


def test_the_keyboard_reaches_the_content_and_shows_where_it_is(
    chromium: Any, hub: ServerState, browsed: str
) -> None:
    with watched_page(chromium, hub) as (page, _):
        page.goto(f"/{browsed}")
        page.keyboard.press("Tab")
        assert page.locator(".skip").bounding_box()["width"] > 50
        page.keyboard.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid"


def test_forms_search_compare_and_choose_a_revision(
    chromium: Any, hub: ServerState, browsed: str
) -> None:
    with watched_page(chromium, hub) as (page, events):
        page.goto("/")
        page.get_by_label("Search repositories by name").fill("browsed")
        page.keyboard.press("Enter")
        page.get_by_role("link", name=browsed).click()
        page.get_by_label("with").fill("step2")
        page.get_by_role("button", name="Compare").click()
        assert page.locator("h1").inner_text() == "step1 and step2"
        page.get_by_role("link", name="Files").click()
        page.get_by_label("Branch, tag or commit").fill("step1")
        page.get_by_role("button", name="Show").click()
        assert page.url.endswith("/tree/step1")
    assert events == []


def test_a_link_signs_the_browser_in(chromium: Any, hub: ServerState, api: HfApi) -> None:
    api.create_repo("pages/for-members", private=True)
    with watched_page(chromium, hub) as (page, _):
        page.goto("/pages/for-members")
        assert "No such repository" in page.content()
        page.goto(request_link(hub))
        assert "This browser is signed in" in page.content()
        page.goto("/pages/for-members")
        assert page.locator("h1").inner_text() == "Model pages/for-members"
        assert page.evaluate("document.cookie") == ""


def test_a_picture_of_a_card_is_shown(chromium: Any, hub: ServerState, put: Put) -> None:
    put("pages/picture", {"README.md": b"![dot](dot.png)", "dot.png": DOT})
    with watched_page(chromium, hub) as (page, events):
        page.goto("/pages/picture")
        assert page.evaluate("document.querySelector('.card img').naturalWidth") == 1
    assert events == []


# A picture of one pixel.
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63fcffff"
    "3f0300090001ff1b5fb0d20000000049454e44ae426082"
)
