"""Language models of transformers: T5 and other sequence-to-sequence models, and decoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from hubmerge.models.tensor_names import TensorNames
from hubmerge.models.transformers_folder import (
    class_of_type,
    load_module,
    load_tokenizer,
    save_module,
)


@dataclass(frozen=True)
class LanguageModel:
    """A language model.

    `forward_module(input_ids=..., attention_mask=..., labels=...)` is how to call it: `module`, or
    with prefix tuning peft's wrapper around it. `shares_encoder` is whether the output of the
    encoder can be reused with other labels; with prefix tuning it cannot.
    """

    module: Any
    names: TensorNames
    forward_module: nn.Module
    tokenizer: Any
    is_seq2seq: bool
    name: str
    shares_encoder: bool = True
    layout: str = "transformers"

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        save_module(self.module, self.names, folder, state)


def load_language_model(folder: Path, config: dict[str, Any]) -> LanguageModel:
    """Load the folder with transformers' class for the model type; the head may be tied."""
    is_seq2seq = bool(config.get("is_encoder_decoder"))
    mappings = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    module, names = load_module(folder, class_of_type(config, mappings[is_seq2seq]))
    tokenizer = load_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise ValueError("its tokenizer has no end-of-sequence token")
    return LanguageModel(module, names, module, tokenizer, is_seq2seq, type(module).__name__)
