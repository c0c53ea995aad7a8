"""How a deck is dealt, by hand and for any tasks, and whose row is whose."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import UsageError
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.multitask import Deck, deal, make_deck
from tests.tasks.worlds import parquet_task, row_of

ROWS = st.dictionaries(st.text("abcdefgh", min_size=1), st.integers(1, 5000), min_size=1)
POWERS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])


@pytest.mark.parametrize(
    ("rows", "power", "cards"),
    [
        ({"a": 10, "b": 30}, 0.0, [20, 20]),
        ({"a": 10, "b": 30}, 1.0, [10, 30]),
        # sqrt(10) : sqrt(90) is 1 : 3.
        ({"a": 10, "b": 90}, 0.5, [25, 75]),
        # 2.5 each of 10: one behind the other in the alphabet goes first.
        ({"a": 1, "b": 2, "c": 3, "d": 4}, 0.0, [2, 2, 3, 3]),
        # Of 102 cards the square gives a 101.98; two go to those that would have none.
        ({"a": 100, "b": 1, "c": 1}, 2.0, [100, 1, 1]),
    ],
)
def test_cards_by_hand(rows: dict[str, int], power: float, cards: list[int]) -> None:
    assert list(deal(rows, power).values()) == cards


@given(ROWS, POWERS, st.randoms())
def test_an_epoch_has_as_many_cards_as_rows(
    rows: dict[str, int], power: float, chance: random.Random
) -> None:
    cards = deal(rows, power)
    assert sum(cards.values()) == sum(rows.values())
    assert min(cards.values()) >= 1
    shuffled = [*rows]
    chance.shuffle(shuffled)
    assert deal({task: rows[task] for task in shuffled}, power) == cards


@given(ROWS)
def test_proportional_is_every_row_once(rows: dict[str, int]) -> None:
    assert deal(rows, 1.0) == rows


@given(ROWS)
def test_uniform_is_even_but_for_a_card(rows: dict[str, int]) -> None:
    cards = deal(rows).values()
    assert max(cards) - min(cards) <= 1


def split(folder: Path, name: str, count: int) -> Split:
    """The `count` rows of one task; carving leaves none of them out."""
    return load_split(parquet_task(folder / name, count, name=name), "test")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Split, Split]:
    return split(tmp_path, "one", 3), split(tmp_path, "other", 5)


def test_rows_are_numbered_through(two: tuple[Split, Split]) -> None:
    deck = make_deck(two)
    assert (len(deck), deck.cards, deck.starts) == (8, (4, 4), (0, 3))
    owners = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert [deck.whose(row) for row in range(8)] == owners
    for row, (task, own) in enumerate(owners):
        example: Any = deck.example(row)
        said, (picture, label) = example
        assert (said, row_of(picture), label) == (task, own, own % 2)


def test_cards_belong_to_tasks_and_not_to_places(two: tuple[Split, Split]) -> None:
    one, other = two
    assert make_deck((one, other), 1.0) == Deck((one, other), (3, 5))
    assert make_deck((other, one), 1.0) == Deck((other, one), (5, 3))


def test_two_tasks_of_one_name_are_refused(two: tuple[Split, Split]) -> None:
    with pytest.raises(UsageError, match=r"^Two tasks are named one\.$"):
        make_deck([*two, two[0]])
