"""Builders of small pools: a base and experts of a few numbers, with a few steps each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from hubmerge.selection.candidate import Candidate
from hubmerge.selection.pool import Pool
from hubmerge.source import Source
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.task import Task
from hubmerge.training_curve import ValidationPoint
from hubmerge.trials import RowResults, Trial
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

Tensors = dict[str, np.ndarray]


def fake_sha(text: str) -> str:
    """Return a commit SHA for a name."""
    return hashlib.sha1(text.encode()).hexdigest()


def save_checkpoint(folder: Path, tensors: Tensors) -> Checkpoint:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def make_pool(
    root: Path,
    base: Tensors,
    experts: Sequence[Sequence[tuple[int, Tensors]]],
    own: Sequence[Sequence[float]] | None = None,
    tasks: Sequence[Task] = (),
) -> Pool:
    """Return a pool of checkpoints: for each task (step, tensors), with their `own` accuracies."""
    checkpoints: dict[str, Checkpoint] = {}
    named = tasks or [find_task(f"mini-{name}") for name in ("mnist", "hebrew", "fashion")]
    candidates = []
    for number, steps in enumerate(experts):
        steps_of_task = []
        for index, (step, tensors) in enumerate(steps):
            label = f"me/e{number}@step{step}"
            checkpoints[fake_sha(label)] = save_checkpoint(root / f"e{number}-{step}", tensors)
            source = Source(label, fake_sha(label), "", step, named[number].id)
            accuracy = own[number][index] if own else None
            start = (ValidationPoint(0, None, 0.1, 10, 0.0),) if own else ()
            steps_of_task.append(Candidate(source, accuracy, curve=start))
        candidates.append(tuple(steps_of_task))
    base_checkpoint = save_checkpoint(root / "base", base)
    return Pool(
        base=Source("me/base@main", fake_sha("base"), ""),
        base_checkpoint=base_checkpoint,
        tasks=tuple(named[: len(experts)]),
        candidates=tuple(candidates),
        open=lambda candidate: checkpoints[candidate.source.sha],
    )


def make_trial(name: str, **bits: str) -> Trial:
    """Return a trial with these bits, 1 for a correct row, by task."""
    rows = {task: RowResults(row_bits, len(row_bits)) for task, row_bits in bits.items()}
    return Trial(fake_sha(name), fake_sha("base"), (), "average", {}, "validation", rows)


def read_tensors(folder: Path) -> Tensors:
    return dict(load_file(folder / "model.safetensors"))
