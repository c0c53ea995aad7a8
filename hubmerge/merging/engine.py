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
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from hubmerge.cores import core_count
from hubmerge.errors import CheckpointError, UsageError, raise_together
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.device import on_device
from hubmerge.merging.part_writer import merge_by_parts
from hubmerge.merging.plan import Expert, MergePlan, canonical, check_plan
from hubmerge.merging.softening import Softening, survey_softening
from hubmerge.merging.streaming import open_stream
from hubmerge.merging.tensor_merge import merge_tensor, tensor_delta, tensor_deltas
from hubmerge.progress import ByteProgress, Progress
from hubmerge.weights.atomic_folder import atomic_folder, check_target
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.dtypes import Array, is_float
from hubmerge.weights.header import TensorInfo, safe_name
from hubmerge.weights.match_options import BASE_TIE_HINT, TIED_HINT
from hubmerge.weights.model_config import changed_config
from hubmerge.weights.side_files import copy_side_files, side_files, write_files
from hubmerge.weights.stack_files import create_stack_files
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
    device: str | None = None,
) -> Checkpoint:
    """Merge into the folder `out`, which is written atomically, and open it.

    It has the base's weights, by the same names and in the same order, and the other files that a
    model needs; the configuration follows the plan's dtype and `separate_head`. `finish` is called
    with the temporary folder once these are written, to add a manifest and a card. A folder that
    exists is replaced only if `replace`. `progress` is called with the bytes that are written.
    `threads` is their number, by default one for each core, and `device` a device of torch that
    computes where it can (see `device.py`); both have no effect on the bytes. Raises what
    `check_plan` and `check_out` raise, and CheckpointError for values that are not finite (unless
    allowed), for integer tensors that differ, and for disk errors.
    """
    check_plan(plan)
    check_out(plan, out, replace)
    plan, progress = canonical(plan), progress or ignore_progress
    if device is not None:
        method = on_device(plan.method, plan.params, device)
        plan = dataclasses.replace(plan, method=method)
    with atomic_folder(out, replace) as folder:
        check_integer_tensors(plan)
        check_copies(plan)
        softenings = survey_softenings(plan, progress)
        if plan.config is None or plan.shard_size is not None:
            targets = create_files_like(plan.base, folder, plan.dtype, plan.shard_size)
        else:
            targets = create_stack_files(plan.base, folder, plan.dtype)
        copy_side_files(
            plan.base.folder,
            folder,
            {
                **plan.tokenizer_files,
                **changed_config(
                    plan.base.folder,
                    plan.dtype,
                    plan.separate_head,
                    plan.vocabulary_size,
                    plan.config,
                ),
            },
        )
        write_files(folder, plan.module_files)
        if plan.method.parts(plan.params) != "tensors":
            with open_stream(plan, softenings, threads or core_count()) as stream:
                merge_by_parts(stream, targets, progress)
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
    check_no_input_replaced(plan, out)
    check_target(out, replace)
    check_space_for_copy(plan.base, out, plan.dtype)
    side_files(plan.base.folder)


def ignore_progress(stage: str, done: int, total: int) -> None:
    return None


def check_no_input_replaced(plan: MergePlan, out: Path) -> None:
    """Replacing a folder that is or contains an input would delete what is being read."""
    target = out.resolve()
    checkpoints = (plan.base, *(expert.checkpoint for expert in plan.experts))
    folders = [checkpoint.folder for checkpoint in checkpoints]
    if plan.config is not None:  # layers of other folders
        folders += {t.file.parent for checkpoint in checkpoints for t in checkpoint.index.values()}
    for folder in map(Path.resolve, folders):
        if target == folder or target in folder.parents:
            raise UsageError(f"{out} is or contains {folder}, which is to be merged.")


def check_integer_tensors(plan: MergePlan) -> None:
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


def survey_softenings(plan: MergePlan, progress: Progress) -> tuple[Softening, ...]:
    """How the changes of each expert are softened, in the experts' order."""
    stages = (f"soften {number}" for number in count(1))

    def survey_expert(expert: Expert, vector: TaskVector) -> Softening:
        def passes() -> Iterator[tuple[str, Array, Array]]:
            for name in _float_tensors(plan, progress, next(stages)):
                base = plan.base.read(name)
                yield name, tensor_delta(plan, expert, vector, name, base), base

        return survey_softening(passes, expert.keep, expert.intruders)

    return tuple(survey_expert(*pair) for pair in zip(plan.experts, plan.vectors, strict=True))


def run_survey(plan: MergePlan, softenings: tuple[Softening, ...], progress: Progress) -> Any:
    if plan.method.survey is None:
        return None
    stages = (f"survey {number}" for number in count(1))

    def passes() -> Iterator[Deltas]:
        for name in _float_tensors(plan, progress, next(stages)):
            yield tensor_deltas(plan, name, plan.base.read(name), softenings)

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
    survey = run_survey(plan, softenings, progress)
    counted = ByteProgress(progress, "merge", sum(target.nbytes for target in targets.values()))
    for name, target in targets.items():
        write_tensor(target, merge_tensor(plan, name, target, softenings, survey))
        counted.add(target.nbytes)
