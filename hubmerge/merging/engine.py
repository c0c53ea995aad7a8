"""The engine: stream checkpoints through a method, tensor by tensor, into a new folder.

Everything that makes merging fast or safe is behind `merge`; methods see arrays, callers see
folders. Methods whose formula holds for each entry are computed in parts, by several threads, with
the same bytes for any number of them (see `part_reader` for what is in memory). Other methods get
whole tensors: then one tensor of each expert is in memory.
Arithmetic is in float32 (float64 for F64) and is rounded once, to nearest even, to the dtype that
is written. (float64 to bfloat16 or float8 is rounded twice, through float32.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from hubmerge.errors import CheckpointError, UsageError, raise_together
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.part_reader import Span, default_threads
from hubmerge.merging.plan import Expert, MergePlan, canonical, check_plan
from hubmerge.merging.softening import Softening, survey_softening
from hubmerge.merging.streaming import PartStream, StreamPasses, open_stream
from hubmerge.progress import Progress
from hubmerge.weights.array_blocks import blocks
from hubmerge.weights.atomic_folder import atomic_folder, check_target
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.dtypes import DTYPES, Array, cast, compute_dtype, is_float
from hubmerge.weights.header import TensorInfo, safe_name
from hubmerge.weights.match_options import BASE_TIE_HINT, TIED_HINT
from hubmerge.weights.model_config import changed_config
from hubmerge.weights.side_files import copy_side_files, side_files
from hubmerge.weights.task_vector import TaskVector
from hubmerge.weights.writer import (
    check_space_for_copy,
    create_files_like,
    write_tensor,
)


def merge(
    plan: MergePlan,
    out: Path,
    replace: bool = False,
    progress: Progress | None = None,
    finish: Callable[[Path], None] | None = None,
    threads: int | None = None,
) -> Checkpoint:
    """Merge into the folder `out`, which is written atomically, and open it.

    It has the base's weights, by the same names and in the same order, and the other files that a
    model needs; the configuration follows the plan's dtype and `separate_head`. `finish` is called
    with the temporary folder once these are written, to add a manifest and a card. A folder that
    exists is replaced only if `replace`. `progress` is called with the bytes that are written.
    `threads` is their number, by default one for each core; it has no effect on the bytes. Raises
    what `check_plan` and `check_out` raise, and CheckpointError for values that are not finite
    (unless allowed), for integer tensors that differ, and for disk errors.
    """
    check_plan(plan)
    check_out(plan, out, replace)
    plan, progress = canonical(plan), progress or _ignore_progress
    with atomic_folder(out, replace) as folder:
        _check_integer_tensors(plan)
        check_copies(plan)
        softenings = _survey_softenings(plan, progress)
        targets = create_files_like(plan.base, folder, plan.dtype)
        copy_side_files(
            plan.base.folder,
            folder,
            {
                **plan.tokenizer_files,
                **changed_config(
                    plan.base.folder, plan.dtype, plan.separate_head, plan.vocabulary_size
                ),
            },
        )
        if plan.method.by_parts(plan.params):
            with open_stream(plan, softenings, threads or default_threads()) as stream:
                _merge_by_parts(stream, targets, progress)
        else:
            _merge_by_tensors(plan, targets, softenings, progress)
        if finish is not None:
            finish(folder)
    return open_checkpoint(out)


def check_out(plan: MergePlan, out: Path, replace: bool = False) -> None:
    """Raise if the result of a plan cannot be written to `out`.

    UsageError if `out` is an input or contains one; CheckpointError if it exists, if there is too
    little disk space, or if the base's other files cannot be copied. Nothing is written, and no
    value is read.
    """
    _check_no_input_replaced(plan, out)
    check_target(out, replace)
    check_space_for_copy(plan.base, out, plan.dtype)
    side_files(plan.base.folder)


def _ignore_progress(stage: str, done: int, total: int) -> None:
    return None


def _check_no_input_replaced(plan: MergePlan, out: Path) -> None:
    """Replacing a folder that is or contains an input would delete what is being read."""
    target = out.resolve()
    for checkpoint in (plan.base, *(expert.checkpoint for expert in plan.experts)):
        folder = checkpoint.folder.resolve()
        if target == folder or target in folder.parents:
            raise UsageError(f"{out} is or contains {folder}, which is to be merged.")


def _check_integer_tensors(plan: MergePlan) -> None:
    """Positions, counters and masks are not weights: they must be the same in all models."""
    integer_tensors = [
        name for name, tensor in plan.base.index.items() if not is_float(tensor.dtype)
    ]
    problems = [
        f"Expert {expert.name} has other values than the base in tensor {safe_name(name)!r}, whose "
        f"dtype {plan.base.index[name].dtype} cannot be merged."
        for name in integer_tensors
        for expert, vector in zip(plan.experts, plan.vectors, strict=True)
        if not vector.matches_base(name)
    ]
    raise_together(CheckpointError, problems)


def check_copies(plan: MergePlan) -> None:
    """Raise CheckpointError if a tensor that is stored twice, such as a tied head, differs.

    Only these tensors are read.
    """
    problems, hints = [], []
    for expert, vector in zip(plan.experts, plan.vectors, strict=True):
        for checkpoint, copy, original in vector.unequal_copies():
            is_base = checkpoint is plan.base
            label = "The base" if is_base else f"Expert {expert.name}"
            problems.append(
                f"{label} has other values in {safe_name(copy)!r} than in "
                f"{safe_name(original)!r}, which the base ties."
            )
            hints.append(BASE_TIE_HINT if is_base else TIED_HINT)
    raise_together(CheckpointError, list(dict.fromkeys(problems)), " ".join(dict.fromkeys(hints)))


def _survey_softenings(plan: MergePlan, progress: Progress) -> tuple[Softening, ...]:
    """How the changes of each expert are softened, in the experts' order."""
    stages = (f"soften {number}" for number in count(1))

    def survey_expert(expert: Expert, vector: TaskVector) -> Softening:
        def passes() -> Iterator[tuple[str, Array, Array]]:
            for name in _float_tensors(plan, progress, next(stages)):
                base = plan.base.read(name)
                yield name, _delta(plan, expert, vector, name, base), base

        return survey_softening(passes, expert.keep, expert.intruders)

    return tuple(survey_expert(*pair) for pair in zip(plan.experts, plan.vectors, strict=True))


