"""Results of several threads, in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hubmerge.cores import core_count, in_order


def test_results_are_in_order_and_only_so_many_are_computed_ahead() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        for expected, (item, square) in enumerate(in_order(pool, lambda n: n * n, items(), 4)):
            assert (item, square) == (expected, expected**2)
            assert len(asked) <= expected + 5


def test_what_waits_is_cancelled_after_an_error() -> None:
    raised, ran = threading.Event(), []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("no")
        raised.wait(10)
        ran.append(number)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="no"):
            next(in_order(pool, work, range(4), 2))
        raised.set()
    assert ran in ([], [1])  # at most the one that had begun


def test_there_is_a_core() -> None:
    assert core_count() >= 1
