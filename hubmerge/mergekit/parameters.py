"""Check the parameters of a mergekit merge, and find what is the same for all tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from hubmerge.errors import UnknownName
from hubmerge.mergekit.merge import MergekitMerge, our_parameter, our_value
from hubmerge.mergekit.methods import PARAMETERS, WITHOUT_EFFECT, MergekitParameter
from hubmerge.mergekit.values import Condition, Conditions, Scalar
from hubmerge.merging.registry import describe_problem
from hubmerge.merging.registry import method as find_method

# Of the others, one value counts for all tensors: they decide how a model is cut, or more.
_MAY_VARY = {
    "weight", "density", "gamma", "epsilon", "lambda", "normalize", "t", "select_topk", "scale",
}  # fmt: skip
# Ours are fixed to what mergekit has by default.
_ONLY_DEFAULT = {
    "nuslerp_row_wise": "columns have no angles of their own here; leave it out",
    "normalize_weights": "leave it out, and give weights that add up to 1",
    "eps": "leave it out",
}
# The joint check of these two is made for each tensor.
_WITHOUT_JOINT_CHECK = {"density": {"epsilon": 0.0}, "epsilon": {"density": 1.0}}


@dataclass
class ParameterCheck:
    """Checks the parameters of a merge; appends to problems and notes."""

    merge: MergekitMerge
    problems: list[str]
    notes: list[str]

    def run(self) -> MergekitMerge:
        """The merge with its fixed parameters, and with another method where that has them."""
        for where, parameters, of in self._places():
            for name, conditions in parameters.items():
                self._check_name(where, name, of)
                self._check_values(f"{where}{name}", name, conditions)
        self._check_required()
        return self._fix()

    def _places(self) -> Iterator[tuple[str, Mapping[str, Conditions], str]]:
        """Each `parameters`, where it is, and what has it: all, a slice, an expert or the base."""
        merge = self.merge
        yield "parameters.", merge.parameters, "all"
        is_models = len(merge.slices) == 1 and merge.slices[0].sources[0].layers is None
        for number, part in enumerate(merge.slices):
            where = "models" if is_models else f"slices.{number}"
            yield f"{where}.parameters.", part.parameters, "slice"
            for source in part.sources:
                ref = merge.base if source.expert is None else merge.experts[source.expert]
                of = "base" if source.expert is None else "expert"
                yield f"{where}: {ref}: ", source.parameters, of

    def _check_name(self, where: str, name: str, of: str) -> None:
        mergekit, method = self.merge.mergekit, self.merge.name
        if name in WITHOUT_EFFECT:
            self.notes.append(f"{name} has no effect here: it only saves mergekit memory.")
        elif name not in PARAMETERS:
            unknown = UnknownName("parameter", name, (*mergekit.inputs, *mergekit.shared))
            self.problems.append(
                f"{where}{name}: unknown parameter, which mergekit ignores. {unknown.hint}"
            )
        elif (parameter := self._parameter(name)) is None or parameter.inert:
            self.notes.append(f"{where}{name} has no effect with {method}, as in mergekit.")
        elif of in ("expert", "base") and name in mergekit.shared:
            self.notes.append(
                f"{where}{name} has no effect on one model, as in mergekit: it counts below the "
                "parameters of a slice, or of the whole configuration."
            )
        elif of == "base":
            self.notes.append(f"{where}{name} has no effect on the base, as in mergekit.")

    def _check_values(self, where: str, name: str, conditions: Conditions) -> None:
        parameter = self._parameter(name)
        if parameter is None or parameter.inert:
            return
        for condition in conditions:
            values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
            for value in values:
                if problem := self._value_problem(name, parameter, value):
                    self.problems.append(f"{where}: {problem}")

    def _parameter(self, name: str) -> MergekitParameter | None:
        return self.merge.mergekit.inputs.get(name) or self.merge.mergekit.shared.get(name)

    def _value_problem(self, name: str, parameter: MergekitParameter, value: Scalar) -> str:
        if parameter.kind == "flag":
            return "" if value in (0, 1) else f"{value} is neither true nor false."
        if isinstance(value, bool):
            return f"{str(value).lower()} is not a number."
        ours = our_parameter(name)
        if ours not in self.merge.method.params.model_fields:
            return ""
        given = {ours: our_value(name, value)}
        if "epsilon" in self.merge.method.params.model_fields:
            given = {**_WITHOUT_JOINT_CHECK.get(ours, {}), **given}
        try:
            self.merge.method.params.model_validate(given)
        except ValidationError as error:
            return describe_problem(self.merge.method, error.errors()[0])
        return ""

    def _check_required(self) -> None:
        """Everything that must be given must at least be there; filters are checked later."""
        merge = self.merge
        for name, parameter in (*merge.mergekit.inputs.items(), *merge.mergekit.shared.items()):
            if parameter.default is not None or name in merge.parameters:
                continue
            for part in merge.slices:
                if name in part.parameters:
                    continue
                if name in merge.mergekit.shared:
                    self.problems.append(f"parameters: {name} is missing.")
                for source in part.sources if name in merge.mergekit.inputs else ():
                    if source.expert is not None and name not in source.parameters:
                        self.problems.append(f"{merge.experts[source.expert]}: {name} is missing.")

    def _fix(self) -> MergekitMerge:
        """The parameters that are the same for all tensors, in our terms."""
        merge, mergekit = self.merge, self.merge.mergekit
        fixed: dict[str, Any] = {}
        if mergekit.base == "optional":
            fixed["space"] = "changes" if merge.base_is_input else "weights"
        ours = merge.method.params.model_fields
        for name, parameter in mergekit.shared.items():
            if parameter.inert or (name in _MAY_VARY and our_parameter(name) in ours):
                continue
            value = self._constant(name, parameter)
            if name in _ONLY_DEFAULT:
                if value != parameter.default:
                    self.problems.append(
                        f"{name}: {value} is not supported: {_ONLY_DEFAULT[name]}."
                    )
                fixed[name] = value
            elif name != "normalize":
                fixed[our_parameter(name)] = our_value(name, value)
        merge = replace(merge, fixed=fixed)
        if "normalize" in mergekit.shared and "normalize" not in ours:
            merge = self._normalized(merge)
        return merge

    def _normalized(self, merge: MergekitMerge) -> MergekitMerge:
        """What comes to the same for a method of ours that has no `normalize`."""
        normalize = bool(self._constant("normalize", merge.mergekit.shared["normalize"]))
        merge = replace(merge, fixed={**merge.fixed, "normalize": normalize})
        if merge.name == "linear":
            return replace(merge, weights_add_up=not normalize)
        if not normalize:
            return merge
        scale = self._constant("lambda", merge.mergekit.shared["lambda"])
        if merge.name == "task_arithmetic" and scale == 1:
            return replace(
                merge, method=find_method("average"), fixed={**merge.fixed, "scale": 1.0}
            )
        self.problems.append(
            f"normalize: true is not supported with {merge.name}"
            + ("" if merge.name != "task_arithmetic" else " and a lambda")
            + ": leave it out, and divide the weights by their sum."
        )
        return merge

    def _constant(self, name: str, parameter: MergekitParameter) -> Scalar:
        """The value of a parameter that must be the same for all tensors."""
        default = parameter.default if parameter.default is not None else 0.0
        found: set[Scalar] = set()
        for part in self.merge.slices:
            conditions = part.parameters.get(name) or self.merge.parameters.get(name)
            found |= set(_constants(conditions or (Condition("", default),)))
            if conditions and all(condition.filter for condition in conditions):
                found.add(default)
        if len(found) > 1:
            self.problems.append(f"{name} must be the same for all tensors.")
        return next(iter(found))


def _constants(conditions: Conditions) -> Iterator[Scalar]:
    for condition in conditions:
        yield from condition.value if isinstance(condition.value, tuple) else (condition.value,)
        if not condition.filter:
            return