def _run_survey(plan: MergePlan, softenings: tuple[Softening, ...], progress: Progress) -> Any:
    if plan.method.survey is None:
        return None
    stages = (f"survey {number}" for number in count(1))

    def passes() -> Iterator[Deltas]:
        for name in _float_tensors(plan, progress, next(stages)):
            yield _deltas(plan, name, plan.base.read(name), softenings)

    with np.errstate(over="ignore", invalid="ignore"):
        return plan.method.survey(passes, plan.params)


def _float_tensors(plan: MergePlan, progress: Progress, stage: str) -> Iterator[str]:
    """The tensors that can be merged; `progress` is called for each."""
    names = [name for name, tensor in plan.base.index.items() if is_float(tensor.dtype)]
    for done, name in enumerate(names):
        progress(stage, done, len(names))
        yield name
    progress(stage, len(names), len(names))


def _merge_by_tensors(
    plan: MergePlan,
    targets: Mapping[str, TensorInfo],
    softenings: tuple[Softening, ...],
    progress: Progress,
) -> None:
    survey = _run_survey(plan, softenings, progress)
    counted = _ByteProgress(progress, "merge", targets)
    for name, target in targets.items():
        write_tensor(target, _merge_tensor(plan, name, target, softenings, survey))
        counted.add(target.nbytes)


def _merge_by_parts(
    stream: PartStream, targets: Mapping[str, TensorInfo], progress: Progress
) -> None:
    plan = stream.plan
    for name, target in targets.items():
        if not is_float(target.dtype):
            write_tensor(target, plan.base.read(name))
    survey = None
    if plan.method.survey is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            survey = plan.method.survey(StreamPasses(stream, progress), plan.params)
    writer = _PartWriter(stream, targets, survey)
    floats = {name: target for name, target in targets.items() if is_float(target.dtype)}
    counted = _ByteProgress(progress, "merge", floats)
    writer.write(stream.spans, lambda span: counted.add(_written_bytes(span, floats)))
    if plan.method.settle is not None:
        writer.survey, again = plan.method.settle(survey)
        writer.write([stream.part_span(name, start) for name, start in again])
    writer.write_rest()


def _written_bytes(span: Span, targets: Mapping[str, TensorInfo]) -> int:
    return (span.stop - span.start) * DTYPES[targets[span.name].dtype].itemsize


