"""The heads of classification tasks: frozen label embeddings, or trained and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.learners.classification import LabelHead
from hubmerge.models.model import LabelEncoder
from hubmerge.refs import printable
from hubmerge.tasks.heads import zero_shot_head
from hubmerge.tasks.task import Task
from hubmerge.weights.header import read_header


def label_head(model: LabelEncoder, task: Task, classes: tuple[str, ...]) -> LabelHead:
    """The frozen head of a task: its classes in its templates, as this model embeds them.

    For texts, whose encoder itself is trained, that must be the base's.
    """
    return LabelHead(zero_shot_head(model.encode_text, model.scale(), classes, task.spec.templates))


def new_head(width: int, classes: int) -> nn.Linear:
    """A head to be trained; zeros, so that it starts without an opinion and without a seed."""
    head = nn.Linear(width, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def head_file(folder: Path, task: Task) -> Path:
    """Where a folder keeps the trained head of a task, beside the encoder that merges share."""
    return folder / f"head-{task.name}.safetensors"


def save_head(head: nn.Linear, folder: Path, task: Task, classes: Sequence[str]) -> None:
    """Write `weight` [C, D] and `bias` [C], and which classes they are of."""
    tensors = {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}
    # One word of metadata only: safetensors writes several in any order.
    metadata = {"classes": json.dumps(list(classes))}
    save_file(tensors, head_file(folder, task), metadata=metadata)


def load_head(folder: Path, task: Task, width: int, classes: Sequence[str]) -> nn.Linear:
    """Read a trained head; raises UsageError for none, CheckpointError for one that is unfit."""
    file = head_file(folder, task)
    if not file.is_file():
        raise UsageError(
            f"{folder} has no head for task {task.name}, whose head is trained.",
            "Evaluate an expert that was trained for it, or a merge of such experts.",
        )
    read_header(file)  # refuses what the format does not allow
    head, saved = new_head(width, len(classes)), load_file(file)
    if {name: tensor.shape for name, tensor in saved.items()} != {
        name: tensor.shape for name, tensor in head.state_dict().items()
    }:
        raise CheckpointError(f"{file} is no head of {len(classes)} classes over {width} features.")
    with safe_open(file, framework="pt") as opened:
        said = (opened.metadata() or {}).get("classes")
    if said is not None and said != json.dumps(list(classes)):
        raise CheckpointError(
            f"{file} is a head for other classes: {printable(said)[:200]}, and task {task.name} "
            f"has {printable(json.dumps(list(classes)))[:200]}.",
            "Give the task as it was trained.",
        )
    head.load_state_dict(saved)
    return head
