"""The engine: stream checkpoints through a method, tensor by tensor, into a new folder.

Everything that makes merging fast or safe is behind `merge`; methods see arrays, callers see
folders. In memory at once: one tensor of each expert (of an adapter, its whole change to one), and
the intruder dimensions of an expert where those are softened.
Arithmetic is in float32 (float64 for F64) and is rounded once, to nearest even, to the dtype that
is written. (From float64 to bfloat16 or float8 it is rounded twice, by way of float32.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from hubmerge.errors import CheckpointError, UsageError, raise_together
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.plan import Expert, MergePlan, canonical, check
from hubmerge.merging.softening import Softening, survey_softening
from hubmerge.progress import Progress
from hubmerge.weights.array_blocks import blocks
from hubmerge.weights.atomic_folder import check_place, whole_folder
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.dtypes import DTYPES, Array, cast, compute_dtype, is_float
from hubmerge.weights.header import Tensor, shown
from hubmerge.weights.task_vector import TaskVector
from hubmerge.weights.writer import check_room, copy_side_files, mirror, side_files, write_tensor


def merge(
    plan: MergePlan,
    out: Path,
    replace: bool = False,
    progress: Progress | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Checkpoint:
    """Merge into the folder `out`, which appears whole or not at all, and open it.

    It has the base's files: weights of the same names and order, configuration, tokenizer. `finish`
    is called on the folder when all of them are written and it is still beside its place, to add a
    manifest and a card. A folder that is there already is replaced only if `replace`. `progress` is
    told how many tensors are done. Raises what `check` and `check_out` raise, and CheckpointError
    for values that are not finite (unless allowed), for tensors of whole numbers that differ, and
    for a disk that refuses.
    """
    check(plan)
    check_out(plan, out, replace)
    plan, tell = canonical(plan), progress or _silent
    with whole_folder(out, replace) as folder:
        _check_fixed(plan)
        softenings = _softenings(plan, tell)
        found = _survey(plan, softenings, tell)
        places = mirror(plan.base, folder, plan.dtype)
        copy_side_files(plan.base.folder, folder)
        for done, (name, place) in enumerate(places.items()):
            tell("merge", done, len(places))
            write_tensor(place, _merged(plan, name, place, softenings, found))
        tell("merge", len(places), len(places))
        if finish is not None:
            finish(folder)
    return open_checkpoint(out)


def check_out(plan: MergePlan, out: Path, replace: bool = False) -> None:
    """Raise for everything that keeps the result of a plan from being written to `out`.

    UsageError where `out` is an input or holds one; CheckpointError where it is taken, has too
    little room, or the base's other files cannot be copied. Nothing is written, no value is read.
    """
    _check_apart(plan, out)
    check_place(out, replace)
    check_room(plan.base, out, plan.dtype)
    side_files(plan.base.folder)


def _silent(stage: str, done: int, total: int) -> None:
    return None


def _check_apart(plan: MergePlan, out: Path) -> None:
    """Replacing a folder that is an input, or holds one, would delete what is being read."""
    place = out.resolve()
    for checkpoint in (plan.base, *(expert.checkpoint for expert in plan.experts)):
        folder = checkpoint.folder.resolve()
        if place == folder or place in folder.parents:
            raise UsageError(f"{out} is or holds {folder}, which is to be merged.")


def _check_fixed(plan: MergePlan) -> None:
    """Positions, counters and masks are not weights: they must be the same everywhere."""
    fixed = [name for name, tensor in plan.base.index.items() if not is_float(tensor.dtype)]
    problems = [
        f"Expert {expert.name} has other values than the base in tensor {shown(name)!r}, whose "
        f"dtype {plan.base.index[name].dtype} cannot be merged."
        for name in fixed
        for expert, vector in zip(plan.experts, plan.vectors, strict=True)
        if not vector.agrees(name)
    ]
    raise_together(CheckpointError, problems)


def _softenings(plan: MergePlan, tell: Progress) -> tuple[Softening, ...]:
    """How the changes of each expert are softened, in their order."""
    stages = (f"soften {number}" for number in count(1))

    def of(expert: Expert, vector: TaskVector) -> Softening:
        def walk() -> Iterator[tuple[str, Array, Array]]:
            for name in _counted(plan, tell, next(stages)):
                base = plan.base.read(name)
                yield name, _delta(plan, expert, vector, name, base), base

        return survey_softening(walk, expert.keep, expert.intruders)

    return tuple(of(*pair) for pair in zip(plan.experts, plan.vectors, strict=True))


def _survey(plan: MergePlan, softenings: tuple[Softening, ...], tell: Progress) -> Any:
    if plan.method.survey is None:
        return None
    stages = (f"survey {number}" for number in count(1))

    def passes() -> Iterator[Deltas]:
        for name in _counted(plan, tell, next(stages)):
            yield _deltas(plan, name, plan.base.read(name), softenings)

    with np.errstate(over="ignore", invalid="ignore"):
        return plan.method.survey(passes, plan.params)


def _counted(plan: MergePlan, tell: Progress, stage: str) -> Iterator[str]:
    """The tensors that can be merged, told as they go by."""
    names = [name for name, tensor in plan.base.index.items() if is_float(tensor.dtype)]
    for done, name in enumerate(names):
        tell(stage, done, len(names))
        yield name
    tell(stage, len(names), len(names))


def _merged(
    plan: MergePlan, name: str, place: Tensor, softenings: tuple[Softening, ...], found: Any
) -> Array:
    """The values of one tensor of the result, in the dtype it is written in."""
    base, dtype = plan.base.read(name), DTYPES[place.dtype]
    if not is_float(place.dtype):
        return base
    deltas = _deltas(plan, name, base, softenings)
    if not deltas.changed():
        return _finite(plan, cast(base, dtype), name, "The base")  # bit for bit, if dtypes agree
    with np.errstate(over="ignore", invalid="ignore"):
        change = plan.method.combine(deltas, plan.params, found)
        total = np.asarray(cast(base, compute_dtype(plan.base.index[name].dtype)) + change)
    return _finite(plan, cast(total, dtype), name, "The result")


def _deltas(plan: MergePlan, name: str, base: Array, softenings: tuple[Softening, ...]) -> Deltas:
    return Deltas(
        tensor=name,
        values=[
            softening.soften(name, _delta(plan, expert, vector, name, base))
            for softening, expert, vector in zip(
                softenings, plan.experts, plan.vectors, strict=True
            )
        ],
        weights=tuple(expert.weight for expert in plan.experts),
        shas=tuple(expert.sha for expert in plan.experts),
    )


def _delta(plan: MergePlan, expert: Expert, vector: TaskVector, name: str, base: Array) -> Array:
    delta = vector.delta_from(base, name)
    if not plan.allow_nonfinite and not _all_finite(delta):
        _finite(plan, base, name, "The base")
        if expert.checkpoint.kind == "full":
            _finite(plan, expert.checkpoint.read(name), name, f"Expert {expert.name}")
        _finite(plan, delta, name, f"The difference of expert {expert.name} and the base")
    return delta


def _finite(plan: MergePlan, values: Array, name: str, who: str) -> Array:
    """The values, if all are numbers or the plan does not mind; else CheckpointError."""
    if plan.allow_nonfinite or _all_finite(values):
        return values
    count = np.count_nonzero(~np.isfinite(values))
    raise CheckpointError(
        f"{who} has {count:,} values that are not finite in tensor {shown(name)!r}.",
        "A smaller scale, a wider dtype or another step of the expert may help.",
    )


def _all_finite(values: Array) -> bool:
    return all(np.isfinite(block).all() for (block,) in blocks(values))
