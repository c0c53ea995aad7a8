"""The head of an expert in a file beside a merge, with the configuration that explains it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_config import read_adapter_config
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import Array
from hubmerge.weights.full_names import plain_names
from hubmerge.weights.model_config import read_model_config, vocabulary_size, with_tokens
from hubmerge.weights.task_vector import TaskVector
from hubmerge.weights.vocabulary import read_vocabulary

# The metadata of the file: the configuration of the whole model, as text.
CONFIG_KEY = "config"


@dataclass(frozen=True)
class KeptHead:
    """The tensors of a head, plain name -> name in the expert.

    `config` is the configuration of the whole model under this head.
    """

    expert: Checkpoint
    tensors: Mapping[str, str]
    config: Mapping[str, Any] = field(repr=False)

    def read(self) -> dict[str, Array]:
        """The values by plain name, as float32; raises CheckpointError if one cannot be read."""
        return {
            plain: np.asarray(self.expert.read(name), np.float32)
            for plain, name in self.tensors.items()
        }

    def write(self, file: Path) -> None:
        """Write a safetensors file with the expert's values, as float32 and under plain names.

        Raises CheckpointError if a tensor cannot be read.
        """
        # Only one metadata key, because safetensors writes several keys in arbitrary order.
        save_file(self.read(), file, {CONFIG_KEY: json.dumps(self.config, sort_keys=True)})


def kept_head(vector: TaskVector) -> KeptHead:
    """The head of an expert that is not merged; it has no tensors if the expert has none."""
    if vector.adapter is None:
        return head_of_full(vector.expert, vector.full.head)
    config, _ = read_adapter_config(vector.expert.folder, str(vector.expert.folder))
    return head_of_adapter(vector.adapter, config.base_class if config else "")


def kept_head_over(
    vector: TaskVector, rows: Mapping[str, int], size: int | None = None
) -> KeptHead:
    """The kept head above a merge whose embedding has these rows of tokens.

    `size` is the number of its rows if that is not the base's. Raises CheckpointError if the
    tokenizer of the expert cannot be read.
    """
    head = kept_head(vector)
    if not head.tensors:
        return head
    folder = (vector.expert if vector.adapter is None else vector.base).folder  # of its config
    own = read_vocabulary(folder).rows
    new_rows = {row: rows[token] for token, row in own.items() if token in rows}
    size = size or vocabulary_size(read_model_config(vector.base.folder))
    return replace(head, config=with_tokens(head.config, size, new_rows))


def head_of_full(expert: Checkpoint, tensors: Iterable[str]) -> KeptHead:
    """The head of a full expert, whose configuration is beside it."""
    plain = {new: name for name, new in plain_names(tensors).items()}
    return KeptHead(expert, plain, read_model_config(expert.folder))


def head_of_adapter(adapter: Adapter, base_class: str) -> KeptHead:
    """The head that an adapter saved in full; `base_class` is the class that it adapted, if known.

    The number of classes is that of the rows of its last matrix.
    """
    config = read_model_config(adapter.base.folder)
    shapes = [adapter.checkpoint.index[name].shape for name in adapter.head.values()]
    classes = min((shape[0] for shape in shapes if len(shape) == 2), default=0)
    names = {str(number): f"LABEL_{number}" for number in range(classes)}
    labels = {"id2label": names, "label2id": {name: int(key) for key, name in names.items()}}
    architectures = [base_class] if base_class else []
    return KeptHead(
        adapter.checkpoint, adapter.head, {**config, **labels, "architectures": architectures}
    )
