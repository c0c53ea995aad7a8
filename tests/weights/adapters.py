"""Small adapters: a few numbers under the names that peft gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

PEFT = "base_model.model."
LORA = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}


def put_base(folder: Path, tensors: Mapping[str, np.ndarray]) -> Checkpoint:
    """A base of these tensors."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors")
    return open_checkpoint(folder)


def put_adapter(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Checkpoint:
    """An adapter of these tensors, named without peft's prefix; LoRA of rank 1 unless told."""
    folder.mkdir(parents=True)
    whole = {f"{PEFT}{name}": np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(whole, folder / "adapter_model.safetensors")
    said = config if "peft_type" in config else {**LORA, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return open_checkpoint(folder)
