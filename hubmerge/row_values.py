"""Measure a learner row by row, by the metric of the task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hubmerge.errors import UsageError
from hubmerge.evaluation import Examples, batch_size, correct_rows, rows_together
from hubmerge.learners.classification import check_finite
from hubmerge.learners.embedding import EmbeddingLearner
from hubmerge.learners.generation import (
    GeneratedText,
    GenerationLimits,
    generate_answers,
    open_scorer,
)
from hubmerge.learners.learner import Batch, Learner
from hubmerge.learners.ranking import LanguageLearner
from hubmerge.learners.retrieval import embed_documents, embed_queries, rank_documents
from hubmerge.learners.row_encoder import IGNORED
from hubmerge.refs import printable
from hubmerge.specs import BINARY_METRICS, LIKELIHOOD, RETRIEVAL_METRICS
from hubmerge.tasks.data import DOC, Split
from hubmerge.tasks.examples import ChatExample, LanguageExample, TextExample
from hubmerge.tasks.metric_function import MetricRow, call_metric_function
from hubmerge.tasks.retrieval_metrics import RANK_METRICS
from hubmerge.tasks.task import Task
from hubmerge.tasks.text_metrics import TEXT_METRICS
from hubmerge.trials import RowValues


@dataclass(frozen=True)
class MeasuredRows:
    """One number per row, and how many generated texts reached the limit without an end."""

    values: tuple[float, ...]
    unfinished: int = 0

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def stderr(self) -> float:
        """The standard error of the mean; the binomial one, if all values are 0 or 1."""
        spread = math.fsum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(spread) / len(self.values)

    def as_row_values(self, task: Task) -> RowValues:
        """As a trial keeps them; raises UsageError for numbers outside [0, 1]."""
        if task.metric in BINARY_METRICS:
            return "".join("1" if value else "0" for value in self.values)
        outside = next((value for value in self.values if not 0 <= value <= 1), None)
        if outside is not None:
            raise UsageError(
                f"The metric {printable(task.metric)} returned {outside:g}, and numbers that are "
                "compared in a selection are from 0 (wrong) to 1 (right).",
                "Scale what the function returns.",
            )
        return self.values


def has_row_metric(task: Task) -> bool:
    """Whether the metric of a task is a mean of numbers, one for each row, by `measure_rows`.

    They are measured on generated texts or on ranks of documents, or are likelihoods.
    """
    return _is_generated(task) or task.metric in (LIKELIHOOD, *RETRIEVAL_METRICS)


def measure_rows(
    learner: Learner,
    network: nn.Module,
    examples: Examples,
    rows: Sequence[int],
    device: torch.device,
) -> MeasuredRows:
    """One number for each of these rows, in their order, in evaluation mode.

    Raises CheckpointError for predictions that are not finite, DataError or UsageError for prompts
    that cannot be written for the model, and UsageError for a function that fails.
    """
    split = examples.split
    if split.lm_eval is not None:
        size = rows_together(split.task)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        values = [v for part in parts for v in lm_eval_values(learner, network, split, part)]
        return MeasuredRows(tuple(map(float, values)))
    if _is_generated(split.task):
        assert isinstance(learner, LanguageLearner)
        return _measure_texts(learner, network, split, rows, device)
    if split.task.spec.kind == "pairs":
        assert isinstance(learner, EmbeddingLearner)
        return MeasuredRows(_measure_ranks(learner, network, examples, rows, device))
    batches = examples.batches_of(rows, learner.collate)
    if examples.split.task.metric == LIKELIHOOD:
        losses, tokens = _answer_losses(network, batches, device)
        return MeasuredRows(tuple((-losses / tokens).exp().tolist()))
    return MeasuredRows(tuple(map(float, correct_rows(learner, network, batches, device))))


def _measure_ranks(
    learner: EmbeddingLearner,
    network: nn.Module,
    examples: Examples,
    rows: Sequence[int],
    device: torch.device,
) -> tuple[float, ...]:
    """The metric of each row by the ranks of its documents among all of the split."""
    documents, measure = examples.split.documents, RANK_METRICS[examples.split.task.metric]
    tokens = examples.prepare_once("documents", lambda: learner.encode_documents(documents.texts))
    network.eval()
    size = batch_size(examples.split.task.spec.kind)
    embedded = embed_documents(learner, network, tokens, size, device)
    values: list[float] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        queries = embed_queries(learner, network, [examples[row] for row in part], device)
        relevant = [documents.relevant[row] for row in part]
        values += map(measure, rank_documents(queries, embedded, relevant))
    return tuple(values)


def lm_eval_values(
    learner: Learner, network: nn.Module, split: Split, rows: Sequence[int]
) -> list[Any]:
    """What lm_eval measures of these rows by the metric of the task, often numbers.

    Raises the same as `measure_rows`.
    """
    # Imported here because it imports lm_eval, which is an extra.
    from hubmerge.learners.lm_eval_model import measure_docs, values_of

    assert split.lm_eval is not None
    assert isinstance(learner, LanguageLearner)
    network.eval()
    docs = split.rows[DOC][:]
    measured = measure_docs(
        open_scorer(network).model,
        learner.encoder.pairs.tokenizer,
        split.lm_eval,
        [docs[row] for row in rows],
        batch_size(split.task.spec.kind),
    )
    return values_of(split.lm_eval, split.task.metric, measured)


def check_metric(split: Split) -> None:
    """Try a metric function on rows of a split, each with its reference as the prediction.

    Raises UsageError if the function fails.
    """
    task = split.task
    if ":" in task.metric:
        few = range(min(3, len(split)))
        answers = [GeneratedText(_reference(split.example(row)), True) for row in few]
        call_metric_function(task.metric, _metric_rows(split, few, answers))


def mean_token_loss(
    learner: Learner,
    network: nn.Module,
    examples: Examples,
    device: torch.device,
) -> tuple[float, float]:
    """The mean loss of a token of the answers, in nats, and its standard error between rows.

    The error is that of a ratio of sums over rows (Cochran, Sampling Techniques, chapter 6).
    Raises CheckpointError for a loss that is not finite.
    """
    rows = range(len(examples.split))
    losses, tokens = _answer_losses(network, examples.batches_of(rows, learner.collate), device)
    mean = float(losses.sum() / tokens.sum())
    deviation = losses - mean * tokens
    return mean, float(deviation.square().sum().sqrt() / tokens.sum())


@torch.inference_mode()
def _answer_losses(
    network: nn.Module, batches: Iterable[Batch], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The loss of each row's answer, in nats, and how many tokens it has: [N] and [N]."""
    network.eval()
    sums, counts = [], []
    for batch in batches:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        names = ("input_ids", "attention_mask", "labels", "owner")
        log_probs, _ = network(*(on_device[name] for name in names))
        check_finite(log_probs)
        sums.append(-log_probs.double().sum(dim=-1).cpu())
        counts.append((batch["labels"] != IGNORED).sum(dim=-1))
    return torch.cat(sums), torch.cat(counts)


