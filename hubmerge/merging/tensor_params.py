"""Parameters and weights that differ between tensors, experts or layers.

`density[self_attn]=0.3` sets a parameter for the tensors with this text in their names; of several
that match, the one with the longest text counts, and before these those with layers, such as
`density[mlp@0:8]`; see `tensor_filter`. A list of numbers is spread over the layers, or over those
of the filter: the first number is for the first layer, the last for the last, and those between are
interpolated, as mergekit does. Tensors before the layers (embeddings) count as the first layer,
those after them as the last.
`settings.py` reads these from what a user types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from hubmerge.merging.tensor_filter import TensorFilter, parse_filter
from hubmerge.weights.layer_names import BEFORE, part_of_rest, split_at_layer

Value = Any


@dataclass(frozen=True)
class Setting:
    """A value of the parameter `name` for the tensors of `filter` ("" for all)."""

    name: str
    filter: str
    value: Value

    @property
    def key(self) -> str:
        return f"{self.name}[{self.filter}]" if self.filter else self.name

    @property
    def tensors(self) -> TensorFilter:
        """The filter, parsed."""
        return parse_filter(self.filter)


@dataclass(frozen=True)
class TensorSettings:
    """What differs between tensors: `shared` for all experts, `own` for each expert, in order.

    An expert's own setting counts more than a shared one. `layers` is how many layers each part of
    the model has, by the text before the layer's number.
    """

    shared: tuple[Setting, ...] = ()
    own: tuple[tuple[Setting, ...], ...] = ()
    layers: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_uniform(self) -> bool:
        return not self.shared and not any(self.own)

    def params(self, params: BaseModel, tensor: str) -> BaseModel:
        """The parameters for a tensor."""
        return _updated(params, self._values(self.shared, tensor))

    def expert_params(self, params: BaseModel, tensor: str) -> tuple[BaseModel, ...]:
        """The parameters for each expert's change to a tensor; () if they do not differ."""
        if not any(self.own):
            return ()
        of_tensor = self.params(params, tensor)
        return tuple(_updated(of_tensor, self._values(own, tensor)) for own in self.own)

    def weights(self, weights: Sequence[float], tensor: str) -> tuple[float, ...]:
        """The weights of the experts for a tensor."""
        shared = self._values(self.shared, tensor)
        own = self.own or ((),) * len(weights)
        return tuple(
            float({"weight": weight, **shared, **self._values(settings, tensor)}["weight"])
            for settings, weight in zip(own, weights, strict=True)
        )

    def reordered(self, order: Sequence[int]) -> TensorSettings:
        """The same for experts in another order."""
        own = tuple(self.own[index] for index in order) if self.own else ()
        return TensorSettings(self.shared, own, self.layers)

    def _values(self, settings: Iterable[Setting], tensor: str) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for setting in settings:
            if setting.name not in found and setting.tensors.matches(tensor):
                depth = setting.tensors.depth(tensor, self.depth(tensor))
                found[setting.name] = interpolate(setting.value, depth)
        return found

    def depth(self, tensor: str) -> float:
        """Where in the model a tensor is: 0 for the first layer, 1 for the last."""
        parts = split_at_layer(tensor)
        if parts is None:
            return 0.0 if part_of_rest(tensor) == BEFORE else 1.0
        before, layer, _ = parts
        count = self.layers.get(before, 1)
        return layer / (count - 1) if count > 1 else 0.0


UNIFORM = TensorSettings()


def interpolate(value: Value, depth: float) -> Value:
    """The value at a depth from 0 to 1, if it is a list that is spread over the layers."""
    if not isinstance(value, (list, tuple)):
        return value
    place = depth * (len(value) - 1)
    first = min(int(place), len(value) - 1)
    second = min(first + 1, len(value) - 1)
    share = place - first
    return (1 - share) * value[first] + share * value[second]


def _updated(params: BaseModel, values: Mapping[str, Value]) -> BaseModel:
    changes = {name: value for name, value in values.items() if name != "weight"}
    if not changes:
        return params
    return type(params).model_validate({**params.model_dump(), **changes})
