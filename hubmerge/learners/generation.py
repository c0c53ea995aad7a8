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

_SLACK = 4  # tokens more than the bytes of a stop string, for tokens without a text


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
    stopping = StopStrings(tokenizer, limits.stop, start, skip_special=True)
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


class StopStrings(StoppingCriteria):
    """Stops each row whose generated text has one of the strings.

    Only the last tokens of a row are read, and only where its newest one can end a string. A row
    that is stopped a token late is cut at the string all the same by whoever reads its text.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int, skip_special: bool) -> None:
        self._tokenizer, self._stop, self._start = tokenizer, tuple(filter(None, stop)), start
        self._skip_special = skip_special
        self._window = max((len(text.encode()) for text in self._stop), default=0) + _SLACK
        self._last_characters = frozenset(text[-1] for text in self._stop)
        self._can_end: dict[int, bool] = {}
        self._stopped: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        last = input_ids[:, self._start :][:, -self._window :].tolist()
        before = self._stopped or [False] * len(last)
        self._stopped = [was or self._ends(row) for was, row in zip(before, last, strict=True)]
        return torch.tensor(self._stopped, device=input_ids.device)

    def _ends(self, ids: list[int]) -> bool:
        """Whether the text of these tokens has one of the strings."""
        if not ids or not self._may_end(ids[-1]):
            return False
        text = self._tokenizer.decode(ids, skip_special_tokens=self._skip_special)
        return any(stop in text for stop in self._stop)

    def _may_end(self, token: int) -> bool:
        """Whether a token has the last character of a string, or a part of a character."""
        if token not in self._can_end:
            text = self._tokenizer.decode([token])
            # Some tokenizers write no space before the first word of a text.
            found = self._last_characters & {*text, " "}
            self._can_end[token] = bool(found) or "\N{REPLACEMENT CHARACTER}" in text
        return self._can_end[token]
