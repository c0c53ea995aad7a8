"""What the training loop yields at each point of the validation curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hubmerge.training.position import Position
from hubmerge.training_curve import ValidationPoint


@dataclass(frozen=True)
class CheckpointEvent:
    """A validated step: the curve up to it, and what happens at it.

    `pushed`: the step becomes a revision. `stopped`: early stopping ends the run here. Until the
    consumer asks for the next event, the network has the weights of this step. `position()` returns
    the position from which training can be resumed.
    """

    curve: tuple[ValidationPoint, ...]
    pushed: bool
    stopped: bool
    position: Callable[[], Position]

    @property
    def step(self) -> int:
        return self.curve[-1].step
