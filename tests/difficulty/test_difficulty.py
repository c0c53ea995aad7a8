"""Scores of several models worked out by hand, their file, and invalid files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hubmerge.difficulty.difficulty import (
    Difficulty,
    ModelName,
    compute_difficulty,
    read_difficulty,
    score_models,
    write_difficulty,
)
from hubmerge.errors import DataError, UsageError
from tests.difficulty.builders import predictions

close = pytest.approx

FIRST = predictions([0, 1, 1, 0], [0, 1, 0, 0], [0.1, 0.2, 1.0, 0.3], [0.1, 0.2, 1.5, 0.2])
SECOND = predictions([0, 1, 1, 0], [0, 0, 0, 1], [0.1, 0.8, 0.8, 0.9], [0.0, 0.5, 0.5, 1.0])
NAMES = (ModelName("me/a@step32", "a" * 64, 32), ModelName("me/b@step32", "b" * 64, 32))


def scored(bins: int = 2) -> Difficulty:
    return compute_difficulty(
        "cats@1", "train", list(zip(NAMES, (FIRST, SECOND), strict=True)), bins
    )


def test_scores_are_means_over_models() -> None:
    difficulty = scored()
    assert difficulty.el2n == (0.1, 0.5, 0.9, 0.6)
    assert difficulty.right == (1.0, 0.5, 0.0, 0.5)
    assert (difficulty.predicted, difficulty.label, difficulty.count) == (
        (0, 0, 0, 1),
        (0, 1, 1, 0),
        4,
    )
    assert difficulty.bin_of.tolist() == [0, 0, 1, 1]
    # Of the loss of both models: 0.1 + 0.7 of 4.0 lies in the easy half.
    easy, hard = difficulty.by_bin
    assert (easy.size, easy.el2n, easy.accuracy, easy.loss_share) == close((2, 0.3, 0.75, 0.2))
    assert (hard.size, hard.el2n, hard.accuracy, hard.loss_share) == close((2, 0.75, 0.25, 0.8))


def test_each_model_has_its_own_share_of_the_loss() -> None:
    first, second = scored().models
    assert (first.label, first.step, first.accuracy) == ("me/a@step32", 32, 0.75)
    assert (first.loss_share, second.loss_share) == ((0.15, 0.85), (0.25, 0.75))
    later = score_models([(ModelName("me/a@step64", "c" * 64), SECOND)], scored().bin_of, 2)
    assert scored().with_course(later).course[0].loss_share == (0.25, 0.75)


def test_more_bins_than_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="4 rows of train of task cats do not fill 5 bins"):
        scored(bins=5)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    thirds = predictions([0, 0], [0, 0], [1 / 3, 2 / 3], [1 / 7, 0.0], [1e-7, 1.0])
    difficulty = compute_difficulty("cats@1", "train", [(NAMES[0], thirds)], 2)
    write_difficulty(difficulty, tmp_path / "d.json")
    assert difficulty.el2n == (0.333333, 0.666667)
    assert read_difficulty(tmp_path / "d.json") == difficulty
    once = (tmp_path / "d.json").read_bytes()
    assert list(json.loads(once)) == sorted(json.loads(once))
    assert once == difficulty.to_bytes()


def test_the_digest_depends_on_the_scores_only() -> None:
    difficulty = scored()
    assert difficulty.with_course(difficulty.models).digest == difficulty.digest
    assert dataclasses.replace(difficulty, el2n=(0.1, 0.5, 0.9, 0.7)).digest != difficulty.digest
    assert dataclasses.replace(difficulty, split="test").digest != difficulty.digest


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"el2n": [0.1]}, "fields have different numbers of rows: 1 of el2n, 4 of margin"),
        ({"el2n": ["x"] * 4}, "is not a valid difficulty.json: el2n.0"),
        ({"models": []}, "names no model"),
        ({"bins": 3}, "do not have 3 bins"),
        ({"format": 2}, "format is 2"),
    ],
)
def test_an_invalid_file_is_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({**json.loads(scored().to_bytes()), **changed}))
    with pytest.raises(DataError, match=words):
        read_difficulty(path)


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"[]"])
def test_a_missing_or_other_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.json"):
        read_difficulty(tmp_path / "d.json")
