"""A merge plan, and every reason why it cannot be merged, found before any value is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from hubmerge.errors import CheckpointError, UnknownName, UsageError, check_all, raise_together
from hubmerge.merging.registry import Method
from hubmerge.merging.settings import filter_problems
from hubmerge.merging.tensor_params import UNIFORM, TensorSettings
from hubmerge.weights.adapter_config_fields import Problem
from hubmerge.weights.adapter_match import match_adapter
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import float_dtype
from hubmerge.weights.full_match import match_full
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.match_options import DEFAULT_OPTIONS, FULL_EXPERT_HINT, MatchOptions
from hubmerge.weights.task_vector import (
    FULL_BASE_HINT,
    SINGLE_EXPERT_HINT,
    TaskVector,
    not_a_base,
    not_an_expert,
)

_OPEN_CLIP = "open_clip_model.safetensors"
# The options of every expert, whatever the method: whether a value is valid, and which are.
EXPERT_OPTIONS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "weight": (math.isfinite, "a finite number"),
    "keep": (lambda keep: 0 < keep <= 1, "above 0 and at most 1"),
    "intruders": (lambda factor: 0 <= factor <= 1, "from 0 to 1"),
}
TensorValues = tuple[tuple[float, ...], BaseModel, tuple[BaseModel, ...]]


@dataclass(frozen=True)
class Expert:
    """A checkpoint to merge: `sha` pins its weights, `weight` is its share, `label` its name.

    `sha` is `Checkpoint.digest()`, or for results of earlier versions the commit: DARE's masks and
    the order of summation depend on it. Applied before the method: `keep` is the fraction of its
    largest changes that is kept (0 < keep <= 1), `intruders` the factor on its intruder dimensions
    (0 to 1); see `softening`.
    """

    checkpoint: Checkpoint
    sha: str
    weight: float = 1.0
    label: str = ""
    keep: float = 1.0
    intruders: float = 1.0

    @property
    def name(self) -> str:
        return self.label or str(self.checkpoint.folder)


@dataclass(frozen=True)
class MergePlan:
    """A complete description of a merge: the same plan gives the same bytes.

    The order of the experts has no effect. `dtype` (a safetensors name) is the dtype in which
    floating-point tensors are written; None keeps that of the base. With `separate_head` the
    configuration of the result says that its output head is not tied to its embedding; see
    `weights.ties`. `options` decide where full experts and base differ. With more tokens than the
    base, `vocabulary_size` and `tokenizer_files`, by name, replace those of the base.
    `settings` are parameters and weights that differ between tensors or experts. With `shard_size`
    the weights are written to files of at most so many bytes, not to files like the base's. With a
    `config`, which replaces the base's, the base is not one folder but a stack of layers: see
    `weights.layer_stack`. `module_files`, by path, are those of the modules of embedding models
    that only the experts have.
    """

    base: Checkpoint
    experts: tuple[Expert, ...]
    method: Method
    params: BaseModel
    dtype: str | None = None
    allow_nonfinite: bool = False
    separate_head: bool = False
    options: MatchOptions = DEFAULT_OPTIONS
    vocabulary_size: int | None = None
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    settings: TensorSettings = field(default=UNIFORM, repr=False)
    shard_size: int | None = None
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    module_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @cached_property
    def vectors(self) -> tuple[TaskVector, ...]:
        """The task vector of each expert, in order; an adapter is matched with the base once."""
        return tuple(
            TaskVector(self.base, expert.checkpoint, self.options) for expert in self.experts
        )

    def settings_of(self, name: str) -> TensorValues:
        """The weights, the parameters, and those of each expert for a tensor."""
        if name not in self._tensor_values:
            weights = [expert.weight for expert in self.experts]
            self._tensor_values[name] = (
                self.settings.weights(weights, name),
                self.settings.params(self.params, name),
                self.settings.expert_params(self.params, name),
            )
        return self._tensor_values[name]

    @cached_property
    def checkpoint_problems(self) -> tuple[Problem, ...]:
        """The problems of base and experts, found once; see `find_checkpoint_problems`."""
        return tuple(find_checkpoint_problems(self))

    @cached_property
    def _tensor_values(self) -> dict[str, TensorValues]:
        return {}  # a large tensor has thousands of parts


def check_plan(plan: MergePlan) -> None:
    """Raise for everything that is wrong with a plan, all at once, from headers alone.

    UsageError for expert options, parameters and dtype; CheckpointError for tensors that are
    missing, unknown to the base, of another shape or not mergeable, and for adapters whose change
    to the base is not known exactly. (Whether integer tensors are the same in all models requires
    reading them; `merge` checks that before it writes.)
    """
    check_all(
        lambda: raise_together(UsageError, list(_find_usage_problems(plan))),
        lambda: check_checkpoints(plan),
    )


def check_checkpoints(plan: MergePlan) -> None:
    """Raise CheckpointError for everything that is wrong with base and experts, from headers."""
    problems = dict.fromkeys(plan.checkpoint_problems)
    hints = dict.fromkeys(hint for _, hint in problems)
    raise_together(CheckpointError, [problem for problem, _ in problems], " ".join(hints))


def canonical(plan: MergePlan) -> MergePlan:
    """The plan with its experts ordered by SHA, so that sums always round in the same way."""

    def sort_key(expert: Expert) -> tuple[Any, ...]:
        return expert.sha, *(getattr(expert, option) for option in EXPERT_OPTIONS)

    own = plan.settings.own or ((),) * len(plan.experts)
    order = sorted(
        range(len(plan.experts)), key=lambda i: (*sort_key(plan.experts[i]), repr(own[i]))
    )
    experts = tuple(plan.experts[index] for index in order)
    ordered = replace(plan, experts=experts, settings=plan.settings.reordered(order))
    if "vectors" in plan.__dict__:  # to match adapters again would take longer than to merge them
        ordered.__dict__["vectors"] = tuple(plan.vectors[index] for index in order)
    return ordered


def _find_usage_problems(plan: MergePlan) -> Iterator[str]:
    if not isinstance(plan.params, plan.method.params):
        yield f"The parameters are not of the type that {plan.method.name} takes."
    if plan.dtype is not None:
        try:
            float_dtype(plan.dtype)
        except UnknownName as error:
            yield f"{error.message} {error.hint}"
    files = {tensor.file.name for tensor in plan.base.index.values()}
    if plan.shard_size is not None and _OPEN_CLIP in files:
        yield f"{plan.base.folder} is in open_clip's layout, which has one file and no shards."
    if not plan.experts:
        yield "There is no expert to merge."
        return
    if problem := plan.method.count_problem(len(plan.experts)):
        yield problem
        return
    for option, (is_valid, expected) in EXPERT_OPTIONS.items():
        invalid = [expert.name for expert in plan.experts if not is_valid(getattr(expert, option))]
        if invalid:
            yield f"The {option} of {', '.join(invalid)} is not {expected}."
    yield from filter_problems(plan.settings, plan.base.index)
    weights = [expert.weight for expert in plan.experts]
    wrong = plan.method.weight_problem and plan.method.weight_problem(weights)
    if wrong and all(map(math.isfinite, weights)):
        yield f"Weights {weights} are not valid for {plan.method.name}: {wrong}."
    elif plan.method.weight_problem and not plan.settings.is_uniform:
        yield from _find_tensor_weight_problems(plan, weights)


def _find_tensor_weight_problems(plan: MergePlan, weights: list[float]) -> Iterator[str]:
    """Weights of some tensors that are not valid, once for all tensors with the same."""
    assert plan.method.weight_problem is not None
    tensors: dict[tuple[float, ...], str] = {}
    for name in plan.base.index:
        tensors.setdefault(plan.settings.weights(weights, name), name)
    for values, name in tensors.items():
        if wrong := plan.method.weight_problem(values):
            yield (
                f"Weights {list(values)} of {safe_name(name)} are not valid for "
                f"{plan.method.name}: {wrong}."
            )


def find_checkpoint_problems(plan: MergePlan) -> Iterator[Problem]:
    """The problems of base and experts, by their headers, each with a hint."""
    if plan.base.kind != "full":
        yield not_a_base(plan.base), FULL_BASE_HINT
        return  # no base to compare with
    yield from ((problem, FULL_EXPERT_HINT) for problem in _find_quantised("The base", plan.base))
    for expert in plan.experts:
        try:
            yield from _find_expert_problems(plan, expert)
        except CheckpointError as error:  # a configuration that cannot be read
            yield from ((problem, error.hint) for problem in error.problems)


def _find_expert_problems(plan: MergePlan, expert: Expert) -> Iterator[Problem]:
    if expert.checkpoint.kind == "lora":
        label = f"Adapter {expert.name}"
        yield from match_adapter(plan.base, expert.checkpoint, label, plan.options).problems
    elif expert.checkpoint.is_moe:
        yield not_an_expert(expert.name), SINGLE_EXPERT_HINT
    else:
        yield from _find_full_problems(plan, expert)


def _find_full_problems(plan: MergePlan, expert: Expert) -> Iterator[Problem]:
    label = f"Expert {expert.name}"
    yield from match_full(plan.base, expert.checkpoint, label, plan.options).problems
    for problem in _find_quantised(label, expert.checkpoint):
        yield problem, FULL_EXPERT_HINT


def _find_quantised(label: str, checkpoint: Checkpoint) -> Iterator[str]:
    """float8 values with scales are codes for other numbers, and adding codes is meaningless."""
    index = checkpoint.index
    quantised = [
        name
        for name, tensor in index.items()
        if tensor.dtype.startswith("F8") and {f"{name}_scale", f"{name}_scale_inv"} & set(index)
    ]
    if quantised:
        names = summarize_names(quantised)
        yield f"{label} is quantised: {names} must be multiplied by their scales first."
