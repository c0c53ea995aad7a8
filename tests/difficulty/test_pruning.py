"""Training rows without the hardest ones."""

from __future__ import annotations

import dataclasses

import pytest

from hubmerge.difficulty.difficulty import Difficulty
from hubmerge.difficulty.pruning import check_row_count, prune
from hubmerge.errors import DataError
from tests.difficulty.test_difficulty import scored


def test_the_hardest_rows_are_removed() -> None:
    pruned = prune(scored(), 0.25, "cats@1")  # row 2 has 0.9
    assert (pruned.rows, pruned.total) == ((0, 1, 3), 4)
    assert pruned.to_json() == {"difficulty": scored().digest, "dropped": 1, "of_rows": 4}
    assert prune(scored(), 0.5, "cats@1").rows == (0, 1)


def test_the_digest_depends_on_the_rows_and_not_on_the_scores() -> None:
    other = dataclasses.replace(scored(), el2n=(0.0, 0.1, 1.4, 0.2))
    same, more = prune(other, 0.3, "cats@1"), prune(other, 0.5, "cats@1")
    assert same.digest == prune(scored(), 0.25, "cats@1").digest
    assert more.digest != same.digest


@pytest.mark.parametrize(
    ("difficulty", "share", "task", "words"),
    [
        (scored(), 0.1, "dogs@1", "train of cats@1, but the run trains on train of dogs@1"),
        (scored(), 0.1, "cats@2", "train of cats@1"),
        (dataclasses.replace(scored(), split="test"), 0.1, "cats@1", "is of test"),
        (scored(), 0.99, "cats@1", "Without its hardest 4 rows task cats has no rows"),
    ],
)
def test_scores_of_other_rows_are_refused(
    difficulty: Difficulty, share: float, task: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        prune(difficulty, share, task)


def test_a_different_number_of_rows_is_refused() -> None:
    check_row_count(prune(scored(), 0.25, "cats@1"), 4, "cats@1")
    with pytest.raises(DataError, match="is of 4 rows, but train of cats has 5"):
        check_row_count(prune(scored(), 0.25, "cats@1"), 5, "cats@1")
