"""The neighbours of a choice, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hubmerge.selection.choice import plain_choice
from hubmerge.selection.moves import common_moves, step_moves, weight_moves
from hubmerge.selection.pool import Pool

from .builders import make_pool


def small_pool(root: Path) -> Pool:
    base = {"x": np.zeros(2, np.float32)}
    experts = [[(step, {"x": np.full(2, step, np.float32)}) for step in (1, 2, 4)]] * 2
    return make_pool(root, base, experts)


def test_steps_move_alone_in_pairs_and_all_together(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    moved = {choice.indices for choice in step_moves(pool, plain_choice((1, 1), {}))}
    assert moved == {(a, b) for a in range(3) for b in range(3)}
    at_the_end = {choice.indices for choice in step_moves(pool, plain_choice((2, 2), {}))}
    assert at_the_end == {(2, 2), (1, 1), (0, 2), (1, 2), (2, 0), (2, 1)}


def test_an_expert_that_is_left_out_does_not_move(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    centre = plain_choice((1, 1), {}).with_weight(0, 0.0)
    single = [c for c in step_moves(pool, centre) if c.indices[0] != c.indices[1]]
    assert {choice.indices for choice in single} == {(1, 0), (1, 2)}
    assert {choice.weights[0] for choice in weight_moves(pool, centre)} == {0.0}


def test_weights_move_by_two_factors(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    weights = {choice.weights for choice in weight_moves(pool, plain_choice((1, 1), {}))}
    assert {first for first, second in weights if second == 1} == {1, 0.6667, 0.8333, 1.2, 1.5}


def test_common_steps_come_earliest_first(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    common = [choice.indices for choice in common_moves(pool, plain_choice((0, 2), {}))]
    assert common == [(0, 0), (1, 1), (2, 2)]
