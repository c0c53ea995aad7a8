"""The rows of a step depend only on seed, epoch and row numbers."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hubmerge.tasks.multitask import make_multitask_data
from hubmerge.training.row_order import MultiTaskOrder, RowOrder, seed_at


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 3), st.booleans())
def test_every_epoch_has_every_row_once(rows: int, batch: int, seed: int, bucket: bool) -> None:
    lengths = tuple(row % 7 for row in range(rows)) if bucket else None
    order = RowOrder(rows, batch, seed, lengths)
    steps = [order.rows_of_step(number) for number in range(1, 3 * rows // batch + 3)]
    assert {len(step) for step in steps} == {batch}
    addresses = [address for step in steps for address in step]
    epochs = [[row for epoch, row in addresses if epoch == number] for number in range(3)]
    assert all(sorted(epoch_rows) == list(range(rows)) for epoch_rows in epochs[:2])
    assert [epoch for epoch, _ in addresses] == sorted(epoch for epoch, _ in addresses)


def test_a_step_does_not_depend_on_earlier_calls() -> None:
    one, other = RowOrder(10, 4, 0), RowOrder(10, 4, 0)
    forward = [one.rows_of_step(number) for number in (1, 2, 3, 4)]
    assert [other.rows_of_step(number) for number in (4, 3, 2, 1)] == forward[::-1]
    assert RowOrder(10, 4, 1).rows_of_step(1) != forward[0]
    assert {row for step in forward for epoch, row in step if epoch == 0} == set(range(10))


def test_epochs_differ() -> None:
    order = RowOrder(10, 10, 0)
    assert len({tuple(row for _, row in order.rows_of_step(number)) for number in (1, 2, 3)}) == 3


def test_bucketing_groups_similar_lengths() -> None:
    lengths = tuple(row * 37 % 100 for row in range(400))

    def spread(order: RowOrder) -> float:
        steps = [[lengths[row] for _, row in order.rows_of_step(number)] for number in range(1, 51)]
        return sum(max(step) - min(step) for step in steps) / len(steps)

    assert spread(RowOrder(400, 8, 0, lengths)) < 5 < 60 < spread(RowOrder(400, 8, 0))


def test_bucketing_holds_in_later_epochs_of_any_number_of_rows() -> None:
    """In batches of 8, an epoch of 403 rows leaves 3 rows, which the next epoch completes."""
    lengths = tuple(row * 37 % 100 for row in range(403))
    order = RowOrder(403, 8, 0, lengths)
    steps = [[lengths[row] for _, row in order.rows_of_step(number)] for number in range(1, 202)]
    wide = [step for step in steps if max(step) - min(step) > 5]
    assert len(wide) <= 5  # one at the end of each epoch


def test_bucketing_mixes_short_and_long_batches() -> None:
    lengths = tuple(range(400))
    order = RowOrder(400, 8, 0, lengths)
    firsts = [order.rows_of_step(number)[0][1] for number in range(1, 51)]
    assert firsts != sorted(firsts)


def test_seeds_depend_on_every_part_of_the_address() -> None:
    addresses = [(0, "crop", 1, 2), (0, "crop", 2, 1), (0, "order", 1, 2), (1, "crop", 1, 2)]
    seeds = {seed_at(*address) for address in addresses}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_steps_and_crop_seeds_of_one_task_stay_the_same() -> None:
    """Values from before multi-task training existed; published runs used this order."""
    plain = RowOrder(10, 4, 7)
    assert [plain.rows_of_step(number) for number in (1, 3, 9)] == [
        [(0, 2), (0, 0), (0, 8), (0, 6)],
        [(0, 3), (0, 1), (1, 9), (1, 0)],
        [(3, 3), (3, 9), (3, 4), (3, 7)],
    ]
    bucketed = RowOrder(7, 3, 1, lengths=(5, 1, 4, 2, 6, 3, 7))
    assert [bucketed.rows_of_step(number) for number in (2, 3)] == [
        [(0, 3), (0, 5), (0, 2)],
        [(0, 1), (1, 0), (1, 4)],
    ]
    assert plain.crop_seed((0, 4)) == 3091863952061516862


def split_of(name: str, rows: int) -> Any:
    """The parts of a split that an order uses: the id of its task, and its length."""

    class Rows:
        task = SimpleNamespace(id=name, name=name)

        def __len__(self) -> int:
            return rows

    return Rows()


def make_order(
    rows: dict[str, int], batch: int = 4, power: float = 0.0, **options: Any
) -> MultiTaskOrder:
    data = make_multitask_data([split_of(name, count) for name, count in rows.items()], power)
    return MultiTaskOrder(len(data), batch, seed=7, data=data, **options)


def task_rows(order: MultiTaskOrder, number: int) -> list[tuple[str, int, int]]:
    """Task name, epoch of the task and row of the task for every row of a step."""
    owners = [(epoch, *order.data.locate(row)) for epoch, row in order.rows_of_step(number)]
    return [(order.data.splits[task].task.name, epoch, row) for epoch, task, row in owners]


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@given(SIZES, st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 40))
def test_every_row_of_a_task_comes_equally_often(
    sizes: list[int], power: float, batch: int
) -> None:
    rows = {f"task-{index}": size for index, size in enumerate(sizes)}
    total, epochs = sum(sizes), 3
    order = make_order(rows, batch, power)
    seen = [row for step in range(1, epochs * total // batch + 2) for row in task_rows(order, step)]
    assert {len(order.rows_of_step(step)) for step in (1, 2, 3)} == {batch}
    for epoch in range(epochs):
        counts = Counter(task for task, *_ in seen[epoch * total : (epoch + 1) * total])
        assert [counts[task] for task in rows] == list(order.data.rows_per_epoch)
    for task, size in rows.items():
        times = Counter(row for name, _, row in seen[: epochs * total] if name == task)
        counts = [times[row] for row in range(size)]
        assert max(counts) - min(counts) <= 1
    assert len(set(seen)) == len(seen)  # so that no two crops are the same


def test_a_multitask_step_does_not_depend_on_earlier_calls() -> None:
    one, other = (make_order({"a": 7, "b": 3, "c": 20}) for _ in range(2))
    forward = [one.rows_of_step(number) for number in range(1, 20)]
    assert [other.rows_of_step(number) for number in range(19, 0, -1)] == forward[::-1]


def test_reordering_tasks_changes_only_their_numbers() -> None:
    rows = {"a": 7, "b": 3, "c": 20}
    order, reversed_order = make_order(rows), make_order(dict(reversed(rows.items())))
    assert [task_rows(order, number) for number in range(1, 9)] == [
        task_rows(reversed_order, number) for number in range(1, 9)
    ]
    addresses, others = order.rows_of_step(3), reversed_order.rows_of_step(3)
    assert addresses != others
    assert [*map(order.crop_seed, addresses)] == [*map(reversed_order.crop_seed, others)]


def test_adding_a_task_keeps_the_rows_and_crops_of_others() -> None:
    """In both an epoch has 8 rows of task a; those of the first epoch are the same."""

    def first_epoch(order: MultiTaskOrder) -> dict[tuple[int, int], int]:
        addresses = [address for number in range(1, 7) for address in order.rows_of_step(number)]
        rows_of_a = [(epoch, row) for epoch, row in addresses[: order.rows] if row < 8]
        return {address: order.crop_seed(address) for address in rows_of_a}

    few, more = make_order({"a": 8, "b": 8}), make_order({"a": 8, "b": 8, "c": 8})
    assert first_epoch(few) == first_epoch(more)
    assert len(first_epoch(few)) == 8


def test_bucketing_groups_similar_lengths_across_tasks() -> None:
    lengths = tuple(row * 37 % 100 for row in range(400))

    def spread(**options: Any) -> float:
        order = make_order({"a": 100, "b": 300}, 8, **options)
        steps = [[lengths[row] for _, row in order.rows_of_step(number)] for number in range(1, 51)]
        return sum(max(step) - min(step) for step in steps) / len(steps)

    assert spread(lengths=lengths) < 5 < 60 < spread()
