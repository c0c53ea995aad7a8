"""One page of a long list, and the numbers of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request

from hubmerge.server.messages import query_number
from hubmerge.server.pages.links import query_url

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """The items of a page, counted from 1 in the whole list, and the pages beside it."""

    items: Sequence[T]
    first: int
    total: int
    previous_url: str = ""
    next_url: str = ""

    @property
    def last(self) -> int:
        return self.first + len(self.items) - 1


def take_page(
    request: Request, items: Sequence[T], size: int, path: str, name: str = "page", anchor: str = ""
) -> Page[T]:
    """The page that the query asks for; a number beyond the last page shows the last."""
    last_page = max(-(-len(items) // size), 1)
    number = min(query_number(request, name, 1, maximum=1 << 30), last_page)
    start = (number - 1) * size

    def url(page: int) -> str:
        query = {**request.query_params, name: page if page > 1 else ""}
        return query_url(path, **query) + anchor

    return Page(
        items[start : start + size],
        start + 1,
        len(items),
        url(number - 1) if number > 1 else "",
        url(number + 1) if number < last_page else "",
    )
