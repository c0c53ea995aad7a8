"""Learning of embeddings: a text's positive is near, the positives of the other rows are far.

Shapes: B rows, L tokens, N documents of a batch (B positives, then B negatives if there are any).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from hubmerge.learners.classification import check_finite, pad_right
from hubmerge.learners.learner import Batch, Example
from hubmerge.models.embedder import Embedder
from hubmerge.tasks.examples import PairExample

# The scale of cosines in sentence-transformers' losses; dot products are not scaled.
_COSINE_SCALE = 20.0
_SIDES = ("anchor", "document")
INPUTS = tuple(f"{side}_{name}" for side in _SIDES for name in ("ids", "mask"))


@dataclass(frozen=True)
class EmbeddingLearner:
    """Multiple negatives ranking (arXiv 1705.00652), as in sentence-transformers.

    The loss of a row is the cross-entropy of its positive among all documents of the batch. Unlike
    there, a document that belongs to a row for another reason (its anchor or its positive occurs
    twice in the batch) is left out of that row's loss, since it is not wrong. Texts are truncated
    to `max_tokens` tokens.
    """

    network: nn.Module
    tokenizer: Any
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""
    is_cosine: bool = True
    lower_case: bool = False
    augments: bool = False

    @property
    def settings(self) -> tuple[object, ...]:
        """What decides the tokens of a text, besides the tokenizer."""
        return self.max_tokens, self.query_prompt, self.document_prompt, self.lower_case

    def for_training(self, example: Any, seed: int) -> Example:
        return self.for_evaluation(example)

    def for_evaluation(self, example: Any) -> Example:
        pair: PairExample = example
        documents = [pair.positive, *([] if pair.negative is None else [pair.negative])]
        return {
            "input_ids": self._encode([self.query_prompt + pair.anchor])[0],
            "targets": self.encode_documents(documents),
            "texts": (pair.anchor, *documents),
        }

    def encode_documents(self, texts: Sequence[str]) -> list[Tensor]:
        """The tokens of documents."""
        return self._encode([self.document_prompt + text for text in texts])

    def _encode(self, texts: Sequence[str]) -> list[Tensor]:
        if not texts:
            return []
        texts = [text.lower() for text in texts] if self.lower_case else list(texts)
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)
        return [torch.tensor(ids) for ids in encoded["input_ids"]]

    def collate(self, examples: Sequence[Example]) -> Batch:
        documents = [ids for column in zip(*(e["targets"] for e in examples), strict=True)
                     for ids in column]  # fmt: skip
        batch = self.pad([example["input_ids"] for example in examples], "anchor")
        excluded = find_excluded([example["texts"] for example in examples])
        return {**batch, **self.pad(documents, "document"), "excluded": excluded}

    def pad(self, rows: Sequence[Tensor], side: str = "anchor") -> Batch:
        """Tokens of texts as one matrix and its mask."""
        mask = pad_right([torch.ones_like(row) for row in rows], 0)
        return {f"{side}_ids": pad_right(rows, self.tokenizer.pad_token_id), f"{side}_mask": mask}

    def count_terms(self, batch: Batch) -> int:
        return len(batch["anchor_ids"])

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        scores = self.scores(network, batch)
        own = torch.arange(len(scores), device=scores.device)
        return cross_entropy(scores, own, reduction="sum")

    def predict(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The document of the batch that each anchor is nearest to, and its own positive [B, 1]."""
        scores = self.scores(network, batch)
        check_finite(scores.nan_to_num(posinf=torch.nan, neginf=0.0))
        own = torch.arange(len(scores), device=scores.device)
        return scores.argmax(dim=-1, keepdim=True), own.unsqueeze(-1)

    def scores(self, network: nn.Module, batch: Batch) -> Tensor:
        """Scaled similarity of every anchor and document [B, N], -inf for those left out."""
        anchors, documents = cast(tuple[Tensor, Tensor], network(*(batch[n] for n in INPUTS)))
        scores = similarity(anchors, documents, self.is_cosine)
        scores = _COSINE_SCALE * scores if self.is_cosine else scores
        return scores.masked_fill(batch["excluded"], -torch.inf)


def embedding_learner(model: Embedder, max_tokens: int) -> EmbeddingLearner:
    """The learner of an embedding model, for texts of at most so many tokens."""
    return EmbeddingLearner(
        model.encoder,
        model.tokenizer,
        min(max_tokens, model.max_tokens),
        model.query_prompt,
        model.document_prompt,
        model.similarity == "cosine",
        model.lower_case,
    )


def similarity(first: Tensor, second: Tensor, is_cosine: bool) -> Tensor:
    """The cosine, or the dot product, of every row of one matrix and every row of another."""
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.float(), second.float()
        if is_cosine:
            first, second = normalize(first, dim=-1), normalize(second, dim=-1)
        return first @ second.T


def find_excluded(rows: Sequence[Sequence[str]]) -> Tensor:
    """Which documents of a batch are not negatives of a row although they are not its own [B, N].

    A row is an anchor, its positive, and its negative if there is one. Those with a text that is a
    positive of the same anchor are left out.
    """
    relevant: dict[str, set[str]] = {}
    for anchor, positive, *_ in rows:
        relevant.setdefault(anchor, set()).add(positive)
    documents = [text for column in list(zip(*rows, strict=True))[1:] for text in column]
    return torch.tensor(
        [
            [number != own and text in relevant[row[0]] for number, text in enumerate(documents)]
            for own, row in enumerate(rows)
        ]
    )