class _PartWriter:
    """Merges parts and writes them.

    A part that no expert changed keeps every bit of the base, unless another part of its tensor
    changed: then -0.0 becomes what the formula gives, as if the tensor were merged as a whole.
    """

    def __init__(self, stream: PartStream, targets: Mapping[str, TensorInfo], survey: Any) -> None:
        self._stream, self._targets, self.survey = stream, targets, survey
        self._changed: set[str] = set()
        self._kept_zeros: dict[str, list[int]] = {}
        self._not_finite: set[str] = set()

    def write(self, chosen: Sequence[Span], on_span: Callable[[Span], None] | None = None) -> None:
        """Merge and write these spans; raises CheckpointError for values that are not finite."""
        for deltas, state in self._stream.run(self._write_part, chosen, on_span):
            name = deltas.tensor
            if state == "kept zeros":
                self._kept_zeros.setdefault(name, []).append(deltas.start)
            elif state != "kept":
                self._changed.add(name)
            if state == "not finite":
                self._not_finite.add(name)
                if not self._stream.plan.allow_nonfinite:
                    self._write_tensor(name)

    def write_rest(self) -> None:
        """Merge what depends on a whole tensor: values that are not finite, and zeros.

        Parts whose -0.0 were kept are merged again if their tensor changed.
        """
        for name in sorted(self._not_finite):
            self._write_tensor(name)
        again = [
            self._stream.part_span(name, start)
            for name in self._changed & self._kept_zeros.keys() - self._not_finite
            for start in self._kept_zeros[name]
        ]
        self._stream.run_all(self._write_merged, again)

    def _write_tensor(self, name: str) -> None:
        """Merge a tensor as a whole; raises CheckpointError for values that are not finite."""
        plan, target = self._stream.plan, self._targets[name]
        values = _merge_tensor(plan, name, target, tuple(self._stream.softenings), self.survey)
        write_tensor(target, values)

    def _write_part(self, base: Array, deltas: Deltas) -> tuple[Deltas, str]:
        """Write one part; returns where it is, and what happened to it."""
        place = dataclasses.replace(deltas, values=[])  # its arrays are about to be reused
        if deltas.changed():
            return place, "changed" if self._write_merged(base, deltas) else "not finite"
        values = cast(base, DTYPES[self._targets[deltas.tensor].dtype])
        if not np.isfinite(values).all():
            return place, "not finite"
        self._stream.files().write(self._targets[deltas.tensor], deltas.start, values)
        return place, "kept zeros" if (np.signbit(base) & (base == 0)).any() else "kept"

    def _write_merged(self, base: Array, deltas: Deltas) -> bool:
        plan, target = self._stream.plan, self._targets[deltas.tensor]
        change = plan.method.combine(deltas, plan.params, self.survey)
        total = cast(base, compute_dtype(plan.base.index[deltas.tensor].dtype)) + change
        values = cast(np.asarray(total), DTYPES[target.dtype])
        if not np.isfinite(values).all():
            return False
        self._stream.files().write(target, deltas.start, values)
        return True


class _ByteProgress:
    """Reports the bytes of some tensors that are done."""

    def __init__(self, progress: Progress, stage: str, targets: Mapping[str, TensorInfo]) -> None:
        self._progress, self._stage = progress, stage
        self._done, self._total = 0, sum(target.nbytes for target in targets.values())
        progress(stage, 0, self._total)

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        self._progress(self._stage, self._done, self._total)


def _merge_tensor(
    plan: MergePlan, name: str, target: TensorInfo, softenings: tuple[Softening, ...], survey: Any
) -> Array:
    """The values of one tensor of the result, in the dtype that is written."""
    base, dtype = plan.base.read(name), DTYPES[target.dtype]
    if not is_float(target.dtype):
        return base
    deltas = _deltas(plan, name, base, softenings)
    if not deltas.changed():
        return _require_finite(
            plan, cast(base, dtype), name, "The base"
        )  # bit for bit if the dtypes are equal
    with np.errstate(over="ignore", invalid="ignore"):
        change = plan.method.combine(deltas, plan.params, survey)
        total = np.asarray(cast(base, compute_dtype(plan.base.index[name].dtype)) + change)
    return _require_finite(plan, cast(total, dtype), name, "The result")


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
        _require_finite(plan, base, name, "The base")
        if expert.checkpoint.kind == "full":
            _require_finite(plan, vector.read(name), name, f"Expert {expert.name}")
        _require_finite(plan, delta, name, f"The difference of expert {expert.name} and the base")
    return delta


def _require_finite(plan: MergePlan, values: Array, name: str, label: str) -> Array:
    """Return the values if all are finite or the plan allows others; else raise CheckpointError."""
    if plan.allow_nonfinite or _all_finite(values):
        return values
    count = np.count_nonzero(~np.isfinite(values))
    raise CheckpointError(
        f"{label} has {count:,} values that are not finite in tensor {safe_name(name)!r}.",
        "A smaller scale, a wider dtype or another step of the expert may help.",
    )


def _all_finite(values: Array) -> bool:
    return all(np.isfinite(block).all() for (block,) in blocks(values))
