"""A Gaussian process that predicts the accuracy of choices from those that were measured.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), algorithm 2.1 and
section 5.4.1 (the roughness is that of the largest marginal likelihood); expected improvement:
Jones, Schonlau and Welch, Efficient Global Optimization (1998), equation 15.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_ROUGHNESS = (0.02, 0.1)  # of the surface itself, as a fraction of its variance
_SMALLEST = 1e-12


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
        fits = [self._fit(roughness) for roughness in _ROUGHNESS]
        self.likelihood = max(fits)
        self._fit(_ROUGHNESS[fits.index(self.likelihood)])

    def _fit(self, roughness: float) -> float:
        """Factor the covariance for this setting, and return the log marginal likelihood."""
        size = len(self._residuals)
        covariance = _matern(self._points, self._points)
        covariance[np.diag_indices(size)] += roughness + self._noise
        self._factor = np.linalg.cholesky(covariance)
        self._weights = np.linalg.solve(
            self._factor.T, np.linalg.solve(self._factor, self._residuals)
        )
        self._variance = max(float(self._residuals @ self._weights) / size, _SMALLEST)
        log_determinant = float(np.log(np.diag(self._factor)).sum())
        return -0.5 * size * math.log(self._variance) - log_determinant

    def predict(self, points: Matrix) -> tuple[Matrix, Matrix]:
        """Return mean and standard deviation at points [m x d]."""
        cross = _matern(points, self._points)
        means = self._mean + cross @ self._weights
        explained = np.linalg.solve(self._factor, cross.T)
        left = np.maximum(1.0 - (explained**2).sum(axis=0), 1e-9)
        return means, np.sqrt(self._variance * left)

    def expected_improvement(self, points: Matrix, best: float) -> Matrix:
        """Return by how much each point is expected to exceed `best`, 0 where it does not."""
        means, deviations = self.predict(points)
        margins = (means - best) / deviations
        density = np.exp(-0.5 * margins**2) / math.sqrt(2 * math.pi)
        cumulative = 0.5 * (1 + np.array([math.erf(x) for x in margins / math.sqrt(2)]))
        return deviations * (margins * cumulative + density)


def _matern(first: Matrix, second: Matrix) -> Matrix:
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :] - 2 * first @ second.T
    distances = np.sqrt(5 * np.maximum(squares, 0.0))
    return np.asarray((1 + distances + distances**2 / 3) * np.exp(-distances))
