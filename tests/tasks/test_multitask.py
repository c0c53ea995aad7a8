"""Multi-task data: rows per epoch of every task, and the numbering of rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import UsageError
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.multitask import MultiTaskData, allocate_rows, make_multitask_data
from tests.tasks.builders import parquet_task, row_of

ROWS = st.dictionaries(st.text("abcdefgh", min_size=1), st.integers(1, 5000), min_size=1)
POWERS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])


@pytest.mark.parametrize(
    ("rows", "power", "counts"),
    [
        ({"a": 10, "b": 30}, 0.0, [20, 20]),
        ({"a": 10, "b": 30}, 1.0, [10, 30]),
        # sqrt(10) : sqrt(90) is 1 : 3.
        ({"a": 10, "b": 90}, 0.5, [25, 75]),
        # 2.5 of 10 for each; ties are rounded up for the last names in the alphabet.
        ({"a": 1, "b": 2, "c": 3, "d": 4}, 0.0, [2, 2, 3, 3]),
        # The square gives a 101.98 of 102 rows, but b and c get at least one.
        ({"a": 100, "b": 1, "c": 1}, 2.0, [100, 1, 1]),
    ],
)
def test_rows_per_epoch_by_hand(rows: dict[str, int], power: float, counts: list[int]) -> None:
    assert list(allocate_rows(rows, power).values()) == counts


@given(ROWS, POWERS, st.randoms())
def test_an_epoch_has_as_many_rows_as_all_tasks(
    rows: dict[str, int], power: float, generator: random.Random
) -> None:
    counts = allocate_rows(rows, power)
    assert sum(counts.values()) == sum(rows.values())
    assert min(counts.values()) >= 1
    shuffled = [*rows]
    generator.shuffle(shuffled)
    assert allocate_rows({task: rows[task] for task in shuffled}, power) == counts


@given(ROWS)
def test_power_1_uses_every_row_once(rows: dict[str, int]) -> None:
    assert allocate_rows(rows, 1.0) == rows


@given(ROWS)
def test_power_0_is_uniform_up_to_one_row(rows: dict[str, int]) -> None:
    counts = allocate_rows(rows).values()
    assert max(counts) - min(counts) <= 1


def split(folder: Path, name: str, count: int) -> Split:
    """A split with all `count` rows of a task."""
    return load_split(parquet_task(folder / name, count, name=name), "test")


@pytest.fixture
def splits(tmp_path: Path) -> tuple[Split, Split]:
    return split(tmp_path, "one", 3), split(tmp_path, "other", 5)


def test_rows_are_numbered_consecutively(splits: tuple[Split, Split]) -> None:
    data = make_multitask_data(splits)
    assert (len(data), data.rows_per_epoch, data.offsets) == (8, (4, 4), (0, 3))
    locations = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert [data.locate(row) for row in range(8)] == locations
    for row, (task, task_row) in enumerate(locations):
        example: Any = data.example(row)
        number, (image, label) = example
        assert (number, row_of(image), label) == (task, task_row, task_row % 2)


def test_rows_per_epoch_do_not_depend_on_the_order_of_tasks(splits: tuple[Split, Split]) -> None:
    first, second = splits
    assert make_multitask_data((first, second), 1.0) == MultiTaskData((first, second), (3, 5))
    assert make_multitask_data((second, first), 1.0) == MultiTaskData((second, first), (5, 3))


def test_two_tasks_with_the_same_name_are_refused(splits: tuple[Split, Split]) -> None:
    with pytest.raises(UsageError, match=r"^Two tasks are named one\.$"):
        make_multitask_data([*splits, splits[0]])
