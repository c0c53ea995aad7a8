"""Builders of tasks without data, learners of tiny models, and a decoder that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from hubmerge.learners.factory import initial_head, make_learner
from hubmerge.learners.learner import Batch, Learner
from hubmerge.learners.pair_encoder import PairEncoder
from hubmerge.learners.ranking import LanguageLearner, TargetScorer
from hubmerge.learners.row_encoder import RowEncoder
from hubmerge.models.loading import Model, load_model
from hubmerge.specs import DataSpec, Kind, TaskSpec
from hubmerge.tasks.data import RankExample
from hubmerge.tasks.task import Task

CLASSES = ("one", "two", "three")
_KIND_FIELDS: dict[Kind, dict[str, Any]] = {
    "image": {},
    "text": {},
    "rank": {"prompt": "{{ q }}", "choices": ("Yes", "No"), "answer": "a"},
    "target": {"prompt": "{{ q }}", "target": "{{ a }}"},
}


def task(kind: Kind, **fields: Any) -> Task:
    """A task of this kind whose data are never read."""
    values = {
        "name": "small",
        "kind": kind,
        "data": DataSpec(path=Path("none")),
        **_KIND_FIELDS[kind],
    }
    return Task(TaskSpec(**{**values, **fields}), Path())


def load_learner(folder: Path, kind: Kind, **fields: Any) -> tuple[Any, Any]:
    """The model of a folder, and its learner for a task of this kind."""
    model: Model = load_model(folder, kind)
    own_task = task(kind, **fields)
    return model, make_learner(
        model, own_task, initial_head(model, own_task, CLASSES), augment=False
    )


def batch_of(learner: Learner, *examples: Any) -> Batch:
    return learner.collate([learner.for_evaluation(example) for example in examples])


def scores(learner: LanguageLearner, *examples: RankExample) -> list[list[float]]:
    """The score of every choice of every example, computed in one batch."""
    batch = batch_of(learner, *examples)
    names = ("input_ids", "attention_mask", "labels", "owner")
    with torch.no_grad():
        log_probs, _ = learner.network(*(batch[name] for name in names))
    values = iter(log_probs.sum(dim=-1).tolist())
    return [[next(values) for _ in example.choices] for example in examples]


class CountingDecoder(nn.Module):
    """A decoder that predicts the next number after each token; after the last number comes 0."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = words

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> CausalLMOutput:
        next_token = nn.functional.one_hot((input_ids + 1) % self.words, self.words)
        return CausalLMOutput(logits=2.0 * next_token)


def counting_learner(end: int = 9) -> LanguageLearner:
    """A learner for texts of digits, one token each; `end` is also the end-of-sequence token."""
    digits = Tokenizer(WordLevel({str(n): n for n in range(10)}, unk_token="0"))
    digits.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=digits, eos_token=str(end), pad_token=str(end)
    )
    return LanguageLearner(
        TargetScorer(CountingDecoder(10), is_seq2seq=False),
        RowEncoder(PairEncoder(tokenizer, is_seq2seq=False), max_tokens=8),
    )
