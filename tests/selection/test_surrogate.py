"""The surrogate: a Gaussian process worked by hand, and the points that choices are for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hubmerge.selection.choice import plain_choice
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.search_space import Coupling, Space, choice_coordinates, param_matrix
from hubmerge.selection.surrogate import Surrogate


def test_a_measured_point_is_predicted_and_a_far_one_is_not() -> None:
    points = np.array([[0.0], [1.0], [2.0]])
    surrogate = Surrogate(points, np.array([0.5, 0.7, 0.6]), np.zeros(3))
    means, deviations = surrogate.predict(np.array([[1.0], [100.0]]))
    assert means[0] == pytest.approx(0.7, abs=0.03)
    assert means[1] == pytest.approx(0.6)  # the mean of what was measured
    assert deviations[0] < deviations[1]


def test_an_uncertain_value_counts_less() -> None:
    points = np.array([[0.0], [0.0], [5.0]])
    exact, doubtful = 0.5, 0.9
    surrogate = Surrogate(points, np.array([exact, doubtful, 0.6]), np.array([0.0, 1.0, 0.0]))
    (mean,), _ = surrogate.predict(np.array([[0.0]]))
    assert abs(mean - exact) < abs(mean - doubtful)


def test_the_expected_improvement_of_a_normal_distribution() -> None:
    """At a point whose prediction is the best value itself it is deviation / sqrt(2 pi)."""
    surrogate = Surrogate(np.array([[0.0], [9.0]]), np.array([0.4, 0.6]), np.zeros(2))
    far = np.array([[1000.0]])
    (mean,), (deviation,) = surrogate.predict(far)
    (improvement,) = surrogate.expected_improvement(far, mean)
    assert improvement == pytest.approx(deviation / math.sqrt(2 * math.pi))


def test_the_point_of_a_choice() -> None:
    space = Space(GRIDS["ties"], Coupling(steps=0.25, params=0.5))
    choice = plain_choice((3, 6), {"scale": 0.5, "density": 0.25}).with_weight(1, 2.0)
    # Positions in length scales, log2 of weights, then log2 of the scale, which is -1, raised by a
    # quarter of the mean position, 4.5, and half of log2 of the density, -2; then the density.
    expected = [1, 2, 0, 1, -1 + 0.25 * 4.5 - 0.5 * 2, -2 / 2]
    coordinates = choice_coordinates(space.grid, [choice])
    assert space.points(coordinates)[0] == pytest.approx(expected)
    grid = [{"scale": 1.0, "density": 0.25}, {"scale": 0.5, "density": 0.25}]
    both = space.points(coordinates.with_grid(param_matrix(space.grid, grid)))
    assert both[1] == pytest.approx(expected)
    assert both[0] == pytest.approx([1, 2, 0, 1, 4.5 / 4 - 1, -1])


def test_a_method_without_parameters_has_steps_and_weights() -> None:
    space = Space(GRIDS["average"], Coupling())
    coordinates = choice_coordinates(space.grid, [plain_choice((3, 0), {})])
    assert space.points(coordinates)[0] == pytest.approx([1, 0, 0, 0])
