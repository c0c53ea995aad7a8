"""Cards of strangers are inert, and those of friends readable."""

from __future__ import annotations

import httpx2
import pytest

from hubmerge.server.names import RepoId
from hubmerge.server.pages.card_html import CardPlace, render_markdown
from tests.server.pages.card_vectors import VECTORS
from tests.server.pages.conftest import Put
from tests.server.pages.html_pages import dangers_of, read_page

PLACE = CardPlace(RepoId("models", "a", "b"), "main", "docs/README.md")


@pytest.fixture(scope="module")
def hostile(put: Put) -> str:
    """A repository whose card has all vectors, each in a file of its own, too."""
    files = {f"v{n:02}.md": text.encode() for n, text in enumerate(VECTORS.values())}
    card = "---\ntags: ['<script>alert(1)</script>']\n\"<img src=x onerror=alert(1)>\": 1\n---\n"
    files["README.md"] = (card + "\n\n".join(VECTORS.values())).encode()
    files["<img src=x onerror=alert(1)>.txt"] = b"x"
    put("pages/hostile", files, "<script>alert(1)</script>\n\n<img src=x onerror=alert(1)>")
    return "pages/hostile"


@pytest.mark.parametrize("name", VECTORS)
def test_a_hostile_card_is_inert(name: str) -> None:
    html = f'<div class="card">{render_markdown(VECTORS[name], PLACE)}</div>'
    assert list(dangers_of(html)) == []


def test_hostile_pages_are_inert(browser: httpx2.Client, hostile: str) -> None:
    names = [f"blob/main/v{number:02}.md" for number in range(len(VECTORS))]
    for path in ("", "/tree/main", "/commits/main", "/commit/main", *(f"/{n}" for n in names)):
        answer = browser.get(f"/{hostile}{path}")
        assert answer.status_code == 200
        assert list(dangers_of(answer.text)) == [], path
        assert len(read_page(answer.text).all("form")) <= 2


def render(text: str) -> str:
    return str(render_markdown(text, PLACE))


@pytest.mark.parametrize(
    ("link", "address"),
    [
        ("x.png", "/a/b/blob/main/docs/x.png"),
        ("./x%20y.png", "/a/b/blob/main/docs/x%20y.png"),
        ("../x.png", "/a/b/blob/main/x.png"),
        ("../../x.png", None),
        ("/a/c", "/a/c"),
        ("#part", "#card-part"),
        ("https://example.org/?a=b", "https://example.org/?a=b"),
        ("mailto:a@b.c", "mailto:a@b.c"),
        ("//evil.example", None),
        ("ftp://evil.example", None),
        ("\\\\evil.example", None),
        ("http://[", None),
    ],
)
def test_links_lead_into_the_repository_or_elsewhere_with_care(
    link: str, address: str | None
) -> None:
    (element,) = read_page(render(f'<a href="{link}">x</a>')).all("a")
    assert element.attributes.get("href") == address
    assert element.attributes["rel"] == "noopener noreferrer nofollow"


def test_pictures_are_of_the_repository_or_links() -> None:
    page = read_page(render("![in](x.png) ![out](https://e.org/y.png)"))
    assert [e.attributes["src"] for e in page.all("img")] == ["/a/b/resolve/main/docs/x.png"]
    assert page.links() == {"Image: out": "https://e.org/y.png"}


def test_a_badge_in_a_link_is_the_text_of_the_link() -> None:
    assert read_page(render("[![badge](https://e.org/b.svg)](https://e.org)")).links() == {
        "Image: badge": "https://e.org"
    }


def test_headings_start_below_those_of_the_page_and_skip_no_level() -> None:
    page = read_page(render("# A\n\n### B\n\n<h5>C</h5>\n\n# A\n"))
    assert [(e.tag, e.attributes.get("id")) for e in page.elements if e.tag[0] == "h"] == [
        ("h3", "card-a"), ("h4", "card-b"), ("h5", None), ("h3", "card-a-1"),
    ]  # fmt: skip


def test_tables_keep_their_alignment_and_say_what_their_heads_are() -> None:
    page = read_page(render("| a | b |\n|---|--:|\n| 1 | 2 |"))
    assert [e.attributes for e in page.all("th")] == [
        {"scope": "col"}, {"align": "right", "scope": "col"},
    ]  # fmt: skip


def test_markers_of_hubmerge_and_details_are_kept_out_and_in() -> None:
    html = render("<!-- hubmerge:begin -->\n\n<details><summary>S</summary>\n\ntext\n\n</details>")
    assert "hubmerge:begin" not in html
    assert "<summary>S</summary>" in html
