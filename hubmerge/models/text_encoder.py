"""A transformers text encoder: BERT, RoBERTa, DistilBERT, MiniLM ..."""

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
    named_class,
    open_module,
    open_tokenizer,
    read_prompts,
    save_module,
)

_SCALE = 20.0  # of cosines in sentence-transformers' own losses; a text encoder learned none


class TextFeatures(nn.Module):
    """Tokens [B, L] and their mask -> the mean of the last hidden states [B, D]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = self.body(input_ids=input_ids, attention_mask=attention_mask)
        mask = attention_mask.unsqueeze(-1).to(seen.last_hidden_state.dtype)
        total: Tensor = (seen.last_hidden_state * mask).sum(dim=1)
        return total / mask.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with the heads it came with. Mean pooling is of arXiv 1908.10084.

    Examples and labels pass through the same encoder: training moves the labels too, so a head of
    labels is made once, with the base.
    """

    module: Any
    names: TensorNames
    encoder: nn.Module
    tokenizer: Any
    length: int  # tokens it takes
    width: int
    name: str
    layout: str = "transformers"

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        tokens = read_prompts(self.tokenizer, prompts, self.length).to(self.module.device)
        features: Tensor = self.encoder(tokens["input_ids"], tokens["attention_mask"])
        return features

    def scale(self) -> float:
        return _SCALE

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        save_module(self.module, self.names, folder, state)


def open_text_encoder(folder: Path, config: dict[str, Any]) -> TextEncoder:
    """Open the folder by the class its config names."""
    module, names = open_module(folder, named_class(config, MODEL_MAPPING_NAMES))
    tokenizer = open_tokenizer(folder)
    encoder = TextFeatures(module.base_model).eval()
    _freeze_pooler(module.base_model)
    length = min(tokenizer.model_max_length, _positions(module))
    with torch.no_grad():
        width = int(encoder(torch.zeros(1, 1).long(), torch.ones(1, 1).long()).shape[1])
    return TextEncoder(module, names, encoder, tokenizer, length, width, type(module).__name__)


def _freeze_pooler(body: nn.Module) -> None:
    """No gradient comes by it, and training on several processes waits for all that it expects."""
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def _positions(module: Any) -> int:
    """Tokens that have a position; RoBERTa and its kin count from behind the padding's own."""
    table = getattr(getattr(module.base_model, "embeddings", None), "position_embeddings", None)
    taken = getattr(table, "padding_idx", None)
    said = int(getattr(module.config, "max_position_embeddings", 1_000_000))
    return said if taken is None else said - taken - 1
