"""What is to be merged, and every reason why it cannot be, found before a value is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pydantic import BaseModel

from hubmerge.errors import CheckpointError, UnknownName, UsageError, raise_together
from hubmerge.merging.registry import Method
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import float_dtype, is_float
from hubmerge.weights.header import Tensor, shown
from hubmerge.weights.task_vector import LORA_HINT, no_lora

_LISTED = 3  # names spelled out in one problem; the rest are counted
# What frameworks put before every name of one and the same model.
_PREFIXES = ("base_model.model.", "model.", "module.", "_orig_mod.")
_HINT = "Experts must be whole fine-tunes of this base, saved under the base's tensor names."


@dataclass(frozen=True)
class Expert:
    """A checkpoint to merge: `sha` pins its weights, `weight` is its share, `label` its name.

    `sha` is the commit, or `Checkpoint.digest()` of a local folder: DARE's masks and the order of
    summing hang on it.
    """

    checkpoint: Checkpoint
    sha: str
    weight: float = 1.0
    label: str = ""

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


def check(plan: MergePlan) -> None:
    """Raise for everything that is wrong with a plan, all at once, from headers alone.

    UsageError for weights, parameters and dtype; CheckpointError for tensors that are missing, too
    many, of another shape, or no numbers to merge. (Whether tensors that are not floating-point are
    the same everywhere can only be read; `merge` looks before it writes.)
    """
    raise_together(UsageError, list(_usage_problems(plan)))
    adapters, misfits = list(_adapter_problems(plan)), list(_misfits(plan))
    hints = [*([LORA_HINT] if adapters else []), *([_HINT] if misfits else [])]
    raise_together(CheckpointError, adapters + misfits, " ".join(hints))


def canonical(plan: MergePlan) -> MergePlan:
    """The plan with its experts ordered by SHA: sums round alike however they were listed."""
    ordered = sorted(plan.experts, key=lambda expert: (expert.sha, expert.weight))
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
    weights = [expert.weight for expert in plan.experts]
    unsound = [expert.name for expert in plan.experts if not math.isfinite(expert.weight)]
    if unsound:
        yield f"The weight of {', '.join(unsound)} is not a finite number."
    elif plan.method.weight_problem and (problem := plan.method.weight_problem(weights)):
        yield f"Weights {weights} do not suit {plan.method.name}: {problem}."


def _adapter_problems(plan: MergePlan) -> Iterator[str]:
    for checkpoint in (plan.base, *(expert.checkpoint for expert in plan.experts)):
        if checkpoint.kind != "full":
            yield no_lora(checkpoint)


def _misfits(plan: MergePlan) -> Iterator[str]:
    if plan.base.kind != "full":
        return  # no base to compare with
    yield from _quantised("The base", plan.base)
    for expert in plan.experts:
        if expert.checkpoint.kind == "full":
            yield from _name_problems(plan.base, expert)
            yield from _tensor_problems(plan.base, expert)
            yield from _quantised(f"Expert {expert.name}", expert.checkpoint)


def _name_problems(base: Checkpoint, expert: Expert) -> Iterator[str]:
    ours, theirs = set(base.index), set(expert.checkpoint.index)
    missing, extra = ours - theirs, theirs - ours
    prefix = _prefix(missing, extra)
    if prefix:
        yield f"Tensor names of expert {expert.name} and the base differ by the prefix {prefix!r}."
        return
    if missing:
        yield f"Expert {expert.name} lacks {_listed(missing)} of the base."
    if extra:
        yield f"Expert {expert.name} has {_listed(extra)} that the base does not have."


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
        if (theirs := expert.checkpoint.index.get(name)) and not _fits(ours, theirs)
    ]
    if found:
        yield f"Expert {expert.name} does not fit the base in {_listed(found, 'tensor')}."


def _fits(ours: Tensor, theirs: Tensor) -> bool:
    """Same shape, and both floating-point (of any width) or both exactly the same kind."""
    alike = ours.dtype == theirs.dtype or (is_float(ours.dtype) and is_float(theirs.dtype))
    return ours.shape == theirs.shape and alike


def _quantised(who: str, checkpoint: Checkpoint) -> Iterator[str]:
    """float8 beside its scales is a code for other numbers: adding codes up means nothing."""
    index = checkpoint.index
    found = [
        name
        for name, tensor in index.items()
        if tensor.dtype.startswith("F8") and {f"{name}_scale", f"{name}_scale_inv"} & set(index)
    ]
    if found:
        yield f"{who} is quantised: {_listed(found)} must be multiplied by scales first."


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _listed(names: Iterable[str], noun: str = "tensor") -> str:
    """ "2 tensors (a, b)", with no more than a few spelled out."""
    ordered = [shown(name) for name in sorted(names)]
    rest = ", ..." if len(ordered) > _LISTED else ""
    plural = "" if len(ordered) == 1 else "s"
    return f"{len(ordered)} {noun}{plural} ({', '.join(ordered[:_LISTED])}{rest})"
