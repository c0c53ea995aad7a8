"""The rows of a step depend on addresses alone: seed, epoch, row."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hubmerge.tasks.multitask import make_deck
from hubmerge.training.row_order import DeckOrder, Order, seed_at


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 3), st.booleans())
def test_every_epoch_has_every_row_once(rows: int, batch: int, seed: int, bucket: bool) -> None:
    lengths = tuple(row % 7 for row in range(rows)) if bucket else None
    order = Order(rows, batch, seed, lengths)
    steps = [order.step(number) for number in range(1, 3 * rows // batch + 3)]
    assert {len(step) for step in steps} == {batch}
    places = [place for step in steps for place in step]
    epochs = [[row for epoch, row in places if epoch == number] for number in range(3)]
    assert all(sorted(rows_) == list(range(rows)) for rows_ in epochs[:2])
    assert [epoch for epoch, _ in places] == sorted(epoch for epoch, _ in places)


def test_a_step_is_known_without_those_before_it() -> None:
    one, other = Order(10, 4, 0), Order(10, 4, 0)
    forward = [one.step(number) for number in (1, 2, 3, 4)]
    assert [other.step(number) for number in (4, 3, 2, 1)] == forward[::-1]
    assert Order(10, 4, 1).step(1) != forward[0]
    assert {row for step in forward for epoch, row in step if epoch == 0} == set(range(10))


def test_epochs_differ() -> None:
    order = Order(10, 10, 0)
    assert len({tuple(row for _, row in order.step(number)) for number in (1, 2, 3)}) == 3


def test_bucketing_puts_like_lengths_together() -> None:
    lengths = tuple(row * 37 % 100 for row in range(400))

    def spread(order: Order) -> float:
        steps = [[lengths[row] for _, row in order.step(number)] for number in range(1, 51)]
        return sum(max(step) - min(step) for step in steps) / len(steps)

    assert spread(Order(400, 8, 0, lengths)) < 5 < 60 < spread(Order(400, 8, 0))


def test_bucketing_holds_in_later_epochs_of_any_number_of_rows() -> None:
    """403 rows leave 3 over from every epoch of batches of 8: the next step completes them."""
    lengths = tuple(row * 37 % 100 for row in range(403))
    order = Order(403, 8, 0, lengths)
    steps = [[lengths[row] for _, row in order.step(number)] for number in range(1, 202)]
    wide = [step for step in steps if max(step) - min(step) > 5]
    assert len(wide) <= 5  # one at each seam of the four epochs


def test_bucketing_mixes_short_and_long_batches() -> None:
    lengths = tuple(range(400))
    order = Order(400, 8, 0, lengths)
    firsts = [order.step(number)[0][1] for number in range(1, 51)]
    assert firsts != sorted(firsts)


def test_seeds_differ_by_every_part_of_the_address() -> None:
    addresses = [(0, "crop", 1, 2), (0, "crop", 2, 1), (0, "order", 1, 2), (1, "crop", 1, 2)]
    seeds = {seed_at(*address) for address in addresses}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_steps_and_crops_of_one_task_are_those_of_all_versions() -> None:
    """Computed before a deck could be trained on: published runs were trained in this order."""
    plain = Order(10, 4, 7)
    assert [plain.step(number) for number in (1, 3, 9)] == [
        [(0, 2), (0, 0), (0, 8), (0, 6)],
        [(0, 3), (0, 1), (1, 9), (1, 0)],
        [(3, 3), (3, 9), (3, 4), (3, 7)],
    ]
    bucketed = Order(7, 3, 1, lengths=(5, 1, 4, 2, 6, 3, 7))
    assert [bucketed.step(number) for number in (2, 3)] == [
        [(0, 3), (0, 5), (0, 2)],
        [(0, 1), (1, 0), (1, 4)],
    ]
    assert plain.crop((0, 4)) == 3091863952061516862


def task_of(name: str, rows: int) -> Any:
    """What an order asks of a split: the id of its task, and how many rows it has."""

    class Rows:
        task = SimpleNamespace(id=name, name=name)

        def __len__(self) -> int:
            return rows

    return Rows()


def deck_order(rows: dict[str, int], batch: int = 4, power: float = 0.0, **said: Any) -> DeckOrder:
    deck = make_deck([task_of(name, count) for name, count in rows.items()], power)
    return DeckOrder(len(deck), batch, seed=7, deck=deck, **said)


def told(order: DeckOrder, number: int) -> list[tuple[str, int, int]]:
    """The task, its own epoch and its own row of every place of a step."""
    owners = [(epoch, *order.deck.whose(row)) for epoch, row in order.step(number)]
    return [(order.deck.splits[task].task.name, epoch, row) for epoch, task, row in owners]


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@given(SIZES, st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 40))
def test_every_row_of_a_task_comes_equally_often(
    sizes: list[int], power: float, batch: int
) -> None:
    rows = {f"task-{place}": size for place, size in enumerate(sizes)}
    total, epochs = sum(sizes), 3
    order = deck_order(rows, batch, power)
    seen = [one for step in range(1, epochs * total // batch + 2) for one in told(order, step)]
    assert {len(order.step(step)) for step in (1, 2, 3)} == {batch}
    for epoch in range(epochs):
        dealt = Counter(task for task, *_ in seen[epoch * total : (epoch + 1) * total])
        assert [dealt[task] for task in rows] == list(order.deck.cards)
    for task, size in rows.items():
        times = Counter(row for name, _, row in seen[: epochs * total] if name == task)
        counts = [times[row] for row in range(size)]
        assert max(counts) - min(counts) <= 1
    assert len(set(seen)) == len(seen)  # so that no two crops are the same


def test_a_step_of_a_deck_is_known_without_those_before_it() -> None:
    one, other = (deck_order({"a": 7, "b": 3, "c": 20}) for _ in range(2))
    forward = [one.step(number) for number in range(1, 20)]
    assert [other.step(number) for number in range(19, 0, -1)] == forward[::-1]


def test_the_order_of_tasks_changes_nothing_but_their_numbers() -> None:
    rows = {"a": 7, "b": 3, "c": 20}
    order, turned = deck_order(rows), deck_order(dict(reversed(rows.items())))
    assert [told(order, number) for number in range(1, 9)] == [
        told(turned, number) for number in range(1, 9)
    ]
    places, others = order.step(3), turned.step(3)
    assert places != others
    assert [*map(order.crop, places)] == [*map(turned.crop, others)]


def test_one_task_more_leaves_the_rows_and_crops_of_others_as_they_were() -> None:
    """In both decks an epoch has 8 cards of a: those of its first epoch are the same."""

    def first_epoch(order: DeckOrder) -> dict[tuple[int, int], int]:
        places = [place for number in range(1, 7) for place in order.step(number)]
        mine = [(epoch, row) for epoch, row in places[: order.rows] if row < 8]
        return {place: order.crop(place) for place in mine}

    few, more = deck_order({"a": 8, "b": 8}), deck_order({"a": 8, "b": 8, "c": 8})
    assert first_epoch(few) == first_epoch(more)
    assert len(first_epoch(few)) == 8


def test_bucketing_puts_like_lengths_of_all_tasks_together() -> None:
    lengths = tuple(row * 37 % 100 for row in range(400))

    def spread(**said: Any) -> float:
        order = deck_order({"a": 100, "b": 300}, 8, **said)
        steps = [[lengths[row] for _, row in order.step(number)] for number in range(1, 51)]
        return sum(max(step) - min(step) for step in steps) / len(steps)

    assert spread(lengths=lengths) < 5 < 60 < spread()
