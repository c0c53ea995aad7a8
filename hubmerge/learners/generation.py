"""Answers that a language model generates: greedy, in batches, up to a stop string.

Shapes: B prompts, P tokens of the longest prompt, G tokens generated so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hubmerge.learners.classification import check_finite
from hubmerge.learners.ranking import LanguageLearner, TargetScorer
from hubmerge.tasks.examples import LanguageExample


@dataclass(frozen=True)
class GenerationLimits:
    """When a text ends: before one of the strings `stop`, or after `max_new_tokens`."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class GeneratedText:
    """A generated text without what stopped it; `is_finished` unless it reached the limit."""

    text: str
    is_finished: bool


@torch.inference_mode()
def generate_answers(
    learner: LanguageLearner,
    network: nn.Module,
    examples: Sequence[LanguageExample],
    limits: GenerationLimits,
    device: torch.device,
) -> list[GeneratedText]:
    """What the model answers to the prompts of these examples, as one batch.

    An answer ends with the tokens that end answers in training, as well. Raises DataError or
    UsageError for prompts that cannot be written for the model, CheckpointError for logits that are
    not finite, since a text would be generated from them all the same.
    """
    model = cast(Any, open_scorer(network).model)
    tokenizer, encoder = learner.encoder.pairs.tokenizer, learner.encoder
    prompts = [encoder.prompt_and_answer(example, limits.max_new_tokens)[0] for example in examples]
    ends = _end_tokens(learner, model, examples[0])
    input_ids, attention_mask = _pad_left(prompts, tokenizer.pad_token_id, learner.is_seq2seq)
    start = 1 if learner.is_seq2seq else input_ids.shape[1]
    stopping = _StopStrings(tokenizer, limits.stop, start)
    output = model.generate(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        max_new_tokens=limits.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id,
        stopping_criteria=StoppingCriteriaList([stopping] if limits.stop else []),
        logits_processor=LogitsProcessorList([FiniteLogits()]),
    )
    return [_read(tokenizer, row, limits, ends) for row in output[:, start:].tolist()]


def open_scorer(network: nn.Module) -> TargetScorer:
    """The network without what wraps it for several processes."""
    return cast(TargetScorer, getattr(network, "module", network))


def _end_tokens(learner: LanguageLearner, model: Any, example: LanguageExample) -> list[int]:
    """The tokens after which a text is over: end of sequence, and what ends answers in training."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(configured if isinstance(configured, list) else [configured])
    ends |= {learner.encoder.pairs.tokenizer.eos_token_id, learner.encoder.answer_end(example)}
    return sorted(end for end in ends if end is not None)


def _pad_left(
    prompts: Sequence[Sequence[int]], pad: int, is_seq2seq: bool
) -> tuple[Tensor, Tensor]:
    """Prompts [B, P] and their mask; a decoder continues at the right end, so it pads the left."""
    longest = max(map(len, prompts))
    ids, mask = [], []
    for prompt in prompts:
        gap = longest - len(prompt)
        padding, seen = [pad] * gap, [1] * len(prompt)
        ids.append([*prompt, *padding] if is_seq2seq else [*padding, *prompt])
        mask.append([*seen, *([0] * gap)] if is_seq2seq else [*([0] * gap), *seen])
    return torch.tensor(ids), torch.tensor(mask)


def _read(
    tokenizer: Any, ids: list[int], limits: GenerationLimits, ends: list[int]
) -> GeneratedText:
    """The text of the generated tokens [G] of one row, up to what stops it."""
    length = next((n for n, token in enumerate(ids) if token in ends), None)
    text = _decode(tokenizer, ids[:length])
    positions = [at for stop in limits.stop if (at := text.find(stop)) >= 0]
    is_finished = length is not None or bool(positions) or len(ids) < limits.max_new_tokens
    return GeneratedText(text[: min(positions)] if positions else text, is_finished)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast(str, text)


class FiniteLogits(LogitsProcessor):
    """Raises CheckpointError for logits that are not finite; changes nothing."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        check_finite(scores)
        return scores


class _StopStrings(StoppingCriteria):
    """Stops each row whose generated text has one of the strings."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int) -> None:
        self._tokenizer, self._stop, self._start = tokenizer, stop, start

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = [_decode(self._tokenizer, row) for row in input_ids[:, self._start :].tolist()]
        stopped = [any(stop in text for stop in self._stop) for text in texts]
        return torch.tensor(stopped, device=input_ids.device)
