"""The tasks of a pool with their rows, and the base loaded once for each kind of task."""

from __future__ import annotations

import torch

from hubmerge.choosing.candidates import OpenedPool
from hubmerge.models.class_model import HeadedBase, put_under_head
from hubmerge.models.loading import Model, load_classifier
from hubmerge.selection.task_split import LoadedModel, TaskSplit
from hubmerge.specs import Kind
from hubmerge.tasks.data import load_split
from hubmerge.weights.kept_heads import kept_head, kept_head_over
from hubmerge.weights.vocabulary import read_vocabulary


def load_task_splits(
    opened_pool: OpenedPool, split_name: str, device: torch.device
) -> tuple[TaskSplit, ...]:
    """Load a split of every task.

    Tasks of one kind share one loaded base, except those whose experts have heads of their own.
    Raises DataError, or CheckpointError for a head that does not fit its task.
    """
    pool = opened_pool.pool
    models: dict[Kind, Model] = {}
    shared: dict[Kind, LoadedModel] = {}
    splits = []
    for number, task in enumerate(pool.tasks):
        split, kind = load_split(task, split_name), task.spec.kind
        if kind not in models:
            models[kind] = load_classifier(opened_pool.base.folder, kind)
        classifier = _classifier(opened_pool, number)
        if classifier is not None:
            splits.append(TaskSplit(LoadedModel(models[kind], device, classifier), split))
            continue
        if kind not in shared:
            shared[kind] = LoadedModel(models[kind], device)
        splits.append(TaskSplit(shared[kind], split))
    return tuple(splits)


def _classifier(opened_pool: OpenedPool, number: int) -> HeadedBase | None:
    """The base under the head of a task's last expert, if that keeps a head of its own."""
    pool = opened_pool.pool
    if pool.options.heads != "keep" or pool.tasks[number].spec.head != "trained":
        return None
    vector = pool.task_vector(pool.candidates[number][-1])
    if pool.options.vocabulary is None:
        head = kept_head(vector)
    else:
        head = kept_head_over(vector, read_vocabulary(opened_pool.base.folder).rows)
    return put_under_head(opened_pool.base.folder, head) if head.tensors else None