def _is_generated(task: Task) -> bool:
    return task.metric in TEXT_METRICS or ":" in task.metric


def _measure_texts(
    learner: LanguageLearner,
    network: nn.Module,
    split: Split,
    rows: Sequence[int],
    device: torch.device,
) -> MeasuredRows:
    network.eval()
    spec, size = split.task.spec, batch_size(split.task.spec.kind)
    limits = GenerationLimits(spec.max_new_tokens, spec.stop)
    answers: list[GeneratedText] = []
    for start in range(0, len(rows), size):
        prompts = [cast(Any, split.example(row)) for row in rows[start : start + size]]
        answers += generate_answers(learner, network, prompts, limits, device)
    unfinished = sum(not answer.is_finished for answer in answers)
    return MeasuredRows(_score_texts(split, rows, answers), unfinished)


def _score_texts(
    split: Split, rows: Sequence[int], answers: Sequence[GeneratedText]
) -> tuple[float, ...]:
    metric_rows = _metric_rows(split, rows, answers)
    if ":" in split.task.metric:
        return call_metric_function(split.task.metric, metric_rows)
    measure = TEXT_METRICS[split.task.metric]
    return tuple(measure(row["prediction"], row["reference"]) for row in metric_rows)


def _metric_rows(
    split: Split, rows: Sequence[int], answers: Sequence[GeneratedText]
) -> list[MetricRow]:
    return [
        {
            "prediction": answer.text,
            "reference": _reference(split.example(row)),
            "row": split.rows[row],
        }
        for row, answer in zip(rows, answers, strict=True)
    ]


def _reference(example: Any) -> str:
    """The answer that the data give."""
    language: LanguageExample = example
    if isinstance(language, ChatExample):
        return language.messages[-1].content
    return language.text if isinstance(language, TextExample) else language.target
