"""Rows are selected by their labels, and steps as best, first or last."""

from __future__ import annotations

from hubmerge.reproduce.rows import best_step, label_values, select_rows, values_by_seed

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


def test_the_best_step_has_the_best_mean_over_seeds_on_validation() -> None:
    assert best_step(ROWS[:4]) == 64  # 0.61 against 0.60, although one seed disagrees


def test_the_earliest_of_equal_steps_is_best() -> None:
    rows = [{**row, "validation": 0.5} for row in ROWS[:4]]
    assert best_step(rows) == 64


def test_rows_are_selected_by_labels_and_by_best_or_last_step() -> None:
    assert values_by_seed(select_rows(ROWS, {**MERGES, "at": "best"})) == {0: 0.5, 1: 0.7}
    assert values_by_seed(select_rows(ROWS, {**MERGES, "at": "last"})) == {0: 0.4, 1: 0.3}
    assert values_by_seed(select_rows(ROWS, {**MERGES, "step": "early stop"})) == {0: 0.9}
    assert select_rows(ROWS, {"of": "mixtures", "at": "best"}) == []


def test_rows_may_be_selected_at_the_peak_of_others() -> None:
    assert values_by_seed(select_rows(ROWS, {"of": "experts", "at": "best"})) == {0: 0.9}
    assert values_by_seed(select_rows(ROWS, {"of": "experts", "at": "best"}, MERGES)) == {0: 0.8}


def test_a_label_may_match_any_of_several_values() -> None:
    assert len(select_rows(ROWS, {"of": ("merges", "experts"), "step": 64})) == 3


def test_rows_of_a_seed_are_averaged_or_summed() -> None:
    rows = [{"seed": 3, "value": 0.2}, {"seed": 3, "value": 0.4}]
    assert values_by_seed(rows) == {3: 0.30000000000000004}
    assert values_by_seed(rows, sum) == {3: 0.6000000000000001}


def test_numbers_come_before_texts() -> None:
    assert label_values(ROWS, "step") == [64, 256, "early stop"]
