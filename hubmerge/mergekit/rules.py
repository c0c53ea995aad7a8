"""Which value a parameter has for a tensor, as mergekit looks it up.

It takes the first value whose filter matches, from the parameters of a model, of its slice, and of
all. Parameters of the inputs look at the name that the model has for the tensor, in the layer that
it comes from; shared ones at the name in the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from hubmerge.mergekit.layout import (
    LayerSpan,
    TensorPlace,
    find_places,
    find_spans,
    input_name,
)
from hubmerge.mergekit.merge import MergekitMerge
from hubmerge.mergekit.methods import MergekitParameter
from hubmerge.mergekit.values import Condition, Scalar


@dataclass(frozen=True)
class Rule:
    """A value that counts for some tensors: of one column or None for all, of a slice or None."""

    column: int | None
    part: int | None
    condition: Condition


class MergekitRules:
    """The rules of a merge whose result has these tensors.

    A column is an expert as we merge it: one of mergekit's models, or all of them, if they are
    layers of the one expert that the method takes.
    """

    def __init__(self, merge: MergekitMerge, names: Iterable[str]) -> None:
        self.merge = merge
        self.spans: tuple[LayerSpan, ...] = find_spans(merge)
        self.places: list[TensorPlace] = find_places(names, self.spans)

    @cached_property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the experts of each column."""
        numbers = range(len(self.merge.experts))
        return (tuple(numbers),) if self.merge.is_joint else tuple((n,) for n in numbers)

    def parameter(self, name: str) -> MergekitParameter:
        """A parameter of the method, by its name in mergekit."""
        mergekit = self.merge.mergekit
        return mergekit.inputs[name] if name in mergekit.inputs else mergekit.shared[name]

    def columns_of(self, name: str) -> range:
        """The columns for which a parameter is looked up; a shared one is once for all."""
        return range(len(self.columns)) if name in self.merge.mergekit.inputs else range(1)

    def rule(self, name: str, place: TensorPlace, column: int) -> Rule | None:
        """The rule whose value a tensor has; None without one."""
        rules = self.rules(name, place, column)
        return next((rule for rule, tensor in rules if rule.condition.matches(tensor)), None)

    def rules(self, name: str, place: TensorPlace, column: int) -> Iterator[tuple[Rule, str]]:
        """The rules of a slice, from the first that counts, with the name that they look at."""
        merge, tensor = self.merge, place.name
        part = merge.slices[place.part]
        if name in merge.mergekit.inputs:
            expert = next((n for n in self.columns[column] if n in part.experts), None)
            source = part.source(expert) if expert is not None else None
            if expert is None or source is None:
                if name == "weight":  # it does not count
                    yield Rule(column, place.part, Condition("", 0.0)), tensor
                return
            start = self.spans[place.part].start if self.spans else 0
            tensor = input_name(merge, place, start, expert)
            for condition in source.parameters.get(name, ()):
                yield Rule(None if merge.is_joint else column, place.part, condition), tensor
        for condition in part.parameters.get(name, ()):
            yield Rule(None, place.part, condition), tensor
        for condition in merge.parameters.get(name, ()):
            yield Rule(None, None, condition), tensor

    def is_in(self, place: TensorPlace, column: int) -> bool:
        """Whether a column is merged in the slice of a tensor."""
        return any(n in self.merge.slices[place.part].experts for n in self.columns[column])

    def value(self, name: str, place: TensorPlace, rule: Rule | None) -> Scalar | None:
        """The value of a rule at a tensor, or the default; None if it must be given."""
        parameter = self.parameter(name)
        value = parameter.default if rule is None else rule.condition.at(place.depth)
        if value is None:
            return None
        return bool(value) if parameter.kind == "flag" else float(value)

    def hidden_filters(self, name: str) -> Iterator[str]:
        """The filters of a parameter that are in the name of no tensor."""
        names = {place.name for place in self.places}
        for column in self.columns_of(name):
            for place in self.places:
                names |= {tensor for _, tensor in self.rules(name, place, column)}
        for condition in dict.fromkeys(self._conditions(name)):
            if not any(condition.matches(tensor) for tensor in names):
                yield condition.filter

    def label(self, column: int) -> str:
        """The models of a column."""
        return " and ".join(str(self.merge.experts[number]) for number in self.columns[column])

    def _conditions(self, name: str) -> Iterator[Condition]:
        yield from self.merge.parameters.get(name, ())
        for part in self.merge.slices:
            yield from part.parameters.get(name, ())
            for source in part.sources:
                if source.expert is not None and name in self.merge.mergekit.inputs:
                    yield from source.parameters.get(name, ())
