"""Answer the questions of a task of lm_eval with an open model, by lm_eval's own code.

Likelihoods and texts are those of its `HFLM` around the model; what they are worth is what the task
itself says of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hubmerge.errors import DataError
from hubmerge.tasks.lm_eval_docs import LmEvalDocs
from hubmerge.tasks.lm_eval_name import parse_lm_eval_name
from hubmerge.tasks.lm_eval_task import lm_eval_errors, quiet_lm_eval

_RESAMPLES = 100
_FEWSHOT_SEED = 1234  # of `lm_eval` without options
DocMetrics = dict[str, Any]


@torch.inference_mode()
def measure_docs(
    model: nn.Module, tokenizer: Any, docs: LmEvalDocs, rows: Sequence[int], batch_size: int
) -> list[DocMetrics]:
    """What lm_eval measures of each of these docs: metric,filter -> value, often a number.

    `rows` are indices of all docs of the task, and `batch_size` is in sequences. Raises
    CheckpointError for logits that are not finite, DataError for questions that the model cannot be
    asked.
    """
    # Imported here because it imports lm_eval, which is an extra.
    from hubmerge.learners.lm_eval_harness import LmEvalHarness

    with quiet_lm_eval(), lm_eval_errors(docs.name.label, "ask the questions"):
        pairs = docs.pairs.setdefault(tokenizer, {})
        harness = LmEvalHarness(model, tokenizer, batch_size, pairs)
        requests = [_requests(docs, harness)[row] for row in rows]
        _answer(harness, [request for group in requests for request in group])
    with quiet_lm_eval(), lm_eval_errors(docs.name.label, "measure the answers"):
        return _measure(docs, rows, requests)


def aggregate(docs: LmEvalDocs, metric: str, values: Sequence[Any]) -> float:
    """The value of a metric over docs, as lm_eval sums it up from those of each."""
    name = metric.partition(",")[0]
    with quiet_lm_eval(), lm_eval_errors(docs.name.label, f"sum up {name}"):
        return float(docs.harness_task.aggregation()[name](list(values)))


def resampled_error(docs: LmEvalDocs, metric: str, values: Sequence[Any]) -> float:
    """The standard error of a metric that is no mean, by resampling of the docs with a seed."""
    draws = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    results = [aggregate(docs, metric, [values[row] for row in draw]) for draw in draws]
    return float(np.std(results))


def values_of(docs: LmEvalDocs, metric: str, measured: Sequence[DocMetrics]) -> list[Any]:
    """The values of a metric, one for each doc; raises DataError if a doc has none."""
    missing = next((doc for doc in measured if metric not in doc), None)
    if missing is not None:
        raise DataError(
            f"Task {docs.name.label} does not measure every row by {metric}.",
            f"Write --metric with one of {', '.join(missing)}." if missing else "",
        )
    return [doc[metric] for doc in measured]


def _requests(docs: LmEvalDocs, harness: Any) -> list[list[Any]]:
    """The requests of every doc, in the order in which lm_eval draws examples for them."""
    task, chat = docs.harness_task, parse_lm_eval_name(docs.name.label).chat
    if chat and not harness.tokenizer.chat_template:
        raise DataError(
            f"Task {docs.name.label} is asked in a chat template, which this model has not.",
            "Leave /chat out.",
        )
    key = _chat_key(harness.tokenizer) if chat else ""
    if key not in docs.requests:
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        options = {
            "apply_chat_template": chat,
            "chat_template": harness.apply_chat_template if chat else None,
        }
        docs.requests[key] = [
            _doc_requests(task, index, doc, options) for index, doc in enumerate(docs.docs)
        ]
    return docs.requests[key]


def _chat_key(tokenizer: Any) -> str:
    """What decides how a chat is written."""
    return f"{tokenizer.chat_template}{sorted(tokenizer.special_tokens_map.items())}"


def _doc_requests(task: Any, index: int, doc: Any, options: Mapping[str, Any]) -> list[Any]:
    context = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot,
        system_instruction=None,
        fewshot_as_multiturn=options["apply_chat_template"],
        gen_prefix=task.doc_to_prefix(doc),
        **options,
    )
    metadata = (task.config.task, index, task.config.repeats)
    requests = task.construct_requests(doc=doc, ctx=context, metadata=metadata, **options)
    requests = requests if isinstance(requests, list) else [requests]
    return sorted(requests, key=lambda request: request.idx)


def _answer(harness: Any, requests: Sequence[Any]) -> None:
    """Put the answers of the model into the requests."""
    by_type: dict[str, list[Any]] = {}
    for request in requests:
        request.resps, request.filtered_resps = [], {}
        by_type.setdefault(request.request_type, []).extend([request] * request.repeats)
    for name, asked in by_type.items():
        answers = getattr(harness, name)(asked, disable_tqdm=True)
        for request, answer in zip(asked, answers, strict=True):
            request.resps.append(answer)


def _measure(
    docs: LmEvalDocs, rows: Sequence[int], requests: Sequence[Sequence[Any]]
) -> list[DocMetrics]:
    """The metrics of each doc under each filter of the task."""
    task = docs.harness_task
    measured: list[DocMetrics] = [{} for _ in rows]
    for ensemble in task._filters:
        ensemble.apply([request for group in requests for request in group])
        for row, group, metrics in zip(rows, requests, measured, strict=True):
            answers = [request.filtered_resps[ensemble.name] for request in group]
            values = task.process_results(docs.docs[row], answers)
            metrics.update({f"{name},{ensemble.name}": value for name, value in values.items()})
    return measured
