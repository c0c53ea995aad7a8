"""lm_eval's interface to a model, with likelihoods and stop strings computed in fewer steps.

Tokens, truncation, the order of batches and the judging of texts are those of its `HFLM`, and so
are the numbers up to rounding. Imported only where tasks of lm_eval are measured, as it imports it.
Shapes: B sequences, L tokens of the longest, K of them whose logits are needed, T scored tokens, V
vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import env
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from hubmerge.learners.classification import check_finite
from hubmerge.learners.generation import FiniteLogits, StopStrings

_LOG = logging.getLogger("lm_eval.models.huggingface")
# A task writes one template for all of its rows, which lm_eval would compile for each of them.
env.from_string = lru_cache(maxsize=256)(env.from_string)
# What lm_eval scores: a key, and the tokens of a context and of its continuation.
TokenRequest = tuple[Any, list[int], list[int]]
TokenPairs = MutableMapping[tuple[str, str], tuple[list[int], list[int]]]


class LmEvalHarness(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """A model that is open already, as lm_eval asks it.

    `pairs` keeps the tokens of contexts and continuations, which do not change with the weights.
    Raises CheckpointError for logits that are not finite.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, pairs: TokenPairs) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._pairs, self._keeps_logits = pairs, _takes(model, "logits_to_keep")

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        key = context, continuation
        if key not in self._pairs:
            self._pairs[key] = super()._encode_pair(context, continuation)
        return self._pairs[key]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[TokenRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is what greedy decoding gives."""
        if self.backend != "causal":
            answers = super()._loglikelihood_tokens(requests, True, override_bs)
            check_finite(torch.tensor([value for value, _ in answers]))
            return cast("list[tuple[float, bool]]", answers)
        # Continuations that differ in their last token are read off the same sequence.
        by_tokens: dict[tuple[int, ...], list[int]] = {}
        for number, request in enumerate(requests):
            by_tokens.setdefault(self._read_tokens(request), []).append(number)
        longest_first = sorted(by_tokens, key=len, reverse=True)
        answers_by_number: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(longest_first), self.batch_size):
            batch = longest_first[start : start + self.batch_size]
            asked = [(row, n) for row, tokens in enumerate(batch) for n in by_tokens[tokens]]
            continuations = [(row, requests[number][2]) for row, number in asked]
            answers = self._score(batch, continuations)
            answers_by_number.update(zip((number for _, number in asked), answers, strict=True))
        return [answers_by_number[number] for number in range(len(requests))]

    def _read_tokens(self, request: TokenRequest) -> tuple[int, ...]:
        """The tokens that the model reads: all but the last, cut at the left if there are many."""
        _, context, continuation = request
        if not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, and the model reads at most "
                f"{self.max_length}"
            )
        tokens = [*context, *continuation]
        if len(tokens) > self.max_length + 1:
            _LOG.warning(
                "A question of %d tokens is truncated to the last %d.", len(tokens), self.max_length
            )
        return tuple(tokens[-(self.max_length + 1) : -1])

    def _score(
        self, batch: Sequence[tuple[int, ...]], continuations: Sequence[tuple[int, list[int]]]
    ) -> Iterator[tuple[float, bool]]:
        """The answer for each continuation, given as the index of its sequence and its tokens."""
        longest = max(map(len, batch))
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        rows, positions, targets = list[int](), list[int](), list[int]()
        for row, continuation in continuations:
            rows += [row] * len(continuation)
            positions += range(len(batch[row]) - len(continuation), len(batch[row]))
            targets += continuation
        logits = self._last_logits(ids, longest - min(positions))
        # Prompts that were learned come before the tokens, and only the last logits are kept.
        columns = torch.tensor(positions) + logits.shape[1] - longest
        scored = logits[torch.tensor(rows), columns]  # [T, V]
        check_finite(scored)
        wanted = torch.tensor(targets, device=scored.device)
        log_probs = scored.log_softmax(dim=-1, dtype=self.softmax_dtype)
        values = log_probs.gather(1, wanted.unsqueeze(1)).squeeze(1).cpu()
        is_greedy = (scored.argmax(dim=-1) == wanted).cpu()
        lengths = [len(continuation) for _, continuation in continuations]
        parts = torch.split(values, lengths), torch.split(is_greedy, lengths)
        for part, greedy in zip(*parts, strict=True):
            yield float(part.sum()), bool(greedy.all())

    def _last_logits(self, ids: Tensor, count: int) -> Tensor:
        """At least the last `count` logits of each sequence [B, K, V], where the model can."""
        options = {"logits_to_keep": count} if self._keeps_logits else {}
        output = self.model(ids.to(self.device), use_cache=False, **options)
        return cast(Tensor, output.logits)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **options: Any
    ) -> Tensor:
        """Greedy texts, each up to its own first stop string, as of lm_eval in batches of one."""
        options.pop("temperature", None)
        start = context.shape[1] if self.backend == "causal" else 0
        stopping = StopStrings(self.tokenizer, stop, start, skip_special=False)
        output = self.model.generate(
            input_ids=context,
            max_length=max_length,
            stopping_criteria=StoppingCriteriaList([stopping]),
            logits_processor=LogitsProcessorList([FiniteLogits()]),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **options,
        )
        return cast(Tensor, output)


def _takes(model: Any, option: str) -> bool:
    """Whether the forward of a model, or of the one below its adapter, has an option."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return option in inspect.signature(inner.forward).parameters
