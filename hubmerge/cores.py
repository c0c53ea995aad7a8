"""How many threads can work at the same time, and their results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Item = TypeVar("Item")


def core_count() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], T], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, T]]:
    """Each item with its result, in order, while at most `ahead` later ones wait or are computed.

    What waits is cancelled if the iteration ends early.
    """
    waiting: deque[tuple[Item, Future[T]]] = deque()

    def oldest() -> tuple[Item, T]:
        item, future = waiting.popleft()
        return item, future.result()

    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield oldest()
        while waiting:
            yield oldest()
    finally:
        for _, future in waiting:
            future.cancel()
