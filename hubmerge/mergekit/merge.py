"""A merge as a configuration of mergekit describes it, with what plays which part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hubmerge.mergekit.methods import MergekitMethod
from hubmerge.mergekit.model_ref import MergekitRef
from hubmerge.mergekit.values import Conditions
from hubmerge.merging.method import Method
from hubmerge.refs import ModelRef


@dataclass(frozen=True)
class MergekitSource:
    """An input of a slice: the expert of that number, or the base for None; None is all layers."""

    expert: int | None
    layers: tuple[int, int] | None
    parameters: Mapping[str, Conditions]


@dataclass(frozen=True)
class MergekitSlice:
    """Layers of the result, and what they are merged from."""

    sources: tuple[MergekitSource, ...]
    parameters: Mapping[str, Conditions]

    @property
    def experts(self) -> tuple[int, ...]:
        """The numbers of the experts in it, in order."""
        return tuple(s.expert for s in self.sources if s.expert is not None)

    def source(self, expert: int | None) -> MergekitSource | None:
        """What an expert, or the base for None, is in this slice; None if it is not in it."""
        return next((source for source in self.sources if source.expert == expert), None)


@dataclass(frozen=True)
class MergekitMerge:
    """A configuration of mergekit in our terms, as far as it is known without the models.

    `mergekit` is its method and `method` ours, with the parameters `fixed` that are the same for
    all tensors. `base` is what the result is made like; if `base_is_input` it is also what the
    experts' changes are to, else its layers are those of the experts. `text` are the bytes of the
    file, `notes` sentences for the user.
    """

    name: str
    mergekit: MergekitMethod
    method: Method
    fixed: Mapping[str, Any]
    base: ModelRef
    base_is_input: bool
    experts: tuple[MergekitRef, ...]
    slices: tuple[MergekitSlice, ...]
    parameters: Mapping[str, Conditions]
    weights_add_up: bool = False
    dtype: str | None = None
    vocabulary: Literal["base", "union"] | None = None
    notes: tuple[str, ...] = ()
    text: bytes = field(default=b"", repr=False)

    @property
    def is_joint(self) -> bool:
        """Whether the experts are layers of the one expert that the method takes."""
        return self.method.most == 1

    @property
    def varying(self) -> tuple[str, ...]:
        """The parameters that may differ between tensors."""
        names = (*self.mergekit.inputs, *self.mergekit.shared)
        return tuple(name for name in names if our_parameter(name) not in self.fixed)


_OURS = {
    "lambda": "scale",
    "scale": "factor",
    "select_topk": "density",
    "filter_wise": "per",
    "nuslerp_flatten": "per",
    "max_iter": "iterations",
    "tol": "tolerance",
}


def our_parameter(name: str) -> str:
    """Our name of a parameter of mergekit."""
    return _OURS.get(name, name)


def our_value(name: str, value: Any) -> Any:
    """Our value for that of a parameter of mergekit."""
    if name == "rescale":
        return "l1" if value else "none"
    if name in ("filter_wise", "nuslerp_flatten"):
        return "row" if bool(value) is (name == "filter_wise") else "tensor"
    return int(value) if name == "max_iter" else value
