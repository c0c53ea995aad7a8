"""Which rows are left without the hardest, and for which task."""

from __future__ import annotations

import dataclasses

import pytest

from hubmerge.difficulty.difficulty import Difficulty
from hubmerge.difficulty.pruning import check_rows, prune
from hubmerge.errors import DataError
from tests.difficulty.test_difficulty import scored


def test_the_hardest_rows_are_left_out() -> None:
    left = prune(scored(), 0.25, "cats@1")  # row 2 has 0.9
    assert (left.rows, left.of) == ((0, 1, 3), 4)
    assert left.said == {"difficulty": scored().digest, "dropped": 1, "of_rows": 4}
    assert prune(scored(), 0.5, "cats@1").rows == (0, 1)


def test_the_same_rows_are_the_same_whatever_said_so() -> None:
    other = dataclasses.replace(scored(), el2n=(0.0, 0.1, 1.4, 0.2))
    same, more = prune(other, 0.3, "cats@1"), prune(other, 0.5, "cats@1")
    assert same.digest == prune(scored(), 0.25, "cats@1").digest
    assert more.digest != same.digest


@pytest.mark.parametrize(
    ("difficulty", "share", "task", "words"),
    [
        (scored(), 0.1, "dogs@1", "train of cats@1, and what is trained on is train of dogs@1"),
        (scored(), 0.1, "cats@2", "train of cats@1"),
        (dataclasses.replace(scored(), split="test"), 0.1, "cats@1", "that of test"),
        (scored(), 0.99, "cats@1", "Without its hardest 4 rows task cats has none"),
    ],
)
def test_scores_of_other_rows_are_refused(
    difficulty: Difficulty, share: float, task: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        prune(difficulty, share, task)


def test_another_number_of_rows_is_refused() -> None:
    check_rows(prune(scored(), 0.25, "cats@1"), 4, "cats@1")
    with pytest.raises(DataError, match="is of 4 rows, and train of cats has 5"):
        check_rows(prune(scored(), 0.25, "cats@1"), 5, "cats@1")
