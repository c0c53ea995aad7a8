"""A merge plan as a configuration of mergekit, if mergekit has its method with the same formula."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from hubmerge.errors import UsageError, raise_together
from hubmerge.mergekit.config import MergekitConfig, MergekitFile
from hubmerge.mergekit.merge import our_parameter
from hubmerge.mergekit.methods import MERGEKIT_METHODS, MergekitMethod
from hubmerge.mergekit.settings import MergekitSettings, find_settings
from hubmerge.mergekit.translation import translate_config
from hubmerge.merging.plan import MergePlan
from hubmerge.merging.tensor_params import Setting
from hubmerge.specs.parsing import validate_spec
from hubmerge.weights.dtypes import is_float, torch_dtype_name
from hubmerge.weights.header import safe_name
from hubmerge.weights.layer_names import AFTER, layer_of, part_of_rest

_NAMES = {method.ours: name for name, method in MERGEKIT_METHODS.items()}
_OTHERS = {"ties": "ties is that of its authors; ties_mergekit is mergekit's."}
_FORMATS = ("F64", "F32", "F16", "BF16")
_HINT = "docs/mergekit.md lists what both have."


def export_config(plan: MergePlan, base: str, experts: Sequence[str]) -> str:
    """The text of a configuration; `base` and `experts` are the names that mergekit has for them.

    Raises UsageError with everything that a configuration of mergekit cannot express.
    """
    return _Export(plan, base, experts).text()


@dataclass
class _Export:
    plan: MergePlan
    base: str
    experts: Sequence[str]
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        plan = self.plan
        name = _NAMES.get(plan.method.name)
        if name is None:
            other = _OTHERS.get(plan.method.name, f"mergekit has no {plan.method.name}.")
            raise UsageError(f"This cannot be written for mergekit: {other}", _HINT)
        self.problems += self._find_problems()
        values = self._values(name, MERGEKIT_METHODS[name])
        raise_together(UsageError, self.problems, _HINT)
        self._check(values)
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=1000)

    def _find_problems(self) -> Iterator[str]:
        plan = self.plan
        if plan.config is not None:
            yield "Layers of other models are not written: keep the configuration that has them."
        for option in ("keep", "intruders"):
            if any(getattr(expert, option) != 1 for expert in plan.experts):
                yield f"mergekit does not have {option}."
        for option in ("tied", "heads"):
            if option in plan.options.chosen:
                yield f"mergekit does not have --{option}."
        fields = plan.params.model_dump()
        if fields.get("seed"):
            yield "mergekit's configurations have no seed."
        if fields.get("rescale") == "expected":
            yield "mergekit does not divide by the density: set rescale=l1 or rescale=none."
        weights = {expert.weight for expert in plan.experts}
        if plan.method.name == "karcher" and (len(weights) > 1 or not plan.settings.is_uniform):
            yield "mergekit's karcher has no weights."
        settings = [*plan.settings.shared, *(s for own in plan.settings.own for s in own)]
        for key in dict.fromkeys(setting.key for setting in settings if setting.tensors.part):
            yield f"{key}: a filter of mergekit has no layers."

    def _values(self, name: str, mergekit: MergekitMethod) -> dict[str, Any]:
        plan = self.plan
        space = plan.params.model_dump().get("space")
        has_base = mergekit.base == "required" or space == "changes"
        models = []
        for number, expert in enumerate(self.experts):
            parameters = dict(self._own_values(mergekit, number))
            models.append({"model": expert, **({"parameters": parameters} if parameters else {})})
        shared = dict(self._shared_values(mergekit))
        vocabulary = plan.options.vocabulary
        return {
            "merge_method": name,
            **({"base_model": self.base} if has_base else {}),
            "models": models,
            **({"parameters": shared} if shared else {}),
            **({"tokenizer_source": vocabulary} if vocabulary else {}),
            **self._formats(),
        }

    def _own_values(self, mergekit: MergekitMethod, number: int) -> Iterator[tuple[str, Any]]:
        """The parameters that an expert needs to have for itself."""
        settings = self.plan.settings
        own = settings.own[number] if settings.own else ()
        for name, parameter in mergekit.inputs.items():
            ours = our_parameter(name)
            mine = [setting for setting in own if setting.name == ours]
            shared = [setting for setting in settings.shared if setting.name == ours]
            if parameter.inert or not (mine or name == "weight"):
                continue
            rest = self.plan.experts[number].weight if name == "weight" else self._uniform(name)
            yield name, self._conditions(name, [*mine, *shared], rest)

    def _shared_values(self, mergekit: MergekitMethod) -> Iterator[tuple[str, Any]]:
        """The parameters of all experts."""
        settings, fields = self.plan.settings, self.plan.params.model_dump()
        for name, parameter in (*mergekit.inputs.items(), *mergekit.shared.items()):
            ours = our_parameter(name)
            if parameter.inert or name == "weight" or ours not in fields:
                continue
            if name == "nuslerp_row_wise":
                continue
            mine = [setting for own in settings.own for setting in own if setting.name == ours]
            if mine and name in mergekit.shared:
                self.problems.append(f"mergekit's {name} is the same for all models.")
            shared = [setting for setting in settings.shared if setting.name == ours]
            yield name, self._conditions(name, shared, self._uniform(name))

    def _uniform(self, name: str) -> Any:
        return _mergekit_value(name, getattr(self.plan.params, our_parameter(name)))

    def _conditions(self, name: str, settings: Sequence[Setting], rest: Any) -> Any:
        """A value with filters: those that count first come first, then the rest.

        mergekit gives tensors after the layers the first value of a gradient, and we the last.
        """
        if not settings:
            return rest
        found: list[dict[str, Any]] = []
        after = [
            tensor
            for tensor in self.plan.base.index
            if layer_of(tensor) is None and part_of_rest(tensor) == AFTER
        ]
        for tensor in after:
            first = next((s for s in settings if s.tensors.matches(tensor)), None)
            if first is not None and isinstance(first.value, (list, tuple)):
                last = _mergekit_value(name, first.value[-1])
                found.append({"filter": tensor, "value": last})
        for setting in settings:
            value = setting.value
            listed = isinstance(value, (list, tuple))
            value = [*value] if listed else _mergekit_value(name, value)
            found.append({**({"filter": setting.filter} if setting.filter else {}), "value": value})
            if not setting.filter:
                return found if len(found) > 1 else value
        return [*found, {"value": rest}]

    def _formats(self) -> Mapping[str, str]:
        """mergekit must compute as we do, in float32, and round once."""
        stored = {t.dtype for t in self.plan.base.index.values() if is_float(t.dtype)}
        written = {self.plan.dtype} if self.plan.dtype else stored
        if len(written) > 1 or not written <= {*_FORMATS}:
            self.problems.append(
                f"The result has the number formats {', '.join(sorted(map(str, written)))}: give "
                "--dtype with one that mergekit has."
            )
            return {}
        (name,) = map(str, written)
        computed = "float64" if "F64" in stored else "float32"
        out = torch_dtype_name(name)
        return {"dtype": computed, **({"out_dtype": out} if out != computed else {})}

    def _check(self, values: Mapping[str, Any]) -> None:
        """Read it again: every tensor must have the same values."""
        config = validate_spec(MergekitConfig, values, "the configuration")
        merge = translate_config(MergekitFile(config))
        again = find_settings(merge, self.plan.base.index)
        for tensor in self.plan.base.index:
            if _of_plan(self.plan, tensor) != _of_settings(again, tensor):
                raise UsageError(
                    f"The values of {safe_name(tensor)} cannot be written for mergekit.", _HINT
                )


def _of_plan(plan: MergePlan, tensor: str) -> tuple[Any, ...]:
    weights = tuple(expert.weight for expert in plan.experts)
    return _of_settings(MergekitSettings(plan.params, plan.settings, weights), tensor)


def _of_settings(found: MergekitSettings, tensor: str) -> tuple[Any, ...]:
    """What a tensor is merged with: the weights, and the parameters of each expert."""
    weights = found.settings.weights(found.weights, tensor)
    shared = found.settings.params(found.params, tensor)
    return weights, found.settings.expert_params(found.params, tensor) or (shared,) * len(weights)


def _mergekit_value(name: str, value: Any) -> Any:
    if name == "rescale":
        return value == "l1"
    if name == "filter_wise":
        return bool(value == "row")
    if name == "nuslerp_flatten":
        return bool(value == "tensor")
    return value
