"""Write the model of a loop into a folder, as its own library saves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file, save_model
from torch import Tensor

from hubmerge.callbacks.model_facts import adapter_config, inner_model, is_sentence_transformer
from hubmerge.errors import CheckpointError
from hubmerge.opening.references import CARD
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG

_WEIGHTS = "model.safetensors"
# The names of wrapped layers in a model with adapters.
_WRAPPED, _ADAPTER = ".base_layer.", ("lora_", "modules_to_save.", "ia3_", "original_module.")


def write_model(
    folder: Path, model: Any, state: Mapping[str, Tensor] | None, processor: Any
) -> None:
    """Write weights, configuration and tokenizer or processor; of a peft model only the adapter.

    `state` has the weights if those of the model are sharded over processes. Raises CheckpointError
    if nothing that hubmerge reads was written.
    """
    if is_sentence_transformer(model):
        model.save_pretrained(str(folder), create_model_card=False)
    elif hasattr(model, "save_pretrained"):
        model.save_pretrained(folder, state_dict=state)
    elif state is not None:
        save_file(dict(state), folder / _WEIGHTS, metadata={"format": "pt"})
    else:
        save_model(model, str(folder / _WEIGHTS), metadata={"format": "pt"})
    if processor is not None and not is_sentence_transformer(model):
        processor.save_pretrained(folder)
    (folder / CARD).unlink(missing_ok=True)  # peft's, which ours replaces
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{type(model).__name__} saved no safetensors into {folder}.")


def write_base(folder: Path, model: Any, processor: Any) -> None:
    """Write the model before its first step, without its adapter: the base of its steps."""
    if adapter_config(model) is None:
        return write_model(folder, model, None, processor)
    whole: Any = inner_model(model)
    if hasattr(whole, "get_base_model"):
        whole = whole.get_base_model()
    state = {
        name.replace(_WRAPPED, "."): tensor
        for name, tensor in whole.state_dict().items()
        if not any(part in name for part in _ADAPTER)
    }
    shared: dict[int, str] = {}
    kept = {n: t for n, t in state.items() if shared.setdefault(t.data_ptr(), n) == n}
    save_file(
        {name: tensor.contiguous() for name, tensor in kept.items()},
        folder / _WEIGHTS,
        metadata={"format": "pt"},
    )
    whole.config.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return None


def name_base(folder: Path, base: Path) -> None:
    """Write the folder of the base into an adapter's configuration that names none."""
    path = folder / ADAPTER_CONFIG
    if path.is_file():
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not fields.get("base_model_name_or_path"):
            fields["base_model_name_or_path"] = str(base)
            path.write_text(json.dumps(fields, indent=2, sort_keys=True), encoding="utf-8")
