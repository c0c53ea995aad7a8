"""The null-space ratio of A, worked by hand, and the step that its fall chooses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from recipes.studies.selection.null_space import RatioMeter, fall_index


@pytest.mark.parametrize(
    ("factor", "inputs", "ratio"),
    [
        ([[2.0, 0.0, 0.0]], [[5.0, 0.0, 0.0]], 0.0),
        ([[2.0, 0.0, 0.0]], [[0.0, 5.0, 0.0]], 1.0),
        ([[2.0, 0.0, 0.0]], [[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]], 0.9),  # 4/5 and 1
        ([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]], [[3.0, 4.0, 12.0]], 12 / 13),  # not orthogonal
    ],
)
def test_the_ratio_is_what_the_row_space_of_a_lacks(
    factor: list[list[float]], inputs: list[list[float]], ratio: float
) -> None:
    layer = nn.Linear(3, 2)
    meter = RatioMeter([(layer, torch.tensor(factor))])
    layer(torch.tensor(inputs))
    assert meter.finish() == pytest.approx(ratio, abs=1e-7)


def test_every_layer_has_its_own_inputs_and_those_that_are_not_called_are_left_out() -> None:
    first, second, unused = (nn.Linear(2, 2, bias=False) for _ in range(3))
    first.weight.data = second.weight.data = torch.tensor([[0.0, 5.0], [2.0, 0.0]])
    factor: Tensor = torch.tensor([[1.0, 0.0]])
    meter = RatioMeter([(first, factor), (second, factor), (unused, factor)])
    second(first(torch.tensor([[3.0, 4.0]])))  # the second layer's input is (20, 6)
    assert meter.finish() == pytest.approx((4 / 5 + 6 / 436**0.5) / 2)
    first(torch.tensor([[3.0, 4.0]]))
    assert meter.finish() == pytest.approx((4 / 5 + 6 / 436**0.5) / 2)  # it has ended


def test_the_step_is_the_first_with_most_of_the_fall() -> None:
    assert fall_index([0.9, 0.8, 0.53, 0.52, 0.5]) == 3  # 95 % of it ends at 0.52
    assert fall_index([0.9, 0.4, 0.5]) == 1
    assert fall_index([0.5, 0.4, 0.6]) == 0  # no fall
