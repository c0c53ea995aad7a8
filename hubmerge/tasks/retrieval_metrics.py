"""How well documents are ranked for a text: one number from 0 to 1, by the ranks of its documents.

A rank is the number of documents before one, from 0. Relevance is all or nothing, as in
InformationRetrievalEvaluator of sentence-transformers. Source of nDCG: Järvelin and Kekäläinen,
ACM TOIS 20(4), 2002, with the discount 1 / log2(rank + 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

_DEPTH = 10


def ndcg_at_10(ranks: Sequence[int]) -> float:
    """The discounted gain of the documents among the first 10, divided by the largest possible."""
    best = math.fsum(map(_discount, range(min(len(ranks), _DEPTH))))
    return math.fsum(_discount(rank) for rank in ranks if rank < _DEPTH) / best


def mrr_at_10(ranks: Sequence[int]) -> float:
    """1 / (rank + 1) of the first of the documents, 0 if that is not among the first 10."""
    first = min(ranks)
    return 1 / (first + 1) if first < _DEPTH else 0.0


def recall_at_10(ranks: Sequence[int]) -> float:
    """The share of the documents that are among the first 10."""
    return sum(rank < _DEPTH for rank in ranks) / len(ranks)


def accuracy_at_1(ranks: Sequence[int]) -> float:
    """1 if one of the documents is the first of all, else 0."""
    return float(min(ranks) == 0)


# Of RETRIEVAL_METRICS of the specs.
RANK_METRICS: Mapping[str, Callable[[Sequence[int]], float]] = {
    "ndcg_at_10": ndcg_at_10,
    "mrr_at_10": mrr_at_10,
    "recall_at_10": recall_at_10,
    "accuracy_at_1": accuracy_at_1,
}


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 2)
