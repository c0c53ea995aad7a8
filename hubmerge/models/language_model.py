"""A transformers language model: T5 and other sequence-to-sequence models, or a decoder."""

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
from hubmerge.models.transformers_folder import class_of, open_module, open_tokenizer, save_module


@dataclass(frozen=True)
class LanguageModel:
    """A model that gives tokens probabilities.

    `runs` is what is called, `runs(input_ids=..., attention_mask=..., labels=...)`: the module, or
    peft's wrapper around it where the adapter is no part of it (prefix tuning). `shares_encoder`
    says whether an encoder's output may be used again with other labels, which it may not there.
    """

    module: Any
    names: TensorNames
    runs: nn.Module
    tokenizer: Any
    is_seq2seq: bool
    name: str
    shares_encoder: bool = True
    layout: str = "transformers"

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        save_module(self.module, self.names, folder, state)


def open_language_model(folder: Path, config: dict[str, Any]) -> LanguageModel:
    """Open the folder by the class transformers has for the model type; the head may be tied."""
    is_seq2seq = bool(config.get("is_encoder_decoder"))
    lists = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    module, names = open_module(folder, class_of(config, lists[is_seq2seq]))
    tokenizer = open_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise ValueError("its tokenizer has no token that ends a text")
    return LanguageModel(module, names, module, tokenizer, is_seq2seq, type(module).__name__)
