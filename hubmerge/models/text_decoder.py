"""Models of transformers with a decoder that classify texts: GPT-2, Llama, T5, BART ...

Their heads read the last token that is not padding, or the end of the text that the tokenizer adds.

Shapes: B examples, L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from hubmerge.models.tensor_names import TensorNames
from hubmerge.models.text_encoder import count_positions
from hubmerge.models.transformers_folder import (
    class_of_config,
    load_module,
    load_tokenizer,
    save_module,
)


@dataclass(frozen=True)
class TextDecoder:
    """A model with a decoder, and the heads of its folder; its classifiers are transformers'.

    Unlike a `TextEncoder` it has no features of a text that a head of hubmerge could take.
    """

    module: Any
    names: TensorNames
    tokenizer: Any
    max_tokens: int
    name: str
    layout: str = "transformers"

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        save_module(self.module, self.names, folder, state)


class PaddedClassifier(nn.Module):
    """A `TextDecoder`'s classifier of transformers for padded rows: tokens, mask [B, L] -> logits.

    Of a decoder alone, transformers takes the logits [B, C] at the last token that is not
    `pad_token_id` of its configuration, so masked tokens become this one, whatever the tokenizer
    pads with. A configuration without a token to pad with allows one row at a time, unpadded.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.padding = module, _padding_token(module)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        if self.padding is None:
            rows = [
                self.module(input_ids=ids[mask.bool()].unsqueeze(0)).logits
                for ids, mask in zip(input_ids, attention_mask, strict=True)
            ]
            return SequenceClassifierOutput(logits=torch.cat(rows))
        padded = input_ids.masked_fill(attention_mask == 0, self.padding)
        logits = self.module(input_ids=padded, attention_mask=attention_mask).logits
        return SequenceClassifierOutput(logits=logits)


def load_text_decoder(folder: Path, config: dict[str, Any]) -> TextDecoder:
    """Load the folder with the class that its config names."""
    is_seq2seq = config.get("is_encoder_decoder")
    classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if is_seq2seq:
        classes = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    module, names = load_module(folder, class_of_config(config, classes))
    tokenizer = load_tokenizer(folder)
    max_tokens = min(tokenizer.model_max_length, count_positions(module))
    return TextDecoder(module, names, tokenizer, max_tokens, type(module).__name__)


def _padding_token(module: Any) -> int | None:
    """The token that transformers takes for padding; None without one that has a row."""
    token = getattr(module.config.get_text_config(), "pad_token_id", None)
    return token if token is not None and token >= 0 else None
