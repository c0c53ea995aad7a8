"""Text encoders of transformers: BERT, RoBERTa, DistilBERT, MiniLM ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hubmerge.models.tensor_names import TensorNames
from hubmerge.models.transformers_folder import (
    class_of_config,
    load_module,
    load_tokenizer,
    save_module,
    tokenize_prompts,
)

# The scale of cosines in sentence-transformers' losses; a text encoder has no learned scale.
_LOGIT_SCALE = 20.0


class TextFeatures(nn.Module):
    """Tokens [B, L] and their mask -> the mean of the last hidden states [B, D]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        total: Tensor = (hidden * mask).sum(dim=1)
        return total / mask.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder, with the heads of its folder; features are mean-pooled (arXiv 1908.10084).

    Examples and labels are encoded by the same encoder, which training changes. So a head of labels
    is made only once, with the base model.
    """

    module: Any
    names: TensorNames
    encoder: nn.Module
    tokenizer: Any
    max_tokens: int
    width: int
    name: str
    layout: str = "transformers"

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        tokens = tokenize_prompts(self.tokenizer, prompts, self.max_tokens).to(self.module.device)
        features: Tensor = self.encoder(tokens["input_ids"], tokens["attention_mask"])
        return features

    def scale(self) -> float:
        return _LOGIT_SCALE

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        save_module(self.module, self.names, folder, state)


def load_text_encoder(folder: Path, config: dict[str, Any]) -> TextEncoder:
    """Load the folder with the class that its config names."""
    module, names = load_module(folder, class_of_config(config, MODEL_MAPPING_NAMES))
    tokenizer = load_tokenizer(folder)
    encoder = TextFeatures(module.base_model).eval()
    freeze_pooler(module.base_model)
    max_tokens = min(tokenizer.model_max_length, count_positions(module))
    with torch.no_grad():
        width = int(encoder(torch.zeros(1, 1).long(), torch.ones(1, 1).long()).shape[1])
    return TextEncoder(module, names, encoder, tokenizer, max_tokens, width, type(module).__name__)


def freeze_pooler(body: nn.Module) -> None:
    """Freeze the pooler: it gets no gradient, and distributed training would wait for one."""
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def count_positions(module: Any) -> int:
    """The number of token positions; RoBERTa and similar models start after the padding index."""
    table = getattr(getattr(module.base_model, "embeddings", None), "position_embeddings", None)
    padding_index = getattr(table, "padding_idx", None)
    positions = int(getattr(module.config, "max_position_embeddings", 1_000_000))
    return positions if padding_index is None else positions - padding_index - 1
