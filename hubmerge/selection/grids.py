"""The values that are tried for each parameter of a method.

Source: arXiv 2506.14126, appendix C (images). The scale of TIES starts lower than in the paper:
late LoRA experts need less than 0.5, where the paper's grid starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Grid:
    """Parameter name -> its values, rising.

    `scale` is the scale to use without data, for a method that averages. It is None for a method
    that sums: a sum grows with the number of experts, so its norm is matched to theirs instead.
    """

    values: Mapping[str, tuple[float, ...]]
    scale: float | None = None

    @property
    def points(self) -> Iterator[dict[str, float]]:
        """Every combination of values."""
        for values in product(*self.values.values()):
            yield dict(zip(self.values, values, strict=True))

    def nearest(self, name: str, value: float) -> float:
        """Return the value of the grid that is nearest to `value`."""
        return min(self.values[name], key=lambda candidate: abs(candidate - value))

    def neighbour(self, name: str, value: Any, stride: int) -> float | None:
        """Return the grid value `stride` positions after `value`, None past the ends.

        A `value` that is not in the grid counts as the nearest one that is.
        """
        values = self.values[name]
        index = values.index(self.nearest(name, value)) + stride
        return values[index] if 0 <= index < len(values) else None


def _range(first: int, last: int, step: int) -> tuple[float, ...]:
    """Return a range of hundredths, both ends included."""
    return tuple(hundredths / 100 for hundredths in range(first, last + 1, step))


_DENSITIES = (0.1, 0.2, 0.3)
GRIDS: Mapping[str, Grid] = {
    "average": Grid({}),
    "task_arithmetic": Grid({"scale": _range(5, 100, 5)}),
    "ties": Grid({"scale": _range(10, 150, 10), "density": _DENSITIES}, scale=1.0),
    "dare": Grid({"scale": _range(5, 55, 5), "density": _DENSITIES}),
    # The sum of several changes is best at a fraction of it, a mean of those that agree near 1.
    "dare_ties": Grid({"scale": _range(5, 100, 5), "density": _DENSITIES}),
    "ties_mergekit": Grid({"scale": _range(10, 150, 10), "density": _DENSITIES}, scale=1.0),
    "breadcrumbs": Grid({"scale": _range(5, 100, 5), "density": (0.3, 0.6, 0.9)}),
    "breadcrumbs_ties": Grid({"scale": _range(5, 100, 5), "density": (0.3, 0.6, 0.9)}),
    "della": Grid({"scale": _range(10, 150, 10), "density": (0.2, 0.5, 0.8)}, scale=1.0),
    "della_linear": Grid({"scale": _range(5, 100, 5), "density": (0.2, 0.5, 0.8)}),
    "sce": Grid({"scale": _range(10, 150, 10), "density": (0.1, 0.5, 1.0)}, scale=1.0),
    "passthrough": Grid({}),
    "slerp": Grid({"t": _range(10, 100, 10)}),
    "nuslerp": Grid({}),
    "multislerp": Grid({}),
    "karcher": Grid({}),
    "model_stock": Grid({}),
    "tsv": Grid({"scale": _range(10, 150, 10)}, scale=1.0),
    "iso_c": Grid({"scale": _range(10, 150, 10)}, scale=1.0),
    "knots": Grid({"scale": _range(10, 150, 10), "density": _DENSITIES}, scale=1.0),
    "core_space": Grid({"scale": _range(10, 150, 10)}, scale=1.0),
}


def find_grid(method: str) -> Grid:
    """The grid of a method; one without a grid keeps its default parameters."""
    return GRIDS.get(method, Grid({}))
