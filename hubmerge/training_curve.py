"""What is recorded of a step in training: points of the curve, and norms of its task vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from hubmerge.source import Count

Accuracy = Annotated[float, Field(ge=0, le=1)]
Norm = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,96}$")]


@dataclass(frozen=True)
class ValidationPoint:
    """One point of a training curve.

    `loss` is the mean since the previous point, `accuracy` and `count` are those of the validation
    split, and `lr` is the learning rate of the last update, 0 before the first. If several tasks
    are trained together, `tasks` maps the name of each to its accuracy, `accuracy` is the mean of
    these, and `count` the number of all examples.
    """

    step: Count
    loss: float | None
    accuracy: float
    count: Count
    lr: float
    tasks: Mapping[Label, Accuracy] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; a point of one task has no `tasks`."""
        fields = dataclasses.asdict(self)
        if not self.tasks:
            del fields["tasks"]
        return fields


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of a step's task vector: of all tensors, and of each layer that changed.

    A layer is named as in the base's tensors, `model.layers.3`; tensors outside of the layers are
    `before` or `after` them.
    """

    model: Norm
    layers: Mapping[str, Norm] = field(default_factory=dict, hash=False)
