"""The card of a stranger as HTML that can do nothing: no script, no style, no request elsewhere.

Markdown is rendered by markdown-it, and what comes out, with the HTML that its author wrote, goes
through the allow list of nh3. Pictures are those of the same repository; others become links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from hubmerge.server.names import RepoId
from hubmerge.server.pages.links import blob_url, resolve_url

_TAGS = {
    "a", "abbr", "b", "blockquote", "br", "caption", "cite", "code", "dd", "del", "details",
    "div", "dl", "dt", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins",
    "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small", "span", "strong", "sub",
    "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul", "var",
}  # fmt: skip
# Removed with what is in them; of all other tags the text stays.
_REMOVED = {
    "script", "style", "template", "noscript", "iframe", "object", "embed", "svg", "math",
    "textarea", "title", "xmp", "noembed", "noframes", "plaintext", "select", "head",
}  # fmt: skip
_ATTRIBUTES = {
    "a": {"href", "title"},
    "abbr": {"title"},
    "img": {"src", "alt", "title", "width", "height"},
    "ol": {"start"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
    "details": {"open"},
    **{f"h{level}": {"id"} for level in range(1, 7)},
}
_ALIGNMENTS = {"align": {"left", "right", "center"}}
_VALUES = {
    "td": _ALIGNMENTS,
    "th": {**_ALIGNMENTS, "scope": {"col", "row", "colgroup", "rowgroup"}},
}
_SCHEMES = {"http", "https", "mailto"}
_NUMBER = re.compile(r"[0-9]{1,4}")
_NUMERIC = {"width", "height", "colspan", "rowspan", "start"}
_HEADING = re.compile(r"(</?h)([1-6])(?=[ >])")
_ALIGN_STYLE = re.compile(r"text-align:(left|right|center)")
_ID_PREFIX = "card-"
# A card starts below a heading of the page.
_FIRST_LEVEL, _LAST_LEVEL = 3, 6
# A parser takes seconds for some texts that are longer than this.
_MAX_CHARS = 64 << 10


@dataclass(frozen=True)
class CardPlace:
    """Where a card is, for its relative links: its repository, the revision and its path."""

    id: RepoId
    revision: str
    path: str = "README.md"


@lru_cache(maxsize=32)
def render_markdown(text: str, place: CardPlace) -> Markup:
    """Untrusted Markdown as inert HTML, of its first 64 KiB."""
    html = _clean(_render(text[:_MAX_CHARS], place), place)
    levels = sorted({int(level) for _, level in _HEADING.findall(html)})
    new_levels = {
        str(level): min(_FIRST_LEVEL + rank, _LAST_LEVEL) for rank, level in enumerate(levels)
    }
    return Markup(_HEADING.sub(lambda match: f"{match[1]}{new_levels[match[2]]}", html))


def is_cut(text: str) -> bool:
    """Whether a text is longer than what is rendered of it."""
    return len(text) > _MAX_CHARS


def _render(text: str, place: CardPlace) -> str:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    names: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", _unique(_slug(tokens[number + 1].content), names))
        elif token.type in ("th_open", "td_open"):
            _set_cell_attributes(token)
        elif token.children:
            token.children = list(_replace_images(token.children, place))
    return str(parser.renderer.render(tokens, parser.options, {}))


def _set_cell_attributes(token: Token) -> None:
    """The alignment of a cell as an attribute, because styles are removed."""
    style = _ALIGN_STYLE.search(str(token.attrs.pop("style", "")))
    if style:
        token.attrSet("align", style[1])
    if token.type == "th_open":
        token.attrSet("scope", "col")


def _replace_images(tokens: list[Token], place: CardPlace) -> Iterator[Token]:
    """The tokens of a line, with links in place of pictures that are not in the repository."""
    links = 0
    for token in tokens:
        links += {"link_open": 1, "link_close": -1}.get(token.type, 0)
        source = str(token.attrs.get("src", "")) if token.type == "image" else ""
        if token.type != "image" or _image_url(source, place):
            yield token
            continue
        # No link inside of a link: there, a picture is its text.
        if not links:
            yield Token("link_open", "a", 1, attrs={"href": source})
        yield Token("text", "", 0, content=f"Image: {token.content or source}")
        if not links:
            yield Token("link_close", "a", -1)


def _clean(html: str, place: CardPlace) -> str:
    def filter_attribute(tag: str, name: str, value: str) -> str | None:
        if name == "src":
            return _image_url(value, place)
        if name == "href":
            return _link_url(value, place)
        if name in _NUMERIC:
            return value if _NUMBER.fullmatch(value) else None
        return value

    return nh3.clean(
        html,
        tags=_TAGS,
        clean_content_tags=_REMOVED,
        attributes=_ATTRIBUTES,
        tag_attribute_values=_VALUES,
        attribute_filter=filter_attribute,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
        id_prefix=_ID_PREFIX,
        strip_comments=True,
    )


def _image_url(source: str, place: CardPlace) -> str | None:
    """The address of a picture in the repository, None for any other."""
    path = _inner_path(source, place)
    return resolve_url(place.id, place.revision, path) if path else None


def _link_url(target: str, place: CardPlace) -> str | None:
    """The address that a link of a card leads to, None if it is not allowed."""
    target = target.strip()
    if target.startswith("#"):
        return f"#{_ID_PREFIX}{target[1:]}"
    if path := _inner_path(target, place):
        return blob_url(place.id, place.revision, path)
    try:
        parts = urlsplit(target)
    except ValueError:
        return None
    is_absolute = parts.scheme.lower() in _SCHEMES
    is_on_this_hub = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if is_absolute or is_on_this_hub else None


def _inner_path(target: str, place: CardPlace) -> str:
    """The path in the repository that a relative link leads to, empty for any other link."""
    try:
        parts = urlsplit(target.strip())
    except ValueError:
        return ""
    path = unquote(parts.path)
    if parts.scheme or parts.netloc or not path or path.startswith("/") or "\\" in path:
        return ""
    inner = normpath(join(dirname(place.path), path))
    return "" if inner.startswith("..") or inner == "." else inner


def _slug(text: str) -> str:
    """The id of a heading, as links in cards expect it."""
    words = re.sub(r"[^\w\- ]", "", text.lower())
    return words.strip().replace(" ", "-")[:80]


def _unique(name: str, counts: dict[str, int]) -> str:
    counts[name] = counts.get(name, 0) + 1
    return name if counts[name] == 1 else f"{name}-{counts[name] - 1}"
