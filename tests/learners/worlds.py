"""Tasks without data, tiny models at them, and a decoder that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from hubmerge.learners.factory import first_head, make_learner
from hubmerge.learners.learner import Batch, Learner
from hubmerge.learners.ranking import LanguageLearner, Reader
from hubmerge.models.loading import Model, open_model
from hubmerge.specs import DataSpec, Kind, TaskSpec
from hubmerge.tasks.data import Ranked
from hubmerge.tasks.task import Task

CLASSES = ("one", "two", "three")
_ASKED: dict[Kind, dict[str, Any]] = {
    "image": {},
    "text": {},
    "rank": {"prompt": "{{ q }}", "choices": ("Yes", "No"), "answer": "a"},
    "target": {"prompt": "{{ q }}", "target": "{{ a }}"},
}


def task(kind: Kind, **said: Any) -> Task:
    """A task of that kind, whose data nobody asks for."""
    values = {"name": "small", "kind": kind, "data": DataSpec(path=Path("none")), **_ASKED[kind]}
    return Task(TaskSpec(**{**values, **said}), Path())


def opened(folder: Path, kind: Kind, **said: Any) -> tuple[Any, Any]:
    """The model of a folder, and the learner that it is at a task of that kind."""
    model: Model = open_model(folder, kind)
    asked = task(kind, **said)
    return model, make_learner(model, asked, first_head(model, asked, CLASSES), augment=False)


def batch_of(learner: Learner, *examples: Any) -> Batch:
    return learner.collate([learner.for_evaluation(example) for example in examples])


def scores(learner: LanguageLearner, *examples: Ranked) -> list[list[float]]:
    """What each choice of each example scores, all of them in one batch."""
    batch = batch_of(learner, *examples)
    names = ("input_ids", "attention_mask", "labels", "owner")
    with torch.no_grad():
        told, _ = learner.network(*(batch[name] for name in names))
    each = iter(told.sum(dim=-1).tolist())
    return [[next(each) for _ in example.choices] for example in examples]


class Counter(nn.Module):
    """A decoder that is sure: after 3 comes 4. Behind the last number it starts at 0 again."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = words

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> CausalLMOutput:
        following = nn.functional.one_hot((input_ids + 1) % self.words, self.words)
        return CausalLMOutput(logits=2.0 * following)


def counting(end: int = 9) -> LanguageLearner:
    """Words are the digits, each a token; `end` is also the end of sequence."""
    digits = Tokenizer(WordLevel({str(n): n for n in range(10)}, unk_token="0"))
    digits.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=digits, eos_token=str(end), pad_token=str(end)
    )
    return LanguageLearner(Reader(Counter(10), is_seq2seq=False), tokenizer, False, max_tokens=8)
