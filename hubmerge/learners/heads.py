"""The heads of classification tasks: frozen label embeddings, or trained heads in files."""

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
from hubmerge.weights.header import read_header, safe_name


def label_head(model: LabelEncoder, task: Task, classes: tuple[str, ...]) -> LabelHead:
    """The frozen head of a task: this model's embeddings of its classes in its templates.

    For text tasks `model` must be the base model, because training changes the text encoder.
    """
    return LabelHead(zero_shot_head(model.encode_text, model.scale(), classes, task.spec.templates))


def new_head(width: int, classes: int) -> nn.Linear:
    """A head to be trained; initialised with zeros, so all classes start equal without a seed."""
    head = nn.Linear(width, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def head_path(folder: Path, task: Task) -> Path:
    """The file of a task's trained head in a model folder."""
    return folder / f"head-{task.name}.safetensors"


def save_head(head: nn.Linear, folder: Path, task: Task, classes: Sequence[str]) -> None:
    """Write `weight` [C, D] and `bias` [C], with the class names as metadata."""
    tensors = {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}
    # Only one metadata key, because safetensors writes several keys in arbitrary order.
    metadata = {"classes": json.dumps(list(classes))}
    save_file(tensors, head_path(folder, task), metadata=metadata)


def missing_head(folder: Path, task: Task) -> UsageError:
    """The error for a folder without the head of a task; it names the heads that are there."""
    names = [path.stem.removeprefix("head-") for path in folder.glob("head-*.safetensors")]
    others = f", but for {', '.join(sorted(map(safe_name, names)))}" if names else ""
    return UsageError(
        f"{folder} has no trained head for task {task.name}{others}.",
        "Evaluate an expert that was trained on the task, or a merge of such experts.",
    )


def load_head(folder: Path, task: Task, width: int, classes: Sequence[str]) -> nn.Linear:
    """Read a trained head.

    Raises UsageError if there is none, CheckpointError if its shape or classes do not fit.
    """
    file = head_path(folder, task)
    if not file.is_file():
        raise missing_head(folder, task)
    read_header(file)  # raises for a malformed file
    head, saved = new_head(width, len(classes)), load_file(file)
    if {name: tensor.shape for name, tensor in saved.items()} != {
        name: tensor.shape for name, tensor in head.state_dict().items()
    }:
        raise CheckpointError(
            f"{file} is not a head of {len(classes)} classes over {width} features."
        )
    with safe_open(file, framework="pt") as opened:
        saved_classes = (opened.metadata() or {}).get("classes")
    if saved_classes is not None and saved_classes != json.dumps(list(classes)):
        raise CheckpointError(
            f"{file} is a head for other classes: {printable(saved_classes)[:200]}. Task "
            f"{task.name} has {printable(json.dumps(list(classes)))[:200]}.",
            "Use the task that the head was trained on.",
        )
    head.load_state_dict(saved)
    return head
