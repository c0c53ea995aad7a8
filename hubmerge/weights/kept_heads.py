"""The head of an expert in a file beside a merge, with the configuration that explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.model_config import CONFIG_JSON

# The metadata of the file: the config.json of the expert, as text.
CONFIG_KEY = "config"


@dataclass(frozen=True)
class KeptHead:
    """The tensors of a head, plain name -> name in the expert."""

    expert: Checkpoint
    tensors: Mapping[str, str]

    def write(self, file: Path) -> None:
        """Write a safetensors file with the expert's values, as float32 and under plain names.

        Raises CheckpointError if a tensor cannot be read.
        """
        values = {
            plain: np.asarray(self.expert.read(name), np.float32)
            for plain, name in self.tensors.items()
        }
        config = (self.expert.folder / CONFIG_JSON).read_text(encoding="utf-8")
        # Only one metadata key, because safetensors writes several keys in arbitrary order.
        save_file(values, file, {CONFIG_KEY: config})
