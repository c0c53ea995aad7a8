"""Rows that are read once to find those that are broken, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hubmerge.cores import core_count, in_order
from hubmerge.errors import DataError

T = TypeVar("T")
_BLOCK = 64  # rows that a thread tries at a time


def try_rows(read: Callable[[int], T], rows: Sequence[int]) -> Iterator[tuple[int, T | DataError]]:
    """Each row, in order, with what `read` returns of it or the DataError that it raises."""
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]

    def try_block(block: Sequence[int]) -> list[T | DataError]:
        return [_try_row(read, row) for row in block]

    threads = core_count()
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        for block, results in in_order(pool, try_block, blocks, 2 * threads):
            yield from zip(block, results, strict=True)


def _try_row(read: Callable[[int], T], row: int) -> T | DataError:
    try:
        return read(row)
    except DataError as error:
        return error
