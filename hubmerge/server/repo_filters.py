"""Which repositories a list shows: the filters of its query, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.datastructures import QueryParams

from hubmerge.server.http_errors import BadRequest
from hubmerge.server.messages import Json, is_true

# Parameters that choose what is shown of each repository, and how many.
_SHOWN = {"sort", "direction", "limit", "cursor", "full", "cardData", "config", "expand", "blobs"}
_BY_NAME = {"author", "search"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_RANGE = re.compile(r"(?:min:(?P<min>[0-9.]{1,9}[KMBT]?))?,?(?:max:(?P<max>[0-9.]{1,9}[KMBT]?))?")


def check_filters(kind: str, query: QueryParams) -> None:
    """Raise BadRequest for a filter that this Hub does not have: ignored, it would match all."""
    known = {"filter", *_BY_NAME, *_SHOWN, *(_TESTS if kind == "models" else {"gated"})}
    unknown = sorted(query.keys() - known)
    if unknown:
        filters = ", ".join(sorted(known - _SHOWN))
        raise BadRequest(
            f"This Hub cannot filter {kind} by {', '.join(unknown)[:200]}: use {filters}."
        )


def matches_name(name: str, query: QueryParams) -> bool:
    """Whether the owner is the author of the query, and the name has all words of the search."""
    owner, words = name.partition("/")[0].lower(), query.getlist("search")
    author = query.get("author")
    in_name = all(word.lower() in name.lower() for word in words)
    return in_name and (author is None or author.lower() == owner)


def matches_description(description: Json, query: QueryParams) -> bool:
    """Whether a repository has all tags of the query and passes its other filters."""
    required = {tag for text in query.getlist("filter") for tag in text.split(",")}
    return required <= set(description["tags"]) and all(
        _TESTS[name](description, value) for name, value in query.multi_items() if name in _TESTS
    )


def _is_in_range(description: Json, text: str) -> bool:
    match = _RANGE.fullmatch(text)
    if not match or not any(match.groups()):
        raise BadRequest('"num_parameters" must be like min:1B,max:8B.')
    least, most = (_parse_number(match[name]) for name in ("min", "max"))
    total = (description.get("safetensors") or {}).get("total")
    return (
        total is not None and (least is None or total >= least) and (most is None or total <= most)
    )


def _parse_number(text: str | None) -> float | None:
    if text is None:
        return None
    digits = text.rstrip("KMBT")
    try:
        return float(digits) * _UNITS[text[len(digits) :]]
    except ValueError as error:
        raise BadRequest(f"{text!r} is not a number of parameters.") from error


_TESTS: dict[str, Callable[[Json, str], bool]] = {
    "gated": lambda description, text: bool(description["gated"]) == is_true(text),
    "pipeline_tag": lambda description, text: description.get("pipeline_tag") == text,
    "num_parameters": _is_in_range,
}
