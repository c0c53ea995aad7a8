"""What is to be merged, and every reason why it cannot be, found before a value is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from pydantic import BaseModel

from hubmerge.errors import CheckpointError, UnknownName, UsageError, raise_together
from hubmerge.merging.registry import Method
from hubmerge.weights.adapter_config_fields import Problem
from hubmerge.weights.adapter_match import match
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import float_dtype
from hubmerge.weights.header import Tensor, listed, shown
from hubmerge.weights.task_vector import (
    ITS_EXPERTS,
    WHOLE_BASE,
    TaskVector,
    no_base,
    no_expert,
)

# What frameworks put before every name of one and the same model.
_PREFIXES = ("base_model.model.", "model.", "module.", "_orig_mod.")
_HINT = "Experts must be whole fine-tunes of this base, saved under the base's tensor names."

# The numbers that every expert has, whatever the method, and what each must be.
SHARES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "weight": (math.isfinite, "a finite number"),
    "keep": (lambda keep: 0 < keep <= 1, "above 0 and at most 1"),
    "intruders": (lambda factor: 0 <= factor <= 1, "from 0 to 1"),
}


@dataclass(frozen=True)
class Expert:
    """A checkpoint to merge: `sha` pins its weights, `weight` is its share, `label` its name.

    `sha` is the commit, or `Checkpoint.digest()` of a local folder: DARE's masks and the order of
    summing hang on it. Before the method, `keep` is the fraction of its largest changes that stays
    (0 < keep <= 1) and `intruders` the factor on its intruder dimensions (0 to 1): see `softening`.
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
    """A merge, fully said: the same plan gives the same bytes, in whatever order the experts come.

    `dtype` (safetensors spelling) is what floating-point tensors are written in; None leaves each
    in the base's.
    """

    base: Checkpoint
    experts: tuple[Expert, ...]
    method: Method
    params: BaseModel
    dtype: str | None = None
    allow_nonfinite: bool = False

    @cached_property
    def vectors(self) -> tuple[TaskVector, ...]:
        """What each expert changed, in their order; an adapter is matched with the base once."""
        return tuple(TaskVector(self.base, expert.checkpoint) for expert in self.experts)


def check(plan: MergePlan) -> None:
    """Raise for everything that is wrong with a plan, all at once, from headers alone.

    UsageError for shares, parameters and dtype; CheckpointError for tensors that are missing, too
    many, of another shape, or no numbers to merge, and for adapters whose change to the base is not
    known exactly. (Whether tensors that are not floating-point are the same everywhere can only be
    read; `merge` looks before it writes.)
    """
    raise_together(UsageError, list(_usage_problems(plan)))
    problems = list(_problems(plan))
    hints = dict.fromkeys(hint for _, hint in problems)
    raise_together(CheckpointError, [problem for problem, _ in problems], " ".join(hints))


def canonical(plan: MergePlan) -> MergePlan:
    """The plan with its experts ordered by SHA: sums round alike however they were listed."""
    ordered = sorted(plan.experts, key=lambda one: (one.sha, *(getattr(one, s) for s in SHARES)))
    return replace(plan, experts=tuple(ordered))


def _usage_problems(plan: MergePlan) -> Iterator[str]:
    if not isinstance(plan.params, plan.method.params):
        yield f"The parameters are not those of {plan.method.name}."
    if plan.dtype is not None:
        try:
            float_dtype(plan.dtype)
        except UnknownName as error:
            yield f"{error.message} {error.hint}"
    if not plan.experts:
        yield "There is no expert to merge."
        return
    for share, (sound, wanted) in SHARES.items():
        unsound = [expert.name for expert in plan.experts if not sound(getattr(expert, share))]
        if unsound:
            yield f"The {share} of {', '.join(unsound)} is not {wanted}."
    weights = [expert.weight for expert in plan.experts]
    problem = plan.method.weight_problem and plan.method.weight_problem(weights)
    if problem and all(map(math.isfinite, weights)):
        yield f"Weights {weights} do not suit {plan.method.name}: {problem}."


def _problems(plan: MergePlan) -> Iterator[Problem]:
    """What is wrong with the checkpoints, each with its way out."""
    if plan.base.kind != "full":
        yield no_base(plan.base), WHOLE_BASE
        return  # no base to compare with
    yield from ((problem, _HINT) for problem in _quantised("The base", plan.base))
    for expert in plan.experts:
        if expert.checkpoint.kind == "lora":
            yield from match(plan.base, expert.checkpoint, f"Adapter {expert.name}").problems
        elif expert.checkpoint.is_moe:
            yield no_expert(expert.checkpoint), ITS_EXPERTS
        else:
            yield from ((problem, _HINT) for problem in _misfits(plan.base, expert))


def _misfits(base: Checkpoint, expert: Expert) -> Iterator[str]:
    yield from _name_problems(base, expert)
    yield from _tensor_problems(base, expert)
    yield from _quantised(f"Expert {expert.name}", expert.checkpoint)


def _name_problems(base: Checkpoint, expert: Expert) -> Iterator[str]:
    ours, theirs = set(base.index), set(expert.checkpoint.index)
    missing, extra = ours - theirs, theirs - ours
    prefix = _prefix(missing, extra)
    if prefix:
        yield f"Tensor names of expert {expert.name} and the base differ by the prefix {prefix!r}."
        return
    if missing:
        yield f"Expert {expert.name} lacks {listed(missing)} of the base."
    if extra:
        yield f"Expert {expert.name} has {listed(extra)} that the base does not have."


def _prefix(missing: set[str], extra: set[str]) -> str:
    for prefix in _PREFIXES:
        added = {prefix + name for name in missing} & extra
        removed = {prefix + name for name in extra} & missing
        if added or removed:
            return prefix
    return ""


def _tensor_problems(base: Checkpoint, expert: Expert) -> Iterator[str]:
    found = [
        f"{shown(name)} ({_described(theirs)}, in the base {_described(ours)})"
        for name, ours in base.index.items()
        if (theirs := expert.checkpoint.index.get(name)) and not theirs.fits(ours)
    ]
    if found:
        yield f"Expert {expert.name} does not fit the base in {listed(found, 'tensor')}."


def _quantised(who: str, checkpoint: Checkpoint) -> Iterator[str]:
    """float8 beside its scales is a code for other numbers: adding codes up means nothing."""
    index = checkpoint.index
    found = [
        name
        for name, tensor in index.items()
        if tensor.dtype.startswith("F8") and {f"{name}_scale", f"{name}_scale_inv"} & set(index)
    ]
    if found:
        yield f"{who} is quantised: {listed(found)} must be multiplied by scales first."


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
