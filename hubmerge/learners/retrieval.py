"""Rank documents for texts by their embeddings.

Shapes: Q queries, N documents, E features of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hubmerge.learners.classification import check_finite
from hubmerge.learners.embedding import EmbeddingLearner, similarity
from hubmerge.learners.learner import Example

Embeddings = tuple[Tensor, bool]  # [N, E], and whether they are compared by their cosine


@torch.inference_mode()
def embed_documents(
    learner: EmbeddingLearner,
    network: nn.Module,
    tokens: Sequence[Tensor],
    size: int,
    device: torch.device,
) -> Embeddings:
    """The embeddings of documents, in batches of texts of similar length.

    Raises CheckpointError for values that are not finite.
    """
    order = sorted(range(len(tokens)), key=lambda number: len(tokens[number]))
    parts = [
        _embed(learner, network, [tokens[number] for number in order[start : start + size]], device)
        for start in range(0, len(order), size)
    ]
    embedded = torch.empty_like(torch.cat(parts))
    embedded[torch.tensor(order, device=device)] = torch.cat(parts)
    return embedded, learner.is_cosine


@torch.inference_mode()
def embed_queries(
    learner: EmbeddingLearner,
    network: nn.Module,
    examples: Sequence[Example],
    device: torch.device,
) -> Tensor:
    """The embeddings of the anchors of prepared rows; raises as `embed_documents` does."""
    return _embed(learner, network, [example["input_ids"] for example in examples], device)


@torch.inference_mode()
def rank_documents(
    queries: Tensor, documents: Embeddings, relevant: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The rank of each relevant document of each query among all documents, from 0.

    Of documents that are equally near, the one that comes first in the data is before the others.
    """
    scores = similarity(queries, *documents)
    position = torch.arange(scores.shape[1], device=scores.device)
    ranks = []
    for row, own in zip(scores, relevant, strict=True):
        wanted = torch.tensor(own, device=row.device).unsqueeze(-1)
        score = row[wanted]
        before = (row > score) | ((row == score) & (position < wanted))
        ranks.append(before.sum(dim=-1).tolist())
    return ranks


def _embed(
    learner: EmbeddingLearner, network: nn.Module, rows: Sequence[Tensor], device: torch.device
) -> Tensor:
    batch = learner.pad(rows)
    embedded: Tensor = network(*(tensor.to(device) for tensor in batch.values())).float()
    check_finite(embedded)
    return embedded
