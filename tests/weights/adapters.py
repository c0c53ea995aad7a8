"""Write small adapters and bases, with tensor names as in peft."""

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


def write_base(folder: Path, tensors: Mapping[str, np.ndarray]) -> Checkpoint:
    """Write a base with these tensors."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors")
    return open_checkpoint(folder)


def save_adapter(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Checkpoint:
    """Write an adapter, by default LoRA of rank 1; tensors are named without peft's prefix."""
    folder.mkdir(parents=True)
    prefixed = {f"{PEFT}{name}": np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(prefixed, folder / "adapter_model.safetensors")
    fields = config if "peft_type" in config else {**LORA, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return open_checkpoint(folder)
