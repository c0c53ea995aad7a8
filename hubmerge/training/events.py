"""What the training loop reports at each point of its curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hubmerge.manifest import Point
from hubmerge.training.position import Position


@dataclass(frozen=True)
class Moment:
    """A point of the curve, with all points before it, and what becomes of it.

    `pushed`: it becomes a revision. `stopped`: early stopping ends the run here. While the consumer
    holds the moment, the network has just this step's weights, and `position` tells from where the
    line can be gone on with.
    """

    curve: tuple[Point, ...]
    pushed: bool
    stopped: bool
    position: Callable[[], Position]

    @property
    def step(self) -> int:
        return self.curve[-1].step
