"""Small worlds to choose in: a base and experts of a few numbers, a few steps each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from hubmerge.manifest import Point, Source
from hubmerge.selection.pool import Candidate, Pool
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.task import Task
from hubmerge.trials import Rows, Trial
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

Tensors = dict[str, np.ndarray]


def sha_of(text: str) -> str:
    """A commit for a name."""
    return hashlib.sha1(text.encode()).hexdigest()


def saved(folder: Path, tensors: Tensors) -> Checkpoint:
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
    """A pool of checkpoints: for each task (step, tensors); `own` are their accuracies."""
    opened: dict[str, Checkpoint] = {}
    named = tasks or [find_task(f"mini-{name}") for name in ("mnist", "hebrew", "fashion")]
    candidates = []
    for number, steps in enumerate(experts):
        its = []
        for place, (step, tensors) in enumerate(steps):
            label = f"me/e{number}@step{step}"
            opened[sha_of(label)] = saved(root / f"e{number}-{step}", tensors)
            source = Source(label, sha_of(label), "", step, named[number].id)
            accuracy = own[number][place] if own else None
            start = (Point(0, None, 0.1, 10, 0.0),) if own else ()
            its.append(Candidate(source, accuracy, curve=start))
        candidates.append(tuple(its))
    whole = saved(root / "base", base)
    return Pool(
        base=Source("me/base@main", sha_of("base"), ""),
        base_checkpoint=whole,
        tasks=tuple(named[: len(experts)]),
        candidates=tuple(candidates),
        open=lambda candidate: opened[candidate.source.sha],
    )


def trial(name: str, **bits: str) -> Trial:
    """A trial that got these rows right, by task."""
    rows = {task: Rows(said, len(said)) for task, said in bits.items()}
    return Trial(sha_of(name), sha_of("base"), (), "average", {}, "validation", rows)


def read(folder: Path) -> Tensors:
    return dict(load_file(folder / "model.safetensors"))
