"""The names of metrics that modules need which read no tasks."""

from __future__ import annotations

# Of a text that the model generates, compared with the answer.
GENERATION_METRICS = ("exact_match", "contains", "f1", "rouge_l")
# Of a row: the geometric mean of the probabilities of the answer's tokens.
LIKELIHOOD = "likelihood"
# Of the rank that a model gives to the documents that belong to a text, among all documents.
RETRIEVAL_METRICS = ("ndcg_at_10", "mrr_at_10", "recall_at_10", "accuracy_at_1")
# A row is right or wrong, without anything between.
BINARY_METRICS = ("accuracy", "exact_match", "contains", "accuracy_at_1")
