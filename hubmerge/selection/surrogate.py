"""A Gaussian process that predicts the accuracy of choices from those that were measured.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), algorithm 2.1 and
section 5.4.1 (the roughness is that of the largest marginal likelihood); expected improvement:
Jones, Schonlau and Welch, Efficient Global Optimization (1998), equation 15.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_ROUGHNESS = (0.02, 0.1)  # of the surface itself, as a fraction of its variance
_SMALLEST = 1e-12


@dataclass(frozen=True)
class _Fit:
    """The process at one roughness.

    `factor` [n x n] is the Cholesky factor of the covariance, up to `variance`, and `whitened` [n]
    what it makes of the residuals.
    """

    factor: Matrix
    whitened: Matrix
    variance: float
    likelihood: float


class Surrogate:
    """A Gaussian process with a Matern 5/2 kernel and a constant mean.

    `points` [n x d] are in units of one length scale; `values` [n] were measured there, each with a
    variance of its own in `variances` [n], 0 for a value that is exact. `likelihood` is the log
    marginal likelihood, up to a constant.
    """

    def __init__(self, points: Matrix, values: Matrix, variances: Matrix) -> None:
        self._points, self._mean = points, float(np.mean(values))
        self._residuals = values - self._mean
        self._noise = variances / max(float(np.mean(self._residuals**2)), _SMALLEST)
        kernel = _matern(points, points)
        fits = [self._fit(kernel, roughness) for roughness in _ROUGHNESS]
        self._best = max(fits, key=lambda fit: fit.likelihood)
        self.likelihood = self._best.likelihood

    def _fit(self, kernel: Matrix, roughness: float) -> _Fit:
        """Factor the covariance for this setting."""
        size = len(self._residuals)
        # With the residuals as one more row, the last row of the factor is what it makes of them.
        # The corner is any number that keeps the whole positive definite.
        bordered = np.empty((size + 1, size + 1))
        bordered[:size, :size], bordered[size, :size] = kernel, self._residuals
        bordered[np.diag_indices(size)] += roughness + self._noise
        bordered[size, size] = 1 + float(self._residuals @ self._residuals) / roughness
        whole = np.asarray(np.linalg.cholesky(bordered), np.float64)
        factor, whitened = whole[:size, :size], whole[size, :size]
        variance = max(float(whitened @ whitened) / size, _SMALLEST)
        log_determinant = float(np.log(np.diag(factor)).sum())
        likelihood = -0.5 * size * math.log(variance) - log_determinant
        return _Fit(factor, whitened, variance, likelihood)

    def predict(self, points: Matrix) -> tuple[Matrix, Matrix]:
        """Return mean and standard deviation at points [m x d]."""
        explained = np.linalg.solve(self._best.factor, _matern(self._points, points))
        means = self._mean + self._best.whitened @ explained
        left = np.maximum(1.0 - np.einsum("nm,nm->m", explained, explained), 1e-9)
        return means, np.sqrt(self._best.variance * left)

    def expected_improvement(self, points: Matrix, best: float) -> Matrix:
        """Return by how much each point is expected to exceed `best`, 0 where it does not."""
        means, deviations = self.predict(points)
        margins = (means - best) / deviations
        density = np.exp(-0.5 * margins**2) / math.sqrt(2 * math.pi)
        cumulative = 0.5 * (1 + np.array([math.erf(x) for x in margins / math.sqrt(2)]))
        return deviations * (margins * cumulative + density)


def _matern(first: Matrix, second: Matrix) -> Matrix:
    squares = -2 * first @ second.T
    squares += (first**2).sum(1)[:, None]
    squares += (second**2).sum(1)
    distances = np.sqrt(np.maximum(squares, 0.0, out=squares), out=squares)
    distances *= math.sqrt(5)
    kernel = np.exp(-distances)
    kernel *= 1 + distances * (1 + distances / 3)
    return kernel
