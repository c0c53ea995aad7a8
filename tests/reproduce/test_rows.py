"""Rows are picked by their labels, and steps by their part."""

from __future__ import annotations

from hubmerge.reproduce.rows import best_step, by_seed, picked, values_of

ROWS = [
    {"of": "merges", "method": "ties", "step": 64, "seed": 0, "validation": 0.60, "value": 0.5},
    {"of": "merges", "method": "ties", "step": 64, "seed": 1, "validation": 0.62, "value": 0.7},
    {"of": "merges", "method": "ties", "step": 256, "seed": 0, "validation": 0.70, "value": 0.4},
    {"of": "merges", "method": "ties", "step": 256, "seed": 1, "validation": 0.50, "value": 0.3},
    {"of": "merges", "method": "ties", "step": "early stop", "seed": 0, "value": 0.9},
    {"of": "experts", "method": "experts", "step": 64, "seed": 0, "validation": 0.8, "value": 0.8},
    {"of": "experts", "method": "experts", "step": 256, "seed": 0, "validation": 0.9, "value": 0.9},
]
MERGES = {"of": "merges"}


def test_the_best_step_is_that_of_the_mean_over_seeds_on_validation() -> None:
    assert best_step(ROWS[:4]) == 64  # 0.61 against 0.60, though one seed says otherwise


def test_of_equal_steps_the_earliest_is_best() -> None:
    rows = [{**row, "validation": 0.5} for row in ROWS[:4]]
    assert best_step(rows) == 64


def test_a_side_is_picked_by_labels_and_by_the_part_of_its_step() -> None:
    assert by_seed(picked(ROWS, {**MERGES, "at": "best"})) == {0: 0.5, 1: 0.7}
    assert by_seed(picked(ROWS, {**MERGES, "at": "last"})) == {0: 0.4, 1: 0.3}
    assert by_seed(picked(ROWS, {**MERGES, "step": "early stop"})) == {0: 0.9}
    assert picked(ROWS, {"of": "mixtures", "at": "best"}) == []


def test_a_side_may_be_picked_at_the_peak_of_another() -> None:
    assert by_seed(picked(ROWS, {"of": "experts", "at": "best"})) == {0: 0.9}
    assert by_seed(picked(ROWS, {"of": "experts", "at": "best"}, MERGES)) == {0: 0.8}


def test_a_label_may_have_any_of_several_values() -> None:
    assert len(picked(ROWS, {"of": ("merges", "experts"), "step": 64})) == 3


def test_rows_of_a_seed_are_meaned_or_summed() -> None:
    rows = [{"seed": 3, "value": 0.2}, {"seed": 3, "value": 0.4}]
    assert by_seed(rows) == {3: 0.30000000000000004}
    assert by_seed(rows, sum) == {3: 0.6000000000000001}


def test_numbers_come_before_words() -> None:
    assert values_of(ROWS, "step") == [64, 256, "early stop"]
