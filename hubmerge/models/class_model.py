"""Classification models of transformers with their own head, or with one kept beside a merge.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from hubmerge.errors import CheckpointError
from hubmerge.models.config import parse_config
from hubmerge.models.load_errors import load_errors_name
from hubmerge.models.tensor_names import find_module_names
from hubmerge.models.transformers_folder import without_warnings
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.class_heads import is_class_head
from hubmerge.weights.full_names import plain_names
from hubmerge.weights.header import read_header
from hubmerge.weights.kept_heads import CONFIG_KEY, KeptHead

_NAMES: tuple[Any, ...] = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)
_CLASSES = {
    name if isinstance(name, str) else name[0] for names in _NAMES for name in names.values()
}


class ClassModel(nn.Module):
    """A whole classification model: inputs -> logits [B, C] in the order of a task's classes."""

    order: Tensor

    def __init__(self, module: Any, input_names: Sequence[str], order: Sequence[int]) -> None:
        super().__init__()
        self.module, self.input_names = module, tuple(input_names)
        self.register_buffer("order", torch.tensor(order))

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.module(**dict(zip(self.input_names, inputs, strict=True)))
        return cast(Tensor, output.logits[:, self.order])


@dataclass(frozen=True)
class HeadedBase:
    """A base under the head of a task.

    `names`: name in the base's files -> name in the module's state; `head_names`: plain name of a
    head's tensor -> name in the state.
    """

    module: Any
    names: Mapping[str, str]
    head_names: Mapping[str, str]


def is_class_model(module: object) -> bool:
    """Whether a module is a classifier of transformers."""
    return type(module).__name__ in _CLASSES


def class_order(config: Any, classes: Sequence[str], where: str) -> list[int]:
    """The model's class for each class of a task: by name if the names are the same, else in order.

    Raises CheckpointError if their numbers differ.
    """
    labels = [str(config.id2label[number]) for number in range(config.num_labels)]
    if len(labels) != len(classes):
        raise CheckpointError(
            f"{where} has a head for {len(labels)} classes, and the task has {len(classes)}.",
            "Use the task that the head was trained on.",
        )
    if sorted(labels) == sorted(classes):
        return [labels.index(name) for name in classes]
    return list(range(len(labels)))


def has_config(file: Path) -> bool:
    """Whether a head file is one that was kept beside a merge."""
    with safe_open(file, framework="pt") as opened:
        return CONFIG_KEY in (opened.metadata() or {})


def _class_name(fields: dict[str, Any]) -> str:
    """The class in a configuration; an adapter may not say what class it adapted."""
    if architectures := fields.get("architectures"):
        return str(architectures[0])
    found = (names.get(fields.get("model_type")) for names in _NAMES)
    names = next((names for names in found if names), "")
    return names if isinstance(names, str) else str(names[0])


def read_head_file(file: Path) -> KeptHead:
    """The head in a file that was kept beside a merge; raises CheckpointError."""
    index = read_header(file)
    with safe_open(file, framework="pt") as opened:
        fields = parse_config((opened.metadata() or {})[CONFIG_KEY], f"The config in {file}")
    return KeptHead(Checkpoint(file.parent, "full", index), {name: name for name in index}, fields)


def load_class_model(folder: Path, file: Path) -> Any:
    """The model of a folder under the head in a file, as `build_class_model`."""
    head = read_head_file(file)
    values = {name: torch.from_numpy(array) for name, array in head.read().items()}
    return build_class_model(folder, dict(head.config), values, file)


def build_class_model(
    folder: Path, fields: dict[str, Any], head: Mapping[str, Tensor], where: Path
) -> Any:
    """The model of a folder under a head: in float32, on the CPU, in evaluation mode.

    `fields` is the configuration of the whole model; `where` names the head in errors. Raises
    CheckpointError for an unknown class, a configuration that does not fit, or if a tensor is
    missing.
    """
    state: dict[str, Tensor] = {}
    for weights in open_checkpoint(folder).weight_file_names():
        with safe_open(folder / weights, framework="pt") as opened:
            plain = plain_names(opened.keys())
            state |= {plain[n]: opened.get_tensor(n) for n in plain if not is_class_head(plain[n])}
    with load_errors_name(where):
        module, missing = _build(fields, {**state, **head})
    if missing:
        raise CheckpointError(
            f"{folder} with {where.name} lacks {missing[0]!r} of {type(module).__name__}."
        )
    return module.eval()


def put_under_head(folder: Path, head: KeptHead) -> HeadedBase:
    """The model of a folder under an expert's head, as `build_class_model`.

    Raises CheckpointError if a parameter is neither one of the folder nor one of the head.
    """
    values = {name: torch.from_numpy(array) for name, array in head.read().items()}
    module = build_class_model(folder, dict(head.config), values, head.expert.folder)
    plain = plain_names(open_checkpoint(folder).names())
    found = find_module_names(plain.values(), module)
    names = {n: found[p] for n, p in plain.items() if p in found and not is_class_head(p)}
    head_names = find_module_names(head.tensors, module)
    covered = {*names.values(), *head_names.values()}
    if missing := [name for name, _ in module.named_parameters() if name not in covered]:
        raise CheckpointError(
            f"{missing[0]!r} of {type(module).__name__} is neither in {folder} nor in the head of "
            f"{head.expert.folder}."
        )
    return HeadedBase(module, names, head_names)


def _build(fields: dict[str, Any], state: dict[str, Tensor]) -> tuple[Any, list[str]]:
    """The model of a configuration with these tensors, and the names of those it lacks."""
    name = _class_name(fields)
    if name not in _CLASSES:
        raise ValueError(f"the class {name!r} is not known")
    model_class = getattr(transformers, name)
    with without_warnings():
        module, info = model_class.from_pretrained(
            None,
            config=model_class.config_class.from_dict(fields),
            state_dict=state,
            dtype="float32",
            output_loading_info=True,
            attn_implementation="sdpa" if model_class._supports_sdpa else "eager",
        )
    return module, sorted(info["missing_keys"])
