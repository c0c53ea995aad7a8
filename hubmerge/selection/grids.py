"""The values that are tried for each parameter of a method.

Source: arXiv 2506.14126, appendix C (images). The scale of TIES goes further down than there: late
LoRA experts want less than the 0.5 at which the paper's grid ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Grid:
    """Parameter -> its values, rising.

    `scale` is the scale to take without any data, where the method's own mean gives it its size;
    None for a sum, which grows with the experts and is matched to their length instead.
    """

    values: Mapping[str, tuple[float, ...]]
    scale: float | None = None

    @property
    def points(self) -> Iterator[dict[str, float]]:
        """Every point of it."""
        for values in product(*self.values.values()):
            yield dict(zip(self.values, values, strict=True))

    def nearest(self, name: str, value: float) -> float:
        """The value of the grid that is nearest to one."""
        return min(self.values[name], key=lambda known: abs(known - value))

    def step(self, name: str, value: Any, stride: int) -> float | None:
        """The value that many places from another, None beyond the ends; the nearest one counts."""
        values = self.values[name]
        place = values.index(self.nearest(name, value)) + stride
        return values[place] if 0 <= place < len(values) else None


def _range(first: int, last: int, step: int) -> tuple[float, ...]:
    """From first to last hundredth."""
    return tuple(hundredths / 100 for hundredths in range(first, last + 1, step))


_DENSITIES = (0.1, 0.2, 0.3)
GRIDS: Mapping[str, Grid] = {
    "average": Grid({}),
    "task_arithmetic": Grid({"scale": _range(5, 100, 5)}),
    "ties": Grid({"scale": _range(10, 150, 10), "density": _DENSITIES}, scale=1.0),
    "dare": Grid({"scale": _range(5, 55, 5), "density": _DENSITIES}),
}
