"""The parameters of a mergekit merge as our settings, with the same value for every tensor.

In mergekit the first filter that matches counts; ours have no order: those with layers count before
the others, and of these the longest. So a filter may need more text, and where that does not help
the configuration is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from hubmerge.errors import UsageError, raise_together
from hubmerge.mergekit.layout import TensorPlace
from hubmerge.mergekit.merge import MergekitMerge, our_parameter, our_value
from hubmerge.mergekit.rules import MergekitRules, Rule
from hubmerge.mergekit.values import Scalar
from hubmerge.merging.settings import check_settings, for_tensors
from hubmerge.merging.tensor_params import Setting, TensorSettings
from hubmerge.validation_errors import first_problem
from hubmerge.weights.header import safe_name

_EQUAL = 1e-9
_HINT = "docs/mergekit.md describes how parameters are read."
_AFTER = (
    "Tensors after the layers have the first value of a gradient, as in mergekit 0.1.5, not the "
    "last."
)
Used = Mapping[Rule, Sequence[TensorPlace]]


@dataclass(frozen=True)
class MergekitSettings:
    """Our parameters and settings, the weight of each expert, and notes for the user."""

    params: BaseModel
    settings: TensorSettings
    weights: tuple[float, ...]
    notes: tuple[str, ...] = ()


def find_settings(merge: MergekitMerge, names: Iterable[str]) -> MergekitSettings:
    """The settings of a merge whose result has these tensors.

    Raises UsageError with every problem: values that are missing, filters without tensors, filters
    whose order cannot be kept, and values that are not valid for some tensor.
    """
    return _SettingsMaker(merge, MergekitRules(merge, names)).make()


class _SettingsMaker:
    def __init__(self, merge: MergekitMerge, rules: MergekitRules) -> None:
        self._merge, self._rules = merge, rules
        self._problems: list[str] = []
        fields = merge.method.params.model_fields
        self._uniform = {name: value for name, value in merge.fixed.items() if name in fields}
        self._shared: list[Setting] = []
        self._own: list[list[Setting]] = [[] for _ in rules.columns]
        self._weights = [1.0] * len(rules.columns)
        self._expected: dict[tuple[str, int], list[Scalar | None]] = {}
        self._notes: list[str] = []

    def make(self) -> MergekitSettings:
        for name in self._merge.varying:
            if not self._rules.parameter(name).inert:
                self._add(name)
        raise_together(UsageError, list(dict.fromkeys(self._problems)), _HINT)
        params, settings = check_settings(
            self._merge.method, self._uniform, self._shared, self._own
        )
        settings = for_tensors(settings, (place.name for place in self._rules.places))
        self._compare(params, settings)
        raise_together(UsageError, self._problems, _HINT)
        return MergekitSettings(
            params, settings, tuple(self._weights), tuple(dict.fromkeys(self._notes))
        )

    def _add(self, name: str) -> None:
        """Add a parameter: as one value if all tensors have it, else as settings."""
        rules, used = self._rules, dict[Rule, list[TensorPlace]]()
        for column in rules.columns_of(name):
            values = []
            for place in rules.places:
                rule = rules.rule(name, place, column)
                if rule is not None:
                    used.setdefault(rule, []).append(place)
                values.append(self._value(name, place, rule, column))
            self._expected[name, column] = values
        for text in rules.hidden_filters(name):
            self._problems.append(f"{name}: no tensor has {text!r} in its name.")
        default = rules.parameter(name).default
        if default is not None:
            self._uniform[our_parameter(name)] = our_value(name, default)
        if not self._add_constants(name):
            self._add_settings(name, used)

    def _value(
        self, name: str, place: TensorPlace, rule: Rule | None, column: int
    ) -> Scalar | None:
        """The value for a tensor; None for an expert that is not merged in its slice."""
        is_of_input = name in self._merge.mergekit.inputs
        if rule is None and is_of_input and not self._rules.is_in(place, column):
            return None
        value = self._rules.value(name, place, rule)
        if value is None:
            owner = f" of {self._rules.label(column)}" if is_of_input else ""
            self._problems.append(f"{name}{owner} has no value for {safe_name(place.name)}.")
        return value

    def _add_constants(self, name: str) -> bool:
        """Whether every expert has one value, which is then added."""
        columns = self._rules.columns_of(name)
        found = [{v for v in self._expected[name, c] if v is not None} for c in columns]
        if any(len(values) > 1 for values in found):
            return False
        values = [next(iter(constant), None) for constant in found]
        if name == "weight":
            self._weights = [1.0 if value is None else float(value) for value in values]
        elif len(given := {value for value in values if value is not None}) == 1:
            self._uniform[our_parameter(name)] = our_value(name, given.pop())
        else:
            for own, value in zip(self._own, values, strict=True):
                own.append(Setting(our_parameter(name), "", our_value(name, value)))
        return True

    def _add_settings(self, name: str, used: Used) -> None:
        """Settings for the rules that count for some tensor."""
        for owner in (None, *range(len(self._rules.columns))):
            target = self._shared if owner is None else self._own[owner]
            by_limit: dict[str, list[tuple[Rule, Any]]] = {}
            rules = [rule for rule in self._in_order(name, used) if rule.column == owner]
            is_split = self._is_split(rules, used)
            for rule in rules:
                for limit, value in self._limited(name, rule, used[rule], is_split):
                    by_limit.setdefault(limit, []).append((rule, value))
            for limit, ordered in by_limit.items():
                texts = self._texts([rule for rule, _ in ordered])
                found: dict[str, Setting] = {}
                for text, (_, value) in zip(texts, ordered, strict=True):
                    key = f"{text}{limit}"
                    found.setdefault(key, Setting(our_parameter(name), key, value))
                target.extend(found.values())

    def _in_order(self, name: str, used: Used) -> list[Rule]:
        """The used rules, from the first that counts."""
        found = dict.fromkeys(
            rule
            for column in self._rules.columns_of(name)
            for place in self._rules.places
            for rule, _ in self._rules.rules(name, place, column)
            if rule in used
        )
        return sorted(found, key=lambda rule: rule.part is None)  # those of all slices are last

    def _is_split(self, rules: Sequence[Rule], used: Used) -> bool:
        """Whether a gradient makes it necessary to name the layers of rules for all slices."""
        gradients = [rule for rule in rules if isinstance(rule.condition.value, tuple)]
        after = [rule for rule in gradients if any(place.is_after for place in used[rule])]
        if after:
            self._notes.append(_AFTER)
        if len(self._rules.spans) < 2:
            return bool(after)
        return any(rule.part is None for rule in gradients)

    def _limited(
        self, name: str, rule: Rule, places: Sequence[TensorPlace], is_split: bool
    ) -> Iterator[tuple[str, Any]]:
        """A rule as values for parts of the model: the end of a filter, and the value."""
        spans, value = self._rules.spans, rule.condition.value
        convert = bool if self._rules.parameter(name).kind == "flag" else float
        first = convert(rule.condition.at(0.0))
        listed: Any = [convert(v) for v in value] if isinstance(value, tuple) else first
        if isinstance(value, tuple) and convert is bool:
            self._problems.append(f"{name}: true and false cannot be spread over the layers.")
        after = [place for place in places if place.is_after]
        if len(spans) < 2 or (rule.part is None and not is_split):
            if not is_split or len(after) < len(places):
                yield "", listed
        else:
            for number in dict.fromkeys(p.part for p in places if p.layer is not None):
                yield f"@{spans[number].start}:{spans[number].stop}", listed
            if any(place.is_before for place in places):
                yield "@before", first
            if after:
                yield "@after", first
            return
        if is_split and after:
            yield "@after", first

    def _texts(self, rules: Sequence[Rule]) -> list[str]:
        """The texts of filters, each longer than those of later rules that it hides."""
        names = [place.name for place in self._rules.places]
        texts: list[str] = []
        matched: list[set[str]] = []
        for rule in reversed(rules):
            mine = {name for name in names if rule.condition.matches(name)}
            hidden = [len(t) for t, others in zip(texts, matched, strict=True) if mine & others]
            texts.append(_lengthen(rule.condition.filter, max(hidden, default=-1), names, mine))
            matched.append(mine)
        return texts[::-1]

    def _compare(self, params: BaseModel, settings: TensorSettings) -> None:
        """Every value that mergekit would use must be the one that we use."""
        problems: dict[str, str] = {}
        for number, place in enumerate(self._rules.places):
            try:
                shared = settings.params(params, place.name)
                own = settings.expert_params(params, place.name)
            except ValidationError as error:
                reason = first_problem(error)
                problems.setdefault(reason, f"{safe_name(place.name)}: {reason}.")
                continue
            weights = settings.weights(self._weights, place.name)
            for (name, column), values in self._expected.items():
                of = own[column] if own and name in self._merge.mergekit.inputs else shared
                actual = weights[column] if name == "weight" else getattr(of, our_parameter(name))
                wanted = values[number]
                if wanted is not None and abs(actual - our_value(name, wanted)) > _EQUAL:
                    problems.setdefault(
                        name,
                        f"{name}: its filters cannot be kept for {safe_name(place.name)}: write "
                        "filters that do not overlap, and no layers in them.",
                    )
            if self._merge.weights_add_up and abs(sum(weights) - 1) > 1e-6:
                problems.setdefault(
                    "sum",
                    "normalize: false is only supported for weights that add up to 1, and those of "
                    f"{safe_name(place.name)} add up to {sum(weights):g}: leave it out, or divide "
                    "them by their sum.",
                )
        self._problems += problems.values()


def _lengthen(text: str, length: int, names: Sequence[str], mine: set[str]) -> str:
    """A text longer than `length` that is in the same names; the text itself if there is none."""
    if len(text) > length or not mine:
        return text
    name = min(mine)
    start = name.find(text)
    stop = start + len(text)
    while True:
        if stop < len(name) and not name[stop].isdigit():
            stop += 1
        elif start > 0 and not name[start - 1].isdigit():
            start -= 1
        else:
            return text
        longer, ends = name[start:stop], (name[start - 1 : start], name[stop : stop + 1])
        is_same = {n for n in names if longer in n} == mine
        if is_same and len(longer) > length and set(ends) <= {"", "."}:
            return longer
