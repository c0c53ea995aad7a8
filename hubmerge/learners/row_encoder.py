"""How the rows of a task of language become tokens of a model, for training and for evaluation.

A row is one sequence: the prompt, which is read, and then tokens that are predicted, of which those
with a label count. Ranking has several such continuations of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hubmerge.errors import DataError
from hubmerge.learners.pair_encoder import PairEncoder, TokenPair
from hubmerge.refs import printable
from hubmerge.tasks.examples import LanguageExample, RankExample, TargetExample

IGNORED = -100  # the label that transformers and cross_entropy ignore


@dataclass(frozen=True)
class EncodedRow:
    """The tokens of a prompt and of what may follow it; `labels` are `targets` or IGNORED.

    `answer` is the index of the correct target, -1 if there are no choices.
    """

    prompt: list[int]
    targets: list[list[int]]
    labels: list[list[int]]
    answer: int = -1
    is_truncated: bool = False
    is_aligned: bool = True


@dataclass(frozen=True)
class RowEncoder:
    """Rows as tokens: prompts and answers of at most `max_tokens` tokens each.

    `max_positions` is how many tokens a decoder can read in total, None for no limit.
    """

    pairs: PairEncoder
    max_tokens: int
    max_positions: int | None = None

    @property
    def settings(self) -> tuple[object, ...]:
        """What decides the tokens of a row, besides the tokenizer."""
        pairs = self.pairs
        return self.max_tokens, self.max_positions, pairs.is_seq2seq, pairs.join, pairs.eos

    def encode(self, example: LanguageExample) -> EncodedRow:
        """The tokens of a row; raises DataError for an answer that is too long or has no tokens."""
        if isinstance(example, RankExample):
            return self._encode_pairs(example.prompt, example.choices, example.answer)
        return self._encode_pairs(example.prompt, [example.target], -1)

    def encode_for_training(self, example: LanguageExample) -> EncodedRow:
        """The tokens of a row with its correct answer alone; raises the same as `encode`."""
        if isinstance(example, RankExample):
            return self.encode(TargetExample(example.prompt, example.target))
        return self.encode(example)

    def _encode_pairs(self, prompt: str, answers: Sequence[str], answer: int) -> EncodedRow:
        pairs = [self.pairs.encode(prompt, each) for each in answers]
        for text, pair in zip(answers, pairs, strict=True):
            self._check_length(text, pair)
        targets = [pair.answer for pair in pairs]
        limit = self.max_tokens
        if self.max_positions is not None:
            limit = min(limit, self.max_positions - max(map(len, targets)))
        read = self.pairs.truncate(pairs[0].prompt, pairs[0].fixed, limit)
        is_truncated = len(read) < len(pairs[0].prompt)
        is_aligned = all(pair.is_aligned for pair in pairs)
        return EncodedRow(read, targets, targets, answer, is_truncated, is_aligned)

    def _check_length(self, answer: str, pair: TokenPair) -> None:
        limit = min(self.max_tokens, (self.max_positions or self.max_tokens + 1) - 1)
        if len(pair.answer) > limit:
            raise DataError(
                f"The answer {printable(answer[:40])!r} ... has {len(pair.answer)} tokens; the "
                f"limit is {limit}.",
                "Raise `max_tokens:` in the task's YAML, or shorten the answer.",
            )
