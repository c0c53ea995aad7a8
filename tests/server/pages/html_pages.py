"""Pages as browsers read them, for tests: elements, texts, and what a page could do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "img", "hr"}
# What our own pages have outside of cards, once each at most.
ACTIVE = {
    "script", "style", "iframe", "frame", "object", "embed", "applet", "base", "template", "dialog",
    "video", "audio", "source", "select", "textarea", "math", "noscript", "marquee", "animate",
    "use", "foreignobject", "portal", "keygen", "slot", "noembed", "xmp",
}  # fmt: skip
OUTSIDE_ONLY = {"form", "input", "button", "meta", "link", "svg", "html", "head", "body", "title"}
URL_ATTRIBUTES = {"href", "src", "action", "formaction", "data", "poster", "background", "srcset"}


@dataclass
class Element:
    """An element, its attributes and the text inside of it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    parents: tuple[str, ...] = ()


@dataclass
class Page:
    """All elements of a page in order."""

    elements: list[Element] = field(default_factory=list)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [" ".join(e.text.split()) for e in self.all(tag, **attributes)]

    def links(self) -> dict[str, str]:
        """The text of each link -> its address."""
        return {" ".join(e.text.split()): e.attributes.get("href", "") for e in self.all("a")}

    @property
    def text(self) -> str:
        return " ".join(self.all("body")[0].text.split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        parents = tuple(f"{e.tag}.{e.attributes.get('class', '')}" for e in self._open)
        element = Element(tag, {name: value or "" for name, value in attrs}, parents=parents)
        self.page.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        # Elements of HTML may stay open; everything inside of the one that ends does, too.
        if any(e.tag == tag for e in self._open):
            while self._open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data


def read_page(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page


def dangers_of(html: str) -> Iterator[str]:
    """What a page could run, load from elsewhere, or send."""
    for element in read_page(html).elements:
        in_card = "div.card" in element.parents
        if element.tag in ACTIVE or (in_card and element.tag in OUTSIDE_ONLY):
            yield f"<{element.tag}>"
        for name, value in element.attributes.items():
            if name.startswith("on") or name in ("style", "srcdoc", "ping", "http-equiv", "srcset"):
                yield f"{element.tag} {name}={value}"
            if name in URL_ATTRIBUTES and not _is_safe(element.tag, value):
                yield f"{element.tag} {name}={value}"
            if in_card and name in ("class", "name"):
                yield f"{element.tag} {name}={value}"


def _is_safe(tag: str, url: str) -> bool:
    is_here = url.startswith("/") and not url.startswith(("//", "/\\"))
    if tag == "a":
        return is_here or url.startswith(("#", "http://", "https://", "mailto:"))
    return is_here


def accessibility_problems(html: str) -> Iterator[str]:
    """What a reader who does not see the page would miss."""
    page = read_page(html)
    if page.all("html")[0].attributes.get("lang") != "en":
        yield "no language"
    if len(page.all("title")) < 1 or not page.texts("title")[0].strip():
        yield "no title"
    for tag in ("main", "header", "footer", "h1"):
        if len(page.all(tag)) != 1:
            yield f"{len(page.all(tag))} <{tag}>"
    yield from _heading_problems(page)
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    if len(set(ids)) != len(ids):
        yield f"an id twice: {sorted(ids)}"
    labelled = {e.attributes.get("for") for e in page.all("label")}
    fields = {e.attributes.get("id") for e in page.all("input")}
    yield from (f"no label: {field}" for field in fields - labelled)
    yield from (f"no scope: {e}" for e in page.all("th") if "scope" not in e.attributes)
    yield from (f"no alt: {e}" for e in page.all("img") if "alt" not in e.attributes)
    yield from (f"no name: {e}" for e in page.all("nav") if "aria-label" not in e.attributes)
    for svg in page.all("svg"):
        if "aria-label" not in svg.attributes:
            yield f"no name: {svg}"
    for link in page.all("a"):
        if not link.text.strip() and "aria-label" not in link.attributes:
            yield f"no text: {link}"
    if page.all("a")[0].attributes.get("href") != "#main":
        yield "the first link does not skip to the content"


def _heading_problems(page: Page) -> Iterator[str]:
    headings = [e for e in page.elements if e.tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    level = 0
    for heading in headings:
        if int(heading.tag[1]) > level + 1:
            yield f"a level is skipped before {heading.tag} {heading.text!r}"
        level = int(heading.tag[1])
