"""The rows of a step depend on addresses alone: seed, epoch, row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hubmerge.training.order import Order, seed_at


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
